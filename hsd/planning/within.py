"""Inside a reply: how much easier or harder its text is than the forecast took it to be.

Texts differ in one thing above all: all drafts are accepted more often, or all less. So the rounds of the plan in use
say something of every other plan too: the log odds of every acceptance are moved by one shift, estimated from the
target's own verdicts. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hsd.planning.observed import observed_acceptance
from hsd.planning.tables import Acceptances

PRIOR_TOKENS = 3.0
"""Verdicts that the expected acceptance counts for. Few: once rounds contradict, a draft may be good for nothing."""

RUNS = 1.6
"""How much wider an error is than for independent tokens (autocorrelation 0.42)."""

_EDGE = 0.02  # acceptances nearer to 0 or 1 than this count as this: log odds have no end


@dataclass(frozen=True, slots=True)
class Shift:
    """A move of all log odds of acceptance; above 0 the text is easier than expected.

    Args:
        value: the shift, drawn towards 0 by `PRIOR_TOKENS`.
        error: its standard error.
        seen: what the rounds alone say, in units of their own standard error: beyond 3 they contradict.
    """

    value: float
    error: float
    seen: float


def shift_of(rounds: Sequence[tuple[int, int]], rate: float) -> Shift:
    """The shift that rounds of a plan show.

    Args:
        rounds: (block length, accepted tokens) of the target's rounds.
        rate: acceptance by the target that was expected of those tokens.

    Raises:
        ConfigError: a round accepted more than its block.
    """
    shown = observed_acceptance(rounds)
    expected = min(max(rate, _EDGE), 1 - _EDGE)
    n = 0 if shown is None else shown.verified
    kept = 0.0 if shown is None else shown.rate * n
    level = (kept + PRIOR_TOKENS * expected) / (n + PRIOR_TOKENS)
    error = RUNS / math.sqrt((n + PRIOR_TOKENS) * level * (1 - level))
    # The test asks how likely such rounds are if the expectation holds, so its error is taken there.
    surprise = (kept - n * expected) / (RUNS * math.sqrt(n * expected * (1 - expected))) if n else 0.0
    return Shift(_logit(level) - _logit(expected), error, surprise)


def shifted(acceptances: Acceptances, shift: float) -> dict[tuple[str, str], float]:
    """Acceptances with all log odds moved by `shift`; 0 and 1 stay."""
    return {pair: rate if rate in (0.0, 1.0) else _logistic(_logit(rate) + shift) for pair, rate in acceptances.items()}


def _logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


def _logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))
