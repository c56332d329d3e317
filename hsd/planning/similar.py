"""Which of the last replies answered prompts like this one. Ours.

A draft that is right in code and wrong in chat must not be judged by the mean of both. A prompt's *sketch* is a
histogram of its last token ids over a few bins. What all prompts share, the template and common words, is taken out by
the mean, and replies count for more the nearer their prompts' sketches are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hsd.planning.tables import Floats

BINS = 128
"""Bins of a sketch."""

_LAST = 256  # tokens of a prompt that count: its newest message and some of what was before it
_WIDTHS = (0.15, 0.2, 0.3, 0.5, 1.0)  # differences of cosine at which a reply counts e times less
_FEW = 4  # replies below which no two kinds are told apart


def sketch(prompt: Sequence[int]) -> NDArray[np.float32]:
    """`[BINS]` roots of how often the last tokens of a prompt fall into each bin; of length 1."""
    ids = np.asarray(prompt[-_LAST:], dtype=np.uint64)
    bins = ((ids * np.uint64(2654435761)) >> np.uint64(8)) % np.uint64(BINS)
    counts = np.sqrt(np.bincount(bins.astype(np.intp), minlength=BINS))
    found: NDArray[np.float32] = (counts / max(float(np.linalg.norm(counts)), 1e-9)).astype(np.float32)
    return found


def weights(sketches: Sequence[NDArray[np.floating] | None], prompt: Sequence[int]) -> Floats:
    """How much every reply says of a prompt: `[replies]`, with a mean of 1.

    Args:
        sketches: of their prompts; one that is missing counts as far away as the mean.
        prompt: token ids.
    """
    known = [s for s in sketches if s is not None and s.shape == (BINS,)]
    if len(known) < _FEW or not len(prompt):
        return np.ones(len(sketches))
    mean = np.mean(known, axis=0)
    own = sketch(prompt) - mean

    def nearness(other: NDArray[np.floating] | None) -> float:
        if other is None or other.shape != (BINS,):
            return 0.0
        apart = other - mean
        return float(own @ apart / max(float(np.linalg.norm(own) * np.linalg.norm(apart)), 1e-9))

    near = np.array([nearness(s) for s in sketches])
    found = np.ones(len(near))
    for width in _WIDTHS:
        found = np.exp(near / width)
        # One reply to the same prompt says little of how much replies differ: others must count, too.
        if found.sum() ** 2 / (found**2).sum() >= _FEW:
            break
    return found / float(found.mean())
