"""Acceptances from aggregates of replies: decay by scored tokens, never by the clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from hsd.stats.records import AcceptanceEstimate

RUNS = 1.6
"""How much wider an error is than for independent positions: root of (1 + r) / (1 - r) at autocorrelation r = 0.42."""

BORROWED_ERROR = 0.05
"""Standard error added, in squares, where another temperature's acceptance stands in."""

NEWEST = 60
"""Scored positions that a change has to show in."""

BETWEEN = 0.12
"""Least standard deviation of acceptance between replies of one kind of work, however many positions they have."""

CLEAR, DOUBT = 0.15, 3.5
"""How far the newest must be from what was before to count as a change: in acceptance, and in standard errors."""

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
    found = {pair: current(group, half_life_tokens) for pair, group in own.items()}
    for pair, group in others.items():
        if pair not in found:
            found[pair] = _borrowed(decayed(group, half_life_tokens))
    return found


def current(newest_first: list[Aggregate], half_life_tokens: float) -> AcceptanceEstimate:
    """Estimate from as many replies as agree with the newest ones.

    A draft that was replaced, or work of another kind, is not averaged away by what came before: where, going back in
    time in steps that double, a stretch of replies differs beyond doubt from the newest `NEWEST` positions, what is
    older than the change does not count.
    """
    ends = np.cumsum([a.positions for a in newest_first])
    first = int(np.searchsorted(ends, NEWEST)) + 1
    newest, begin, size = newest_first[:first], first, NEWEST
    while begin < len(newest_first):
        end = max(begin + 1, int(np.searchsorted(ends, ends[begin - 1] + size)) + 1)
        if _contradict(newest, newest_first[begin:end]):
            return replace(decayed(newest_first[: _split(newest_first[:end])], half_life_tokens), moved=True)
        begin, size = end, 2 * size
    return decayed(newest_first, half_life_tokens)


def _split(newest_first: list[Aggregate]) -> int:
    """How many of the newest replies lie behind the change: where the two sides differ most for their numbers."""
    count = np.cumsum([a.positions for a in newest_first], dtype=np.float64)
    total = np.cumsum([a.total for a in newest_first])
    newer, older = count[:-1], count[-1] - count[:-1]
    apart = total[:-1] / newer - (total[-1] - total[:-1]) / older
    return int(np.argmax(newer * older * apart**2)) + 1


def _contradict(newest: list[Aggregate], older: list[Aggregate]) -> bool:
    """Whether two stretches of replies can hardly have one acceptance.

    Replies differ for more reasons than the number of their positions: by `BETWEEN`, or by as much as those of either
    stretch differ among themselves, where that is more. Small talk has easy and hard replies in turn.
    """
    means = [np.array([a.total / a.positions for a in group]) for group in (newest, older)]
    freedom = len(newest) + len(older) - 2
    among = sum(float(((m - m.mean()) ** 2).sum()) for m in means) / freedom if freedom else 0.0
    rates, errors = [], []
    for group in (newest, older):
        count = sum(a.positions for a in group)
        rate = sum(a.total for a in group) / count
        spread = max(0.0, sum(a.squares for a in group) / count - rate**2) + SPREAD_PRIOR**2 / count
        rates.append(rate)
        errors.append(RUNS**2 * spread / count + max(BETWEEN**2, among) / len(group))
    apart = abs(rates[0] - rates[1])
    return apart > CLEAR and apart > DOUBT * float(np.sqrt(sum(errors)))


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
