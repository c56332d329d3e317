"""The one writer of the page: an event that lasts as long as the tab, and sends each part when it has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

import hsd
from chat.session import Live, Session
from chat.settings import NAMES
from chat.ui import engine, history, listing, picker
from chat.ui.levels import looks
from chat.ui.tabs import Tab
from chat.ui.text import Growing, escape

BATCH_SECONDS = LOOK_SECONDS = 0.1
"""Between two looks: at a reply that is being written, and at everything else."""

HASTE_SECONDS = 0.6
"""What stands beside a reply that is being written waits this long: the engine needs the processor more."""

HISTORY_SECONDS = 3.0
"""Longest wait for the history to hold a reply that is over."""

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
        Part(ui["notice"], lambda tab: (tab.problem, session.notice), lambda tab: _notice(session, tab)),
        Part(ui["message"], lambda tab: session.live(tab.open) is not None, lambda tab: _buttons(session, tab)),
        Part(ui["engine"], lambda tab: (engine_key(tab), tab.open), lambda tab: _engine(session, tab), beside=True),
        Part(ui["current"], lambda tab: tab.open, lambda tab: tab.open or "new"),
        Part(
            ui["settings"][NAMES.index("thinking")],
            lambda _: _thinks(session),
            lambda _: gr.update(visible=_thinks(session)),
        ),
    ]


async def follow(parts: list[Part], tab: Tab, writing: Callable[[], bool]) -> AsyncIterator[list[Any]]:
    """Values of all parts whenever one has changed, until the tab is closed. `writing`: whether a reply is."""
    seen: list[Any] = [_NEVER] * len(parts)
    end = time.monotonic() + LAST_SECONDS
    held, acted = None, None
    while not tab.closed and time.monotonic() < end:
        if not tab.entered:
            await asyncio.sleep(LOOK_SECONDS / 2)
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


async def stream(session: Session, tab: Tab) -> AsyncIterator[tuple[str, str]]:
    """The running reply of the tab's conversation: what will not change any more of it, and the rest.

    An event of its own, since it is sent often: Gradio builds a component anew for every value that it is told to
    skip, and compares the whole of every value that it is not.
    """
    growing, seen, shown = Growing(), None, None
    end = time.monotonic() + LAST_SECONDS
    while not tab.closed and (shown or time.monotonic() < end):
        live = session.live(tab.open)
        now = (tab.open, live, session.engine.state)
        if now != seen and not _awaits_history(tab, shown, live):
            seen = now
            if live is None or shown is None or live.message_id != shown[1]:
                growing = Growing()
            shown = (tab.open, live.message_id, time.monotonic()) if live else None
            yield history.running(live, growing, loading=session.engine.state in ("starting", "loading"))
        await asyncio.sleep(BATCH_SECONDS if shown else LOOK_SECONDS)


def _awaits_history(tab: Tab, shown: tuple[str | None, str, float] | None, live: Live | None) -> bool:
    """Whether a reply that is over must stay a moment: the page would jump if it went before the history has it."""
    if live is not None or shown is None or shown[0] != tab.open:
        return False
    return tab.rendered != shown[1] and time.monotonic() < shown[2] + HISTORY_SECONDS


_NEVER = object()


def _render(parts: list[Part], changed: list[bool], tab: Tab) -> list[Any]:
    values = []
    for part, new in zip(parts, changed, strict=True):
        try:
            values.append(part.render(tab) if new else gr.skip())
        except hsd.StoreError as error:
            tab.problem = str(error)
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


def _notice(session: Session, tab: Tab) -> str:
    sentences = [s for s in (tab.problem, session.notice) if s]
    return "".join(f'<p class="problem" role="alert">{escape(s)}</p>' for s in sentences)


def _buttons(session: Session, tab: Tab) -> Any:
    busy = session.live(tab.open) is not None
    return gr.update(submit_btn=False if busy else "Send", stop_btn="Stop" if busy else False)


def _engine(session: Session, tab: Tab) -> str:
    replies = session.store.recent_replies()
    here = session.last_stats(tab.open)
    return engine.column(session.engine, session.title, replies, looks(*session.levels()), here, guest=session.guests)
