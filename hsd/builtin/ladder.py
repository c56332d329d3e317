"""Which sizes make a good ladder? `python -m hsd.builtin.ladder`: measured step times, assumed acceptances, best plans.

Models of every candidate size are made with random weights, because what a step costs does not depend on what was
learnt. What does depend on it, the acceptance, is assumed, and the table says how.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hsd.bench.llama_cpp import write
from hsd.builtin.models import VOCABULARY, Shape, build, size
from hsd.builtin.tokenizer import CONTEXT
from hsd.planning import Acceptances, best_plan
from hsd.runtime import MAX_WIDTH, LlamaCppModel
from hsd.runtime.costs import StepCosts
from hsd.runtime.llama_cpp.library import library
from hsd.types import LOOKUP, Plan

CANDIDATES: dict[str, Shape] = {
    "0.7M": Shape(width=128, layers=1, inner=384),
    "1.7M": Shape(width=192, layers=2, inner=512),
    "2.6M": Shape(width=192, layers=4, inner=512),
    "4M": Shape(width=256, layers=4, inner=640),
    "8M": Shape(width=320, layers=6, inner=704),
    "11M": Shape(width=384, layers=6, inner=896),
    "26M": Shape(width=512, layers=8, inner=1280),
    "48M": Shape(width=640, layers=10, inner=1536),
}
"""Cheapest first; the last one is the target."""


@dataclass(frozen=True)
class Assumed:
    """Acceptance as a function of how many times larger the verifier is: `same - slope · log2(ratio)`.

    Args:
        same: what a draft would reach that is as large as its verifier.
        slope: what every doubling costs.
        lookup: acceptance of the lookup level by every model.
    """

    same: float
    slope: float
    lookup: float

    def table(self, sizes: Mapping[str, int]) -> dict[tuple[str, str], float]:
        """(draft, verifier) -> acceptance, for models given cheapest first."""
        found = {
            (a, b): min(0.99, max(0.05, self.same - self.slope * math.log2(sizes[b] / sizes[a])))
            for a, b in combinations(sizes, 2)
        }
        return found | {(LOOKUP, name): self.lookup for name in sizes}


ASSUMPTIONS: dict[str, Assumed] = {
    "aim": Assumed(same=0.965, slope=0.061, lookup=0.08),
    "flat": Assumed(same=0.815, slope=0.012, lookup=0.08),
}
"""aim: through 0.60, 0.71 and 0.80 by the target for drafts of 0.7M, 2.6M and 8M; flat: through what was measured at
T = 0.7 for the family shipped in November 2026, whose target had seen little text."""


@dataclass(frozen=True)
class Ladder:
    """Some drafts under the target: the best plan, and the best plan with one model as the only draft."""

    drafts: tuple[str, ...]
    plan: Plan
    ms: float
    single: Plan
    single_ms: float
    plain_ms: float


def ladders(
    costs: Mapping[str, Sequence[float]], acceptances: Acceptances, drafts: int, smallest: str | None = None
) -> list[Ladder]:
    """Every choice of so many drafts, best first.

    Args:
        costs: model -> ms at width 1, 2, …; cheapest first, the target last. A lookup costs 0.02 ms.
        acceptances: (draft, verifier) -> acceptance.
        drafts: how many models are drafts.
        smallest: a draft that every ladder has.
    Returns:
        the best single draft is that of all models, on the ladder or not.
    """
    *names, target = costs
    plain = costs[target][0]
    alone = [_best(costs, acceptances, (name,), target) for name in names]
    single, single_ms = min(alone, key=lambda found: found[1])
    found = []
    for chosen in combinations(names, drafts):
        if smallest in (None, *chosen):
            plan, ms = _best(costs, acceptances, chosen, target)
            found.append(Ladder(chosen, plan, ms, single, single_ms, plain))
    return sorted(found, key=lambda ladder: ladder.ms)


def distinct(found: Sequence[Ladder]) -> list[Ladder]:
    """The first ladder of every plan: a draft that the plan does not use could be any other."""
    return list({str(one.plan): one for one in reversed(found)}.values())[::-1]


def _best(
    costs: Mapping[str, Sequence[float]], acceptances: Acceptances, drafts: Sequence[str], target: str
) -> tuple[Plan, float]:
    table = {LOOKUP: [0.02] * MAX_WIDTH} if len(drafts) > 1 else {}  # one draft is meant to be one draft
    table |= {name: list(costs[name]) for name in (*drafts, target)}
    return best_plan(table, {pair: a for pair, a in acceptances.items() if set(pair) <= set(table)})


def measure(shapes: Mapping[str, Shape], repeats: int = 9) -> dict[str, list[float]]:
    """ms of a pass of width 1 to 16 behind 128 tokens by llama.cpp on this machine, weights in Q8_0."""
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in tqdm(shapes.items(), desc="step times", disable=None):
            file = Path(folder) / f"{name}.gguf"
            write(build(shape, VOCABULARY, seed=0), file, "Q8_0")
            steps = StepCosts(LlamaCppModel(name, file, CONTEXT, library()))
            steps.measure(buckets=(0,), repeats=repeats)
            costs[name] = steps.table()
    return costs


def main(arguments: list[str] | None = None) -> int:
    """Print step times and the best ladders. Returns the exit status."""
    p = argparse.ArgumentParser(prog="python -m hsd.builtin.ladder", description=__doc__)
    p.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), help="the last: the target")
    p.add_argument("--drafts", type=int, default=3)
    p.add_argument("--assume", nargs=3, type=float, metavar=("SAME", "SLOPE", "LOOKUP"), help="instead of both kinds")
    p.add_argument("--top", type=int, default=4, help="ladders shown")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--json", action="store_true", help="one JSON object on the last line")
    a = p.parse_args(arguments)
    if a.threads:
        torch.set_num_threads(a.threads)
    shapes = {name: CANDIDATES[name] for name in CANDIDATES if name in a.candidates}
    costs = measure(shapes)
    found: dict[str, Any] = {"costs_ms": costs, "ladders": {}}
    print("| model | " + " | ".join(f"w = {w}" for w in (1, 2, 3, 5, 9, 16)) + " |\n" + "|---" * 7 + "|")
    for name, row in costs.items():
        print(f"| {name} | " + " | ".join(f"{row[w - 1]:.2f}" for w in (1, 2, 3, 5, 9, 16)) + " |")
    assumptions = {"given": Assumed(*a.assume)} if a.assume else ASSUMPTIONS
    for kind, assumed in assumptions.items():
        table = assumed.table({name: size(shape) for name, shape in shapes.items()})
        best = distinct(ladders(costs, table, a.drafts, smallest=next(iter(shapes))))[: a.top]
        print(f"\nacceptance assumed: {kind}\n| drafts | best plan | against plain | against the best single draft |")
        print("|---|---|---|---|")
        for one in best:
            gain = f"{one.plain_ms / one.ms:.2f}× | {one.single_ms / one.ms:.2f}× ({one.single})"
            print(f"| {', '.join(one.drafts)} | `{one.plan}` | {gain} |")
        found["ladders"][kind] = [[one.drafts, str(one.plan), one.ms, str(one.single), one.single_ms] for one in best]
    if a.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
