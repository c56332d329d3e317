"""Impossible numbers are refused with a sentence and a hint; nothing heavy is imported."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from hsd import planning
from hsd.errors import ConfigError, HsdError

COSTS = {"a": [1.0, 1.1], "big": [20.0, 21.0]}
PAIR = {("a", "big"): 0.8}

BAD_COSTS = {
    "zero": {**COSTS, "a": [0.0, 1.0]},
    "negative": {**COSTS, "big": [20.0, -1.0]},
    "nan": {**COSTS, "a": [math.nan]},
    "infinite": {**COSTS, "a": [math.inf]},
    "empty list": {**COSTS, "a": []},
    "none": {**COSTS, "a": None},
    "a number": {**COSTS, "a": 1.0},
    "words": {**COSTS, "a": ["fast"]},
    "no models": {},
    "not a mapping": [1.0],
    "lookup as target": {"a": [1.0], "lookup": [0.01]},
}
BAD_ACCEPTANCES = {
    "above 1": {("a", "big"): 1.01},
    "negative": {("a", "big"): -0.1},
    "nan": {("a", "big"): math.nan},
    "none": {("a", "big"): None},
    "words": {("a", "big"): "often"},
    "not a pair": {"a": 0.8},
    "not a mapping": 0.8,
}


def refuses(call) -> None:
    with pytest.raises(HsdError) as caught:
        call()
    assert isinstance(caught.value, ConfigError)
    assert caught.value.message.endswith(".")
    assert caught.value.hint


@pytest.mark.parametrize("costs", BAD_COSTS.values(), ids=BAD_COSTS)
def test_impossible_costs_are_refused(costs):
    refuses(lambda: planning.best_plan(costs, PAIR))
    refuses(lambda: planning.ranking(costs, PAIR))
    refuses(lambda: planning.relaxed_plan(costs, PAIR))
    refuses(lambda: planning.expected_ms_per_token("a:2>big", costs, PAIR))
    refuses(lambda: planning.replay(["a:2>big"], costs, []))


@pytest.mark.parametrize("acceptances", BAD_ACCEPTANCES.values(), ids=BAD_ACCEPTANCES)
def test_impossible_acceptances_are_refused(acceptances):
    refuses(lambda: planning.best_plan(COSTS, acceptances))
    refuses(lambda: planning.ranking(COSTS, acceptances))
    refuses(lambda: planning.expected_ms_per_token("a:2>big", COSTS, acceptances))


@pytest.mark.parametrize("top", [0, 65, -1, 2.5, True, None, math.nan])
def test_impossible_thresholds_are_refused(top):
    refuses(lambda: planning.best_plan(COSTS, PAIR, max_threshold=top))


@pytest.mark.parametrize("plan", ["a:0>big", "a:65>big", "a>big", "", "lookup", "a:2>a", 3, None])
def test_plans_that_are_none_are_refused(plan):
    refuses(lambda: planning.expected_ms_per_token(plan, COSTS, PAIR))


def test_a_level_without_costs_is_refused_by_name():
    with pytest.raises(ConfigError, match="'tiny'"):
        planning.expected_ms_per_token("tiny:2>big", COSTS, {("tiny", "big"): 0.8})


def test_pairs_of_models_that_are_not_loaded_are_ignored():
    assert planning.best_plan(COSTS, {**PAIR, ("gone", "big"): 0.9, ("a", "gone"): 0.9}) == planning.best_plan(
        COSTS, PAIR
    )


def test_arrays_and_numpy_numbers_are_taken():
    costs = {"a": np.array([1.0, 1.1], dtype=np.float32), "big": np.array([20, 21])}
    plan, ms = planning.best_plan(costs, {("a", "big"): np.float32(0.5)}, max_threshold=np.int64(4))
    assert type(ms) is float
    assert ms == pytest.approx(planning.best_plan(COSTS, {("a", "big"): 0.5}, 4)[1], rel=1e-6)
    assert plan.names == ("a", "big")
    assert type(planning.expected_ms_per_token(plan, costs, {("a", "big"): 0.5})) is float


def test_planning_loads_neither_torch_nor_a_database():
    heavy = ("torch", "transformers", "sqlite3", "sqlite_utils")
    code = f"import sys, hsd.planning; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
