"""Measured costs and acceptances, checked once and laid out as arrays for the planner.

Knows nothing of where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsd.errors import ConfigError
from hsd.types import LOOKUP, MAX_THRESHOLD, Plan

Costs = Mapping[str, Sequence[float]]
"""Model name -> ms of a forward pass at width 1, 2, …; cheapest model first, the target last."""

Acceptances = Mapping[tuple[str, str], float]
"""(draft, verifier) -> probability that the verifier accepts a token of the draft."""

Floats = NDArray[np.float64]

CHUNK = 16
"""Widest pass that runs in one piece; wider ones run, and are priced, in chunks of at most this width."""

UNUSABLE = 1e200
"""Stands for a width whose extrapolated cost is not positive: finite, so that 0 probability times it is 0."""


@dataclass(frozen=True, eq=False)
class Tables:
    """Costs and acceptances of one family as arrays.

    Args:
        names: level names; the lookup first if there is one, then in the order of `costs`, the target last.
        width_ms: [levels, widths + 1], ms of a pass of each width; column 0 is unused and 0.
        accept: [levels, levels], acceptance by draft (row) and verifier (column); NaN where no pair is known.
    """

    names: tuple[str, ...]
    width_ms: Floats
    accept: Floats

    @property
    def target(self) -> str:
        """Name of the family's target, the last of `names`."""
        return self.names[-1]

    def index(self, name: str) -> int:
        """Row of a level. Raises ConfigError for a level without costs."""
        if name not in self.names:
            raise ConfigError(
                f"The plan names '{name}', for which no cost is known.", f"Levels with costs: {', '.join(self.names)}."
            )
        return self.names.index(name)

    def edges(self) -> Floats:
        """[levels, levels] acceptances of the pairs a chain may use: draft before verifier; NaN elsewhere."""
        return np.where(np.triu(np.ones_like(self.accept, dtype=bool), 1), self.accept, np.nan)


def tables(costs: Costs, acceptances: Acceptances) -> Tables:
    """Checked arrays of a family.

    Args:
        costs: ms by width for every level, see `Costs`. Widths past the end extend by the last difference (a single
            width by nothing); widths over 16 are priced in chunks of at most 16.
        acceptances: see `Acceptances`. Pairs of levels without costs are ignored: they belong to a model that is not
            loaded.

    Raises:
        ConfigError: a cost or an acceptance is impossible, or there is no level that can be a target.
    """
    if not isinstance(costs, Mapping) or not costs:
        raise ConfigError("There are no costs to plan with.", "Measure the models first, or give {name: [ms, …]}.")
    given = list(costs)
    if given[-1] == LOOKUP:
        raise ConfigError("The last of the costs is 'lookup', which cannot be the target.", "Put the target last.")
    names = tuple(sorted(given, key=lambda name: name != LOOKUP))  # stable: only the lookup moves
    widest = MAX_THRESHOLD * len(names) + 1
    return Tables(names, np.stack([_widths(name, costs[name], widest) for name in names]), _matrix(names, acceptances))


def plan_of(plan: Plan | str) -> Plan:
    """The plan itself, or the plan a text stands for. Raises ConfigError for anything else."""
    return plan if isinstance(plan, Plan) else Plan.parse(plan)


def check_threshold(max_threshold: int) -> int:
    """The largest threshold to consider, unchanged. Raises ConfigError unless it is a whole number from 1 to 64."""
    if isinstance(max_threshold, bool) or not isinstance(max_threshold, int | np.integer):
        raise ConfigError(f"max_threshold={max_threshold!r} is not a whole number.", "8 is usual.")
    if not 1 <= max_threshold <= MAX_THRESHOLD:
        raise ConfigError(f"max_threshold={max_threshold} is not between 1 and {MAX_THRESHOLD}.", "8 is usual.")
    return int(max_threshold)


def _widths(name: str, values: Sequence[float], widest: int) -> Floats:
    hint = f"Give '{name}' the milliseconds of a forward pass at width 1, 2, …, all above 0; or measure it again."
    try:
        ms = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The costs of '{name}' are not numbers.", hint) from error
    if ms.ndim != 1 or ms.size == 0:
        raise ConfigError(f"The costs of '{name}' are missing: {values!r}.", hint)
    wrong = ~(np.isfinite(ms) & (ms > 0))
    if wrong.any():
        width = int(np.argmax(wrong))
        raise ConfigError(f"The cost of '{name}' at width {width + 1} is {ms[width]:g} ms, which is no time.", hint)
    step = ms[-1] - ms[-2] if ms.size > 1 else 0.0
    past_end = ms[-1] + step * np.arange(1, max(0, CHUNK - ms.size) + 1)
    chunk = np.concatenate([[0.0], ms[:CHUNK], np.where(past_end > 0, past_end, UNUSABLE)])
    widths = np.arange(widest + 1)
    return chunk[CHUNK] * (widths // CHUNK) + chunk[widths % CHUNK]


def _matrix(names: tuple[str, ...], acceptances: Acceptances) -> Floats:
    hint = "Give {(draft, verifier): rate} with rates from 0 to 1; leave a pair out if its rate is not known."
    if not isinstance(acceptances, Mapping):
        raise ConfigError("The acceptances are not a mapping.", hint)
    matrix = np.full((len(names), len(names)), np.nan)
    row = {name: i for i, name in enumerate(names)}
    for pair, value in acceptances.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise ConfigError(f"{pair!r} is not a pair of level names.", hint)
        draft, verifier = pair
        try:
            rate = float(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"The acceptance {draft} → {verifier} is {value!r}, not a number.", hint) from error
        if math.isnan(rate) or not 0 <= rate <= 1:
            raise ConfigError(f"The acceptance {draft} → {verifier} is {rate:g}, not between 0 and 1.", hint)
        if draft in row and verifier in row and verifier not in (LOOKUP, draft):
            matrix[row[draft], row[verifier]] = rate
    return matrix
