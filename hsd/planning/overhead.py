"""What a reply takes outside model passes: drawing, judging, text. Fitted on whole replies and added to the passes.

Small models make it matter: where a draft's pass takes a quarter of a millisecond, drawing from it is no detail. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hsd.planning.tables import Floats
from hsd.types import LOOKUP

USUAL = (0.03, 0.08, 0.12, 0.01)
"""ms per drawn draft token, pass of a middle level, round of the target, and row of a verifying pass: the shape to
start from. Only the ratios matter where there is anything to fit."""

_RIDGE = 4.0  # replies' worth of weight on that shape


@dataclass(frozen=True, slots=True)
class Work:
    """What one reply did, and the time it spent outside model passes.

    Args:
        drafted: tokens drawn by a model that is the first level of its chain.
        middle: passes of levels between the first and the target.
        rounds: passes of the target.
        rows: positions that verifying levels read.
        outside_ms: time of the reply after its prompt, model passes not counted.
    """

    drafted: int
    middle: int
    rounds: int
    rows: int
    outside_ms: float


@dataclass(frozen=True, slots=True)
class Overhead:
    """ms outside model passes: per drawn draft token, middle pass, round of the target, and row that is judged."""

    draft_ms: float = 0.0
    middle_ms: float = 0.0
    round_ms: float = 0.0
    row_ms: float = 0.0


def fit_overhead(replies: Sequence[Work]) -> Overhead:
    """Least squares over replies, relative to each reply's own time, no term below 0; nothing gives zeros.

    Replies far off the others (something else ran) are left out. Terms that the replies do not tell apart keep the
    ratios of `USUAL`.
    """
    counts = np.array([[w.drafted, w.middle, w.rounds, w.rows] for w in replies], dtype=np.float64).reshape(-1, 4)
    times = np.array([w.outside_ms for w in replies], dtype=np.float64)
    usable = np.isfinite(times) & (times > 0) & (counts[:, 2] > 0)
    counts, times = counts[usable], times[usable]
    if not times.size:
        return Overhead()
    usual = np.array(USUAL)
    scale = times / (counts @ usual)
    middle = float(np.median(scale))
    near = scale < 3 * middle
    prior = usual * middle
    rows = counts[near] / times[near, None]  # relative errors, so that long replies are not all that counts
    return Overhead(*(_nonnegative(rows * prior, np.ones(near.sum()), _RIDGE / 100) * prior).tolist())


def with_overhead(costs: Mapping[str, Sequence[float]], overhead: Overhead) -> dict[str, list[float]]:
    """Costs of passes with what happens around them.

    A draft's pass of width 1 draws a token; wider passes verify. The target's passes of any width are rounds.
    """
    target = list(costs)[-1]
    out: dict[str, list[float]] = {}
    for name, ms in costs.items():
        if name == LOOKUP:
            out[name] = list(ms)
            continue
        fixed = overhead.round_ms if name == target else overhead.middle_ms
        out[name] = [cost + fixed + overhead.row_ms * width for width, cost in enumerate(ms, 1)]
        if name != target:
            out[name][0] = ms[0] + overhead.draft_ms
    return out


def _nonnegative(a: Floats, b: Floats, ridge: float) -> Floats:
    """x >= 0 that minimizes |a x - b|² / rows + ridge |x - 1|², by coordinate descent."""
    gram = a.T @ a / len(a) + ridge * np.eye(a.shape[1])
    right = a.T @ b / len(a) + ridge
    x = np.ones(a.shape[1])
    for _ in range(500):
        for i in range(len(x)):
            x[i] = max(0.0, x[i] + (right[i] - gram[i] @ x) / gram[i, i])
    return x
