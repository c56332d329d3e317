"""Stopping by value: whether one more draft token is worth what it costs.

A draft goes on while the chance that everything it holds survives, times the acceptance of a token not yet seen, times
what a token costs the level above, exceeds its own step and one more column of the verifying pass. The chance comes
from the draft's confidence in the tokens it kept, through a map fitted on scored positions. It depends on nothing that
has yet to be drawn, so the output keeps its distribution.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EDGES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
"""Upper ends of the confidence bins but the last: finer where drafts are sure, because most positions lie there."""

_PRIOR_WEIGHT = 8.0  # positions that the overall mean counts for in every bin


@dataclass(frozen=True, slots=True)
class Calibration:
    """Acceptance by confidence.

    Args:
        survival: per bin of `EDGES`, the chance that the verifier accepts; never falls with confidence.
        mean: the chance whatever the confidence.
        positions: scored positions behind it.
    """

    survival: tuple[float, ...]
    mean: float
    positions: int

    def chance(self, confidence: float) -> float:
        """Chance that a token is accepted of which the draft's largest probability was `confidence`."""
        return self.survival[bisect_right(EDGES, confidence)]

    def chances(self, confidences: NDArray[np.floating]) -> NDArray[np.float64]:
        """The same of an array; what is no number counts as the mean."""
        found = np.array(self.survival)[np.searchsorted(EDGES, confidences.astype(np.float64), side="right")]
        return np.where(np.isnan(confidences), self.mean, found)


@dataclass(frozen=True, slots=True)
class StopRule:
    """When the first level of a plan stops drafting before its cap.

    Args:
        calibration: of the first level under the second.
        token_ms: what a token costs the second level now, ms.
        draft_ms: what one more draft token costs: a step and one more column above, ms.
    """

    calibration: Calibration
    token_ms: float
    draft_ms: float

    def pays(self, chance: float) -> bool:
        """Whether another token pays when all that is held survives with this chance."""
        return chance * self.calibration.mean * self.token_ms > self.draft_ms


def fit(samples: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> Calibration | None:
    """Fits the map from confidence to acceptance.

    Args:
        samples: per reply, confidences `(positions,)` and overlaps `(positions,)`.

    Returns:
        The map; None without any position.
    """
    pairs = [(c, o) for c, o in samples if c.shape == o.shape and c.size]
    if not pairs:
        return None
    confidence = np.concatenate([c for c, _ in pairs]).astype(np.float64)
    overlap = np.concatenate([o for _, o in pairs]).astype(np.float64)
    mean = float(overlap.mean())
    bins = np.searchsorted(EDGES, confidence, side="right")
    weight = np.bincount(bins, minlength=len(EDGES) + 1) + _PRIOR_WEIGHT
    total = np.bincount(bins, weights=overlap, minlength=len(EDGES) + 1) + _PRIOR_WEIGHT * mean
    return Calibration(tuple(_rising(total / weight, weight)), mean, int(overlap.size))


def _rising(values: NDArray[np.floating], weights: NDArray[np.floating]) -> list[float]:
    """The nearest sequence that never falls: pool adjacent violators (Ayer et al. 1955)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, heavy, length = blocks.pop()
            both = heavy + block[1]
            block = ((mean * heavy + block[0] * block[1]) / both, both, length + block[2])
        blocks.append(block)
    return [mean for mean, _, length in blocks for _ in range(length)]
