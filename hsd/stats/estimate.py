"""Acceptances from aggregates of replies: decay by scored tokens, never by the clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hsd.stats.records import AcceptanceEstimate

RUNS = 1.6
"""How much wider an error is than for independent positions: root of (1 + r) / (1 - r) at autocorrelation r = 0.42."""

BORROWED_ERROR = 0.05
"""Standard error added, in squares, where another temperature's acceptance stands in."""

SPREAD_PRIOR = 0.25
"""Spread to assume for a pair whose few positions do not differ."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Scored positions of one pair in one reply: their number, the sum of their overlaps and of its squares."""

    bucket: str
    positions: int
    total: float
    squares: float


def estimates(
    rows: Iterable[tuple[tuple[str, str], Aggregate]], bucket: str, half_life_tokens: float
) -> dict[tuple[str, str], AcceptanceEstimate]:
    """Estimate per pair from aggregates, newest first; other buckets stand in only where `bucket` has none."""
    own: dict[tuple[str, str], list[Aggregate]] = {}
    others: dict[tuple[str, str], list[Aggregate]] = {}
    for pair, aggregate in rows:
        if aggregate.positions > 0:
            (own if aggregate.bucket == bucket else others).setdefault(pair, []).append(aggregate)
    found = {pair: decayed(group, half_life_tokens) for pair, group in own.items()}
    for pair, group in others.items():
        if pair not in found:
            found[pair] = _borrowed(decayed(group, half_life_tokens))
    return found


def decayed(newest_first: list[Aggregate], half_life_tokens: float) -> AcceptanceEstimate:
    """Estimate from the aggregates of one pair; a position that has `half_life_tokens` newer ones weighs half."""
    count = np.array([a.positions for a in newest_first], dtype=np.float64)
    total = np.array([a.total for a in newest_first])
    squares = np.array([a.squares for a in newest_first])
    step = 0.5 ** (1.0 / half_life_tokens)
    newer = np.concatenate([[0.0], np.cumsum(count)[:-1]])
    weight = step**newer * (1 - step**count) / (1 - step)  # of all positions of a reply together
    mean = total / count
    share = weight / weight.sum()
    rate = float(share @ mean)
    spread = float(np.sqrt(max(0.0, share @ (squares / count) - rate**2)))
    # Weights of single positions fall off geometrically: sum of weights squared over sum of squared weights.
    effective = (1 + step) / (1 - step) * (1 - step ** count.sum()) / (1 + step ** count.sum())
    within = RUNS * max(spread, SPREAD_PRIOR if effective < 30 else 0.0) / np.sqrt(effective)
    between = float(np.sqrt((share**2) @ (mean - rate) ** 2)) if len(newest_first) > 2 else 0.0
    return AcceptanceEstimate(min(1.0, max(0.0, rate)), int(count.sum()), spread, float(max(within, between)))


def _borrowed(estimate: AcceptanceEstimate) -> AcceptanceEstimate:
    error = float(np.hypot(estimate.standard_error, BORROWED_ERROR))
    return AcceptanceEstimate(estimate.rate, estimate.positions, estimate.spread, error, borrowed=True)
