"""Acceptances to start from where nothing was measured yet: a guess by cost ratio, and meant to be replaced soon.

Ours, not the paper's. Fitted by eye to acceptances of Llama-shaped pairs on one machine (cost ratio 2: 0.85, 6: 0.82,
12: 0.72; smaller models less), then lowered by a few points: a forecast that is too good makes a reply slower than
plain decoding, one that is too bad only starts with a shorter chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hsd.planning.tables import Acceptances, Costs, tables
from hsd.types import LOOKUP

PRIOR_LOOKUP = 0.25
"""Acceptance of a lookup's token by any model: it varies from 0.05 (prose) to 0.6 (code, repetition)."""

PRIOR_UNCERTAINTY = 0.1
"""Standard error to attach to a prior acceptance."""


def prior_acceptance(draft: str, verifier: str, costs: Costs) -> float:
    """Guessed acceptance of a draft by a verifier: `0.86 - 0.045 log2(cost ratio)`, within 0.3 to 0.86.

    Args:
        costs: ms at width 1, 2, …; the ratio is that of the first entries.
    """
    if draft == LOOKUP:
        return PRIOR_LOOKUP
    ratio = float(costs[verifier][0]) / float(costs[draft][0])
    return min(0.86, max(0.3, 0.86 - 0.045 * math.log2(max(1.0, ratio))))


def with_priors(costs: Costs, measured: Acceptances) -> dict[tuple[str, str], float]:
    """Acceptances for every pair a chain may use: the measured one where there is one, else the prior.

    Raises:
        ConfigError: impossible numbers, see `tables`.
    """
    names = tables(costs, measured).names
    filled: dict[tuple[str, str], float] = {}
    for i, draft in enumerate(names):
        for verifier in names[i + 1 :]:
            known = measured.get((draft, verifier))
            filled[draft, verifier] = prior_acceptance(draft, verifier, costs) if known is None else float(known)
    return filled


def standard_errors(
    acceptances: Acceptances, measured: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """Standard error of every acceptance: the measured one where there is one, else that of a prior."""
    return {pair: measured.get(pair, PRIOR_UNCERTAINTY) for pair in acceptances}
