"""Where the optimal hierarchy beats the best single draft, and by how much: arithmetic, no models."""

from __future__ import annotations

from typing import Any

from hsd import planning
from hsd.bench import BenchRequest, svg

ACCEPTANCES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Chance that the target accepts a token of the larger draft."""

RATIOS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""How many passes of the larger draft a pass of the target costs."""

TINY, KEPT, BELOW = 8.0, 0.85, 0.85
"""The smaller draft: its passes cost an eighth of the larger one's; the target accepts 0.85 times as many of its tokens
as of the larger draft's; the larger draft accepts 0.85 of them."""

COLUMN = 0.01
"""What one more column adds to a pass, as a share of it: memory-bound passes are nearly flat in the width."""

LONGEST = 16
"""Largest threshold of either side: a bound at 8 would hold the single draft back where acceptance is high."""

WORKED = (
    {
        "lookup": [0.02],
        "A": [1.2 + 0.02 * w for w in range(1, 17)],
        "B": [2.4 + 0.03 * w for w in range(1, 17)],
        "target": [14 + 0.15 * w for w in range(1, 17)],
    },
    {
        ("lookup", "A"): 0.35,
        ("lookup", "B"): 0.30,
        ("lookup", "target"): 0.25,
        ("A", "B"): 0.85,
        ("A", "target"): 0.72,
        ("B", "target"): 0.82,
    },
)
"""Costs (ms by width) and acceptances of the case that the method's description works out."""


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench map`: seconds; with --out also the picture."""
    worked = best_by_depth(*WORKED)
    plain = worked[0][1]
    ask.tell("The worked case, ms per token and times faster than plain decoding:")
    for plan, ms in worked:
        ask.tell(f"   {plan:32} {ms:6.3f}  {plain / ms:.3f}×")
    ratios = RATIOS[1::3] if ask.quick else RATIOS
    cells = [[cell(rate, ratio) for rate in ACCEPTANCES] for ratio in ratios]
    ask.tell("\nBest hierarchy over best single draft. Down: target / larger draft in cost; across: acceptance.")
    ask.tell("        " + " ".join(f"{rate:5.2f}" for rate in ACCEPTANCES))
    for ratio, row in zip(ratios, cells, strict=True):
        ask.tell(f"   {ratio:4} " + " ".join(f"{one['gain']:5.2f}" for one in row))
    most = max((one for row in cells for one in row), key=lambda one: one["gain"])
    ask.tell(f"At most {most['gain']:.2f}×: {most['hierarchy']} over {most['single']}.")
    if ask.out is not None:
        ask.out.mkdir(parents=True, exist_ok=True)
        (ask.out / "map.svg").write_text(picture(ratios, cells), encoding="utf-8")
    return {
        "worked": [{"plan": plan, "ms_per_token": ms, "speedup": plain / ms} for plan, ms in worked],
        "acceptances": ACCEPTANCES,
        "ratios": ratios,
        "cells": cells,
        "most": most,
    }


def best_by_depth(costs: planning.Costs, acceptances: planning.Acceptances) -> list[tuple[str, float]]:
    """Plain decoding and the best plan with one, two, three … drafts: plan and ms per token."""
    found: dict[int, planning.Ranked] = {}
    for ranked in planning.ranking(costs, acceptances, LONGEST):
        depth = len(ranked.plan.drafts)
        if depth not in found or ranked.ms_per_token < found[depth].ms_per_token:
            found[depth] = ranked
    return [(str(found[depth].plan), found[depth].ms_per_token) for depth in sorted(found)]


def cell(rate: float, ratio: float) -> dict[str, Any]:
    """One family of two drafts and a target; its best hierarchy against its best single draft."""
    target = 1.0
    costs = {
        name: [ms * (1 + COLUMN * (width - 1)) for width in range(1, 17)]
        for name, ms in (("small", target / ratio / TINY), ("medium", target / ratio), ("target", target))
    }
    rates = {("small", "medium"): BELOW, ("small", "target"): KEPT * rate, ("medium", "target"): rate}
    (_, plain), (single, single_ms), (double, double_ms) = best_by_depth(costs, rates)
    hierarchy, ms = min(((double, double_ms), (single, single_ms)), key=lambda found: found[1])
    return {
        "acceptance": rate,
        "ratio": ratio,
        "single": single,
        "hierarchy": hierarchy,
        "single_speedup": plain / single_ms,
        "speedup": plain / ms,
        "gain": single_ms / ms,
    }


def picture(ratios: tuple[int, ...], cells: list[list[dict[str, Any]]]) -> str:
    """The map as SVG."""
    return svg.grid(
        "Best hierarchy over best single draft, times faster",
        "acceptance of the larger draft by the target",
        "target / larger draft in cost",
        [f"{rate:.2f}" for rate in ACCEPTANCES],
        [str(ratio) for ratio in ratios],
        [[one["gain"] for one in row] for row in cells],
    )
