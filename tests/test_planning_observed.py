"""What rounds say about acceptance and about a forecast."""

from __future__ import annotations

import math
import random

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
