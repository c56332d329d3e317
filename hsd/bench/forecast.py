"""How well the cost of a plan is foretold: fitted on some prompts, frozen, then measured on others.

Two forecasts side by side: the exact formula for independent acceptance, and the replay of stored positions. Both use
the same step times. Every plan decodes every prompt, in an order drawn anew for every prompt, so that a slow moment
of the machine hits no plan alone.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from hsd import planning
from hsd.bench import BenchRequest
from hsd.bench.progress import Journal
from hsd.bench.workloads import JUDGE, LEARN
from hsd.params import SamplingParams
from hsd.types import LOOKUP, Plan, Reply

if TYPE_CHECKING:
    from hsd.engine import Engine

PLANS = 24
"""Plans besides plain decoding that are measured."""

REPEATS = 3
"""Times that a plan decodes a prompt: what other programs do in the meantime shall not count."""

PAUSE = 0.02
"""Seconds before every reply: as in a chat, and while numbers are fitted, it does not follow right behind another one.
There it would be up to a tenth faster, since the processor's caches still hold what it needs."""

FIT_PLANS = 6
"""Plans that take turns while the numbers are fitted, so that every role of every model is timed in place."""


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench forecast`: ends where it was, if it was cut off and is started again with the same --out."""
    length, each, count = (48, 2, 8) if ask.quick else (96, 10, PLANS)
    journal = Journal(ask.out, "forecast")
    out: dict[str, Any] = {"prompts": each * len(JUDGE)}
    with ask.engine() as engine:
        engine.learner.allowance.share = 1.0  # all replies of the fit are scored, as they would be in a day of chatting
        out |= {"family": engine.info.name, "device": engine.info.device}
        plans = plans_of([LOOKUP, *engine.info.models], count)
        for temperature in (0.7, 0.0):
            name = f"T={temperature:g}"
            frozen = journal.once(f"{name} forecasts", partial(fit, engine, temperature, plans, length, ask.quick))
            for turn, (category, text) in enumerate(_prompts(each)):
                work = partial(measure, engine, temperature, category, text, plans, length, turn)
                journal.once(f"{name} {text}", work)
            rows = [row for _, text in _prompts(each) for row in journal.known[f"{name} {text}"]]
            out[name] = figures(frozen, rows)
            _tell(ask, name, out[name])
    return out


def plans_of(levels: list[str], count: int) -> list[Plan]:
    """Plain decoding and `count` plans of one, two and three drafts, short and long blocks, spread over all chains."""
    *drafts, target = levels
    found: list[Plan] = []
    for thresholds in (((2,), (6,), (4,)), ((2, 3), (4, 4), (3, 8)), ((2, 2, 3),)):
        chains = list(itertools.combinations(drafts, len(thresholds[0])))
        found += [Plan.of([*chain, target], chosen) for chosen in thresholds for chain in chains]
    # Every k-th of all of them, so that a smaller count still has all kinds.
    step = max(1.0, len(found) / count)
    kept = [found[int(i * step)] for i in range(min(count, len(found)))]
    return [Plan(target), *kept]


def fit(engine: Engine, temperature: float, plans: list[Plan], length: int, quick: bool) -> dict[str, Any]:
    """Decodes the prompts to learn from, scores the replies, and forecasts every plan; ms per token."""
    turn = itertools.cycle(plans[:: max(1, len(plans) // FIT_PLANS)])
    # Categories in turn: one after the other they would look like a draft whose acceptance has moved.
    for number, text in enumerate(t for texts in zip(*LEARN.values(), strict=True) for t in texts):
        if quick and number == 2 * len(LEARN):
            break
        params = SamplingParams(temperature=temperature, max_tokens=length, seed=number)
        for _ in range(1 if quick or temperature == 0 else 2):
            engine.forget()
            engine.generate(text, params, plan=next(turn), early_stop=False)
            while engine.learn():
                pass
    planner = engine.planner
    costs = planner.profile.costs(temperature == 0)
    measured = planner.evidence.rates(temperature)
    sequences = planner.evidence.sequences(temperature, last=200)
    replayed = planning.replay(plans, costs, sequences, ends=True)
    return {
        "positions": sum(len(next(iter(s.values()))) for s in sequences),
        "costs_ms": costs,
        "overhead_ms": [round(v, 4) for v in _values(planner.profile.overhead(temperature == 0))],
        "acceptances": {">".join(pair): rate for pair, rate in measured.items()},
        "iid": {str(p): planning.expected_ms_per_token(p, costs, measured) for p in plans},
        "replay": {str(r.plan): r.ms_per_token for r in replayed},
        "iid_tokens_per_round": {str(p): planning.expected_tokens_per_round(p, costs, measured) for p in plans},
        "replay_tokens_per_round": {str(r.plan): r.tokens_per_round for r in replayed},
    }


def measure(
    engine: Engine, temperature: float, category: str, text: str, plans: list[Plan], length: int, turn: int
) -> list[dict[str, Any]]:
    """One prompt by every plan, in a random order, `REPEATS` times: the same tokens each time, and the median time."""
    found: dict[Plan, list[dict[str, Any]]] = {plan: [] for plan in plans}
    params = SamplingParams(temperature=temperature, max_tokens=length, seed=1000 + turn)
    for repeat in range(REPEATS):
        for plan in random.Random(REPEATS * turn + repeat).sample(plans, len(plans)):
            engine.forget()
            time.sleep(PAUSE)
            found[plan].append(_measured(engine.generate(text, params, plan=plan, early_stop=False)))
    return [
        {
            "category": category,
            "prompt": text,
            "plan": str(plan),
            **sorted(runs, key=lambda run: run["ms"])[len(runs) // 2],
        }
        for plan, runs in found.items()
    ]


def figures(frozen: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors as shares of the measured ms per token: plan by plan over all prompts, by category, and reply by reply."""
    plans = list(frozen["iid"])
    out: dict[str, Any] = {key: frozen[key] for key in ("positions", "overhead_ms", "acceptances")}
    table = {}
    for plan in plans:
        own = [row for row in rows if row["plan"] == plan]
        ms, tokens, rounds = (sum(row[key] for row in own) for key in ("ms", "tokens", "rounds"))
        table[plan] = {
            "measured_ms": ms / tokens,
            "iid_ms": frozen["iid"][plan],
            "replay_ms": frozen["replay"][plan],
            "tokens_per_round": tokens / rounds,
            "iid_tokens_per_round": frozen["iid_tokens_per_round"][plan],
            "replay_tokens_per_round": frozen["replay_tokens_per_round"][plan],
        }
    out["plans"] = table
    plain = plans[0]
    out["plain_drift"] = table[plain]["iid_ms"] / table[plain]["measured_ms"] - 1
    for kind in ("iid", "replay"):
        of_plan = [abs(t[f"{kind}_ms"] / t["measured_ms"] - 1) for p, t in table.items() if p != plain]
        out[kind] = {
            "median_error": statistics.median(of_plan),
            "worst_error": max(of_plan),
            "median_error_by_category": _errors(frozen[kind], rows, lambda row: row["category"]),
            "median_error_by_reply": _errors(frozen[kind], rows, lambda row: row["prompt"]),
            "median_signed": statistics.median(
                t[f"{kind}_ms"] / t["measured_ms"] - 1 for p, t in table.items() if p != plain
            ),
            "median_error_tokens_per_round": statistics.median(
                abs(t[f"{kind}_tokens_per_round"] / t["tokens_per_round"] - 1) for p, t in table.items() if p != plain
            ),
        }
    return out


def _errors(forecasts: dict[str, float], rows: list[dict[str, Any]], key: Any) -> float:
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["plan"], key(row)), []).append(row)
    errors = [
        abs(forecasts[plan] / (sum(r["ms"] for r in own) / sum(r["tokens"] for r in own)) - 1)
        for (plan, _), own in groups.items()
        if ">" in plan
    ]
    return statistics.median(errors)


def _measured(reply: Reply) -> dict[str, Any]:
    stats = reply.stats
    return {
        "ms": 1000 * stats.decode_seconds,
        "outside_ms": 1000 * (stats.decode_seconds - stats.model_seconds),
        "tokens": stats.tokens,
        "rounds": stats.target_passes,
    }


def _values(overhead: planning.Overhead) -> Iterable[float]:
    return overhead.draft_ms, overhead.middle_ms, overhead.round_ms, overhead.row_ms


def _prompts(each: int) -> list[tuple[str, str]]:
    return [(category, text) for category, texts in JUDGE.items() for text in texts[:each]]


def _tell(ask: BenchRequest, name: str, out: dict[str, Any]) -> None:
    ask.tell(
        f"{name}: {out['positions']} positions to learn from; plain forecast off by {100 * out['plain_drift']:+.1f}%"
    )
    for kind in ("iid", "replay"):
        one = out[kind]
        ask.tell(
            f"   {kind:6} median error {100 * one['median_error']:.1f}% over {len(out['plans']) - 1} plans (worst "
            f"{100 * one['worst_error']:.1f}%, signed {100 * one['median_signed']:+.1f}%), by category "
            f"{100 * one['median_error_by_category']:.1f}%, by reply {100 * one['median_error_by_reply']:.1f}%; tokens "
            f"per round {100 * one['median_error_tokens_per_round']:.1f}%"
        )
    for plan, row in out["plans"].items():
        times = "  ".join(f"{kind} {row[f'{kind}_ms']:.3f}" for kind in ("measured", "iid", "replay"))
        ask.tell(f"     {plan:38} {times}")
