"""The planner's benchmarks: prompts apart from training and fit, figures as defined, runs that go on where they were."""

from __future__ import annotations

import itertools
from pathlib import Path

import models as tiny
import pytest

import hsd
from hsd.bench import BENCHMARKS, forecast
from hsd.bench.progress import Journal
from hsd.bench.workloads import JUDGE, LEARN

DATA = Path(hsd.__file__).parent / "builtin" / "data"


def test_prompts_are_never_trained_on_nor_fitted_on():
    never = set((DATA / "never_asked.txt").read_text(encoding="utf-8").splitlines())
    judged, learned = ([text for texts in half.values() for text in texts] for half in (JUDGE, LEARN))
    assert set(judged) | set(learned) <= never and not set(judged) & set(learned)
    assert len(set(judged)) == 40 and all(len(texts) == 10 for texts in JUDGE.values())


def test_every_benchmark_is_there():
    import importlib

    assert all(callable(importlib.import_module(f"hsd.bench.{name}").run) for name in BENCHMARKS)


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    calls = itertools.count()
    first = Journal(tmp_path, "x")
    assert [first.once(key, lambda: next(calls)) for key in ("a", "b", "a")] == [0, 1, 0]
    with (tmp_path / "x.journal").open("a") as file:
        file.write('{"c": ')  # killed in the middle of a line
    second = Journal(tmp_path, "x")
    assert [second.once(key, lambda: next(calls)) for key in ("a", "b", "c")] == [0, 1, 2]
    assert Journal(None, "x").once("a", lambda: 7) == 7


@pytest.mark.parametrize("count", [8, 24])
def test_plans_to_forecast_are_of_all_kinds(count):
    plans = forecast.plans_of(["lookup", "a", "b", "c", "t"], count)
    assert len(set(plans)) == count + 1 and plans[0] == hsd.Plan("t")
    assert {len(plan.drafts) for plan in plans} == ({0, 1, 2, 3} if count == 24 else {0, 1, 2})


def test_errors_are_shares_of_what_was_measured():
    frozen = {
        "iid": {"t": 2.0, "a:2>t": 1.2, "b:2>t": 0.9},
        "replay": {"t": 2.0, "a:2>t": 1.0, "b:2>t": 1.0},
        "iid_tokens_per_round": {"t": 1.0, "a:2>t": 2.0, "b:2>t": 2.0},
        "replay_tokens_per_round": {"t": 1.0, "a:2>t": 2.0, "b:2>t": 2.0},
        "positions": 10,
        "overhead_ms": [],
        "acceptances": {},
    }
    rows = [
        {"category": "x", "prompt": prompt, "plan": plan, "ms": ms, "outside_ms": 0.0, "tokens": 10, "rounds": rounds}
        for prompt in ("p", "q")
        for plan, ms, rounds in (("t", 20.0, 10), ("a:2>t", 10.0, 5), ("b:2>t", 10.0, 4))
    ]
    found = forecast.figures(frozen, rows)
    assert found["plain_drift"] == 0 and found["plans"]["a:2>t"]["measured_ms"] == 1.0
    assert found["iid"]["median_error"] == pytest.approx(0.15) and found["replay"]["median_error"] == 0
    assert found["iid"]["worst_error"] == pytest.approx(0.2)
    assert found["iid"]["median_signed"] == pytest.approx(0.05)
    assert found["replay"]["median_error_tokens_per_round"] == pytest.approx((0 + 0.2) / 2)


def test_a_forecast_run_on_tiny_models():
    one = hsd.Engine.from_models(tiny.related(count=3, noise=0.03), tiny.ByteTokenizer())
    one.planner.profile.measure()
    one.learner.share = 1.0
    plans = forecast.plans_of(["lookup", *one.info.models], 4)
    frozen = forecast.fit(one, 0.0, plans, 12, quick=True)
    rows = [row for turn in range(2) for row in forecast.measure(one, 0.0, "talk", f"hello {turn}", plans, 12, turn)]
    found = forecast.figures(frozen, rows)
    assert frozen["positions"] > 0 and len(rows) == 2 * len(plans)
    assert set(found["plans"]) == {str(plan) for plan in plans}
    assert all(row["measured_ms"] > 0 and row["replay_ms"] > 0 for row in found["plans"].values())
