"""Visitors of one chat: each sees their own conversations alone, and none waits longer for another's haste."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from api_client import joined, said, served
from chat_fakes import ScriptedEngine
from chat_tab import HttpTab, browser_of
from chat_waiting import until
from test_chat_actions import VALUES, click
from test_chat_session import idle

import hsd
from chat import app
from chat.guard import COOKIE, Beginning
from chat.request import Request
from chat.session import Session
from chat.settings import Settings
from chat.store import Store
from chat.turns import Turns
from chat.ui import actions, views, watch
from chat.ui.actions import Actions
from chat.ui.tabs import Tabs


def visitor(name: str, tab: str = "tab") -> Any:
    return SimpleNamespace(session_hash=tab, cookies={COOKIE: name})


ANN, BOB = visitor("ann"), visitor("bob")


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(lambda messages: f"You said {messages[-1]['content']} to me.")


@pytest.fixture
def session(tmp_path: Path, engine: ScriptedEngine) -> Iterator[Session]:
    session = Session(Store(tmp_path / "chat.db"), lambda progress: engine, models=engine.info.models)
    session.guests = True
    session.start()
    until(lambda: session.engine.state == "ready")
    yield session
    session.close()


def test_a_visitor_reaches_nothing_of_another(session: Session) -> None:
    tabs = Tabs(session.belongs, session.guests)
    do, clicks = Actions(session, tabs), views.Views(session, tabs)
    for who in (ANN, BOB):
        do.enter("", who)
        assert do.send(who, "hello", *VALUES)[0].startswith("stored")
        idle(session, tabs.at(who).open)
    ann, bob = tabs.at(ANN), tabs.at(BOB)
    prompt, reply = session.snapshot(ann.open).messages
    for text in (watch._listing(session, bob), watch._head(session, bob)):
        assert ann.open not in text
    assert [c.id for c in session.conversations("hello", bob.visitor)] == [bob.open]
    before = session.snapshot(ann.open), session.snapshot(bob.open)
    for action in ("open", "rename", "pin", "delete", "restore"):
        do.choose(click(action=action, id=ann.open, text="mine"), BOB)
        assert bob.problem.startswith("This is not there any more."), action
    for action, about in (("again", reply), ("resume", reply), ("edit", reply), ("resend", prompt), ("next", prompt)):
        assert do.turn(click(action=action, id=about.id, text="mine"), BOB, "", *VALUES) == gr.skip()
        assert bob.problem.startswith("This is not there any more."), action
    assert do.take_back(click(action="take-back", id=prompt.id), BOB, "") == gr.skip()
    assert bob.problem.startswith("This is not there any more.")
    do.search("\ud83d", BOB)
    assert bob.search.encode() and watch._listing(session, bob).encode()
    do.search("many letters " * 100_000, BOB)
    assert len(bob.search) < 300 and "at most 16 words and 200 characters" in watch._listing(session, bob)
    do.search("", BOB)
    for action in ("race", "race-start", "race-stop"):
        clicks.act(click(action=action, id=reply.id), BOB)
        assert not bob.view and session.racing(reply.id) is None
    clicks.enter(f"race:{reply.id}", BOB)
    assert not bob.view
    exported, where = actions.exported(session, tabs), actions.provenance(session, tabs)
    assert "problem" in exported({"id": ann.open, "kind": "json"}, BOB) and "not there" in where(reply.id, BOB)
    assert "text" in exported({"id": ann.open, "kind": "json"}, ANN) and "token" in where(reply.id, ANN)
    written = actions.written(session, tabs)
    assert written(reply.id, BOB) is None and written(reply.id, ANN) == reply.text and written("\ud83d", ANN) is None
    # Neither the address of her conversation nor the name of her tab opens it to him.
    do.enter(ann.open, visitor("bob", "second"))
    assert tabs.at(visitor("bob", "second")).open == bob.open
    assert tabs.at(visitor("bob", "third"), ann.open).open is None
    assert tabs.at(visitor("bob", "tab")) is bob is not ann
    assert (session.snapshot(ann.open), session.snapshot(bob.open)) == before
    # What takes the engine from others is nothing for guests.
    do.engine(click(action="unload"), BOB)
    assert "Others use this engine" in bob.problem and "unload" not in watch._engine(session, bob)


def test_a_temporary_chat_and_an_imported_one_are_their_visitors_too(session: Session) -> None:
    tabs = Tabs(session.belongs, session.guests)
    do = Actions(session, tabs)
    do.enter("new", ANN)
    do.turn(click(action="temporary"), ANN, "", *VALUES)
    do.send(ANN, "a secret", *VALUES)
    ann = tabs.at(ANN)
    idle(session, ann.open)
    do.enter(ann.open, BOB)
    assert tabs.at(BOB).open is None
    text = session.exported(ann.open, "json")[1]
    do.bring(click(action="import", text=text), BOB)
    bob = tabs.at(BOB)
    assert [c.id for c in session.conversations("", bob.visitor)] == [bob.open]
    assert session.conversations("", ann.visitor) == [] == session.conversations()


def test_a_browser_without_cookies_is_a_visitor_for_as_long_as_its_page(session: Session) -> None:
    tabs = Tabs(session.belongs, session.guests)
    one, other = (tabs.at(SimpleNamespace(session_hash=name, cookies={})) for name in ("one", "other"))
    assert one.visitor and one.visitor != other.visitor


@pytest.mark.parametrize("together", [False, True])
def test_no_page_sees_or_stops_what_a_program_asks_the_api_for(tmp_path: Path, together: bool) -> None:
    engine, password, key = ScriptedEngine(lambda _: "the secret " * 60, 0.02), "open sesame", "a-key-for-tests"
    options: dict[str, Any] = {"host": "0.0.0.0", "api_key": key, "password": password, "together": together}
    with served(tmp_path, lambda _: engine, **options) as (session, client):
        until(lambda: session.engine.state == "ready")
        client.headers["authorization"] = f"Bearer {key}"
        reply = client.stream(said("hello"))
        until(lambda: session.worker.writing)
        address = f"http://127.0.0.1:{client.port}/"
        cookie = browser_of(address, password)
        active = session.worker._active
        assert active is not None
        for place in (active.conversation_id, active.message_id, f"race-{active.message_id}"):
            tab = HttpTab(address, cookie)
            tab.call("watch-chat", "watch", {"marks": {}, "open": place})
            shown = tab.event([], outputs="watch-chat")
            assert shown["current"] == "new" and "secret" not in str(shown), place
            assert tab.call("running", "growing", {"reply": active.message_id, "mark": 0}) == {"over": True}
            for element, action in (("listing", "delete"), ("listing", "open"), ("history", "race-stop")):
                tab.click(element, action, place)
        assert joined(list(reply)).count("secret") == 60


def asked(visitor: str, number: int) -> Request:
    return Request(f"{visitor}{number}", f"{visitor}{number}", [], hsd.SamplingParams(), "auto", visitor=visitor)


def test_nobody_waits_longer_because_another_asked_often() -> None:
    turns = Turns()
    for request in [asked("ann", n) for n in range(4)] + [asked("bob", n) for n in range(2)] + [asked("cy", 0)]:
        turns.add(request)
    expected = ["ann0", "bob0", "cy0", "ann1", "bob1", "ann2", "ann3"]
    assert [r.message_id for r in turns] == expected and len(turns) == 7
    assert [turns.take().message_id for _ in range(2)] == expected[:2]
    # Served last, he comes behind those who waited meanwhile, and so does whoever is quick to ask again.
    turns.add(asked("bob", 2))
    assert [turns.take().message_id for _ in range(len(turns))] == ["cy0", "ann1", "bob1", "ann2", "bob2", "ann3"]
    assert not turns


def test_one_visitor_is_served_in_order() -> None:
    turns = Turns()
    for number in range(5):
        turns.add(asked("", number))
    assert [turns.take().message_id for _ in range(3)] == ["0", "1", "2"]
    assert [r.message_id for r in turns.clear()] == ["3", "4"] and not turns


def test_the_place_in_the_queue_is_the_one_that_comes_true(session: Session, engine: ScriptedEngine) -> None:
    engine.pause = 0.05
    first = session.send(None, "a " * 60, Settings(), visitor="ann")
    until(lambda: session.live(first) and session.live(first).started)
    second = session.send(None, "again", Settings(), visitor="ann")
    third = session.send(None, "me too", Settings(), visitor="bob")
    assert (session.live(third).ahead, session.live(second).ahead) == (1, 2)
    # A stop ends one's own request alone.
    session.stop(first)
    for conversation in (first, second, third):
        idle(session, conversation)
    assert [str(prompt[-1]["content"]) for prompt in engine.prompts[1:]] == ["me too", "again"]


@pytest.mark.parametrize(
    "text", [b"<html><head><script>gradio()</script></head><head></html>", b"<p>Not found.</p>", b""]
)
@pytest.mark.parametrize("kind", [b"text/html; charset=utf-8", b"application/json"])
def test_the_page_begins_with_what_has_to_run_before_everything(kind: bytes, text: bytes) -> None:
    import asyncio

    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind), (b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    async def keep(message: Any) -> None:
        sent.append(message)

    for path in ("/", "/theme.css"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        asyncio.run(Beginning(page, "<script>ours()</script>")(scope, None, keep))
        start, body = sent[-2:]
        assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
        first = b"<script>ours()</script>" if path == "/" and kind.startswith(b"text/html") else b""
        assert body["body"] == text.replace(b"<head>", b"<head>" + first, 1)


def test_visitors_are_told_apart_wherever_others_can_come() -> None:
    cases = {(): False, ("share",): True, ("host",): True, ("share", "together"): False}
    values: dict[str, Any] = {"share": True, "host": "0.0.0.0", "together": True}
    for names, guests in cases.items():
        assert app.Arguments(**{name: values[name] for name in names}).guests is guests, names
