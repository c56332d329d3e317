"""What a person does all day: takes back, changes families and presets, comes back after hours, opens long talks."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_fakes import ScriptedEngine
from chat_waiting import until
from test_chat_session import LONG, idle, reply

import hsd
from chat import presets
from chat.own_families import OwnFamilies
from chat.prompt import make_title, newest_turns
from chat.session import Session
from chat.settings import Settings
from chat.store import Store


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    engine = ScriptedEngine(lambda messages: f"You said {messages[-1]['content']} to me.")
    session = Session(Store(tmp_path / "chat.db"), lambda progress: engine, title="Scripted", models=engine.info.models)
    session.start()
    yield session
    session.close()


def test_a_message_is_taken_back_and_brought_back(session: Session) -> None:
    conversation = session.send(None, "one", Settings())
    idle(session, conversation)
    session.send(conversation, "two", Settings())
    idle(session, conversation)
    whole = session.snapshot(conversation).messages
    assert session.undo(conversation) == "two"
    shown = session.snapshot(conversation)
    assert [m.text for m in shown.messages] == ["one", "You said one to me."] and shown.undone == whole[-1].id
    assert session.undo(conversation) == "one" and session.snapshot(conversation).messages == ()
    with pytest.raises(hsd.HsdError, match="nothing to take back"):
        session.undo(conversation)
    session.redo(conversation)
    assert session.snapshot(conversation).messages == whole and session.snapshot(conversation).undone is None
    session.undo(conversation)
    session.send(conversation, "three", Settings())
    idle(session, conversation)
    last = session.snapshot(conversation)
    assert [m.text for m in last.messages][::2] == ["one", "three"] and last.places[last.messages[2].id] == (2, 2)


def test_only_the_end_of_a_long_conversation_is_read(session: Session) -> None:
    conversation, parent = session.store.create("long"), None
    for number in range(60):
        _, parent = session.store.add_turn(conversation, parent, f"prompt {number}", {})
    shown = session.snapshot(conversation, 10)
    assert len(shown.messages) == 10 and shown.above == 110 and shown.messages[-1].id == parent
    assert session.snapshot(conversation).above == 0 and len(session.snapshot(conversation).messages) == 120


def test_what_is_many_times_the_context_is_not_read_and_is_counted(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda _: "short")
    session = Session(Store(tmp_path / "chat.db"), lambda progress: engine, may_drop=True)
    session.start()
    until(lambda: session.engine.state == "ready")
    conversation, parent = session.store.create("long"), None
    for number in range(200):
        _, parent = session.store.add_turn(conversation, parent, f"prompt {number}", {})
        session.store.update(parent, text="x" * 990, state="done")
    session.send(conversation, "and now?", Settings(system="Be short."))
    idle(session, conversation)
    sent = engine.prompts[-1]
    assert sent[0]["role"] == "system" and sent[1]["role"] == "user" and sent[-1]["content"] == "and now?"
    turns = sum(m["role"] == "user" for m in sent)
    assert 16 * 2048 / 1000 - 2 <= turns <= 16 * 2048 / 1000 + 1
    assert reply(session, conversation).stats["dropped_turns"] == 201 - turns
    session.close()


@pytest.mark.parametrize("letters", [0, 5, 10, 1000])
def test_the_last_turn_is_always_read(letters: int) -> None:
    messages = [{"role": role, "content": "12345"} for _ in range(3) for role in ("user", "assistant")]
    messages.append({"role": "user", "content": "12345"})
    kept, dropped = newest_turns(messages, letters)
    assert kept == messages[2 * dropped :] and dropped == {0: 3, 5: 3, 10: 3, 1000: 0}[letters]


def test_an_idle_engine_gives_its_memory_back_and_comes_back(tmp_path: Path, monkeypatch) -> None:
    made: list[ScriptedEngine] = []

    def load(progress: object) -> ScriptedEngine:
        made.append(ScriptedEngine(lambda _: "short"))
        return made[-1]

    session = Session(Store(tmp_path / "chat.db"), load, idle_seconds=0.4)
    session.start()
    until(lambda: session.engine.state == "unloaded")
    assert made[0].closed and session.engine.info is made[0].info
    conversation = session.send(None, "hello", Settings())
    idle(session, conversation)
    assert reply(session, conversation).text == "short" and len(made) == 2
    until(lambda: session.engine.state == "unloaded")
    session.close()


def test_after_a_machine_slept_a_lost_device_is_replaced_and_clocks_may_jump(tmp_path: Path, monkeypatch) -> None:
    made: list[ScriptedEngine] = []

    def load(progress: object) -> ScriptedEngine:
        made.append(ScriptedEngine(lambda _: LONG if len(made) == 1 else "short"))
        return made[-1]

    session = Session(Store(tmp_path / "chat.db"), load, idle_seconds=3600)
    session.start()
    conversation = session.send(None, "hello", Settings())
    until(lambda: session.live(conversation) and session.live(conversation).tokens)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 8 * 3600)
    idle(session, conversation)
    assert reply(session, conversation).text == LONG and session.engine.state == "ready"
    monkeypatch.setattr(time, "time", lambda: real() - 8 * 3600)

    def lost(*_: object, **__: object) -> object:
        raise RuntimeError("CUDA error: unspecified launch failure")

    made[0].stream = lost
    session.send(conversation, "are you there?", Settings())
    idle(session, conversation)
    assert reply(session, conversation).state == "error" and "loaded anew" in reply(session, conversation).error
    session.regenerate(reply(session, conversation).id, Settings())
    idle(session, conversation)
    assert reply(session, conversation).text == "short" and len(made) == 2 and made[0].closed
    session.close()


def test_another_family_takes_the_place_of_the_first(tmp_path: Path) -> None:
    other = ScriptedEngine(lambda _: "from the other")
    opened = []
    chosen = threading.Event()

    class Busy(ScriptedEngine):
        """At work until a family was chosen and a message sent: both are there when it looks again."""

        def learn(self, should_stop) -> bool:
            chosen.wait(10)
            return False

    session = Session(Store(tmp_path / "chat.db"), lambda progress: Busy(lambda _: "first"), family="builtin")
    with pytest.raises(hsd.HsdError, match="cannot be changed here"):
        session.offers()
    session.own_families = OwnFamilies(tmp_path)
    session.opener = lambda choice: lambda progress: opened.append(choice.reference) or other
    session.start()
    until(lambda: session.engine.state == "ready")
    with pytest.raises(hsd.ConfigError):
        session.choose("no such family")
    session.choose("qwen3-8b")
    conversation = session.send(None, "hello", Settings())
    chosen.set()
    idle(session, conversation)
    assert reply(session, conversation).text == "from the other" and opened == ["qwen3-8b"]
    assert session.models == ("0.6b", "1.7b", "8b") and "Qwen3 8B" in session.title and session.examples == ()
    session.close()


def test_every_family_says_whether_it_fits_this_machine(session: Session, tmp_path: Path) -> None:
    session.family, session.own_families = "builtin", OwnFamilies(tmp_path)
    session.opener = lambda choice: lambda progress: ScriptedEngine(lambda _: "")
    offers = {offer.choice.family.name: offer for offer in session.offers()}
    assert offers["builtin"].current and offers["builtin"].fit.fits and "GB" in offers["builtin"].fit.verdict
    assert set(offers) >= {"qwen3-8b", "qwen3-14b"} and all(o.fit or o.problem for o in offers.values())


def test_presets_are_kept_applied_and_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "chat.db")
    mine = Settings(temperature=1.5, system="Be <b>bold</b>.", seed=3, plan="big", presence_penalty=0.5)
    presets.keep(store, "  my   own ", mine)
    store.close()
    store = Store(tmp_path / "chat.db")
    assert presets.names(store)[0] == "my own"
    applied = presets.apply(store, "my own", Settings(seed=7, plan="auto", temperature=0.1))
    assert applied == dataclasses.replace(mine, seed=7, plan="auto")
    presets.keep(store, "Exact", Settings(temperature=0.1))
    assert presets.apply(store, "Exact", Settings()).temperature == 0.1 and presets.names(store).count("Exact") == 1
    presets.drop(store, "Exact")
    assert presets.apply(store, "Exact", Settings()).temperature == 0.0
    for wrong in (lambda: presets.keep(store, " ", mine), lambda: presets.drop(store, "Code")):
        with pytest.raises(hsd.HsdError):
            wrong()
    with pytest.raises(hsd.ConfigError):
        presets.keep(store, "broken", Settings(temperature=-1))


@pytest.mark.parametrize(
    ("prompt", "answer", "title"),
    [
        ("How do I unpack it?", "With tar.", "How do I unpack it?"),
        ("Hi!", "<think>\nhm\n</think>\n\n**Hello**, I am `hsd`.", "Hi! · Hello , I am hsd ."),
        ("Hi!", "```sh\nls\n```", "Hi!"),
        ("Look:\n\n`a.py`:\n```py\nprint()\n```\n", "", "Look: a.py"),
    ],
)
def test_titles_come_from_the_first_exchange(prompt: str, answer: str, title: str) -> None:
    assert make_title(prompt, answer) == title


def test_two_tabs_that_write_to_one_conversation_lose_nothing(session: Session) -> None:
    conversation = session.send(None, "first", Settings())
    idle(session, conversation)
    said: list[str] = []

    def write(name: str) -> None:
        for number in range(5):
            session.send(conversation, f"{name} {number}", Settings())
            said.append(f"{name} {number}")
            time.sleep(0.02)

    tabs = [threading.Thread(target=write, args=(name,)) for name in ("left", "right")]
    [t.start() for t in tabs]
    [t.join() for t in tabs]
    idle(session, conversation)
    texts = [m.text for m in session.snapshot(conversation).messages][::2]
    assert sorted(texts) == sorted(["first", *said]) and len(said) == 10
