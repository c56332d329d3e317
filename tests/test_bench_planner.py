"""The planner's benchmarks: prompts apart from training and fit, figures as defined, runs that go on."""

from __future__ import annotations

import itertools
from pathlib import Path

import models as tiny
import pytest

import hsd
from hsd.bench import BENCHMARKS, BenchRequest, adaptation, forecast, map, regret, svg
from hsd.bench.progress import Journal
from hsd.bench.workloads import JUDGE, LEARN

DATA = Path(hsd.__file__).parent / "builtin" / "data"


def test_prompts_are_never_trained_on_nor_fitted_on():
    never = set((DATA / "never_asked.txt").read_text(encoding="utf-8").splitlines())
    judged, learned = ([text for texts in half.values() for text in texts] for half in (JUDGE, LEARN))
    assert set(judged) | set(learned) <= never and not set(judged) & set(learned)
    assert len(set(judged)) == 40 and all(len(texts) == 10 for texts in JUDGE.values())


def test_the_planners_benchmarks_are_listed():
    assert {"forecast", "regret", "adaptation", "map"} <= set(BENCHMARKS)
    assert all(callable(module.run) for module in (forecast, regret, adaptation, map))


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


# --- the map


def test_the_worked_case_to_three_digits():
    """Section 4 of the method: ms per token and times faster than plain decoding."""
    found = map.best_by_depth(*map.WORKED)
    assert [plan for plan, _ in found] == ["target", "A:4>target", "lookup:2>B:5>target", "lookup:2>A:2>B:5>target"]
    assert [f"{ms:.3g}" for _, ms in found] == ["14.2", "6.82", "6.22", "6.02"]
    assert [f"{found[0][1] / ms:.3g}" for _, ms in found] == ["1", "2.08", "2.27", "2.35"]
    assert f"{found[1][1] / found[3][1]:.3g}" == "1.13"


def test_the_map_is_never_below_one_and_its_picture_has_every_cell(tmp_path):
    lines = []
    found = map.run(BenchRequest(quick=True, out=tmp_path, tell=lines.append))
    gains = [one["gain"] for row in found["cells"] for one in row]
    assert min(gains) == 1.0 and 1.1 < max(gains) == found["most"]["gain"] < 2.0
    text = (tmp_path / "map.svg").read_text()
    assert text.count("<rect") == len(gains) and "prefers-color-scheme: dark" in text
    one = map.cell(0.8, 8)
    assert one["hierarchy"].count(">") == 2 and one["single"].count(">") == 1 and one["speedup"] > one["single_speedup"]


def test_pictures_are_well_formed_and_escape_what_they_are_given():
    from xml.etree import ElementTree

    text = svg.lines(
        "a < b & c", "x", "y", {"one": [(0, 1), (10, 3)], "two": [(0, 2), (10, 2)]}, {"here": 5}, dots=True
    )
    drawn = ElementTree.fromstring(text)
    assert len(drawn.findall(".//{*}circle")) == 4 and "a < b & c" in "".join(drawn.itertext())
    ElementTree.fromstring(svg.grid("t", "x", "y", ["1"], ["<2>"], [[1.0]]))


# --- regret


def runs(auto: float, slow: float = 1.0) -> list[dict]:
    """Rows of a run: `a:2>t` at 1 ms per token, plain at 2; in the category "talk" plain decoding is as fast."""
    out = []
    for half, prompt in itertools.product((0, 1), range(8)):
        category = ("command", "talk")[prompt % 2]
        spoiled = slow if prompt == 3 else 1.0
        plans = {"t": 2.0 if category == "command" else 1.0, "a:2>t": 1.0, "b:2>t": 1.5, "auto": auto * spoiled}
        shared = {"half": half, "category": category, "prompt": str(prompt), "ran": "a:2>t", "tokens": 10}
        out += [{**shared, "plan": plan, "ms": 10 * ms} for plan, ms in plans.items()]
    return out


def test_regret_is_against_the_best_of_the_other_half():
    found = regret.figures(runs(auto=1.1))
    assert [half["best"] for half in found["halves"]] == ["a:2>t"] * 2
    assert found["regret"] == pytest.approx(0.1) and found["candidates"] == 3
    assert found["by_category"]["command"]["auto_over_plain"] == pytest.approx(0.55)
    assert found["worst_over_plain"] == pytest.approx(1.1)
    low, high = found["halves"][0]["interval"]
    assert low == pytest.approx(high) == pytest.approx(1.1)
    assert found["ran"] == {"a:2>t": 16}


def test_several_drafts_are_compared_with_one_on_the_half_on_which_they_were_not_chosen():
    rows = runs(auto=1.0)
    assert regret.figures(rows)["drafts"] == []
    for row in [row for row in rows if row["plan"] == "a:2>t"]:
        # `x` is the best with two drafts, but not on the half that chooses in the first comparison.
        rows.append({**row, "plan": "a:1>x:2>t", "ms": 20.0 if row["half"] == 0 else 5.0})
        rows.append({**row, "plan": "lookup:1>a:1>y:2>t", "ms": 8.0})
        rows.append({**row, "plan": "lookup:1>a:3>t", "ms": 9.0})
    found = regret.figures(rows)["drafts"]
    assert [(one["one"], one["several"]) for one in found] == [
        ("lookup:1>a:3>t", "lookup:1>a:1>y:2>t"),
        ("lookup:1>a:3>t", "a:1>x:2>t"),
    ]
    assert [one["ratio"] for one in found] == [pytest.approx(9 / 8), pytest.approx(9 / 20)]
    assert found[0]["interval"] == pytest.approx([9 / 8, 9 / 8])


def test_a_moment_when_something_else_ran_counts_three_times_at_most():
    assert regret.figures(runs(auto=1.0, slow=500.0))["auto_ms"] == pytest.approx((7 + 3) / 8)


def test_the_best_of_either_kind_run_on(tmp_path):
    """What 80 replies cannot tell apart is measured longer; what came in last in both kinds is not."""
    plans = ["t", *(f"a:{n}>t" for n in range(1, 9)), *(f"a:{n}>b:{n}>t" for n in range(1, 9))]
    asked: list[tuple[str, ...]] = []

    def work(category, text, plans, turn):
        asked.append(tuple(plans))
        shared = {"category": category, "prompt": text, "tokens": 10, "ran": "a:1>t"}
        ms = {plan: 10.0 + hsd.Plan.parse(plan).thresholds[0] if ">" in plan else 30.0 for plan in plans}
        return [{**shared, "plan": plan, "ms": ms.get(plan, 12.0)} for plan in (*plans, "auto")]

    prompts = [("command", "one"), ("talk", "two")]
    rows = regret.contest(Journal(tmp_path, "regret"), "T=0", prompts, plans, work, 4)
    last = ("t", *(f"a:{n}>t" for n in range(1, 5)), *(f"a:{n}>b:{n}>t" for n in range(1, 5)))
    assert asked == [tuple(plans)] * 4 + [last] * 8
    found = regret.figures(rows)
    assert found["candidates"] == len(plans) and found["replies_a_plan"] == {"first": 4, "finalists": 12}
    assert len(found["all_ms"]) == len(plans) + 1 and {half["best"] for half in found["halves"]} <= {
        "a:1>t",
        "a:1>b:1>t",
    }
    assert regret.contest(Journal(tmp_path, "regret"), "T=0", prompts, plans, work, 4) == rows and len(asked) == 12


def test_a_regret_run_on_tiny_models():
    one = hsd.Engine.from_models(tiny.related(count=2, noise=0.03), tiny.ByteTokenizer())
    one.planner.profile.measure()
    plans = regret.candidates(one, 0.0, quick=True)
    assert plans[0] == "big" and {hsd.Plan.parse(p).names[0] for p in plans[1:]} == {"lookup", "medium"}
    rows = [{**row, "half": half} for half in (0, 1) for row in regret.measure(one, 0.0, 12, "talk", "hi", plans, half)]
    found = regret.figures(rows)
    assert found["replies"] == 2 * (len(plans) + 1) and found["auto_ms"] > 0
    assert one.stats.summary()["rows"]["scores"] > 0, "auto learns between its replies"


# --- adaptation


def test_recovered_is_from_where_on_it_stays_near_the_best():
    def rows(*ms):
        return [{"tokens": 50, "ms": 50 * one, "due_ms": 50.0} for one in ms]

    assert adaptation.recovered(rows(3, 3, 1, 1, 1, 1, 1, 1, 1)) == 100
    assert adaptation.recovered(rows(3, *[1] * 60)) == 50, "the end does not make up for it"
    assert adaptation.recovered(rows(1, 1, 1)) == 0
    assert adaptation.recovered(rows(3, 3, 3, 3)) is None
    assert adaptation.recovered(rows(2, 1, 1, 3, 3, 3, 3)) is None, "one easy stretch is no recovery"
    hard = [{"tokens": 50, "ms": 150.0, "due_ms": 150.0}, *rows(1, 1)]
    assert adaptation.recovered(hard) == 0, "a prompt that is hard for the best plan too"


def test_an_adaptation_scene_on_tiny_models():
    one = hsd.Engine.from_models(tiny.related(count=2, noise=0.03), tiny.ByteTokenizer())
    before = adaptation._phase(one, ["hello", "you"], 60)
    good = one.generate([1, 2, 3], hsd.SamplingParams(temperature=0, max_tokens=20), plan="big")
    adaptation.spoil(one)
    after = adaptation._phase(one, ["hello"], 40)
    best, due, plain_ms = adaptation._suited(one, after)
    best_ms = due["hello"]
    assert sum(row["tokens"] for row in before) >= 60 and best_ms <= plain_ms and best
    reply = one.generate([1, 2, 3], hsd.SamplingParams(temperature=0, max_tokens=20), plan="medium:3>big")
    assert reply.token_ids == good.token_ids and reply.stats.levels[0].accepted == 0, "useless, and still lossless"
    scene = {
        "rows": [{**row, "after": late} for late, rows in ((False, before), (True, after)) for row in rows],
        "changed_at": 60,
        "best_after": best,
        "best_ms": best_ms,
        "plain_ms": plain_ms,
    }
    assert "draft spoiled" in adaptation.picture("draft", scene)
