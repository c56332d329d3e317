"""Plan page and race as views beside the chat: built, wired and returned. What they show is in plan.py and race.py."""

from __future__ import annotations

from typing import Any

import gradio as gr

import hsd
from chat.race import place
from chat.session import Session
from chat.settings import NAMES, Settings
from chat.ui import plan, race
from chat.ui.actions import Click
from chat.ui.levels import looks
from chat.ui.shares import Handlers, Shares
from chat.ui.tabs import Tab, Tabs
from chat.ui.text import escape
from chat.ui.watch import Part

FROM_ADDRESS = "() => [(location.hash.match(/[#&]v=([\\w:-]+)/) || ['', ''])[1]]"
TO_ADDRESS = "(view) => hsdAddress({ v: view === 'chat' ? '' : view })"
_RACE = "race:"


def build(clicks: str) -> dict[str, Any]:
    """The two views; `clicks` is what every HTML of ours runs when it is there."""
    options: dict[str, Any] = {"apply_default_css": False, "js_on_load": clicks}
    with gr.Column(elem_id="plan"):
        top = gr.HTML(elem_id="plan-top", **options)
        with gr.Row(elem_id="pin"):
            text = gr.Textbox(
                label="Set it by hand",
                info="auto, or levels like lookup:2>tiny:3>big; it holds for this conversation",
                max_lines=1,
                elem_id="pin-plan",
            )
            pin = gr.Button("Pin", elem_id="pin-set")
            auto = gr.Button("Leave it to auto", elem_id="pin-auto")
        said = gr.HTML(elem_id="pin-said", apply_default_css=False)
        rest = gr.HTML(elem_id="plan-rest", **options)
    with gr.Column(elem_id="race"):
        lanes = gr.HTML(elem_id="race-page", **options)
    # Never shown: the name of the view, on its way to and from the address.
    view = gr.Textbox(visible="hidden", elem_id="view", label="View")
    names = ("view", "plan_top", "plan_rest", "pin_text", "pin", "pin_auto", "pin_said", "race")
    return dict(zip(names, (view, top, rest, text, pin, auto, said, lanes), strict=True))


def wire(
    page: gr.Blocks, session: Session, tabs: Tabs, shares: Shares, ui: dict[str, Any], quiet: dict[str, Any]
) -> None:
    """Connect them: links in the engine column and under replies open them, their own buttons do the rest."""
    do = Handlers(shares, Views(session, tabs))
    field = ui["settings"][NAMES.index("plan")]
    page.load(do.enter, [ui["view"]], None, js=FROM_ADDRESS, **quiet)
    ui["view"].change(None, [ui["view"]], None, js=TO_ADDRESS)
    for source in ("engine", "history", "plan_top", "plan_rest", "race"):
        ui[source].select(do.act, None, [field], **quiet)
    for event in (ui["pin"].click, ui["pin_text"].submit):
        event(do.pin, [ui["pin_text"]], [field], **quiet)
    ui["pin_auto"].click(do.leave_to_auto, None, [field], **quiet)


class Views:
    """Handlers of their events. Each leaves what it has to say as a sentence on the tab."""

    def __init__(self, session: Session, tabs: Tabs) -> None:
        self.session, self.tabs = session, tabs

    def enter(self, wanted: str, request: gr.Request) -> None:
        """The page was opened: the view of its address, or else the chat."""
        tab, view = self.tabs.at(request), wanted or ""
        raced = view.startswith(_RACE) and self.session.belongs(view.removeprefix(_RACE), tab.visitor)
        tab.view = view if view == "plan" or raced else ""

    def act(self, event: gr.EventData, request: gr.Request) -> Any:
        """An action out of HTML of ours: open or leave a view, start or stop a race, pin a plan of the ranking."""
        tab, click = self.tabs.at(request), Click.of(event)
        action, identifier = click.action, click.id
        if action.startswith("race") and not self.session.belongs(identifier, tab.visitor):
            return gr.skip()
        if action == "pin":
            return self._pin(tab, identifier)
        if action in ("plan", "chat"):
            tab.view, tab.said = "plan" if action == "plan" else "", ""
        elif action == "race":
            tab.view, tab.said = _RACE + identifier, ""
            if self.session.raced(identifier) is None:
                self._start(tab, identifier)
        elif action == "race-start":
            self._start(tab, identifier)
        elif action == "race-stop":
            self.session.stop_race(identifier)
        return gr.skip()

    def _start(self, tab: Tab, message_id: str) -> None:
        tab.said = ""
        try:
            self.session.race(message_id)
        except hsd.HsdError as error:
            tab.said = str(error)

    def pin(self, text: str, request: gr.Request) -> Any:
        """Set the plan that was typed."""
        return self._pin(self.tabs.at(request), text or "")

    def leave_to_auto(self, request: gr.Request) -> Any:
        """Let the planner choose again."""
        return self._pin(self.tabs.at(request), "auto")

    def _pin(self, tab: Tab, text: str) -> Any:
        try:
            chosen = self.session.pin_plan(tab.open, text)
        except hsd.HsdError as error:
            tab.said = str(error)
            return gr.skip()
        tab.plan = chosen
        tab.said = ""
        return chosen


def parts(session: Session, ui: dict[str, Any]) -> list[Part]:
    """What the page's writer keeps up to date of the views; nothing of a view that is not on show."""

    def plan_key(tab: Tab) -> Any:
        if tab.view != "plan":
            return None
        versions = tuple(session.changed(topic) for topic in ("plans", "engine", tab.open or ""))
        return tab.open, tab.plan, versions

    def race_key(tab: Tab) -> Any:
        if not (tab.view or "").startswith(_RACE):
            return None
        message_id = (tab.view or "").removeprefix(_RACE)
        return tab.view, tab.said, session.changed(place(message_id)), session.changed("engine")

    return [
        Part(ui["view"], lambda tab: tab.view, lambda tab: gr.skip() if tab.view is None else tab.view or "chat"),
        Part(ui["plan_top"], plan_key, lambda tab: _top(session, tab)),
        Part(ui["plan_rest"], plan_key, lambda tab: _rest(session, tab)),
        Part(ui["pin_text"], plan_key, lambda tab: _pin_text(session, tab)),
        Part(ui["pin_said"], lambda tab: (tab.view, tab.said), _said),
        Part(ui["race"], race_key, lambda tab: _race(session, tab)),
    ]


def _plan_of(session: Session, tab: Tab) -> str:
    conversation = session.conversation(tab.open)
    if conversation is None:
        return tab.plan or session.default_plan
    return Settings.from_dict({"plan": session.default_plan, **conversation.settings}).plan


def _pin_text(session: Session, tab: Tab) -> Any:
    # Measurements come in at any moment: what a person is typing stays unless the plan itself has changed.
    before, tab.pinned = tab.pinned, _plan_of(session, tab) if tab.view == "plan" else ""
    return gr.skip() if tab.pinned in ("", before) else tab.pinned


def _top(session: Session, tab: Tab) -> str:
    if tab.view != "plan":
        return ""
    view = session.engine
    return plan.top(view, view.known, _plan_of(session, tab), looks(*session.levels()))


def _rest(session: Session, tab: Tab) -> str:
    if tab.view != "plan":
        return ""
    view = session.engine
    return plan.rest(view, view.known, session.store.recent_replies(), looks(*session.levels()))


def _said(tab: Tab) -> str:
    return f'<p class="problem" role="alert">{escape(tab.said)}</p>' if tab.said and tab.view == "plan" else ""


def _race(session: Session, tab: Tab) -> str:
    if not (tab.view or "").startswith(_RACE):
        return ""
    message_id = (tab.view or "").removeprefix(_RACE)
    standing = session.racing(message_id)
    reply = session.message(message_id)
    prompt = session.message(reply.parent_id) if reply else None
    record = session.raced(message_id) if reply else None
    return race.page(reply, prompt.text if prompt else "", record, standing, tab.said, looks(*session.levels()))
