"""What clicks on the page's own HTML do, without a browser: the handlers over a session with a scripted engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from chat_fakes import ScriptedEngine
from chat_waiting import until
from test_chat_session import idle

from chat.session import Session
from chat.settings import NAMES, Settings
from chat.store import Store
from chat.ui import actions, page, settings, views, watch
from chat.ui.actions import Actions, Click
from chat.ui.tabs import LISTED, Tab, Tabs

REQUEST: Any = SimpleNamespace(session_hash="tab")
VALUES = ["new", *settings.show(Settings())]


def click(**data: Any) -> gr.EventData:
    return gr.EventData(None, data)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    engine = ScriptedEngine(lambda messages: f"You said {messages[-1]['content']} to me.")
    session = Session(Store(tmp_path / "chat.db"), lambda progress: engine, title="Scripted", models=engine.info.models)
    session.start()
    until(lambda: session.engine.state == "ready")
    yield session
    session.close()


def test_clicks_reach_the_conversation_they_are_about(session: Session) -> None:
    page.build(session)  # every handler fits the parts it is wired to
    tabs = Tabs()
    do, clicks = Actions(session, tabs), views.Views(session, tabs)
    do.enter("new", REQUEST)
    tab = tabs.of("tab")
    assert do.send(REQUEST, "hello", *VALUES)[0].startswith("stored") and tab.open
    idle(session, tab.open)
    opened, (prompt, reply) = tab.open, session.snapshot(tab.open).messages
    do.choose(click(action="rename", id=opened, text="  <b>Seals</b> "), REQUEST)
    do.choose(click(action="pin", id=opened), REQUEST)
    kept = session.conversation(opened)
    assert kept.title == "<b>Seals</b>" and kept.pinned
    do.turn(click(action="resend", id=prompt.id, text="goodbye"), REQUEST, "", *VALUES)
    idle(session, opened)
    assert [m.text for m in session.snapshot(opened).messages] == ["goodbye", "You said goodbye to me."]
    clicks.act(click(action="pin", id="tiny:2>big"), REQUEST)
    assert session.conversation(opened).settings["plan"] == "tiny:2>big"
    clicks.act(click(action="race", id=reply.id), REQUEST)
    assert tab.view == f"race:{reply.id}"
    do.choose(click(action="delete", id=opened), REQUEST)
    assert tab.open is None and session.conversation(opened) is None and tab.undo == (opened, "<b>Seals</b>")
    do.choose(click(action="restore", id=opened), REQUEST)
    assert tab.open == opened and not tab.problem


def test_a_plan_that_is_being_typed_outlives_new_measurements(session: Session) -> None:
    with gr.Blocks():
        ui = views.build("")
    field = next(part for part in views.parts(session, ui) if part.component is ui["pin_text"])
    tabs = Tabs()
    do, tab = views.Views(session, tabs), tabs.of("tab")
    assert field.render(tab) == gr.skip()
    tab.view = "plan"
    assert field.render(tab) == "auto"
    assert field.render(tab) == gr.skip()
    do.pin("tiny:2 > big", REQUEST)
    assert field.render(tab) == "tiny:2>big"
    tab.view = ""
    assert field.render(tab) == gr.skip()
    tab.view = "plan"
    assert field.render(tab) == "tiny:2>big"


def test_a_file_is_imported_and_what_cannot_be_done_is_a_sentence_on_the_tab(session: Session) -> None:
    tabs = Tabs()
    do, tab = Actions(session, tabs), tabs.of("tab")
    conversation = session.send(None, "hello", Settings(temperature=0.25))
    idle(session, conversation)
    shown = do.bring(click(action="import", text=session.exported(conversation, "json")[1]), REQUEST)
    assert tab.open not in (None, conversation) and shown[NAMES.index("temperature")] == 0.25
    for wrong in (
        click(action="import", text="{}"),
        click(action="family", id="builtin"),
        click(action="found", id="x"),
    ):
        assert do.bring(wrong, REQUEST) == [gr.skip()] * (len(NAMES) + 1) and tab.problem
    do.turn(click(action="resend", id="nobody", text="x"), REQUEST, "", *VALUES)
    assert "not there any more" in tab.problem


def test_what_is_sent_before_the_settings_are_on_the_page_is_sent_with_those_that_are_stored(session: Session) -> None:
    warm = session.send(None, "warm", Settings(temperature=1.25, system="Be kind."))
    idle(session, warm)
    cool = session.send(None, "cool", Settings(temperature=0.25))
    idle(session, cool)

    def sent(held: str | None, temperature: float) -> tuple[float, float | object]:
        """The temperature of the reply, and what the page is told of it."""
        fields = settings.show(Settings(temperature=temperature))
        told = do.send(REQUEST, "more", held, *fields)
        idle(session, tab.open)
        reply, kept = session.snapshot(tab.open).messages[-1], session.conversation(tab.open).settings
        assert not tab.problem and reply.params["temperature"] == kept["temperature"]
        return kept["temperature"], told[1 + NAMES.index("temperature")]

    do = Actions(session, Tabs())
    tab = do.tabs.of("tab")
    *shown, held = do.enter(cool, REQUEST)
    assert settings.read(*shown).temperature == 0.25
    # Nothing has come, then something has: only then the fields say what a person wants.
    assert sent(None, 0.7) == (0.25, 0.25) and sent("", 0.7) == (0.25, 0.25)
    assert sent(held, 0.9) == (0.9, gr.skip()) and session.conversation(cool).settings["temperature"] == 0.9
    # Another conversation was opened, and its settings are on their way.
    *shown, other = do.choose(click(action="open", id=warm), REQUEST)
    assert sent(held, 0.9) == (1.25, 1.25) and session.conversation(warm).settings["system"] == "Be kind."
    do.turn(click(action="again", id=session.snapshot(warm).messages[-1].id), REQUEST, "", held, *VALUES[1:])
    idle(session, warm)
    assert session.conversation(warm).settings["temperature"] == 1.25
    assert sent(other, 1.5) == (1.5, gr.skip())
    # A new one has the usual settings until its own are there.
    do.new(REQUEST)
    assert sent(other, 1.5) == (0.7, 0.7) and sent(tab.open, 0.4) == (0.4, gr.skip())
    *shown, new = do.new(REQUEST)
    assert sent(new, 0.3) == (0.3, gr.skip()) and sent(new, 0.4) == (0.4, gr.skip())


def test_a_message_that_overtakes_the_opening_of_its_page_reaches_the_right_conversation(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session.send(None, "first", Settings(temperature=0.25))
    idle(session, first)
    last = session.send(None, "last", Settings())
    idle(session, last)
    do = Actions(session, Tabs())
    opening = threading.Timer(0.2, do.enter, [first, REQUEST])
    opening.start()
    asyncio.run(do.entered(REQUEST))
    assert do.send(REQUEST, "more", "", *VALUES[1:])[0].startswith("stored")
    idle(session, first)
    assert session.snapshot(first).messages[2].text == "more" and len(session.snapshot(last).messages) == 2
    # A page that the program no longer knows says what it shows; its fields have long been there.
    do.tabs.drop(REQUEST)
    do.tabs.of("tab", first)
    do.send(REQUEST, "and more", "new", *settings.show(Settings(temperature=0.5)))
    idle(session, first)
    assert session.snapshot(first).messages[4].text == "and more"
    assert session.conversation(first).settings["temperature"] == 0.5
    monkeypatch.setattr(actions, "ENTER_SECONDS", 0.05)
    do.tabs.drop(REQUEST)
    asyncio.run(do.entered(REQUEST))
    assert do.send(REQUEST, "lost?", "new", *VALUES[1:])[0].startswith("refused")
    assert "still being opened" in do.tabs.of("tab").problem and len(session.conversations()) == 2
    # Told what the page shows, a tab that waited is one that is known.
    assert do.tabs.of("tab", first).entered and do.tabs.of("tab").open == first


def test_older_conversations_come_on_demand(session: Session) -> None:
    with session.store.together():
        for number in range(LISTED + 3):
            session.store.create(f"number {number}")
    do = Actions(session, Tabs())
    tab = do.tabs.of("tab")
    assert watch._listing(session, tab).count("<li") == LISTED and "Show older ones" in watch._listing(session, tab)
    do.choose(click(action="more"), REQUEST)
    assert watch._listing(session, tab).count("<li") == LISTED + 3 and "Show older" not in watch._listing(session, tab)


def test_what_stands_beside_a_reply_waits_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HASTE_SECONDS", 0.3)
    now, component, tab, writing = {"reply": 0, "list": 0}, gr.HTML(), Tab(entered=True), [True]
    parts = [
        watch.Part(component, lambda _: now["reply"], lambda _: now["reply"]),
        watch.Part(component, lambda _: now["list"], lambda _: now["list"], beside=True),
    ]
    group, mark = watch.Group("all", parts, lambda: writing[0]), ""

    def fetched() -> list[Any]:
        nonlocal mark
        *values, last = group.fetch(tab)
        mark = last.split('"')[1]
        return values

    def after(change: str) -> bool:
        now[change] += 1
        return group.changed(tab, mark)

    assert group.changed(tab, mark) and fetched() == [0, 0] and not group.changed(tab, mark)
    assert after("reply") and fetched() == [1, gr.skip()]
    assert not after("list")
    until(lambda: group.changed(tab, mark))
    assert fetched() == [gr.skip(), 1]
    # What the person of this tab does shows at once, and so does everything when the reply is over.
    tab.search = "x"
    assert after("list") and fetched() == [gr.skip(), 2]
    assert not after("list")
    writing[0] = False
    assert group.changed(tab, mark) and fetched() == [gr.skip(), 3]
    # What was fetched and got lost on its way is given once more, all of it.
    assert group.changed(tab, "an older mark") and fetched() == [1, 3]


def test_a_part_that_cannot_be_rendered_is_said_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    component, tab, version = gr.HTML(), Tab(entered=True), [0]
    parts = [
        watch.Part(component, lambda _: version[0], lambda _: 1 / 0),
        watch.Part(component, lambda _: version[0], lambda _: version[0]),
    ]
    group = watch.Group("all", parts, lambda: False)
    for number in range(3):
        version[0] = number
        assert group.fetch(tab)[:-1] == [gr.skip(), number]
    assert "could not be shown" in tab.problem and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("data", [None, "rename", [], {}])
def test_a_click_that_the_page_would_not_send_is_about_nothing(data: object) -> None:
    assert Click.of(gr.EventData(None, data)) == Click("", "", "")


@pytest.mark.parametrize("thinking", [None, True, False])
def test_settings_come_back_from_the_page_as_they_were_shown(thinking: bool | None) -> None:
    given = Settings(temperature=0.3, seed=7, thinking=thinking, system="Be kind.", plan="tiny:2>big")
    assert settings.read(*settings.show(given)) == given
