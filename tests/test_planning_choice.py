"""What is chosen, when it is changed, and how it is said; acceptances to start from."""

from __future__ import annotations

import math
import random

import pytest

from hsd import Plan, planning
from hsd.errors import ConfigError
from hsd.planning import Ranked, choose
from hsd.planning.choice import MARGIN

PLAIN, TINY, LADDER = Plan("big"), Plan.parse("tiny:3>big"), Plan.parse("lookup:2>tiny:3>big")
COSTS = {"lookup": [0.02], "tiny": [1.0], "big": [20.0, 20.2]}
RATES = {("lookup", "tiny"): 0.3, ("lookup", "big"): 0.25, ("tiny", "big"): 0.75}


def ranked(plain: float = 10.0, tiny: float = 5.0, ladder: float = 4.0) -> list[Ranked]:
    return [Ranked(PLAIN, plain), Ranked(TINY, tiny), Ranked(LADDER, ladder)]


def test_the_best_plan_is_chosen_at_the_start():
    found = choose(ranked())
    assert found.plan == LADDER
    assert (found.forecast_ms, found.plain_ms, found.forecast_speedup) == (4.0, 10.0, 2.5)
    assert not found.switched
    assert "2.50× plain decoding" in found.reason
    assert [other.plan for other in found.alternatives] == [TINY, PLAIN]
    assert found.alternatives[0].why == "25.0% slower by forecast"


def test_plain_decoding_is_the_answer_when_nothing_pays_and_it_is_said():
    found = choose(ranked(plain=4.0, tiny=5.0, ladder=6.0), current=TINY)
    assert found.plan == PLAIN
    assert found.switched
    assert found.reason.startswith("Plain decoding: no draft pays.")
    assert "no faster than plain" in found.alternatives[0].why


def test_plain_decoding_is_left_only_for_a_gain_that_can_be_relied_on():
    assert choose(ranked(plain=4.05, ladder=4.0)).plan == PLAIN  # less than the margin
    assert choose(ranked(plain=4.5, ladder=4.0)).plan == LADDER
    found = choose(ranked(plain=4.5, ladder=4.0), uncertainty=0.2)
    assert found.plan == PLAIN
    assert "too little gain to rely on" in found.reason


def test_a_switch_needs_more_than_margin_and_uncertainty():
    near = ranked(tiny=4.0 / (1 - MARGIN) - 1e-6)
    assert choose(near, current=TINY).plan == TINY
    assert "too little faster to switch" in choose(near, current=TINY).reason
    assert "too little to switch" in choose(near, current=TINY).alternatives[0].why
    assert choose(ranked(tiny=4.0 / (1 - MARGIN) + 1e-6), current=TINY).plan == LADDER
    assert choose(ranked(tiny=5.0), current=TINY, uncertainty=0.19).plan == LADDER
    assert choose(ranked(tiny=5.0), current=TINY, uncertainty=0.21).plan == TINY
    assert choose(ranked(tiny=4.1), current=TINY, margin=0.0).plan == LADDER


def test_uncertainty_may_depend_on_the_pair_of_plans():
    asked = []

    def uncertainty(new: Plan, old: Plan) -> float:
        asked.append((new, old))
        return math.nan if old == TINY else 0.0

    assert choose(ranked(), current=TINY, uncertainty=uncertainty).plan == TINY  # NaN never pays
    assert choose(ranked(), current=PLAIN, uncertainty=uncertainty).plan == LADDER
    assert asked == [(LADDER, TINY), (LADDER, PLAIN)]


def test_a_plan_slower_than_plain_is_left_without_any_margin():
    assert choose(ranked(plain=4.99, ladder=4.98), current=TINY).plan == PLAIN
    assert choose(ranked(plain=5.0, ladder=5.5), current=TINY, uncertainty=math.inf).plan == PLAIN


def test_two_plans_that_take_turns_at_being_best_do_not_flap():
    rng, current, switches = random.Random(0), LADDER, 0
    for _ in range(200):
        found = choose(ranked(tiny=4 + rng.gauss(0, 0.03), ladder=4 + rng.gauss(0, 0.03)), current=current)
        switches, current = switches + found.switched, found.plan
    assert switches <= 10
    eager = sum(rng.gauss(0, 1) > 0 for _ in range(200))
    assert eager > 50  # without a margin it would have been every second time


def test_a_current_plan_off_the_ranking_counts_with_its_own_forecast_or_not_at_all():
    odd = Plan.parse("tiny:7>big")
    assert choose(ranked(), current=odd, current_ms=4.05).plan == odd
    found = choose(ranked(), current=odd)
    assert found.plan == LADDER
    assert found.switched


def test_few_measurements_are_admitted():
    assert "may change soon" in choose(ranked(), sure=False).reason
    assert not choose(ranked(), sure=False).sure


@pytest.mark.parametrize("wrong", [[Ranked(TINY, 5.0)], [], [Ranked(PLAIN, math.nan)], [Ranked(PLAIN, 0.0)]])
def test_a_ranking_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        choose(wrong)
    assert caught.value.hint


def test_it_works_on_a_real_ranking_and_a_family_of_one():
    found = choose(planning.ranking(COSTS, RATES))
    assert found.plan == planning.best_plan(COSTS, RATES)[0]
    assert choose(planning.ranking({"big": [5.0]}, {})).plan == PLAIN


def test_the_error_of_a_gain_is_that_of_random_acceptances():
    errors = {pair: 0.02 for pair in RATES}
    rng, gains = random.Random(1), []
    for _ in range(400):
        moved = {pair: rate + rng.gauss(0, 0.02) for pair, rate in RATES.items()}
        one, other = (planning.expected_ms_per_token(plan, COSTS, moved) for plan in (LADDER, TINY))
        gains.append(1 - one / other)
    mean = sum(gains) / len(gains)
    spread = (sum((gain - mean) ** 2 for gain in gains) / len(gains)) ** 0.5
    assert planning.gain_error(LADDER, TINY, COSTS, RATES, errors) == pytest.approx(spread, rel=0.15)
    assert planning.gain_error(LADDER, LADDER, COSTS, RATES, errors) == 0
    assert planning.gain_error(LADDER, PLAIN, COSTS, RATES, {}) == 0


def test_priors_fall_with_the_cost_ratio_and_give_way_to_measurements():
    costs = {"lookup": [0.01], "a": [1.0], "b": [4.0], "big": [64.0]}
    filled = planning.with_priors(costs, {("a", "big"): 0.123})
    assert filled["a", "big"] == 0.123
    assert filled["a", "b"] > filled["b", "big"] > planning.prior_acceptance("a", "big", costs)
    assert set(filled) == {
        ("lookup", "a"), ("lookup", "b"), ("lookup", "big"), ("a", "b"), ("a", "big"), ("b", "big"),
        # A table.
    }  # fmt: skip
    assert all(0 <= rate <= 1 for rate in filled.values())
    assert planning.prior_acceptance("a", "b", {"a": [1.0], "b": [1e9]}) == 0.3
    errors = planning.standard_errors(filled, {("a", "big"): 0.01})
    assert errors["a", "big"] == 0.01
    assert errors["a", "b"] > 0.05
