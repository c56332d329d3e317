"""Stopping by value: whether one more draft token is worth what it costs.

A draft goes on while the chance that everything it holds survives, times the acceptance of a token not yet seen, times
what a token costs the level above, exceeds its own step and one more column of the verifying pass. The chance comes
from the draft's confidence in the tokens it kept, through a map fitted on scored positions. It depends on nothing that
has yet to be drawn, so the output keeps its distribution.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
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
        block_ms: of a lookup, which knows its whole block before anything is verified: what a block of n tokens adds to
            the pass above it, by n, beginning with 0. ms.
    """

    calibration: Calibration
    token_ms: float
    draft_ms: float
    block_ms: tuple[float, ...] = (0.0,)

    def pays(self, chance: float) -> bool:
        """Whether another token pays when all that is held survives with this chance."""
        return chance * self.calibration.mean * self.token_ms > self.draft_ms

    def length(self, confidences: Sequence[float]) -> int:
        """How many tokens of a lookup's block are worth verifying: the number that gains most, 0 if none does.

        Args:
            confidences: of every token, if those before it are right.
        """
        most = min(len(confidences), len(self.block_ms) - 1)
        chances = self.calibration.chances(np.asarray(confidences[:most], dtype=np.float64))
        gains = self.token_ms * np.cumsum(np.cumprod(chances)) - np.asarray(self.block_ms[1 : most + 1])
        return int(gains.argmax()) + 1 if most and gains.max() > 0 else 0


_CENTRES = tuple((low + high) / 2 for low, high in zip((0.0, *EDGES), (*EDGES, 1.0), strict=True))


def fit(
    samples: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
    *,
    trusted: bool = False,
) -> Calibration | None:
    """Fits the map from confidence to acceptance.

    Args:
        samples: per reply, confidences `(positions,)` and overlaps `(positions,)`; a position where either is NaN (a
            lookup had nothing to propose) does not count.
        trusted: confidences count as chances until positions say otherwise, as a lookup's do. A model's do not: they
            are drawn towards the mean acceptance.

    Returns:
        The map; None without any position, unless confidences are trusted.
    """
    pairs = [
        (np.asarray(c, dtype=np.float64), np.asarray(o, dtype=np.float64)) for c, o in samples if c.shape == o.shape
    ]
    confidence, overlap = (np.concatenate([np.zeros(0), *(pair[at] for pair in pairs)]) for at in (0, 1))
    known = ~(np.isnan(confidence) | np.isnan(overlap))
    confidence, overlap = confidence[known], overlap[known]
    if not overlap.size and not trusted:
        return None
    mean = float(overlap.mean()) if overlap.size else 0.0
    prior = np.array(_CENTRES) if trusted else np.full(len(_CENTRES), mean)
    bins = np.searchsorted(EDGES, confidence, side="right")
    weight = np.bincount(bins, minlength=len(EDGES) + 1) + _PRIOR_WEIGHT
    total = np.bincount(bins, weights=overlap, minlength=len(EDGES) + 1) + _PRIOR_WEIGHT * prior
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
