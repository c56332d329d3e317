"""The one writer of the page: says which parts have changed since a tab last got them, and renders those.

A page asks a function of ours, which costs a request and nothing else, and fetches what has changed by an event that
ends at once. Nothing lasts as long as a tab: such an event would hold one of the forty places that Gradio has for them,
and a browser has six connections to one server for all its tabs together.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

import hsd
from chat.session import Session
from chat.settings import NAMES
from chat.ui import engine, growing, history, listing, picker
from chat.ui.levels import looks
from chat.ui.tabs import Tab
from chat.ui.text import Growing, escape

log = logging.getLogger(__name__)

FAILED = "A part of this page could not be shown. What is stored is safe; the reason is where this program was started."

SOON_SECONDS = 0.1
"""A page asks again so soon after its person did something, or something was new."""

WRITING_SECONDS = 0.5
"""The same while a reply is written, whose words come by another way, or something is loaded or raced."""

IDLE_SECONDS = 1.0
"""The same where nothing happens."""

HASTE_SECONDS = 1.5
"""What stands beside a reply that is being written waits this long: the engine needs the processor more."""


@dataclass(frozen=True, slots=True)
class Part:
    """A component of the page: it is rendered again when its key has changed; not at once where it stands `beside`."""

    component: gr.components.Component
    key: Callable[[Tab], Any]
    render: Callable[[Tab], Any]
    beside: bool = False


def parts(session: Session, ui: dict[str, Any]) -> list[Part]:
    """All parts. Their keys cost a few dictionary look-ups, so that looking often is cheap."""

    def chat_key(tab: Tab) -> Any:
        live = session.live(tab.open)
        # While a reply is written its text changes, the turns before it do not.
        version = live.message_id if live else session.changed(tab.open or "")
        return tab.open, tab.temporary, tab.shown, session.changed("family"), version

    def engine_key(tab: Tab) -> Any:
        view = session.engine
        return session.changed("engine"), session.changed("list"), int(view.seconds) if view.state == "loading" else 0

    def list_key(tab: Tab) -> Any:
        return session.changed("list"), tab.search, tab.open, tab.undo, tab.listed

    return [
        Part(ui["listing"], list_key, lambda tab: _listing(session, tab), beside=True),
        Part(
            ui["head"],
            lambda tab: (engine_key(tab), list_key(tab), tab.temporary),
            lambda tab: _head(session, tab),
            beside=True,
        ),
        Part(ui["history"], chat_key, lambda tab: _history(session, tab)),
        Part(
            ui["running"],
            lambda tab: getattr(session.live(tab.open), "message_id", ""),
            lambda tab: _running(session, tab),
        ),
        Part(ui["waiting"], lambda tab: session.waiting(tab.open), lambda tab: _waiting(session, tab)),
        Part(ui["notice"], lambda tab: (_problem(tab), session.notice), lambda tab: _notice(session, tab)),
        Part(ui["message"], lambda tab: session.live(tab.open) is not None, lambda tab: _buttons(session, tab)),
        Part(ui["engine"], lambda tab: (engine_key(tab), tab.open), lambda tab: _engine(session, tab), beside=True),
        Part(ui["current"], lambda tab: tab.open, lambda tab: tab.open or "new"),
        Part(
            ui["settings"][NAMES.index("thinking")],
            lambda _: _thinks(session),
            lambda _: gr.update(visible=_thinks(session)),
        ),
    ]


_NEVER = object()


@dataclass(slots=True)
class Given:
    """What a tab was last given of a group: the keys of its parts, and a mark that came with their values.

    `held`: since when a part beside a reply waits. `acted`: what the person of the tab had done by then.
    """

    keys: list[Any]
    mark: str = ""
    held: float | None = None
    acted: Any = field(default=_NEVER)


class Group:
    """Parts that change together, which one event fetches.

    Args:
        name: tells it from other groups.
        parts: all of it.
        writing: whether a reply is being written.
    """

    def __init__(self, name: str, parts: Sequence[Part], writing: Callable[[], bool]) -> None:
        self.name, self.parts, self._writing = name, parts, writing

    def _given(self, tab: Tab) -> Given:
        given: Given = tab.given_parts.setdefault(self.name, Given([_NEVER] * len(self.parts)))
        return given

    def changed(self, tab: Tab, mark: str) -> bool:
        """Whether there is something to fetch. A page that lacks what came with the last mark gets all of it again."""
        given = self._given(tab)
        if mark != given.mark:
            given.keys = [_NEVER] * len(self.parts)
        return self._due(tab, given) != given.keys

    def _due(self, tab: Tab, given: Given) -> list[Any]:
        """Keys of what is to be shown now: parts beside a reply that is being written keep theirs for a while."""
        keys = [part.key(tab) for part in self.parts]
        waits = [p.beside and new != old != _NEVER for p, new, old in zip(self.parts, keys, given.keys, strict=True)]
        # What this tab's person did shows at once.
        acted = (tab.open, tab.search, tab.undo, tab.temporary, tab.listed)
        if not any(waits) or not self._writing() or acted != given.acted:
            given.held = None
            return keys
        given.held = given.held or time.monotonic()
        if time.monotonic() > given.held + HASTE_SECONDS:
            return keys
        return [old if wait else new for wait, new, old in zip(waits, keys, given.keys, strict=True)]

    def fetch(self, tab: Tab) -> list[Any]:
        """Values of all parts, skipped where nothing has changed, and behind them HTML that holds their mark."""
        given = self._given(tab)
        due = self._due(tab, given)
        changed = [new != old for new, old in zip(due, given.keys, strict=True)]
        # Before anything is read: what changes meanwhile is new again.
        given.keys, given.mark, given.held = due, str(time.time_ns()), None
        given.acted = (tab.open, tab.search, tab.undo, tab.temporary, tab.listed)
        return [*_render(self.parts, changed, tab), f'<i data-mark="{given.mark}"></i>']


def server_function(
    session: Session, groups: Sequence[Group], known: Callable[[growing.Page, str], Awaitable[Tab]]
) -> Callable[..., Any]:
    """A function for the page: given the marks of the groups that it holds, which of them are to be fetched.

    Its answer holds `changed`, names of groups; `between`, seconds until the page is to ask again; `session`, its own
    name; `run`, which is another where the program was started anew. `known`: the tab of a page that says which
    conversation it shows.
    """

    run = secrets.token_hex(4)

    async def watch(asked: Any, request: gr.Request) -> dict[str, Any]:
        asked = asked if isinstance(asked, dict) else {}
        marks = asked.get("marks")
        marks = marks if isinstance(marks, dict) else {}
        page = await growing.Page.of(request)
        tab = await known(page, str(asked.get("open") or ""))
        changed, between = [], IDLE_SECONDS
        live = session.live(tab.open)
        if not tab.entered:
            between = SOON_SECONDS / 2
        elif (wait := growing.young(live)) > 0:
            between = min(wait, SOON_SECONDS)
        else:
            changed = [g.name for g in groups if g.name in marks and g.changed(tab, str(marks[g.name]))]
            if live or growing.loading(session) or (tab.view or "").startswith("race:"):
                between = WRITING_SECONDS
        return {"changed": changed, "between": between, "session": page.session_hash, "run": run}

    return watch


def _render(parts: Sequence[Part], changed: list[bool], tab: Tab) -> list[Any]:
    values = []
    for part, new in zip(parts, changed, strict=True):
        try:
            values.append(part.render(tab) if new else gr.skip())
        except hsd.StoreError as error:
            tab.problem, tab.over = str(error), None
            values.append(gr.skip())
        except Exception:
            # One part that cannot be shown must not keep all the others from being shown.
            log.exception("a part of the page could not be rendered")
            tab.problem, tab.over = FAILED, None
            values.append(gr.skip())
    return values


def _thinks(session: Session) -> bool:
    info = session.engine.info
    return info is not None and info.thinking


def _listing(session: Session, tab: Tab) -> str:
    try:
        found = session.conversations(tab.search, tab.visitor, tab.listed + 1)
    except hsd.StoreError:
        raise
    except hsd.HsdError as error:
        # A search that asks for too much; the list is that of a search, so the sentence stands in its place.
        return f'<p class="problem" role="alert">{escape(error)}</p>'
    return listing.listing(found[: tab.listed], tab.open, tab.search, tab.undo, more=len(found) > tab.listed)


def _head(session: Session, tab: Tab) -> str:
    conversation = session.conversation(tab.open)
    view = session.engine
    title = conversation.title if conversation else "Temporary chat" if tab.temporary else "New chat"
    kept = " · not kept" if tab.temporary else ""
    return (
        f'<div class="name"><h1>{escape(title)}</h1>{history.menu(conversation)}</div>'
        f'<div class="quiet"><span class="dot {view.state}"></span>'
        f"{picker.menu(session)}{engine.room(view)}<span>· {escape(engine.status(view))}{kept}</span></div>"
        f"{history.banner(session.until) if session.guests else ''}"
    )


def _history(session: Session, tab: Tab) -> str:
    return history.named(tab.open) + _turns(session, tab)


def _turns(session: Session, tab: Tab) -> str:
    snapshot = session.snapshot(tab.open, tab.shown)
    back = history.taken_back() if snapshot.undone else ""
    if not snapshot.messages and snapshot.live is None:
        kept = (
            "You see your own conversations alone; they are kept on the machine that runs this."
            if session.guests
            else "Everything stays on this machine."
        )
        return history.empty(session.title, session.examples, temporary=tab.temporary, kept=kept) + back
    tab.rendered = snapshot.messages[-1].id if snapshot.messages else ""
    turns = history.history(snapshot.messages, looks(*session.levels()), tab.shown, snapshot.places, snapshot.above)
    return turns + back


def _running(session: Session, tab: Tab) -> str:
    live = session.live(tab.open)
    return history.stage(live, Growing(), loading=growing.loading(session)) if live else ""


def _waiting(session: Session, tab: Tab) -> str:
    return history.waiting(session.snapshot(tab.open, 1).waiting)


def _problem(tab: Tab) -> str:
    """What the last action left to be said, until its reason is over."""
    if tab.over is not None and tab.over():
        tab.problem, tab.over = "", None
    return tab.problem


def _notice(session: Session, tab: Tab) -> str:
    sentences = [s for s in (_problem(tab), session.notice) if s]
    return "".join(f'<p class="problem" role="alert">{escape(s)}</p>' for s in sentences)


def _buttons(session: Session, tab: Tab) -> Any:
    busy = session.live(tab.open) is not None
    return gr.update(submit_btn="Send", stop_btn="Stop" if busy else False)


def _engine(session: Session, tab: Tab) -> str:
    replies = session.store.recent_replies()
    here = session.last_stats(tab.open)
    return engine.column(session.engine, session.title, replies, looks(*session.levels()), here, guest=session.guests)
