"""How much longer passes take inside replies than in a row by themselves. Ours.

Between two passes of a level other levels have been through the processor's caches, and a machine moves between states
in which it is faster or slower, more so for wide passes. What passes in replies took says by how much, width by width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hsd.planning.tables import Floats

_FEW = 32  # passes of a kind that are needed before they say anything
_DRAWN = 8.0  # passes' worth of weight of what all widths of a kind show together
_USUAL = 0.95  # share of passes that are taken as they are; slower ones count as the slowest of these
_LEAST, _MOST = 0.5, 2.0


def in_place(passes: Sequence[tuple[int, float, float]], widths: int) -> Floats:
    """[widths] factors on step times that were measured alone; 1 where nothing is known.

    Args:
        passes: (width, ms it took, ms it takes alone) of passes in replies. Width 1 are those that draw one token, and
            they have a factor of their own; of wider ones every width has its own, drawn towards that of all of them
            together. A kind with few passes takes the factor of the other one.
        widths: how many.
    """
    out = np.ones(widths)
    if not passes:
        return out
    width, taken, alone = np.array(passes, dtype=np.float64).T
    column = width.astype(np.intp) - 1
    drawing = column == 0
    common: dict[bool, float] = {}
    for kind in (True, False):
        own = drawing if kind else ~drawing
        if own.sum() < _FEW:
            continue
        # A burst of other work makes a pass ten times as long.
        ratio = taken[own] / alone[own]
        usual = np.minimum(ratio, np.quantile(ratio, _USUAL)) * alone[own]
        spent, due = (np.bincount(column[own], values, widths) for values in (usual, alone[own]))
        common[kind] = float(spent.sum() / due.sum())
        prior = _DRAWN * due.sum() / own.sum()
        shown = (spent + prior * common[kind]) / (due + prior)
        out[:1] = shown[:1] if kind else out[:1]
        out[1:] = out[1:] if kind else shown[1:]
    if len(common) == 1:
        out = np.where((np.arange(widths) == 0) == (True in common), out, next(iter(common.values())))
    return out.clip(_LEAST, _MOST)
