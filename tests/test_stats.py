"""What is stored comes back: replies, acceptances, sequences, costs, switches, the summary."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from hsd import planning
from hsd.errors import ConfigError
from hsd.stats import CostRecord, ReplyRecord, Retention, Stats, SwitchRecord, temperature_bucket
from hsd.stats.schema import TABLES
from hsd.types import LevelStats

PAIR = ("tiny", "big")
MACHINE = {"device": "cpu", "dtype": "bf16", "runtime": "eager 1"}


def reply(family: str = "f", temperature: float = 0.7, tokens: int = 40, **more) -> ReplyRecord:
    return ReplyRecord(
        family=family,
        device="cpu",
        plan="tiny:3>big",
        temperature=temperature,
        verification="block",
        prompt_tokens=12,
        reused_tokens=5,
        reply_tokens=tokens,
        seconds=2.0,
        first_token_seconds=0.25,
        target_passes=10,
        finish_reason="stop",
        **more,
    )


def scored(stats: Stats, overlaps, temperature: float = 0.7, family: str = "f", pair: tuple[str, str] = PAIR) -> int:
    reply_id = stats.record_reply(reply(family, temperature))
    assert stats.record_scores(reply_id, {pair: np.asarray(overlaps, dtype=float)})
    return reply_id


def test_rounds_and_overlaps_of_a_pair_come_together_where_one_plan_was_verified_block_wise(stats):
    names = ("tiny", "small", "big")
    levels = tuple(LevelStats(name, 4, 3, 5, 0.1, 1.0) for name in names)
    made = dataclasses.replace(
        reply(), plan="tiny:2>small:3>big", levels=levels, rounds=((0, 0, 5.0), (3, 2, 6.0), (3, 3, 6.5))
    )
    under, other = {("small", "big"): np.linspace(0.5, 1, 9)}, {("tiny", "small"): np.full(9, 0.5)}
    wanted = stats.record_reply(made)
    stats.record_scores(wanted, {**under, **other})
    for spoiled in ({"verification": "token"}, {"temperature": 0.0}, {"family": "g"}):
        stats.record_scores(stats.record_reply(dataclasses.replace(made, **spoiled)), {**under, **other})
    switched = stats.record_reply(made)
    stats.record_scores(switched, {**under, **other})
    stats.record_switch(SwitchRecord("f", "a>b", "b", "it is slow", reply_id=switched))
    found = stats.verdicts("f", "mid")
    assert list(found) == [("small", "big")] and len(found["small", "big"]) == 1
    ((pairs, overlaps),) = found["small", "big"]
    assert pairs == [(0, 0), (3, 2), (3, 3)]
    assert overlaps == pytest.approx(np.linspace(0.5, 1, 9), abs=1e-3)
    assert stats.verdicts("f", "high") == {}


@pytest.fixture(params=["file", "memory"])
def stats(request, tmp_path: Path):
    with Stats(tmp_path / "stats.db" if request.param == "file" else None) as opened:
        yield opened
        assert opened.warning is None


def test_a_reply_is_stored_with_its_levels_and_rounds(tmp_path: Path):
    path = tmp_path / "new" / "stats.db"
    with Stats(path) as stats:
        reply_id = stats.record_reply(
            reply(
                baseline_seconds=4.0,
                speedup=2.0,
                forecast_ms_per_token=45.5,
                decode_seconds=1.75,
                levels=(LevelStats("tiny", 30, 22, 30, 0.3, 1.25), LevelStats("big", 0, 0, 10, 1.4, 4.0)),
                thresholds=(3,),
                rounds=((3, 2, 140.25), (3, 3, 141.5)),
                seed=2**80,
                planner_json='{"costs": 1}',
            )
        )
    rows = sqlite3.connect(path)
    rows.row_factory = sqlite3.Row
    found = dict(rows.execute("SELECT * FROM replies WHERE id = ?", [reply_id]).fetchone())
    assert (found["bucket"], found["total_s"], found["baseline_s"], found["speedup"]) == ("mid", 2.0, 4.0, 2.0)
    assert (found["seed"], found["planner_json"], found["decode_s"]) == (str(2**80), '{"costs": 1}', 1.75)
    levels = [tuple(row)[1:] for row in rows.execute("SELECT * FROM levels ORDER BY position")]
    assert levels == [(0, "tiny", 3, 30, 22, 30, 0.3, 1.25), (1, "big", None, 0, 0, 10, 1.4, 4.0)]
    count, blob = rows.execute("SELECT rounds, block_accepted_ms FROM rounds").fetchone()
    assert np.frombuffer(blob, dtype="<f4").reshape(count, 3).tolist() == [[3, 2, 140.25], [3, 3, 141.5]]
    rows.close()


@pytest.mark.parametrize(
    ("temperature", "bucket"),
    [(0, "greedy"), (0.01, "low"), (0.5, "low"), (0.51, "mid"), (0.9, "mid"), (0.91, "high"), (5, "high")],
)
def test_temperatures_fall_into_buckets(temperature: float, bucket: str):
    assert temperature_bucket(temperature) == bucket


def test_acceptance_decays_with_newer_scored_tokens(stats: Stats):
    rng = np.random.default_rng(0)
    replies = [rng.random(int(n)) for n in (300, 5, 1, 800)]
    for overlaps in replies:
        scored(stats, np.full(overlaps.size, overlaps.mean()))  # constant: within a reply only the mean is kept
    found = stats.acceptances("f", "mid", half_life_tokens=400)[PAIR]
    newest_first = np.concatenate([np.full(o.size, o.mean()) for o in reversed(replies)])
    weight = 0.5 ** (np.arange(newest_first.size) / 400)
    assert found.rate == pytest.approx((weight * newest_first).sum() / weight.sum())
    assert found.positions == 1106
    assert found.sure


def test_half_a_life_of_newer_tokens_halves_the_weight(stats: Stats):
    for overlap in (0.47, 0.53):  # so near that it is no change of the draft
        scored(stats, np.full(2000, overlap))
    assert stats.acceptances("f", "mid")[PAIR].rate == pytest.approx(0.47 + 0.06 * 2 / 3, abs=1e-6)


def test_a_clock_that_jumps_changes_no_estimate(tmp_path: Path):
    path = tmp_path / "stats.db"
    with Stats(path) as stats:
        for overlap in (0.2, 0.9, 0.4, 0.6):
            scored(stats, np.full(500, overlap))
        before = stats.acceptances("f", "mid"), [s[PAIR].tolist() for s in stats.sequences("f", "mid")]
    other = sqlite3.connect(path)
    for reply_id, at in ((1, 9e9), (2, -5.0), (3, 0.0), (4, 1e3)):
        other.execute("UPDATE replies SET at_unix_s = ? WHERE id = ?", [at, reply_id])
    other.commit()
    other.close()
    with Stats(path) as stats:
        assert (stats.acceptances("f", "mid"), [s[PAIR].tolist() for s in stats.sequences("f", "mid")]) == before


def test_spread_and_error_are_those_of_the_positions(stats: Stats):
    rng = np.random.default_rng(1)
    for _ in range(10):
        scored(stats, rng.random(400))
    found = stats.acceptances("f", "mid", half_life_tokens=1e6)[PAIR]
    assert found.spread == pytest.approx(12**-0.5, abs=0.01)
    assert found.standard_error == pytest.approx(1.6 * found.spread / 4000**0.5, rel=0.05)
    with Stats() as runs:  # replies that differ as wholes: the error is that between replies
        for mean in np.linspace(0.2, 0.8, 10)[[0, 9, 1, 8, 2, 7, 3, 6, 4, 5]]:  # to and fro, no trend
            scored(runs, np.full(400, mean))
        assert runs.acceptances("f", "mid", 1e6)[PAIR].standard_error == pytest.approx(0.1915 / 10**0.5, rel=0.05)


def test_few_positions_are_not_sure_and_not_exact(stats: Stats):
    scored(stats, [1.0, 1.0, 1.0])
    found = stats.acceptances("f", "mid")[PAIR]
    assert not found.sure
    assert found.standard_error > 0.1
    scored(stats, np.full(496, 0.5))
    assert not stats.acceptances("f", "mid")[PAIR].sure
    scored(stats, [0.5])
    assert stats.acceptances("f", "mid")[PAIR].sure


def test_another_temperature_stands_in_only_where_there_is_nothing(stats: Stats):
    scored(stats, np.full(900, 0.9), temperature=0)
    borrowed = stats.acceptances("f", "high")[PAIR]
    assert borrowed.rate == pytest.approx(0.9)
    assert borrowed.borrowed
    assert not borrowed.sure
    assert borrowed.standard_error > stats.acceptances("f", "greedy")[PAIR].standard_error + 0.02
    scored(stats, [0.25], temperature=1.0)
    own = stats.acceptances("f", "high")[PAIR]
    assert (own.rate, own.positions, own.borrowed) == (0.25, 1, False)


def test_families_are_kept_apart(stats: Stats):
    scored(stats, [0.5] * 10, family="one")
    assert stats.acceptances("two", "mid") == {}
    assert stats.sequences("two", "mid") == []


def test_scoring_again_replaces(stats: Stats):
    reply_id = scored(stats, [0.1, 0.1])
    stats.record_scores(reply_id, {PAIR: np.array([0.9])})
    assert stats.acceptances("f", "mid")[PAIR].rate == pytest.approx(0.9)
    assert [s[PAIR].size for s in stats.sequences("f", "mid")] == [1]


def test_scores_of_a_reply_that_is_gone_are_skipped(stats: Stats):
    assert not stats.record_scores(77, {PAIR: np.array([0.5])})
    assert not stats.record_scores(0, {PAIR: np.array([0.5])})
    assert stats.acceptances("f", "mid") == {}


@pytest.mark.parametrize("wrong", [[0.5, 1.1], [-0.1], [np.nan], [[0.5, 0.5]]])
def test_impossible_overlaps_are_refused(stats: Stats, wrong):
    reply_id = stats.record_reply(reply())
    with pytest.raises(ConfigError, match="tiny → big"):
        stats.record_scores(reply_id, {PAIR: np.array(wrong)})
    assert stats.acceptances("f", "mid") == {}


@pytest.mark.parametrize("half_life", [0, -1, float("nan"), float("inf")])
def test_impossible_half_lives_are_refused(stats: Stats, half_life: float):
    with pytest.raises(ConfigError, match="half_life"):
        stats.acceptances("f", "mid", half_life)


def test_float_error_at_the_ends_is_clipped(stats: Stats):
    scored(stats, [1.0000004, -1e-7])
    assert stats.sequences("f", "mid")[0][PAIR].tolist() == [1.0, 0.0]


def test_a_lookup_without_a_proposal_counts_as_refused_and_is_remembered_as_such(stats: Stats):
    scored(stats, [0.5, np.nan, 1.0, np.nan], pair=("lookup", "big"))
    found = stats.acceptances("f", "mid")["lookup", "big"]
    assert (found.rate, found.positions) == (pytest.approx(0.375), 4)
    assert np.isnan(stats.sequences("f", "mid")[0]["lookup", "big"]).tolist() == [False, True, False, True]


def test_sequences_come_newest_first_at_half_precision(stats: Stats):
    rng = np.random.default_rng(5)
    stored = [rng.random(30) for _ in range(4)]
    for overlaps in stored:
        scored(stats, overlaps)
    stats.record_reply(reply())  # not scored: no sequence
    found = stats.sequences("f", "mid", last=3)
    assert len(found) == 3
    for got, want in zip(found, reversed(stored), strict=False):
        assert got[PAIR] == pytest.approx(want, abs=5e-4)


def test_what_is_stored_can_be_planned_with(stats: Stats):
    rng = np.random.default_rng(7)
    for _ in range(3):
        reply_id = stats.record_reply(reply())
        low, high = rng.random(200) * 0.5, 0.5 + rng.random(200) / 2
        stats.record_scores(reply_id, {("lookup", "tiny"): low, PAIR: high, ("lookup", "big"): low * high})
    stats.record_costs(
        CostRecord("m", "cpu", "f", model, "bf16", "eager 1", 256, width, base + 0.1 * width)
        for model, base in (("lookup", 0.01), ("tiny", 1.0), ("big", 20.0))
        for width in range(1, 17)
    )
    found = stats.costs("m", "f", **MACHINE)
    costs = {name: found[name] for name in ("lookup", "tiny", "big")}
    rates = {pair: estimate.rate for pair, estimate in stats.acceptances("f", "mid").items()}
    plan, ms = planning.best_plan(costs, rates)
    replayed = planning.replay([plan], costs, stats.sequences("f", "mid"), dependence=0)[0]
    assert replayed.positions == 600
    assert replayed.ms_per_token == pytest.approx(ms, rel=0.05)  # independent throughout: the average is right


def cost(width: int, ms: float, context: int = 256, model: str = "big", **more) -> CostRecord:
    keys = {"machine": "m", "family": "f", **MACHINE, **more}
    return CostRecord(model=model, context_tokens=context, width_tokens=width, median_ms=ms, **keys)


def test_costs_come_back_by_width(stats: Stats):
    stats.record_costs([cost(2, 5.5), cost(1, 5.0), cost(3, 9.0), cost(1, 0.5, model="tiny")])
    assert stats.costs("m", "f", **MACHINE) == {"big": [5.0, 5.5, 9.0], "tiny": [0.5]}


def test_costs_of_another_machine_device_format_or_runtime_are_ignored(stats: Stats):
    others = ({"machine": "x"}, {"device": "cuda:0"}, {"dtype": "f32"}, {"runtime": "eager 2"}, {"family": "g"})
    stats.record_costs([cost(1, 99.0, **other) for other in others])
    assert stats.costs("m", "f", **MACHINE) == {}
    stats.record_costs([cost(1, 5.0)])
    assert stats.costs("m", "f", **MACHINE) == {"big": [5.0]}


def test_number_format_and_runtime_may_differ_by_model(stats: Stats):
    stats.record_costs([cost(1, 5.0, dtype="nf4"), cost(1, 1.0, model="tiny"), cost(1, 2.0, model="tiny", dtype="nf4")])
    found = stats.costs(
        "m", "f", device="cpu", dtype={"big": "nf4", "tiny": "bf16"}, runtime={"big": "eager 1", "tiny": "eager 1"}
    )
    assert found == {"big": [5.0], "tiny": [1.0]}


def test_newer_costs_replace_older_ones(stats: Stats):
    stats.record_costs([cost(1, 5.0), cost(2, 6.0)])
    stats.record_costs([cost(1, 4.0)])
    assert stats.costs("m", "f", **MACHINE) == {"big": [4.0, 6.0]}


def test_the_nearest_context_with_a_profile_is_taken(stats: Stats):
    stats.record_costs([cost(1, 1.0, 0), cost(1, 2.0, 1024), cost(1, 3.0, 4096), cost(5, 9.0, 2000)])
    at = {context: stats.costs("m", "f", **MACHINE, context_tokens=context)["big"] for context in (0, 600, 2100, 9999)}
    assert at == {0: [1.0], 600: [2.0], 2100: [2.0], 9999: [3.0]}


def test_widths_end_at_the_first_gap(stats: Stats):
    stats.record_costs([cost(1, 1.0), cost(2, 1.1), cost(4, 1.3), cost(2, 7.0, model="tiny")])
    assert stats.costs("m", "f", **MACHINE) == {"big": [1.0, 1.1]}


@pytest.mark.parametrize("wrong", [cost(1, 0.0), cost(1, -1.0), cost(1, np.nan), cost(0, 1.0), cost(1, 1.0, -1)])
def test_impossible_costs_are_refused(stats: Stats, wrong: CostRecord):
    with pytest.raises(ConfigError) as caught:
        stats.record_costs([cost(1, 5.0), wrong])
    assert caught.value.hint
    assert stats.costs("m", "f", **MACHINE) == {}


def test_ages_are_those_of_the_oldest_width_and_never_negative(tmp_path: Path):
    path = tmp_path / "stats.db"
    with Stats(path) as stats:
        stats.record_costs([cost(1, 5.0), cost(2, 5.0), cost(1, 1.0, model="tiny")])
        other = sqlite3.connect(path)
        other.execute(
            "UPDATE costs SET measured_unix_s = measured_unix_s - 100 WHERE model = 'big' AND width_tokens = 2"
        )
        other.execute("UPDATE costs SET measured_unix_s = measured_unix_s + 1e6 WHERE model = 'tiny'")
        other.commit()
        other.close()
        ages = stats.cost_ages("m", "f", **MACHINE)
    assert ages["big"] == pytest.approx(100, abs=30)
    assert ages["tiny"] == 0


def test_a_switch_is_stored_and_meets_its_outcome(stats: Stats):
    reply_id = stats.record_reply(reply())
    switch = SwitchRecord("f", "tiny:3>big", "big", "nothing pays", 9.0, 8.5, reply_id, at_token=17)
    switch_id = stats.record_switch(switch)
    stats.record_switch(SwitchRecord("g", "", "big", "start", reply_id=12345))
    stats.record_outcome(switch_id, 8.25)
    other, found = stats.summary()["switches"]
    assert (other["family"], other["reply_id"]) == ("g", None)
    assert found["reason"] == "nothing pays"
    assert (found["reply_id"], found["at_token"]) == (reply_id, 17)
    assert [found[f"{k}_ms_per_token"] for k in ("from_forecast", "to_forecast", "outcome")] == [9.0, 8.5, 8.25]
    assert len(stats.summary("g")["switches"]) == 1


def test_the_summary_is_json_and_adds_up(stats: Stats):
    for speedup in (1.0, 3.0, 2.0):
        stats.record_reply(reply(speedup=speedup, forecast_ms_per_token=44.0, decode_seconds=0.04 * 39))
    scored(stats, [0.25, 0.75])
    stats.record_costs([cost(1, 5.0), cost(2, 5.0)])
    found = json.loads(json.dumps(stats.summary(), allow_nan=False))
    family = found["families"][0]
    assert (family["replies"], family["tokens"], family["seconds"]) == (4, 160, 8.0)
    assert (family["median_speedup"], family["tokens_per_second"], family["tokens_per_target_pass"]) == (2.0, 20.0, 4.0)
    assert family["median_forecast_error"] == pytest.approx(0.1)
    assert family["buckets"][0]["pairs"] == [{"draft": "tiny", "verifier": "big", "positions": 2, "mean_overlap": 0.5}]
    assert found["costs"][0]["widths_measured"] == 2
    assert found["rows"]["replies"] == 4
    assert found["bytes"] > 0
    assert stats.summary("other")["families"] == []


def test_the_newest_replies_are_kept_with_what_belongs_to_them():
    with Stats(retention=Retention(replies=5, positions=2, switches=3)) as stats:
        for n in range(8):
            scored(stats, np.full(10, n / 10))
            scored(stats, [0.5], family="other")
            stats.record_switch(SwitchRecord("f", "", f"m{n}:1>big", "because"))
        assert [round(float(s[PAIR][0]), 1) for s in stats.sequences("f", "mid")] == [0.7, 0.6]
        assert len(stats.sequences("other", "mid")) == 2
        rows = stats.summary()["rows"]
        assert (rows["replies"], rows["scores"], rows["switches"]) == (5, 5, 3)
        assert stats.acceptances("f", "mid")[PAIR].positions == 20  # replies 7 and 6 of "f" are among the last five


def test_the_file_stays_within_its_size(tmp_path: Path):
    keep = Retention(megabytes=0.5)
    with Stats(tmp_path / "stats.db", keep) as stats:
        for _ in range(160):
            stats.record_reply(reply(rounds=((3, 2, 1.0),) * 600))  # 7 kB each, 1.1 MB together
        assert stats.summary()["bytes"] < 0.8e6  # checked every 32 replies
        assert 20 < stats.summary()["rows"]["replies"] < 130
        assert stats.warning is None
    assert (tmp_path / "stats.db").stat().st_size < 1.0e6


def test_reset_keeps_a_copy_beside_the_file(tmp_path: Path):
    path = tmp_path / "stats.db"
    with Stats(path) as stats:
        for _ in range(2):
            scored(stats, [0.5])
            copy = stats.reset()
            assert copy is not None
            assert copy.parent == path.parent
            assert set(stats.summary()["rows"].values()) == {0}
            with Stats(copy) as kept:
                assert kept.acceptances("f", "mid")[PAIR].rate == 0.5
        assert scored(stats, [0.5]) == 3  # an id never means two replies
    assert len(list(tmp_path.glob("stats-backup-*.db"))) == 2


def test_reset_in_memory_has_nothing_to_copy():
    with Stats() as stats:
        scored(stats, [0.5])
        assert stats.reset() is None
        assert stats.summary()["rows"]["replies"] == 0


def test_readers_in_other_threads_see_whole_replies(stats: Stats):
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            rows = stats.summary()["rows"]
            if rows["levels"] != 2 * rows["replies"]:
                wrong.append(rows)
            stats.acceptances("f", "mid")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        levels = (LevelStats("tiny", 1, 1, 1, 0.1), LevelStats("big", 0, 0, 1, 0.1))
        for _ in range(60):
            reply_id = stats.record_reply(reply(levels=levels))
            stats.record_scores(reply_id, {PAIR: np.array([0.5])})
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong
    assert stats.summary()["rows"]["scores"] == 60


def test_every_column_is_documented_and_nothing_else(tmp_path: Path):
    text = (Path(__file__).parent.parent / "docs" / "statistics.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `(\w+)`.*?\n(.*?)(?=^##|\Z)", text, flags=re.M | re.S))
    with Stats(tmp_path / "stats.db"):
        pass
    db = sqlite3.connect(tmp_path / "stats.db")
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables - {"sqlite_sequence"} == set(sections) == set(TABLES)
    for table, section in sections.items():
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M)) == columns, table
    db.close()
