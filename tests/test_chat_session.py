"""What a person can do with the chat, over a scripted engine and a real database."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_fakes import ScriptedEngine
from chat_waiting import until

import hsd
from chat import store as store_module
from chat import worker as worker_module
from chat.prompt import make_title, messages_for_engine
from chat.request import pieces
from chat.session import Session
from chat.settings import Settings
from chat.store import Store

LONG = " ".join(f"word{i}" for i in range(300))


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda messages: f"You said {messages[-1]['content']} to me.")


@pytest.fixture
def session(tmp_path: Path, engine: ScriptedEngine) -> Iterator[Session]:
    session = Session(Store(tmp_path / "chat.db"), lambda progress: engine, title="Scripted", models=engine.info.models)
    session.start()
    yield session
    session.close()


def idle(session: Session, conversation: str) -> None:
    until(lambda: session.live(conversation) is None)


def reply(session: Session, conversation: str):
    return session.snapshot(conversation).messages[-1]


def test_a_message_gets_its_reply_with_statistics(session: Session) -> None:
    conversation = session.send(None, "hello there", Settings())
    idle(session, conversation)
    prompt, answer = session.snapshot(conversation).messages
    assert prompt.text == "hello there" and answer.text == "You said hello there to me."
    assert answer.state == "done" and answer.finish_reason == "stop" and answer.stats["speedup"] == 2.4
    assert len(answer.provenance) == len(answer.pieces) == answer.stats["tokens"]
    assert "".join(answer.pieces) == answer.text
    assert session.conversations()[0].title == "hello there · You said hello there to me."
    assert session.last_stats(conversation)["tokens"] == 6 and session.last_stats(None) is None


def test_idle_work_leaves_the_page_time_to_draw_and_whoever_asks_does_not_wait_for_it(
    session: Session, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: engine.learned)
    conversation = session.send(None, "one", Settings())
    idle(session, conversation)
    over, learned = time.monotonic(), engine.learned
    until(lambda: engine.learned > learned)
    assert time.monotonic() - over > worker_module.SETTLE_SECONDS / 2
    monkeypatch.setattr(worker_module, "SETTLE_SECONDS", 600)
    for text in ("two", "three"):
        session.send(conversation, text, Settings())
        idle(session, conversation)
    session.close()


def test_the_next_prompt_carries_the_ids_of_the_last_reply(session: Session, engine: ScriptedEngine) -> None:
    conversation = session.send(None, "one", Settings(system="Be short."))
    idle(session, conversation)
    session.send(conversation, "two", Settings(system="Be short."))
    idle(session, conversation)
    roles = [(m["role"], m["content"]) for m in engine.prompts[-1]]
    assert roles == [
        ("system", "Be short."),
        ("user", "one"),
        ("assistant", "You said one to me."),
        ("user", "two"),
    ]
    assert engine.prompts[-1][2]["token_ids"] == list(session.snapshot(conversation).messages[1].token_ids)


def test_a_running_reply_is_seen_growing_and_watchers_wake(session: Session, engine: ScriptedEngine) -> None:
    engine.script, engine.pause = lambda _: LONG, 0.005
    conversation = session.send(None, "go", Settings())
    seen, version = set(), 0
    while session.live(conversation):
        version = session.wait(version, 1)
        live = session.snapshot(conversation).live
        seen.add(live.text if live else "")
    assert len(seen) > 5
    assert reply(session, conversation).text == LONG


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_message_is_refused_and_nothing_is_stored(session: Session, text: str) -> None:
    with pytest.raises(hsd.PromptError) as caught:
        session.send(None, text, Settings())
    assert caught.value.hint and session.conversations() == []


@pytest.mark.parametrize(
    "settings",
    [
        Settings(temperature=-1),
        Settings(top_p=0),
        Settings(max_tokens=0),
        Settings(seed="many"),
        Settings(plan="tiny>"),
        Settings(plan="huge:2>big"),
        Settings(plan="tiny:200>big"),
    ],
)
def test_an_impossible_setting_is_refused_and_nothing_is_stored(session: Session, settings: Settings) -> None:
    until(lambda: session.engine.state == "ready")
    with pytest.raises(hsd.ConfigError):
        session.send(None, "hello", settings)
    assert session.conversations() == []


def test_a_message_longer_than_the_context_stays_and_the_next_one_takes_its_place(session: Session) -> None:
    conversation = session.send(None, LONG, Settings())
    idle(session, conversation)
    prompt, answer = session.snapshot(conversation).messages
    assert prompt.text == LONG
    assert answer.state == "error" and answer.finish_reason == "refused" and "Shorten" in answer.error
    session.send(conversation, "short", Settings())
    idle(session, conversation)
    assert [m.text for m in session.snapshot(conversation).messages] == ["short", "You said short to me."]
    assert session.store.message(prompt.id).text == LONG


def test_an_engine_that_fails_half_way_leaves_what_there_is(session: Session) -> None:
    conversation = session.send(None, "please FAIL now or later", Settings())
    idle(session, conversation)
    answer = reply(session, conversation)
    assert answer.state == "error" and "Level 'small'" in answer.error and answer.text.startswith("You said")
    other = session.send(None, "still there?", Settings())
    idle(session, other)
    assert reply(session, other).state == "done"


def test_stop_ends_one_reply_and_no_other(session: Session, engine: ScriptedEngine) -> None:
    engine.script, engine.pause = lambda _: LONG, 0.01
    first = session.send(None, "first", Settings())
    second = session.send(None, "second", Settings())
    third = session.send(None, "third", Settings())
    until(lambda: session.live(first) and session.live(first).tokens)
    assert session.live(third).ahead == 2
    session.stop(second)
    assert session.live(second) is None and session.live(first)
    session.stop(first)
    idle(session, first)
    until(lambda: session.live(third) and session.live(third).tokens)
    assert reply(session, first).state == "cancelled" and LONG.startswith(reply(session, first).text)
    assert reply(session, second).state == "cancelled" and reply(session, second).text == ""
    session.stop(third)


def test_a_message_waits_for_the_reply_that_is_written_and_reads_it_whole(
    session: Session, engine: ScriptedEngine
) -> None:
    conversation = session.send(None, "slowly, the first", Settings())
    until(lambda: session.live(conversation).tokens)
    for text in ("second", "third"):
        assert session.send(conversation, text, Settings()) == conversation
    now = session.snapshot(conversation, 1)
    assert [m.text for m in now.waiting] == ["second", "third"] and now.live.tokens and now.messages == ()
    idle(session, conversation)
    texts = [m.text for m in session.snapshot(conversation).messages]
    assert texts[::2] == ["slowly, the first", "second", "third"] and not session.snapshot(conversation).waiting
    assert [m["content"] for m in engine.prompts[-1]] == texts[:-1]
    assert texts[-1] == "You said third to me."


def test_stop_ends_the_reply_and_what_waits_behind_it_goes_on(session: Session, engine: ScriptedEngine) -> None:
    engine.script = lambda messages: LONG if len(messages) == 1 else "so it is"
    conversation = session.send(None, "first", Settings())
    session.send(conversation, "second", Settings())
    until(lambda: session.live(conversation).tokens)
    session.stop(conversation)
    idle(session, conversation)
    first, second = session.snapshot(conversation).messages[1::2]
    assert (first.state, second.state, second.text) == ("cancelled", "done", "so it is")


def test_a_message_that_waits_is_taken_back_and_those_behind_it_stay(session: Session, engine: ScriptedEngine) -> None:
    engine.script = lambda messages: LONG if len(messages) == 1 else "so it is"
    conversation = session.send(None, "first", Settings())
    until(lambda: session.live(conversation).tokens)
    for text in ("second", "third", "fourth"):
        session.send(conversation, text, Settings())
    second, _, fourth = session.snapshot(conversation).waiting
    assert session.take_back(second.id) == "second" and session.take_back(fourth.id) == "fourth"
    assert [m.text for m in session.snapshot(conversation).waiting] == ["third"]
    with pytest.raises(hsd.HsdError, match="waits no longer"):
        session.take_back(second.id)
    with pytest.raises(hsd.HsdError, match="waits no longer"):
        session.take_back(session.snapshot(conversation).messages[0].id)
    session.stop(conversation)
    idle(session, conversation)
    now = session.snapshot(conversation)
    assert [m.text for m in now.messages][::2] == ["first", "third"] and now.messages[3].text == "so it is"
    assert {m.text for m in session.store.messages(conversation)} >= {"second", "fourth"}, "nothing stored is lost"
    assert "second" not in str(engine.prompts[-1])


def test_what_waits_is_refused_a_change_deleted_with_its_chat_and_bounded(
    session: Session, engine: ScriptedEngine
) -> None:
    engine.script = lambda _: LONG
    conversation = session.send(None, "first", Settings())
    for number in range(20):
        session.send(conversation, f"more {number}", Settings())
    with pytest.raises(hsd.HsdError, match="20 messages wait"):
        session.send(conversation, "too many", Settings())
    first = session.snapshot(conversation).messages[0]
    for wrong in (
        lambda: session.undo(conversation),
        lambda: session.edit(first.id, "other", Settings()),
        lambda: session.redo(conversation),
    ):
        with pytest.raises(hsd.HsdError, match="still being written") as refused:
            wrong()
    assert not refused.value.over()
    session.delete(conversation)
    idle(session, conversation)
    assert refused.value.over()
    session.restore(conversation)
    states = {m.state for m in session.snapshot(conversation).messages[1::2]}
    assert states == {"cancelled"} and len(session.snapshot(conversation).messages) == 42


def test_what_waits_when_the_program_ends_is_interrupted_and_can_be_answered(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.script = lambda messages: LONG
    session = Session(Store(tmp_path / "chat.db"), lambda _: engine)
    session.start()
    conversation = session.send(None, "first", Settings())
    session.send(conversation, "second", Settings())
    session.send(conversation, "third", Settings())
    until(lambda: session.live(conversation).tokens)
    session.close()
    again = Session(Store(tmp_path / "chat.db"), lambda _: engine)
    again.start()
    messages = again.snapshot(conversation).messages
    assert [m.text for m in messages][::2] == ["first", "second", "third"]
    assert {m.state for m in messages[1::2]} == {"interrupted"} and messages[5].text == ""
    engine.script = lambda _: "at last"
    again.regenerate(messages[5].id, Settings())
    idle(again, conversation)
    assert reply(again, conversation).text == "at last"
    again.close()


def test_another_reply_is_a_branch_beside_the_first(session: Session) -> None:
    conversation = session.send(None, "hello", Settings())
    idle(session, conversation)
    first = reply(session, conversation)
    session.regenerate(first.id, Settings(seed=3))
    idle(session, conversation)
    second = reply(session, conversation)
    assert second.id != first.id and second.parent_id == first.parent_id and second.params["seed"] == 3
    assert len(session.snapshot(conversation).messages) == 2


def test_a_reply_goes_on_where_it_ended_as_one_message(session: Session, engine: ScriptedEngine) -> None:
    engine.script = lambda _: LONG
    conversation = session.send(None, "first, then second", Settings())
    until(lambda: session.live(conversation) and session.live(conversation).tokens > 20)
    session.stop(conversation)
    idle(session, conversation)
    half = reply(session, conversation)
    assert half.state == "cancelled" and LONG.startswith(half.text)
    session.resume(half.id, Settings())
    until(lambda: session.live(conversation) is None or session.live(conversation).text.startswith(half.text + " "))
    idle(session, conversation)
    whole = reply(session, conversation)
    assert whole.id == half.id and whole.text == LONG and whole.state == "done"
    assert len(session.snapshot(conversation).messages) == 2
    before = whole.stats["continued_after"]
    assert before == len(half.token_ids) and len(whole.token_ids) == 300 == len(whole.provenance) == len(whole.pieces)
    assert whole.stats["tokens"] == 300 - before
    with pytest.raises(hsd.HsdError):
        session.resume(whole.parent_id, Settings())


def test_a_reply_that_was_answered_goes_on_as_a_branch(session: Session, engine: ScriptedEngine) -> None:
    engine.script = lambda _: LONG
    conversation = session.send(None, "hello", Settings(max_tokens=9))
    idle(session, conversation)
    half = reply(session, conversation)
    session.send(conversation, "go on", Settings(max_tokens=9))
    idle(session, conversation)
    answered = session.snapshot(conversation).messages
    session.resume(half.id, Settings())
    idle(session, conversation)
    shown = session.snapshot(conversation)
    whole = shown.messages[-1]
    assert whole.text == LONG and whole.parent_id == half.parent_id and whole.stats["continued_after"] == 9
    assert shown.places[whole.id] == (2, 2) and session.message(half.id) == half
    session.switch(whole.id, -1)
    assert session.snapshot(conversation).messages == answered
    session.delete(conversation)
    with pytest.raises(hsd.HsdError, match="nothing to go on from"):
        session.resume(half.id, Settings())


def test_a_reply_whose_continuation_is_refused_keeps_what_it_has(session: Session, engine: ScriptedEngine) -> None:
    conversation = session.send(None, "hello", Settings(max_tokens=3))
    idle(session, conversation)
    half = reply(session, conversation)
    engine.stream = lambda *_, **__: (_ for _ in ()).throw(hsd.PromptError("Too long.", "Begin a new chat."))
    session.resume(half.id, Settings())
    idle(session, conversation)
    again = reply(session, conversation)
    assert again.text == half.text and again.state == "error" and again.finish_reason == "error"


def test_an_edited_message_is_a_branch_and_one_can_go_back(session: Session) -> None:
    conversation = session.send(None, "one", Settings())
    idle(session, conversation)
    session.send(conversation, "two", Settings())
    idle(session, conversation)
    first, _, second, _ = session.snapshot(conversation).messages
    session.edit(first.id, "another", Settings())
    idle(session, conversation)
    shown = session.snapshot(conversation)
    assert [m.text for m in shown.messages] == ["another", "You said another to me."]
    assert shown.places == {shown.messages[0].id: (2, 2)}
    session.switch(shown.messages[0].id, 1)
    assert session.snapshot(conversation).messages == shown.messages
    session.switch(shown.messages[0].id, -1)
    back = session.snapshot(conversation)
    assert [m.id for m in back.messages][::2] == [first.id, second.id] and back.places == {first.id: (1, 2)}
    session.edit(second.id, "three", Settings())
    idle(session, conversation)
    assert [m.text for m in session.snapshot(conversation).messages][::2] == ["one", "three"]
    with pytest.raises(hsd.PromptError):
        session.edit(second.id, "  ", Settings())


def test_replies_to_one_prompt_are_branches_to_switch_between(session: Session, engine: ScriptedEngine) -> None:
    conversation = session.send(None, "hello", Settings())
    idle(session, conversation)
    first = reply(session, conversation)
    session.regenerate(first.id, Settings())
    with pytest.raises(hsd.HsdError, match="still being written"):
        session.switch(first.id, 1)
    idle(session, conversation)
    assert session.snapshot(conversation).places == {reply(session, conversation).id: (2, 2)}
    session.switch(reply(session, conversation).id, -1)
    assert reply(session, conversation).id == first.id


def test_partial_text_is_on_disk_while_the_reply_runs(session: Session, engine, monkeypatch) -> None:
    monkeypatch.setattr(worker_module, "CHECKPOINT_SECONDS", 0.05)
    engine.script, engine.pause = lambda _: LONG, 0.01
    conversation = session.send(None, "go", Settings())
    other = sqlite3.connect(session.store.path)
    until(lambda: other.execute("SELECT text FROM messages WHERE state = 'running' AND text != ''").fetchone())
    session.stop(conversation)


def test_the_engine_learns_when_nobody_waits_and_stops_for_a_request(session: Session, engine: ScriptedEngine) -> None:
    until(lambda: engine.learned == 1)
    conversation = session.send(None, "hello", Settings())
    idle(session, conversation)
    until(lambda: engine.learned >= 2)
    session.send(conversation, "again", Settings())
    until(lambda: engine.learning_stopped >= 1)
    idle(session, conversation)


def test_an_engine_that_does_not_load_is_said_and_no_message_is_lost(tmp_path: Path) -> None:
    def load(progress: object) -> ScriptedEngine:
        raise hsd.LoadError("The weights of 'big' are missing.", "Restore them.")

    session = Session(Store(tmp_path / "chat.db"), load)
    session.start()
    until(lambda: session.engine.state == "failed")
    assert session.engine.error == "The weights of 'big' are missing. Restore them."
    conversation = session.send(None, "anybody?", Settings())
    idle(session, conversation)
    prompt, answer = session.snapshot(conversation).messages
    assert prompt.text == "anybody?" and answer.state == "error" and "Restore them" in answer.error
    session.close()


def test_a_failed_load_can_be_tried_again(tmp_path: Path, engine: ScriptedEngine) -> None:
    tries = []

    def load(progress: object) -> ScriptedEngine:
        tries.append(1)
        if len(tries) == 1:
            raise hsd.LoadError("The weights of 'big' are missing.", "Restore them.")
        return engine

    session = Session(Store(tmp_path / "chat.db"), load)
    session.start()
    until(lambda: session.engine.state == "failed")
    session.load()
    until(lambda: session.engine.state == "ready")
    assert session.engine.error is None
    conversation = session.send(None, "hello", Settings())
    idle(session, conversation)
    assert reply(session, conversation).state == "done"
    session.close()


def test_an_unloaded_engine_is_loaded_again_by_the_next_message(tmp_path: Path) -> None:
    made: list[ScriptedEngine] = []

    def load(progress: object) -> ScriptedEngine:
        made.append(ScriptedEngine(lambda _: LONG if len(made) == 1 else "short"))
        return made[-1]

    session = Session(Store(tmp_path / "chat.db"), load)
    session.start()
    conversation = session.send(None, "hello", Settings())
    with pytest.raises(hsd.HsdError, match="being written"):
        session.unload()
    session.stop(conversation)
    idle(session, conversation)
    session.unload()
    until(lambda: session.engine.state == "unloaded")
    assert made[0].closed and session.engine.info
    session.send(conversation, "again", Settings())
    idle(session, conversation)
    assert reply(session, conversation).text == "short" and session.engine.state == "ready" and len(made) == 2
    session.close()


def test_loading_is_visible_and_messages_wait_for_it(tmp_path: Path, engine: ScriptedEngine) -> None:
    go = threading.Event()

    def load(progress: Callable[[hsd.LoadProgress], None]) -> ScriptedEngine:
        progress(hsd.LoadProgress("big", "reading weights", 1, 4))
        assert go.wait(10)
        return engine

    session = Session(Store(tmp_path / "chat.db"), load)
    session.start()
    until(lambda: session.engine.progress)
    assert session.engine.state == "loading" and session.engine.progress.model == "big"
    conversation = session.send(None, "early", Settings())
    assert not session.live(conversation).started
    go.set()
    idle(session, conversation)
    assert reply(session, conversation).state == "done"
    session.close()
    assert engine.closed


def test_a_locked_database_keeps_the_reply_until_it_can_be_stored(tmp_path: Path, engine, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(worker_module, "RETRY_SAVE_SECONDS", 0.05)
    engine.script = lambda _: LONG
    session = Session(Store(tmp_path / "chat.db"), lambda progress: engine)
    session.start()
    conversation = session.send(None, "go", Settings())
    other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    idle(session, conversation)
    until(lambda: session.notice)
    assert "locked" in session.notice and reply(session, conversation).text == LONG
    other.execute("COMMIT")
    until(lambda: session.notice is None)
    session.close()
    assert Store(tmp_path / "chat.db").recent_replies()[-1].text == LONG


def test_closing_marks_what_ran_as_interrupted(tmp_path: Path, engine: ScriptedEngine) -> None:
    engine.script, engine.pause = lambda _: LONG, 0.02
    session = Session(Store(tmp_path / "chat.db"), lambda progress: engine)
    session.start()
    conversation = session.send(None, "go", Settings())
    waiting = session.send(None, "me too", Settings())
    until(lambda: session.live(conversation) and session.live(conversation).tokens)
    session.close()
    store = Store(tmp_path / "chat.db")
    states = [store.message(store.conversation(c).leaf_id).state for c in (conversation, waiting)]
    assert states == ["interrupted", "interrupted"] and engine.closed


def test_a_temporary_conversation_leaves_no_trace(tmp_path: Path, session: Session, engine: ScriptedEngine) -> None:
    conversation = session.send(None, "my secret walrus", Settings(), temporary=True)
    idle(session, conversation)
    session.send(conversation, "and another", Settings())
    idle(session, conversation)
    assert len(session.snapshot(conversation).messages) == 4 and reply(session, conversation).stats
    session.edit(session.snapshot(conversation).messages[0].id, "an edited secret", Settings())
    idle(session, conversation)
    assert session.conversations() == [] and session.conversations("secret") == [] and session.latest() is None
    assert session.store.recent_replies() == []
    for file in tmp_path.iterdir():
        assert b"secret" not in file.read_bytes() and b"walrus" not in file.read_bytes(), file
    engine.script = lambda _: LONG
    session.send(conversation, "go on", Settings())
    session.forget(conversation)
    assert session.snapshot(conversation).messages == () and session.conversation(conversation) is None
    other = session.send(None, "kept", Settings())
    session.forget(other)
    session.stop(other)
    idle(session, other)
    assert len(session.snapshot(other).messages) == 2


def test_rename_delete_and_restore(session: Session) -> None:
    conversation = session.send(None, "hello", Settings())
    idle(session, conversation)
    session.rename(conversation, "  A   better title ")
    assert session.conversations()[0].title == "A better title"
    with pytest.raises(hsd.HsdError):
        session.rename(conversation, "  ")
    session.delete(conversation)
    assert session.conversations() == [] and session.snapshot(conversation).messages == ()
    session.restore(conversation)
    assert len(session.snapshot(conversation).messages) == 2


def test_settings_stay_with_the_conversation(session: Session) -> None:
    conversation = session.send(None, "hello", Settings(temperature=0.2, seed=5))
    stored = session.store.conversation(conversation).settings
    assert Settings.from_dict({**stored, "from_the_future": 1}) == Settings(temperature=0.2, seed=5)
    idle(session, conversation)


def test_settings_of_another_reply_and_another_prompt_stay_too(session: Session) -> None:
    conversation = session.send(None, "hello", Settings())
    idle(session, conversation)
    session.regenerate(reply(session, conversation).id, Settings(temperature=0.2))
    assert session.conversation(conversation).settings["temperature"] == 0.2
    idle(session, conversation)
    session.edit(session.snapshot(conversation).messages[0].id, "hi", Settings(top_k=5))
    assert session.conversation(conversation).settings["top_k"] == 5
    idle(session, conversation)


def test_a_reply_goes_on_under_the_system_message_it_was_begun_with(session: Session, engine: ScriptedEngine) -> None:
    conversation = session.send(None, "hello", Settings(system="Be kind.", max_tokens=3))
    idle(session, conversation)
    session.resume(reply(session, conversation).id, Settings(system="Be rude."))
    idle(session, conversation)
    assert [m["content"] for m in engine.prompts[-1] if m["role"] == "system"] == ["Be kind."]


def test_a_turn_without_an_answer_is_not_sent_again(session: Session) -> None:
    conversation = session.send(None, "FAIL", Settings())
    idle(session, conversation)
    path = list(session.snapshot(conversation).messages)
    path[-1] = type(path[-1])(**{**{f: getattr(path[-1], f) for f in path[-1].__slots__}, "text": ""})
    assert messages_for_engine(path) == []


def test_titles_are_one_short_line() -> None:
    assert make_title("  How\n do I  ") == "How do I"
    assert len(make_title("word " * 100)) <= 61 and make_title("x" * 500).endswith("…")


def test_pieces_join_to_the_text_even_where_a_character_takes_several_tokens() -> None:
    data = "a 👩 b é".encode()
    decode = lambda ids: bytes(ids).decode("utf-8", "replace")  # noqa: E731
    cut = pieces(decode, list(data))
    assert "".join(cut) == "a 👩 b é" and len(cut) == len(data)
