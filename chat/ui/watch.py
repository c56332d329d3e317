"""The one writer of the page: an event that lasts as long as the tab, and sends each part when it has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
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

LOOK_SECONDS = 0.1
"""Between two looks."""

HASTE_SECONDS = 1.5
"""What stands beside a reply that is being written waits this long: the engine needs the processor more."""

LAST_SECONDS = 600.0
"""An event ends after this long, and begins again if its tab is still there: in case nobody said that it was closed."""


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


async def follow(
    parts: list[Part], tab: Tab, writing: Callable[[], bool], young: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[list[Any]]:
    """Values of all parts whenever one has changed, until the tab is closed.

    `writing`: whether a reply is being written. `young`: seconds until that of this tab is to be shown, see growing.py.
    """
    seen: list[Any] = [_NEVER] * len(parts)
    end = time.monotonic() + LAST_SECONDS
    held, acted = None, None
    while not tab.closed and time.monotonic() < end:
        if not tab.entered:
            await asyncio.sleep(LOOK_SECONDS / 2)
            continue
        if (wait := young()) > 0:
            await asyncio.sleep(min(wait, LOOK_SECONDS))
            continue
        keys = [part.key(tab) for part in parts]
        waits = [p.beside and new != old != _NEVER for p, new, old in zip(parts, keys, seen, strict=True)]
        # What this tab's person did shows at once.
        before, acted = acted, (tab.open, tab.search, tab.undo, tab.temporary, tab.listed)
        held = (held or time.monotonic()) if any(waits) and writing() and acted == before else None
        if held and time.monotonic() < held + HASTE_SECONDS:
            keys = [old if wait else new for wait, new, old in zip(waits, keys, seen, strict=True)]
        else:
            held = None
        if keys != seen:
            changed = [new != old for new, old in zip(keys, seen, strict=True)]
            seen = keys
            # Rendering reads the database, which may be locked for seconds; the other tabs must not wait for it.
            yield await asyncio.to_thread(_render, parts, changed, tab)
        await asyncio.sleep(LOOK_SECONDS)


_NEVER = object()


def _render(parts: list[Part], changed: list[bool], tab: Tab) -> list[Any]:
    values = []
    for part, new in zip(parts, changed, strict=True):
        try:
            values.append(part.render(tab) if new else gr.skip())
        except hsd.StoreError as error:
            tab.problem, tab.over = str(error), None
            values.append(gr.skip())
        except Exception:
            # One part that cannot be shown must not end the event that shows all the others.
            log.exception("a part of the page could not be rendered")
            tab.problem, tab.over = FAILED, None
            values.append(gr.skip())
    return values


def _thinks(session: Session) -> bool:
    info = session.engine.info
    return info is not None and info.thinking


def _listing(session: Session, tab: Tab) -> str:
    found = session.conversations(tab.search, tab.visitor, tab.listed + 1)
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
