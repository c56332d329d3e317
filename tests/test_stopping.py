"""Stopping by value: the map from confidence to acceptance, the rule, and that it changes no distribution."""

from __future__ import annotations

import itertools

import models as tiny
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distribution import PLAIN, TOP_P, Case, p_value, sample

import hsd
from hsd import SamplingParams
from hsd.planning import Calibration, StopRule, fit
from hsd.planning.stopping import EDGES


def sigmoid_samples(seed: int, count: int = 5000):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0, 1, count)
    return confidence, np.clip(confidence**2 + rng.normal(0, 0.05, count), 0, 1)


def test_the_map_is_what_was_seen_and_never_falls():
    calibration = fit([sigmoid_samples(0), sigmoid_samples(1)])
    assert calibration.positions == 10_000 and calibration.mean == pytest.approx(1 / 3, abs=0.02)
    assert list(calibration.survival) == sorted(calibration.survival)
    for low, high in itertools.pairwise(EDGES[:-1]):  # few samples lie in the narrow bins at the top
        middle = (low + high) / 2
        assert calibration.chance(middle) == pytest.approx(middle**2, abs=0.06)
    assert fit([]) is None and fit([(np.zeros(0), np.zeros(0))]) is None


def test_one_more_token_is_drafted_while_it_pays():
    rule = StopRule(Calibration((0.5,) * 12, 0.8, 1000), token_ms=10.0, draft_ms=2.0)
    assert rule.pays(1.0) and rule.pays(0.26) and not rule.pays(0.24)


HESITANT = StopRule(Calibration((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0), 0.7, 1000), 10.0, 2.5)


@pytest.mark.parametrize(
    "case",
    [
        Case("c:4>t", "token", PLAIN),
        Case("c:5>t", "block", PLAIN),
        Case("a:4>c:3>t", "block", TOP_P),
        pytest.param(Case("a:3>b:3>c:3>t", "block", PLAIN), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_stopping_by_value_leaves_the_joint_law_as_it_is(case, request):
    """The same exact laws as for thresholds; blocks really end at different lengths."""
    count = 50_000 if request.node.get_closest_marker("full") else 900
    lengths: set[int] = set()
    assert p_value(case, sample(case, count, seed=3, stop=HESITANT, lengths=lengths)) > 1e-4
    assert len(lengths) > 1


def learned() -> hsd.Engine:
    one = hsd.Engine.from_models(tiny.related(count=2, noise=0.05), tiny.ByteTokenizer())
    for seed in range(6):
        params = SamplingParams(temperature=0, seed=seed, max_tokens=120, banned_ids=(tiny.END,))
        one.generate(f"hello {seed}", params, plan="medium:2>big")
        tiny.learn(one)
    one.planner.profile.measure()
    return one


def test_greedy_ids_are_the_same_with_and_without_stopping_by_value():
    one = learned()
    plan = hsd.Plan.parse("medium:8>big")
    assert one.planner.stop_rule(plan, 0.0) is not None
    assert one.planner.stop_rule(plan, 1.0) is None, "no position of this temperature was scored"
    params = SamplingParams(temperature=0, max_tokens=80)
    for prompt in ("hello 1", "something else", [1, 2, 3]):
        replies = [one.generate(prompt, params, plan=str(plan), early_stop=early) for early in (True, False)]
        assert replies[0].token_ids == replies[1].token_ids
        assert replies[0].token_ids == one.generate(prompt, params, plan="big").token_ids


def test_a_seed_above_zero_keeps_to_the_thresholds():
    one = learned()
    for seed in range(6):
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=120, banned_ids=(tiny.END,))
        one.generate("hello", params, plan="medium:2>big")
        tiny.learn(one)
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=60)
    first = one.generate("hello", params, plan="medium:6>big")
    assert one.planner.stop_rule(hsd.Plan.parse("medium:6>big"), 1.0) is not None
    assert first.token_ids == one.generate("hello", params, plan="medium:6>big", early_stop=False).token_ids


CENTRES = [(low + high) / 2 for low, high in zip((0.0, *EDGES), (*EDGES, 1.0), strict=True)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 1), max_size=8),
    st.lists(st.floats(0, 1), min_size=12, max_size=12),
    st.lists(st.floats(0.1, 3), min_size=1, max_size=8),
    st.floats(0.5, 4),
)
def test_a_lookups_block_is_as_long_as_gains_most(confidences, survival, steps, token_ms):
    block_ms = (0.0, *np.cumsum(steps).tolist())
    one = StopRule(Calibration(tuple(sorted(survival)), 0.5, 1000), token_ms, steps[0], block_ms)
    chances = [one.calibration.chance(c) for c in confidences]

    def gain(n: int) -> float:
        return token_ms * sum(np.prod(chances[: i + 1]) for i in range(n)) - block_ms[n]

    most = min(len(confidences), len(steps))
    found = one.length(confidences)
    assert 0 <= found <= most
    assert gain(found) == pytest.approx(max(gain(n) for n in range(most + 1)), abs=1e-9)


def test_a_weak_match_is_not_proposed_and_a_strong_one_is():
    strong, weak = 0.999, 0.1
    one = StopRule(fit([], trusted=True), 10.0, 3.0, (0.0, 3.0, 6.0, 9.0))
    assert one.length([weak, weak]) == 0 and one.length([strong] * 5) == 3 and one.length([strong, weak, strong]) == 1


def test_a_lookups_confidence_counts_as_its_chance_until_positions_say_otherwise():
    nothing = fit([], trusted=True)
    assert nothing is not None and [nothing.chance(c) for c in CENTRES] == pytest.approx(CENTRES)
    wrong = fit([(np.full(500, 0.97), np.zeros(500)), (np.full(9, np.nan), np.zeros(9))], trusted=True)
    assert wrong is not None and wrong.chance(0.97) < 0.1 and wrong.positions == 500
    assert fit([]) is None
