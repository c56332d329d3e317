"""What clicks on the page's own HTML do, without a browser: the handlers over a session with a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from chat_fakes import ScriptedEngine
from test_chat_session import idle, until

from chat.session import Session
from chat.settings import NAMES, Settings
from chat.store import Store
from chat.ui import page, settings, views
from chat.ui.actions import Actions, Click
from chat.ui.tabs import Tabs

REQUEST: Any = SimpleNamespace(session_hash="tab")
VALUES = settings.show(Settings())


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
    tab = tabs.of("tab")
    assert do.send(REQUEST, "hello", *VALUES) == "" and tab.open
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
    for wrong in (click(action="import", text="{}"), click(action="family", id="builtin")):
        assert do.bring(wrong, REQUEST) == [gr.skip()] * len(NAMES) and tab.problem
    do.turn(click(action="resend", id="nobody", text="x"), REQUEST, "", *VALUES)
    assert "not there any more" in tab.problem


@pytest.mark.parametrize("data", [None, "rename", [], {}])
def test_a_click_that_the_page_would_not_send_is_about_nothing(data: object) -> None:
    assert Click.of(gr.EventData(None, data)) == Click("", "", "")


@pytest.mark.parametrize("thinking", [None, True, False])
def test_settings_come_back_from_the_page_as_they_were_shown(thinking: bool | None) -> None:
    given = Settings(temperature=0.3, seed=7, thinking=thinking, system="Be kind.", plan="tiny:2>big")
    assert settings.read(*settings.show(given)) == given
