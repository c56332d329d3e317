"""What the rounds of a reply say: the acceptance they show, and whether they contradict the forecast of their plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsd.errors import ConfigError
from hsd.planning.tables import Acceptances

_DOUBT = 1000
"""Verified tokens at which a learned factor counts half: by then its standard error is about 0.02."""

_FACTORS = 0.8, 1.25
"""What a factor can be."""

Verdicts = tuple[Sequence[tuple[int, int]], NDArray[np.floating]]
"""Rounds of (block length, accepted tokens) of a reply, and the overlap of draft and verifier at its positions."""


@dataclass(frozen=True, slots=True)
class ObservedAcceptance:
    """Acceptance shown by rounds: accepted tokens over verified ones, those behind a refusal not counted.

    Args:
        rate: the maximum-likelihood estimate, 0 to 1.
        verified: tokens that were accepted or refused.
    """

    rate: float
    verified: int


def observed_acceptance(rounds: Sequence[tuple[int, int]]) -> ObservedAcceptance | None:
    """Acceptance shown by rounds of (block length, accepted tokens); None if nothing was verified.

    Under the token-wise rule it estimates the overlap that scoring measures. Block verification accepts more in
    expectation; the ratio of the two, learned per pair, is the factor for `corrected`.

    Raises:
        ConfigError: a round accepted more than its block.
    """
    if any(not 0 <= accepted <= block for block, accepted in rounds):
        raise ConfigError("A round accepted more tokens than its block had.", "Give (block length, accepted tokens).")
    accepted = sum(kept for _, kept in rounds)
    verified = accepted + sum(kept < block for block, kept in rounds)
    return ObservedAcceptance(accepted / verified, verified) if verified else None


def corrected(acceptances: Acceptances, factors: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Acceptances times a learned factor per pair (1 where there is none), at most 1."""
    return {pair: min(1.0, max(0.0, rate * factors.get(pair, 1.0))) for pair, rate in acceptances.items()}


def block_factor(replies: Sequence[Verdicts]) -> float:
    """What the acceptances of a pair have to be multiplied by to explain how much was accepted.

    Scoring measures the token-wise rule; block verification accepts at least as many tokens in expectation. Every round
    began at a known position, so what the token-wise rule would have accepted there is known from the overlaps. The
    factor is 1 for the token-wise rule and for greedy replies, and moves away from 1 as evidence grows.

    Args:
        replies: of one pair at one kind of temperature, each with all of its rounds. What a block holds beyond the end
            of its reply has no overlap and does not count.
    """
    accepted = sum(kept for rounds, _ in replies for _, kept in rounds)
    low, high = _FACTORS
    if not accepted:
        return 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if sum(_token_wise(rounds, overlaps * middle) for rounds, overlaps in replies) < accepted:
            low = middle
        else:
            high = middle
    verified = accepted + sum(kept < block for rounds, _ in replies for block, kept in rounds)
    return float(((low + high) / 2) ** (verified / (verified + _DOUBT)))


def _token_wise(rounds: Sequence[tuple[int, int]], overlaps: NDArray[np.floating]) -> float:
    """Tokens that the token-wise rule would be expected to accept."""
    chances, total, begin = np.minimum(np.nan_to_num(overlaps), 1.0), 0.0, 0
    for block, kept in rounds:
        total += float(np.cumprod(chances[begin : begin + block]).sum())
        begin += kept + 1
    return total


def measured_ms_per_token(rounds: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """ms per token over rounds of (tokens emitted, ms), and its standard error (ratio estimator; inf below 2 rounds).

    Raises:
        ConfigError: no round, or a round that emitted nothing.
    """
    if not rounds or any(tokens < 1 for tokens, _ in rounds):
        raise ConfigError("There is no round that emitted a token.", "Give (tokens emitted, ms), at least one round.")
    tokens = sum(emitted for emitted, _ in rounds)
    mean = sum(ms for _, ms in rounds) / tokens
    if len(rounds) < 2:
        return mean, math.inf
    squares = sum((ms - mean * emitted) ** 2 for emitted, ms in rounds)
    return mean, math.sqrt(squares * len(rounds) / (len(rounds) - 1)) / tokens


def contradicts(
    forecast_ms: float, rounds: Sequence[tuple[int, float]], *, tolerance: float = 0.15, errors: float = 3.0
) -> bool:
    """Whether a reply's rounds contradict the forecast of their plan, so that it is worth planning again.

    The measured ms per token must be off by more than `tolerance` of the forecast and by more than `errors` standard
    errors. Rounds are not independent, which makes the latter too small: hence three, not two.

    Args:
        forecast_ms: ms per token.
        rounds: (tokens emitted, ms) of the rounds since the plan was chosen.
    """
    if len(rounds) < 2:
        return False
    mean, error = measured_ms_per_token(rounds)
    return abs(mean - forecast_ms) > max(tolerance * forecast_ms, errors * error)
