"""The planner inside an engine: change is noticed, choices are explained, damaged or foreign numbers cost no plan."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import models as tiny
import numpy as np
import pytest
from click.testing import CliRunner

import hsd
from hsd import Plan, SamplingParams
from hsd.explanation import tables
from hsd.stats import CostRecord, ReplyRecord, Stats
from hsd.stats.estimate import Aggregate, current, decayed

LONG = SamplingParams(temperature=1.0, max_tokens=110, banned_ids=(tiny.END,))


def engine(count: int = 3, noise: float = 0.03, **options) -> hsd.Engine:
    return hsd.Engine.from_models(tiny.related(count=count, noise=noise), tiny.ByteTokenizer(), **options)


def learned(one: hsd.Engine, replies: int = 6) -> hsd.Engine:
    """Blocks are drafted whole: by the times of models of one size and a moment's noise the best is not to draft."""
    for n in range(replies):
        one.generate(f"hello {n}", LONG, plan="medium:2>big", early_stop=False)
        tiny.learn(one)
    return one


def test_the_rule_of_a_pinned_plan_is_fitted_in_idle_time():
    """Not in the next reply, where somebody waits for it; and anew when there is more to know."""
    one, pinned = learned(engine()), hsd.Plan.parse("small:3>medium:4>big")
    assert one.planner.choose(LONG.temperature).plan != pinned
    for turn in range(2):
        one.generate(f"say {turn}", LONG, plan=pinned)
        tiny.learn(one)
        known = dict(one.planner._rules)
        assert pinned in {plan for _, plan, _ in known}
        one.generate(f"now {turn}", LONG, plan=pinned)
        assert one.planner._rules == known


def test_a_pinned_plan_is_priced_by_the_costs_of_the_last_decision():
    """Those that a reply has changed take milliseconds to put together, while somebody waits for a first token."""
    one = learned(engine())
    one.planner.choose(LONG.temperature)
    before = one.planner.decide("small:3>big", LONG.temperature, 10)
    one.generate("more", LONG, plan="small:3>big")
    assert not one.planner.profile._widths
    assert one.planner.decide("small:3>big", LONG.temperature, 10) == before and before[1] > 0
    assert not one.planner.profile._widths, "nothing was put together"
    tiny.learn(one)
    assert one.planner.decide("small:3>big", LONG.temperature, 10) != before


def test_what_a_decision_names_is_what_runs_and_another_cap_is_no_switch(monkeypatch):
    """Before there is anything to replay the formula's thresholds are doubled; then the cap is found by replay."""
    one, params = engine(noise=0.02), SamplingParams(temperature=0, max_tokens=60, banned_ids=(tiny.END,))
    dear = {"small": [0.05] * 16, "medium": [0.06] * 16, "big": [2.0 + 0.1 * w for w in range(1, 17)]}
    monkeypatch.setattr(one.planner.profile, "costs", lambda greedy, context=0: {"lookup": [9.0], **dear})
    decided, ran = [], []
    for n in range(12):
        decided.append(one.planner.running(0.0))
        ran.append(Plan.parse(one.generate(f"hello {n}", params).stats.plan))
        tiny.learn(one)
    assert one.planner.report(0.0)["compared_by"] == "replay"
    assert all(plan in known for plan, known in zip(ran[-3:], decided[-3:], strict=True)) and ran[-1].drafts
    (key, decision), before = next(iter(one.planner._decisions.items())), one.stats.summary()["switches"]
    first, *rest = decision.plan.drafts
    other = Plan(decision.plan.target, (replace(first, threshold=first.threshold % 15 + 1), *rest))
    one.planner._decisions[key] = replace(decision, plan=other)
    assert one.planner.choose(0.0).plan == decision.plan != other
    assert one.stats.summary()["switches"] == before


# --- change


def replies(rate: float, count: int, seed: int = 0, size: int = 60) -> list[Aggregate]:
    """Scored replies, newest first, of one pair; overlaps in runs of about the length that was measured."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        level = np.clip(rng.normal(rate, 0.08), 0.02, 0.98)
        overlap = np.clip(rng.beta(2 * level, 2 * (1 - level), size), 0, 1)
        out.append(Aggregate("mid", size, float(overlap.sum()), float((overlap**2).sum())))
    return out


def test_a_draft_that_went_bad_is_not_averaged_away():
    estimate = current([*replies(0.1, 3), *replies(0.8, 40, seed=1)], 2000)
    assert estimate.moved and estimate.rate < 0.2 and not estimate.sure
    assert decayed([*replies(0.1, 3), *replies(0.8, 40, seed=1)], 2000).rate > 0.6, "the half-life alone is too slow"


def test_after_a_change_everything_since_it_counts_and_nothing_older():
    estimate = current([*replies(0.2, 20), *replies(0.8, 40, seed=1)], 2000)
    assert estimate.moved and estimate.rate == pytest.approx(0.2, abs=0.08)
    assert 500 <= estimate.positions <= 20 * 60 and estimate.sure


def test_replies_that_merely_differ_are_no_change():
    """200 histories without a change: false alarms cost accuracy."""
    alarms = sum(current(replies(0.7, 40, seed=seed), 2000).moved for seed in range(200))
    assert alarms <= 4


@pytest.mark.parametrize("history", [replies(0.5, 1), replies(0.5, 2, size=1), [Aggregate("mid", 1, 0.0, 0.0)]])
def test_short_histories_are_taken_whole(history):
    assert current(history, 2000) == decayed(history, 2000)


def test_easy_and_hard_replies_in_turn_are_no_change():
    """Three hard ones in a row happen by chance where replies differ as in small talk; three dead ones do not."""
    mixed = [one for seed in range(20) for one in (*replies(0.95, 1, seed, 20), *replies(0.45, 1, seed, 20))]
    assert not current([*replies(0.45, 3, 7, 20), *mixed], 2000).moved
    assert current([*replies(0.45, 3, 7, 20), *replies(0.95, 40, 1, 20)], 2000).moved
    assert current([*replies(0.02, 3, 7, 20), *mixed], 2000).moved


def test_of_a_pair_that_moved_only_what_is_new_is_replayed():
    one = engine(count=4, noise=0.005)
    learned(one, replies=12)
    one._models["tiny"]._model.model.norm.weight.data.neg_()
    learned(one, replies=2)
    estimates = one.planner.acceptances(1.0)
    assert {pair for pair, e in estimates.items() if e.moved} == {p for p in estimates if p[0] == "tiny"}
    found = one.planner.evidence.sequences(1.0)
    assert [("tiny", "big") in reply for reply in found] == [True] * 2 + [False] * 12
    assert all(("medium", "big") in reply for reply in found), "of the others nothing is lost"


def test_the_planner_hears_of_scores_at_once():
    one = learned(engine(), replies=1)
    before = one.planner.acceptances(1.0)
    assert one.planner.acceptances(1.0) is before, "kept between two scored replies"
    learned(one, replies=1)
    assert one.planner.acceptances(1.0) is not before


def test_what_block_verification_accepts_beyond_scores_is_learned_from_rounds():
    one = learned(engine(), replies=6)
    factors = one.planner.evidence.factors(1.0)
    assert factors and all(verifier == "big" and 0.8 < f < 1.25 for (_, verifier), f in factors.items())
    assert one.planner.evidence.factors(0.0) == {}
    scored, rates = one.planner.acceptances(1.0), one.planner.evidence.rates(1.0)
    for pair, estimate in scored.items():
        assert rates[pair] == pytest.approx(min(1.0, estimate.rate * factors.get(pair, 1.0)))
    assert {tuple(pair.split(">")) for pair in one.planner.report(1.0)["block_factors"]} == set(factors)


def test_nothing_is_ranked_before_a_first_token_while_nothing_was_scored():
    """Ranking takes tens of milliseconds: with nobody idle in between it would land in the time to the first token."""
    one = learned(engine(count=2))
    first = one.planner.plan_for(1.0)
    for _ in range(20):
        one.planner.replied()
        assert one.planner.plan_for(1.0) is first
    one.stats.scored += 1
    assert one.planner.plan_for(1.0) is not first
    for _ in range(64):
        one.planner.replied()
    later = one.planner.plan_for(1.0)
    assert one.planner.plan_for(1.0) is later


# --- explanation


def test_an_explanation_says_everything_and_is_json():
    one = learned(engine(count=4))
    report = json.loads(json.dumps(one.explain(1.0)))
    assert report["compared_by"] == "replay" and report["certain"] and report["sure"]
    assert set(report["costs_age_seconds"]) == set(one.info.models)
    assert all(age >= 0 for age in report["costs_age_seconds"].values())
    chains = [tuple(stage.split(":")[0] for stage in a["plan"].split(">")) for a in report["alternatives"]]
    assert len(chains) == len(set(chains)) or report["plan"] in {a["plan"] for a in report["alternatives"]}
    assert all(a["why"] for a in report["alternatives"])
    text = "\n".join(tables(report))
    for pair in report["acceptances"]:
        assert pair in text
    assert "seconds ago" in text and "around passes" in text and "own positions" in text


def test_every_excluded_draft_is_named_with_its_reason():
    family = {"short": tiny.model("llama", vocab=100), "tiny": tiny.model("llama"), "big": tiny.model("llama")}
    one = hsd.Engine.from_models(family, tiny.ByteTokenizer())
    report = one.explain(1.0)
    assert [d["model"] for d in report["left_out"]] == ["short"] and "100 tokens" in report["left_out"][0]["reason"]
    text = "\n".join(tables(report))
    assert "Left out: 'short'" in text and "guessed: nothing measured yet" in text and "formula" in text
    assert "two drafts" in text, "the plan is kept short, and it says why"


def test_hsd_plan_explain_prints_it(tmp_path, monkeypatch):
    from hsd.cli import cli

    done = CliRunner().invoke(cli, ["plan", "--explain", "--json", "--data-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output.strip().splitlines()[-1])
    assert "acceptance at temperature 0.7" in done.output and report["plan"] in done.output
    assert report["left_out"] == []


def test_a_reply_with_a_seed_keeps_what_its_plan_rested_on():
    one = engine(count=2)
    one.generate("hello", SamplingParams(temperature=1.0, seed=5, max_tokens=9))
    one.generate("hello", SamplingParams(temperature=1.0, max_tokens=9))
    rows = one.stats._db.read(lambda db: db.execute("SELECT plan, planner_json FROM replies").fetchall(), [])
    kept = json.loads(rows[0][1])
    assert kept["plan"] == rows[0][0] and set(kept["costs_ms"]) == {"lookup", "medium", "big"}
    assert 0 < kept["acceptances"]["medium>big"] < 1 and rows[1][1] == ""


# --- bad input


def test_a_family_of_one_decodes_plainly_or_with_a_lookup():
    one = engine(count=1)
    report = one.explain(1.0)
    plans = {report["plan"], *(a["plan"] for a in report["alternatives"])}
    assert {plan.split(":")[0] for plan in plans} <= {"big", "lookup"}
    assert one.generate("hello", SamplingParams(temperature=0, max_tokens=9)).stats.tokens == 9


def test_a_database_full_of_another_machines_numbers_is_ignored(tmp_path):
    with engine(count=2, data_dir=tmp_path) as one:
        family = one.planner.family
    with Stats(tmp_path / "stats.db") as stats:
        stats.record_costs(
            CostRecord(
                "elsewhere/x86_64/64 threads/no GPU", "cpu", family, name, "float32", "lean-1/torch-9", 128, w, 1e-3
            )
            for name in ("medium", "big")
            for w in range(1, 17)
        )
    with engine(count=2, data_dir=tmp_path) as one:
        one.planner.profile.restore()
        assert not one.planner.profile.measured
        assert one.explain(1.0)["costs_ms"]["big"][0] > 2e-3


@pytest.mark.parametrize("ms", [0.0, -1.0, math.inf, 1e9])
def test_stored_step_times_that_are_none_are_measured_anew(tmp_path, ms):
    with engine(count=2, data_dir=tmp_path) as one:
        one.planner.profile.measure()
    with Stats(tmp_path / "stats.db") as stats:
        stats._db.write(
            lambda db: db.execute("UPDATE costs SET median_ms = ? WHERE model = 'big'", [ms]) and None, None
        )
    with engine(count=2, data_dir=tmp_path) as one:
        one.planner.profile.restore()
        assert not one.planner.profile.measured, "the damaged model's times are not taken"
        report = one.explain(1.0)
        assert all(0 < value < 1e6 for times in report["costs_ms"].values() for value in times)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE positions SET overlaps = substr(overlaps, 1, 7)",
        "UPDATE positions SET overlaps = substr(overlaps, 1, 8) WHERE draft = 'medium'",
        "UPDATE positions SET overlaps = x'00ff00ff'",
        "UPDATE positions SET overlaps = x''",
        "UPDATE confidences SET confidences = x'01'",
        "UPDATE scores SET overlap_sum = 9e9",
        "UPDATE scores SET overlap_sum = -5, overlap_square_sum = -5",
        "UPDATE scores SET positions = 0",
    ],
)
def test_damaged_rows_cost_no_plan(damage):
    one = learned(engine(count=2))
    one.stats._db.write(lambda db: db.execute(damage) and None, None)
    one.stats.scored += 1
    one.planner._calibrations.clear()
    report = one.explain(1.0)
    assert report["plan"] and all(a["forecast_ms_per_token"] > 0 for a in report["alternatives"])
    assert one.generate("hello", SamplingParams(temperature=1.0, max_tokens=9)).finish_reason in ("stop", "length")


def test_a_clock_that_jumps_changes_no_plan(monkeypatch):
    import time

    plans = []
    for jump in (0, 1e9, -1e9):
        now = time.time() + jump
        monkeypatch.setattr(time, "time", lambda now=now: now)
        one = engine(count=2)
        with Stats(None) as stats:
            stats.record_reply(_record(one.planner.family))
        plans.append(learned(one, 2).planner.acceptances(1.0)["medium", "big"].positions)
        assert all(age >= 0 for age in one.explain(1.0)["costs_age_seconds"].values())
        monkeypatch.undo()
    assert len(set(plans)) == 1


def _record(family: str) -> ReplyRecord:
    return ReplyRecord(family, "cpu", "big", 1.0, "block", 5, 0, 9, 0.1, 0.01, 9, "length")
