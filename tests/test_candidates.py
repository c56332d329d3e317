"""Candidates on the last replies: as they run, stopping by value, and with what drafts read of prompts."""

from __future__ import annotations

import models as tiny
import numpy as np
import pytest

import hsd
from hsd import Plan, SamplingParams
from hsd.candidates import comparable, reading_ms, uncapped, walked
from hsd.planning import Calibration, Ranked, StopRule
from hsd.stats import Positions

WIDTHS = range(1, 17)
COSTS = {
    "tiny": [0.05] * 16,
    "small": [0.5 + 0.01 * w for w in WIDTHS],
    "big": [5.0 + 0.6 * w + (4.0 if w > 12 else 0.0) for w in WIDTHS],  # a step behind twelve
}
PLANS = ["tiny:2>big", "tiny:4>big", "tiny:8>big", "tiny:6>small:2>big", "tiny:12>small:1>big", "small:4>big", "big"]
RULE = StopRule(Calibration((0.1,) * 8 + (0.98,) * 4, 0.8, 900), 1.5, 0.65)


def scored(count: int = 8, length: int = 60, seed: int = 0) -> list[Positions]:
    """Replies of easy stretches and hard positions; the draft knows which are which."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        easy = rng.random(length) < 0.85
        tiny_rate = np.where(easy, 0.99, 0.1)
        better = np.where(easy, 0.99, 0.4)
        out.append(
            Positions(
                {("tiny", "small"): tiny_rate, ("tiny", "big"): tiny_rate, ("small", "big"): better},
                {"tiny": np.where(easy, 0.97, 0.3), "small": np.where(easy, 0.99, 0.5)},
            )
        )
    return out


def ranked(plans: list[str] = PLANS) -> list[Ranked]:
    return [Ranked(Plan.parse(plan), 1.0) for plan in plans]


def by_chain(found: dict) -> dict[tuple[str, ...], object]:
    return {plan.names: one for plan, one in found.items()}


def test_a_middle_draft_that_only_spares_what_stopping_spares_is_not_chosen():
    """A second draft that looks at every block before the target is worth much, until the first one stops itself."""
    never = by_chain(walked(ranked(), [Plan("big")], COSTS, scored(), lambda plan: None))
    stack, single = never["tiny", "small", "big"], never["tiny", "big"]
    assert stack.replayed.ms_per_token < single.replayed.ms_per_token
    assert all(one.replayed.plan == one.fixed for one in never.values())
    value = by_chain(
        walked(ranked(), [Plan("big")], COSTS, scored(), lambda plan: RULE if plan.names[0] == "tiny" else None)
    )
    stack, single = value["tiny", "small", "big"], value["tiny", "big"]
    assert single.replayed.ms_per_token < stack.replayed.ms_per_token
    assert single.replayed.ms_per_token < single.fixed_ms == never["tiny", "big"].replayed.ms_per_token


def test_the_cap_of_a_plan_that_stops_by_value_keeps_off_a_step_in_the_costs():
    found = by_chain(walked(ranked(["tiny:6>big", "big"]), [Plan("big")], COSTS, scored(), lambda plan: RULE))
    one = found["tiny", "big"]
    (stage,) = one.replayed.plan.drafts
    assert uncapped(one.fixed).drafts[0].threshold > 11 >= stage.threshold > one.fixed.drafts[0].threshold


def test_plans_that_are_held_are_priced_at_their_thresholds_or_with_stopping_at_the_best():
    held = [Plan("big"), Plan.parse("tiny:15>small:15>big")]
    found = walked(ranked(["tiny:4>big", "big"]), held, COSTS, scored(), lambda plan: None)
    assert set(held) <= set(found)
    value = walked(ranked(["tiny:4>big", "big"]), held, COSTS, scored(), lambda plan: RULE if plan.drafts else None)
    assert {plan.names for plan in value} == {plan.names for plan in found} and held[1] not in value
    assert found[held[0]].replayed.ms_per_token == pytest.approx(COSTS["big"][0])
    assert walked(ranked(), held, COSTS, [], lambda plan: None) == {}


def test_few_replies_are_not_compared():
    assert comparable(scored(2)) == [] and comparable(scored(3, length=10)) == []
    assert len(comparable(scored(3))) == 3


def test_a_plan_of_which_no_reply_knows_a_pair_is_left_out():
    """Lookups are scored on every reply, drafts on some: what is not known must not hide what is."""
    replies = [Positions({("lookup", "big"): np.ones(40)}, {"lookup": np.full(40, 0.99)}) for _ in range(6)]
    costs = {"lookup": [0.004], **COSTS}
    found = walked(ranked([*PLANS, "lookup:4>big"]), [Plan("big")], costs, replies, lambda plan: None)
    assert {plan.names for plan in found} == {("big",), ("lookup", "big")}


def test_what_drafts_read_of_a_prompt_is_charged_by_the_token():
    prompt_ms = {"tiny": 0.01, "small": 0.1, "big": 1.0}
    assert reading_ms(Plan("big"), prompt_ms, 100) == 0.0
    assert reading_ms(Plan.parse("lookup:3>small:3>big"), prompt_ms, 35) == pytest.approx(3.5)
    assert reading_ms(Plan.parse("tiny:3>small:3>big"), prompt_ms, 10) == pytest.approx(1.1)
    assert reading_ms(Plan.parse("tiny:3>small:3>big"), prompt_ms, 0) == 0.0


def test_long_prompts_and_short_replies_are_a_reason_against_a_second_draft():
    """Forecasts of decisions hold what drafts read of a prompt; those of replies are of what comes behind it."""
    plan = Plan.parse("medium:2>big")
    with hsd.Engine.from_models(tiny.related(count=3, noise=0.01), tiny.ByteTokenizer()) as one:
        params = SamplingParams(temperature=0, max_tokens=4)
        for turn in range(8):
            one.generate([1 + turn] * 90, params, plan="medium:2>big")
            tiny.learn(one)
        decision = one.planner.choose(0.0)
        reading = one.planner._reading(0)
        prompt_ms = {name: one.planner.profile.prompt_ms(name) for name in one.info.models}
        few = reading_ms(plan, prompt_ms, 90) / 4
        assert reading(plan) == pytest.approx(few) and few > 0
        assert one.planner.decide("auto", 0.0, 0)[1] == pytest.approx(decision.forecast_ms - reading(decision.plan))
