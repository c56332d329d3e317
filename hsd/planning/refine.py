"""The best plan by the exact cost: local search around the shortest path, many plans evaluated at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, product

import numpy as np

from hsd.planning.expected import batch_ms, ms_of
from hsd.planning.path import Coded, decode, shortest_paths
from hsd.planning.tables import Acceptances, Costs, Tables, check_threshold, tables
from hsd.types import Plan, Stage

GRID = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 19, 24, 30, 38, 48, 64)
"""Thresholds that short chains are tried with."""

MOST = 2500
"""Plans of three drafts that are tried without further ado."""

NEAR = 1.5
"""Chains that cost this many times the best one are not followed up."""

STARTS = 3
"""Chains that the search starts from."""

BREADTH = 6
"""Chains next to the best one that are followed up in every step of the search."""

WIDE = 8
"""Thresholds up to this are searched completely; above it, around the current value."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A plan and its forecast in ms per token of the reply."""

    plan: Plan
    ms_per_token: float


def best_plan(costs: Costs, acceptances: Acceptances, max_threshold: int = 8) -> tuple[Plan, float]:
    """The best plan found and its exact expected ms per token.

    The shortest paths of every length under the relaxation and the short chains, over a grid of thresholds, are
    evaluated exactly. The best few are refined by thresholds, singly and in neighbouring pairs; then the best of them
    by dropping, inserting or replacing one level, until nothing improves.

    Args:
        costs: model name -> ms at width 1, 2, …; cheapest first, the target last.
        acceptances: (draft, verifier) -> acceptance. A pair that is missing is never used.
        max_threshold: largest threshold to consider, 1 to 64.

    Raises:
        ConfigError: impossible numbers, see `tables`.
    """
    table = tables(costs, acceptances)
    (levels, thresholds), ms = _search(table, check_threshold(max_threshold))
    return decode(table, levels, thresholds), ms


def ranking(
    costs: Costs, acceptances: Acceptances, max_threshold: int = 8, max_drafts: int = 4, limit: int | None = None
) -> list[Ranked]:
    """Every chain at its best thresholds, best first; plain decoding and the answer of `best_plan` always among them.

    Args:
        costs, acceptances, max_threshold: as for `best_plan`.
        max_drafts: chains with more drafts are left out (they are many, and a longer one wins only as `best_plan`).
        limit: keep this many; plain decoding is kept beyond it.

    Raises:
        ConfigError: impossible numbers, see `tables`.
    """
    table = tables(costs, acceptances)
    top = check_threshold(max_threshold)
    best, best_ms = _search(table, top)
    plain: Coded = ((len(table.names) - 1,), ())
    found = dict(_settle(table, _chains(table, top, max_drafts, best), top).values())
    if best not in found:
        found = {coded: ms for coded, ms in found.items() if coded[0] != best[0] or ms < best_ms}
        if all(coded[0] != best[0] for coded in found):
            found[best] = best_ms
    usable = [item for item in found.items() if np.isfinite(item[1])]
    ordered = sorted(usable, key=lambda item: (item[1], len(item[0][0])))
    kept = [item for i, item in enumerate(ordered) if limit is None or i < limit or item[0] == plain]
    return [Ranked(decode(table, *coded), ms) for coded, ms in kept]


def neighbours(plan: Plan, most: int) -> list[Plan]:
    """The plan with one threshold changed by one or two, from 1 to `most`."""
    return [
        Plan(plan.target, (*plan.drafts[:i], Stage(stage.name, stage.threshold + by), *plan.drafts[i + 1 :]))
        for i, stage in enumerate(plan.drafts)
        for by in (-2, -1, 1, 2)
        if 1 <= stage.threshold + by <= most
    ]


def _search(table: Tables, top: int) -> tuple[Coded, float]:
    """The best plan of a local search over chains; every chain is taken at thresholds that no change improves."""
    pool = _short(table, top)
    starts = [coded for coded, _ in shortest_paths(table, top)]
    for (levels, thresholds), ms in zip(starts, ms_of(table, starts).tolist(), strict=True):
        if levels not in pool or ms < pool[levels][1]:
            pool[levels] = (thresholds, ms)
    seen = _settle(table, _nearest(pool, STARTS), top, NEAR)
    while True:
        best = min(seen.values(), key=lambda found: found[1])
        tried = [coded for coded in _structural(table, best[0], top) if coded[0] not in seen]
        pool = {}
        for (levels, thresholds), ms in zip(tried, ms_of(table, tried).tolist(), strict=True):
            if levels not in pool or ms < pool[levels][1]:
                pool[levels] = (thresholds, ms)
        settled = _settle(table, _nearest(pool, BREADTH), top, NEAR)
        seen |= settled
        if not any(ms < best[1] * (1 - 1e-12) for _, ms in settled.values()):
            return best


def _nearest(
    pool: dict[tuple[int, ...], tuple[tuple[int, ...], float]], count: int
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The best few chains of a pool, with their thresholds."""
    return {levels: pool[levels][0] for levels in sorted(pool, key=lambda levels: pool[levels][1])[:count]}


def _settle(
    table: Tables, chains: dict[tuple[int, ...], tuple[int, ...]], top: int, near: float = np.inf
) -> dict[tuple[int, ...], tuple[Coded, float]]:
    """Every chain with thresholds such that changing one, or two neighbours together, no longer helps; all at once.

    A chain that costs more than `near` times the best of them is left where it is.
    """
    if not chains:
        return {}
    current = dict(chains)
    ms = dict(zip(current, ms_of(table, list(current.items())).tolist(), strict=True))
    moving = set(current)
    while moving:
        bound = near * min(ms.values())
        moving = {levels for levels in moving if ms[levels] <= bound}
        tried = [(levels, changed) for levels in moving for changed in _thresholds(current[levels], top)]
        moving = set()
        for (levels, changed), value in zip(tried, ms_of(table, tried).tolist(), strict=True):
            if value < ms[levels] * (1 - 1e-12):
                current[levels], ms[levels] = changed, value
                moving.add(levels)
    return {levels: ((levels, thresholds), ms[levels]) for levels, thresholds in current.items()}


def _values(current: int, top: int) -> list[int]:
    """Thresholds worth trying: all up to `WIDE`, and around the current value above it."""
    near = {current - 4, current - 1, current, current + 1, current + 4, 2 * current, current // 2, top}
    return sorted({t for t in near if t > WIDE and t <= top} | set(range(1, min(WIDE, top) + 1)))


def _thresholds(thresholds: tuple[int, ...], top: int) -> Iterator[tuple[int, ...]]:
    last = len(thresholds) - 1
    for i, now in enumerate(thresholds):
        for value in _values(now, top):
            if value != now:
                yield (*thresholds[:i], value, *thresholds[i + 1 :])
        if i < last:
            for first in (now - 1, now + 1):
                for second in (thresholds[i + 1] - 1, thresholds[i + 1] + 1):
                    if 1 <= first <= top and 1 <= second <= top:
                        yield (*thresholds[:i], first, second, *thresholds[i + 2 :])


def _short(table: Tables, top: int) -> dict[tuple[int, ...], tuple[tuple[int, ...], float]]:
    """Every chain of one or two drafts (three if they are few) at its best thresholds of a grid, complete up to `WIDE`.

    The relaxation knows neither overshoot nor what a pass of 17 costs, so its chains are not always near the best.
    """
    found: dict[tuple[int, ...], tuple[tuple[int, ...], float]] = {}
    grid = [t for t in GRID if t <= top]
    for drafts in (1, 2, 3):
        chains = [levels for levels in _chains(table, top, drafts, ((), ())) if len(levels) == drafts + 1]
        if not chains or (drafts > 2 and len(chains) * len(grid) ** drafts > MOST):
            break
        tried = np.array(list(product(grid, repeat=drafts)), dtype=np.intp)
        ms = batch_ms(table, np.repeat(chains, len(tried), axis=0), np.tile(tried, (len(chains), 1)))
        ms = ms.reshape(len(chains), len(tried))
        for levels, row in zip(chains, ms, strict=True):
            found[levels] = (tuple(tried[row.argmin()].tolist()), float(row.min()))
    return found


def _structural(table: Tables, plan: Coded, top: int) -> Iterator[Coded]:
    """The plan with one level dropped, inserted or replaced, at some thresholds of that place and the level below."""
    levels, thresholds = plan
    usable = np.isfinite(table.edges())

    def fits(chain: tuple[int, ...]) -> bool:
        return all(usable[pair] for pair in pairwise(chain))

    for i, now in enumerate(thresholds):
        dropped = (*levels[:i], *levels[i + 1 :])
        if fits(dropped):
            for below in _values(thresholds[i - 1], top) if i else (0,):
                yield dropped, (*thresholds[: i - 1], below, *thresholds[i + 1 :]) if i else thresholds[1:]
        for new in range(levels[i - 1] + 1 if i else 0, levels[i + 1]):
            replaced = (*levels[:i], new, *levels[i + 1 :])
            if new != levels[i] and fits(replaced):
                for value in _values(now, top):
                    yield replaced, (*thresholds[:i], value, *thresholds[i + 1 :])
    for new in range(len(table.names) - 1):
        at = sum(level < new for level in levels)
        chain = (*levels[:at], new, *levels[at:])
        if new in levels or not fits(chain):
            continue
        for value in _values(thresholds[at] if at < len(thresholds) else WIDE, top):
            for below in {max(1, thresholds[at - 1] - d) for d in (0, 1, 3)} if at else (0,):
                lower = (*thresholds[: at - 1], below) if at else ()
                yield chain, (*lower, value, *thresholds[at:])


def _chains(table: Tables, top: int, max_drafts: int, seed: Coded) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Every chain of up to `max_drafts` drafts, with thresholds to start from."""
    target = len(table.names) - 1
    usable = np.isfinite(table.edges())
    known = dict(zip(*seed, strict=False))
    return {
        (*chosen, target): tuple(known.get(level, min(3, top)) for level in chosen)
        for drafts in range(min(max_drafts, target) + 1)
        for chosen in combinations(range(target), drafts)
        if all(usable[pair] for pair in pairwise((*chosen, target)))
    }
