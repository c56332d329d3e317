"""What happens around passes: fitted from replies, and part of what plans are priced with."""

from __future__ import annotations

import math

import models as tiny
import numpy as np
import pytest

import hsd
from hsd import SamplingParams, planning
from hsd.learning import work_of
from hsd.planning import Overhead, Work, fit_overhead, in_place, with_overhead
from hsd.runtime.reader import Pass

TRUE = Overhead(0.05, 0.2, 0.1, 0.03)


def works(count: int, seed: int = 0, noise: float = 0.05) -> list[Work]:
    """Replies of all kinds of plans."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        rounds = int(rng.integers(10, 60))
        drafted = rounds * int(rng.integers(1, 7)) if i % 4 else 0
        middle = rounds * int(rng.integers(0, 3)) if drafted else 0
        rows = rounds + drafted + 2 * middle
        ms = TRUE.draft_ms * drafted + TRUE.middle_ms * middle + TRUE.round_ms * rounds + TRUE.row_ms * rows
        out.append(Work(drafted, middle, rounds, rows, ms * float(rng.normal(1, noise))))
    return out


def price(o: Overhead, w: Work) -> float:
    return o.draft_ms * w.drafted + o.middle_ms * w.middle + o.round_ms * w.rounds + o.row_ms * w.rows


def test_the_fit_foretells_replies_of_other_plans():
    found = fit_overhead(works(48))
    for work in works(40, seed=9, noise=0.0):
        assert price(found, work) == pytest.approx(work.outside_ms, rel=0.15)


def test_one_plan_alone_is_priced_right_whatever_the_terms():
    same = [Work(80, 0, 20, 100, 12.0)] * 5
    assert price(fit_overhead(same), same[0]) == pytest.approx(12.0, rel=0.05)


def test_a_reply_during_which_something_else_ran_does_not_count():
    spoiled = [*works(30), Work(40, 0, 10, 50, 5000.0)]
    without = price(fit_overhead(works(30)), works(1)[0])
    assert price(fit_overhead(spoiled), works(1)[0]) == pytest.approx(without, rel=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_nothing_usable_is_no_overhead(bad):
    assert fit_overhead([]) == fit_overhead([Work(10, 0, 10, 20, bad)]) == fit_overhead([Work(0, 0, 0, 0, 1.0)])
    assert fit_overhead([]) == Overhead()


def test_costs_of_passes_with_what_happens_around_them():
    costs = {"lookup": [0.004], "a": [1.0, 1.1, 1.2], "t": [5.0, 5.1, 5.2]}
    priced = with_overhead(costs, TRUE)
    assert priced["lookup"] == [0.004]
    assert priced["a"] == pytest.approx([1.05, 1.1 + 0.2 + 0.06, 1.2 + 0.2 + 0.09])
    assert priced["t"] == pytest.approx([5 + 0.1 + 0.03, 5.1 + 0.1 + 0.06, 5.2 + 0.1 + 0.09])
    assert list(priced) == list(costs), "the order is that of the levels"


def test_a_replys_work_is_counted_as_the_engine_does_it():
    one = hsd.Engine.from_models(tiny.related(count=3, noise=0.03), tiny.ByteTokenizer())
    params = SamplingParams(temperature=0, max_tokens=40)
    reply = one.generate("hello", params, plan="small:2>medium:3>big")
    work = work_of(reply)
    first, *others = reply.stats.levels
    assert work.rounds == reply.stats.target_passes and work.drafted == first.passes
    assert work.rows == round(sum(level.width * level.passes for level in others))
    assert 0 < work.outside_ms < 1000 * reply.stats.decode_seconds
    assert work_of(one.generate("hello", params, plan="big")).drafted == 0
    assert one.planner.profile.overhead(True).round_ms > 0
    assert one.planner.profile.overhead(False) == one.planner.profile.overhead(True), "the other kind stands in"


def test_passes_in_replies_set_the_level_of_the_table():
    one = hsd.Engine.from_models(tiny.related(count=2, noise=0.03), tiny.ByteTokenizer())
    profile = one.planner.profile
    profile.measure()
    alone = profile.widths("big")
    step = alone[0] / 1000
    profile.learn("big", [Pass(1, 10, 1, 1.3 * step)] * 40)
    assert profile.widths("big") == pytest.approx([1.3 * ms for ms in alone])
    profile.learn("big", [Pass(1, 10, 1, 500 * step)] * 2)
    assert profile.widths("big")[0] < 1.5 * alone[0], "a burst of other work is no slower machine"


def passes(rng: np.random.Generator, truth: dict[int, float], alone: dict[int, float], each: int) -> list:
    return [(w, ms * rng.uniform(0.9, 1.1), alone[w]) for w, ms in truth.items() for _ in range(each)]


def test_every_width_has_a_factor_of_its_own_and_rare_ones_that_of_all():
    rng = np.random.default_rng(3)
    alone = {1: 1.0, 4: 1.5, 5: 1.6, 8: 2.4}
    found = in_place(passes(rng, {1: 1.2, 4: 1.5, 8: 1.2}, alone, 200), 16)
    assert found[[0, 3, 7]] == pytest.approx([1.2, 1.0, 0.5], abs=0.04)
    rare = in_place([*passes(rng, {1: 1.2, 4: 1.8}, alone, 200), (5, 1.6, 1.6)], 16)
    assert rare[4] == pytest.approx(1.2 - 0.2 / 9, abs=0.03), "one pass says little"
    assert rare[[5, 15]] == pytest.approx(1.2, abs=0.03), "widths that were never used are as slow as the others"


def test_a_burst_of_other_work_is_no_slower_model():
    rng = np.random.default_rng(4)
    usual = passes(rng, {1: 1.0, 4: 1.5}, {1: 1.0, 4: 1.5}, 100)
    found = in_place([*usual, *((4, 60.0, 1.5) for _ in range(4)), (1, 40.0, 1.0)], 8)
    assert found == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("widths", [(1,), (2, 3)])
def test_one_kind_of_passes_stands_in_for_the_other(widths: tuple[int, ...]):
    found = in_place([(w, 1.3, 1.0) for w in widths for _ in range(40)], 4)
    assert found == pytest.approx(1.3)
    assert in_place([(w, 1.3, 1.0) for w in widths for _ in range(4)], 4) == pytest.approx(1.0)
    assert in_place([], 4).tolist() == [1, 1, 1, 1]


def test_forecasts_are_made_with_it():
    one = hsd.Engine.from_models(tiny.related(count=2, noise=0.03), tiny.ByteTokenizer())
    one.planner.profile.measure()
    before = one.planner.forecast(hsd.Plan("big"), 0.0)
    one.planner.profile.worked(True, Work(0, 0, 100, 100, 100 * 50.0))
    assert one.planner.forecast(hsd.Plan("big"), 0.0) == pytest.approx(before + 50.0, rel=0.02)
    assert planning.expected_ms_per_token("big", one.planner.profile.costs(True), {}) > 50
