"""What rounds say about acceptance and about a forecast."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from hsd import planning
from hsd.errors import ConfigError


def rounds_of(a: float, block: int, count: int, rng: random.Random) -> list[tuple[int, int]]:
    found = []
    for _ in range(count):
        kept = 0
        while kept < block and rng.random() < a:
            kept += 1
        found.append((block, kept))
    return found


@pytest.mark.parametrize("a", [0.0, 0.3, 0.8, 1.0])
def test_rounds_show_the_acceptance_they_were_made_with(a: float):
    rng = random.Random(3)
    found = planning.observed_acceptance(rounds_of(a, 4, 2000, rng) + rounds_of(a, 1, 1000, rng))
    assert found.rate == pytest.approx(a, abs=4 * (0.25 / found.verified) ** 0.5)


def test_tokens_behind_a_refusal_are_not_counted():
    assert planning.observed_acceptance([(5, 2), (2, 2)]) == planning.ObservedAcceptance(4 / 5, 5)
    assert planning.observed_acceptance([]) is None
    assert planning.observed_acceptance([(0, 0)]) is None


@pytest.mark.parametrize("wrong", [(2, 3), (2, -1)])
def test_rounds_that_cannot_be_are_refused(wrong: tuple[int, int]):
    with pytest.raises(ConfigError):
        planning.observed_acceptance([wrong])


def test_factors_correct_their_pair_and_stay_rates():
    rates = {("a", "big"): 0.8, ("b", "big"): 0.95}
    assert planning.corrected(rates, {("b", "big"): 1.1}) == {("a", "big"): 0.8, ("b", "big"): 1.0}


def block_wise(replies: int, tokens: int, factor: float, rng: random.Random) -> list[planning.Verdicts]:
    """Replies whose rounds accept `factor` times what the overlaps at their positions say."""
    made: list[planning.Verdicts] = []
    for _ in range(replies):
        overlaps = np.array([rng.uniform(0.4, 0.9) for _ in range(tokens)])
        rounds, at = [], 0
        while at < tokens:
            block, kept = rng.choice((0, 2, 4, 7)), 0
            while kept < block and at + kept < tokens and rng.random() < factor * overlaps[at + kept]:
                kept += 1
            rounds.append((block, kept))
            at += kept + 1
        made.append((rounds, overlaps))
    return made


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.1])
def test_a_factor_is_learned_from_rounds_and_the_positions_they_began_at(factor: float):
    rng = random.Random(5)
    assert planning.block_factor(block_wise(1500, 60, factor, rng)) == pytest.approx(factor, abs=0.01)


def test_little_evidence_moves_a_factor_little():
    rng = random.Random(5)
    assert planning.block_factor([]) == planning.block_factor([([(4, 0), (3, 0)], np.full(2, 0.5))]) == 1.0
    few = planning.block_factor(block_wise(2, 40, 1.1, rng))
    assert 0.98 < few < 1.02
    # Greedy verdicts are what the overlaps say: 1 or 0.
    sure = [([(0, 0), (3, 2), (2, 2)], np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]))] * 500
    assert planning.block_factor(sure) == pytest.approx(1.0, abs=0.01)


def test_measured_time_is_time_over_tokens_with_its_error():
    rng = random.Random(0)
    means = []
    for _ in range(300):
        sample = [(rng.randint(1, 5), rng.uniform(10, 30)) for _ in range(40)]
        means.append(planning.measured_ms_per_token(sample)[0])
    mean, error = planning.measured_ms_per_token(sample)
    spread = (sum((m - sum(means) / 300) ** 2 for m in means) / 300) ** 0.5
    assert mean == pytest.approx(sum(ms for _, ms in sample) / sum(t for t, _ in sample))
    assert error == pytest.approx(spread, rel=0.35)
    assert planning.measured_ms_per_token([(2, 10.0)]) == (5.0, math.inf)
    with pytest.raises(ConfigError):
        planning.measured_ms_per_token([])


def test_a_forecast_is_contradicted_only_far_off_and_beyond_the_noise():
    steady = [(2, 20.0)] * 10
    assert not planning.contradicts(10.0, steady)
    assert not planning.contradicts(11.0, steady)  # within the tolerance
    assert planning.contradicts(12.0, steady)
    assert planning.contradicts(8.0, steady)
    assert not planning.contradicts(5.0, steady[:1])  # one round says nothing
    noisy = [(1, 5.0), (1, 35.0), (4, 20.0)]
    assert not planning.contradicts(7.0, noisy)
