"""Races without a page, over a real engine of tiny models: what they measure, keep and refuse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models as tiny
import pytest
from chat_fakes import ScriptedEngine, poem
from chat_waiting import until

import hsd
from chat.race import Standing, place, request_for
from chat.session import Session
from chat.settings import Settings
from chat.store import Store
from chat.ui import race as ui
from chat.ui import reply as reply_ui
from chat.ui.levels import looks

PLAN = "lookup:2>medium:3>big"
GREEDY = Settings(temperature=0.0, plan=PLAN, max_tokens=24)
NASTY = '"><script>alert(1)</script><img src=x onerror=alert(1)>&'


def engine() -> hsd.Engine:
    return hsd.Engine.from_models(tiny.related(count=3, noise=0.03), tiny.ByteTokenizer())


def opened(folder: Path, load: Callable[[Any], Any]) -> Session:
    session = Session(Store(folder / "chat.db"), load)
    session.start()
    until(lambda: session.engine.state == "ready")
    return session


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = opened(tmp_path_factory.mktemp("data"), lambda progress: engine())
    yield session
    session.close()


def ask(session: Session, text: str, settings: Settings = GREEDY, **options: bool) -> Any:
    conversation = session.send(None, text, settings, **options)
    until(lambda: session.live(conversation) is None)
    return session.snapshot(conversation).messages[-1]


def raced(session: Session, message_id: str) -> dict[str, Any]:
    session.race(message_id)
    until(lambda: session.racing(message_id) is None)
    return dict(session.raced(message_id) or {})


def test_a_race_is_stored_with_its_reply_whose_baseline_is_then_measured(session: Session) -> None:
    reply = ask(session, "hello")
    assert reply.stats["baseline"] == "estimated" and session.raced(reply.id) is None
    record = raced(session, reply.id)
    assert record["same_ids"] is True and record["differ_at"] is None and record["plan"] == PLAN
    plain, planned = record["lanes"]
    assert plain["plan"] == "big" and plain["text"] == planned["text"] == reply.text
    assert len(plain["steps"]) > len(planned["steps"]) and plain["target_passes"] > planned["target_passes"]
    for lane in record["lanes"]:
        moments = [moment for moment, _ in lane["steps"]]
        assert moments == sorted(moments) and moments[-1] <= lane["seconds"] * 1000 + 0.01
        assert lane["steps"][-1][1] == len(lane["text"].encode("utf-16-le")) // 2
    after = session.message(reply.id)
    assert after.stats["baseline"] == "measured"
    assert after.stats["speedup"] == pytest.approx(after.stats["baseline_seconds"] / after.stats["race_seconds"])
    # The reply itself is what it was.
    assert after.text == reply.text and after.stats["seconds"] == reply.stats["seconds"]
    assert "estimated" not in reply_ui.line(after.stats)
    assert "measured" in reply_ui.details(after, looks(("medium", "big")))


def test_another_program_reads_the_stored_race(tmp_path: Path) -> None:
    first = opened(tmp_path, lambda progress: engine())
    reply = ask(first, "hello")
    record = raced(first, reply.id)
    first.close()
    second = Session(Store(tmp_path / "chat.db"), lambda progress: engine())
    assert second.raced(reply.id) == record and second.message(reply.id).stats["baseline"] == "measured"
    second.store.close()


def test_above_temperature_0_nobody_expects_equal_ids(session: Session) -> None:
    reply = ask(session, "hello", Settings(temperature=1.0, plan=PLAN, max_tokens=24))
    record = raced(session, reply.id)
    assert record["same_ids"] is None and record["seed"] == reply.stats["seed"]
    assert "Above temperature 0" in ui.page(reply, "hello", record, None, "", {})


def test_a_race_waits_its_turn_is_stopped_alone_and_then_leaves_nothing(tmp_path: Path) -> None:
    session = opened(tmp_path, lambda progress: engine())
    try:
        reply = ask(session, "hello")
        long = Settings(temperature=1.5, plan="big", max_tokens=400)
        other = session.send(None, "keep it busy", long)
        session.race(reply.id)
        session.race(reply.id)
        standing = session.racing(reply.id)
        assert standing and standing.ahead == 1 and not standing.started
        # Its own conversation is free meanwhile, and shows the reply.
        assert session.live(reply.conversation_id) is None
        assert session.snapshot(reply.conversation_id).messages[-1].id == reply.id
        session.stop_race(reply.id)
        assert session.racing(reply.id) is None and session.live(other) is not None
        session.stop(other)
        until(lambda: session.live(other) is None)
        assert session.raced(reply.id) is None and session.message(reply.id) == reply
    finally:
        session.close()


def test_a_race_that_runs_ends_within_a_round_and_leaves_the_reply_alone(session: Session) -> None:
    reply = ask(session, "a long one", Settings(temperature=0.0, plan=PLAN, max_tokens=400))
    session.race(reply.id)
    until(lambda: (standing := session.racing(reply.id)) is None or standing.counts)
    session.stop_race(reply.id)
    until(lambda: session.racing(reply.id) is None, 5)
    assert session.raced(reply.id) is None and session.message(reply.id) == reply


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_race_that_is_stopped_in_its_second_run_leaves_nothing_either(session: Session, tokens: int) -> None:
    reply = ask(session, "a long one", Settings(temperature=0.0, plan=PLAN, max_tokens=100))
    race = request_for(reply, [session.message(reply.parent_id)], *session.levels())

    def stop_then(_: str) -> None:
        if len(race.counts) == 2 and race.counts[1] >= tokens:
            race.cancel.set()

    values = race.run(engine(), stop_then)
    assert len(race.counts) == 2 and race.counts[0] == 100 > race.counts[1]
    assert race.ending(values) == {}


def test_a_race_that_an_older_version_stored_half_way_is_offered_again(session: Session) -> None:
    reply = ask(session, "hello")
    html = ui.page(reply, "hello", {**raced(session, reply.id), "speedup": None}, None, "", {})
    assert 'data-action="race-start"' in html and "verdict" not in html


def test_a_failure_is_said_beside_the_reply_which_stays(tmp_path: Path) -> None:
    class Failing(ScriptedEngine):
        def race(self, *_: Any, **__: Any) -> Any:
            raise hsd.ModelError("small", "gave no distribution.", "Try float32.")

    session = opened(tmp_path, lambda progress: Failing(poem))
    try:
        reply = ask(session, "hello", Settings())
        assert raced(session, reply.id) == {"error": "Level 'small': gave no distribution. Try float32."}
        assert session.message(reply.id).stats == reply.stats and session.message(reply.id).state == "done"
        html = ui.page(reply, "hello", session.raced(reply.id), None, "", {})
        assert "The race failed: Level &#x27;small&#x27;" in html and 'data-action="race-start"' in html
    finally:
        session.close()


def test_what_cannot_be_raced_is_refused_in_a_sentence(session: Session) -> None:
    plain = ask(session, "hello", Settings(temperature=0.0, plan="big", max_tokens=8))
    with pytest.raises(hsd.HsdError, match="decoded plainly"):
        session.race(plain.id)
    with pytest.raises(hsd.HsdError, match="not there"):
        session.race("nowhere")
    with pytest.raises(hsd.HsdError, match="no figures"):
        session.race(str(plain.parent_id))
    half = ask(session, "hello", Settings(temperature=0.0, plan=PLAN, max_tokens=5))
    session.resume(half.id, GREEDY)
    until(lambda: session.live(half.conversation_id) is None)
    with pytest.raises(hsd.HsdError, match="two parts"):
        session.race(half.id)


def test_a_temporary_chat_is_raced_in_memory_alone(session: Session) -> None:
    reply = ask(session, "hello", temporary=True)
    assert raced(session, reply.id)["same_ids"] is True
    assert session.store.rows("SELECT count(*) FROM messages WHERE id = ?", reply.id) == [(0,)]
    session.forget(reply.conversation_id)


def test_nothing_in_a_race_breaks_out_of_its_page(session: Session) -> None:
    reply = ask(session, NASTY)
    record = raced(session, reply.id)
    lanes = [{**lane, "text": NASTY, "plan": f"{NASTY}:2>big"} for lane in record["lanes"]]
    for html in (
        ui.page(reply, NASTY, {**record, "lanes": lanes, "seed": NASTY}, None, NASTY, {}),
        ui.page(reply, NASTY, {"error": NASTY}, None, "", {}),
        ui.page(reply, NASTY, None, Standing(1, False, False, ()), "", {}),
    ):
        assert not re.search(r"<(script|img)", html) and html.count("&lt;script&gt;") >= 1


def test_the_page_says_where_a_race_is(session: Session) -> None:
    reply = ask(session, "hello")
    words = {
        Standing(2, False, False, ()): "Waiting, 2 replies before it",
        Standing(0, True, False, ()): "Reading the prompt",
        Standing(0, True, False, (7,)): "Decoding plainly: 7 tokens",
        Standing(0, True, False, (7, 1)): "Decoding by the plan: 1 token…",
        Standing(0, True, True, (7,)): "Stopping",
    }
    for standing, said in words.items():
        assert said in ui.page(reply, "hello", None, standing, "", {})
    assert place(reply.id) != reply.id


def test_a_race_that_was_lost_or_differs_is_said_in_words(session: Session) -> None:
    reply = ask(session, "hello")
    record = raced(session, reply.id)
    html = ui.page(reply, "hello", {**record, "speedup": 0.8, "same_ids": False, "differ_at": 9}, None, "", {})
    assert "Slower than plain decoding, 0.80×" in html
    assert "differ from token 9 on" in html and "bf16" in html
    assert "Equal: all 24 tokens" in ui.page(reply, "hello", {**record, "same_ids": True}, None, "", {})
