"""The reply that is being written, on its way to a page: what is new of it, five or ten times a second.

Not an output of a Gradio event: for each value of one, the page copies the values of all outputs of all events, which
was most of its work while a reply was written. A function that the page calls costs a request and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

import hsd
from chat.request import Live
from chat.session import Session
from chat.ui import history
from chat.ui.shares import Shares
from chat.ui.tabs import Tab, Tabs
from chat.ui.text import Growing

HOLD_SECONDS = 0.12
"""A reply is shown when it is this old, or over: one that ends sooner is written once, behind the engine's work."""

BETWEEN_SECONDS = 0.1
"""A page asks again so long after an answer."""

BETWEEN_ON_CPU_SECONDS = 0.2
"""The same where the models run on the CPU: a browser on this machine takes cores from them with every answer."""


BETWEEN_PER_SECOND = 5.0
"""And at least so many times as long as the answer took: a long list or table is one block, and is read again whole."""


class Feed:
    """What a page was told of one reply. An answer names the one that it adds to; a page that lacks that gets all."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self._growing = Growing()
        self._lock = threading.Lock()
        self._mark, self._settled = 0, ""

    def answer(self, live: Live, mark: int, *, loading: bool) -> dict[str, Any]:
        """What is new since the answer `mark`.

        Returns:
            `mark` of this answer; `lead`: HTML of the thinking that is over; `keep`: letters of the settled HTML that
            stay, `settled`: what comes behind them; `rest`: HTML of what may still change.
        """
        with self._lock:
            return self._answer(live, mark, loading=loading)

    def _answer(self, live: Live, mark: int, *, loading: bool) -> dict[str, Any]:
        parts = history.running(live, self._growing, loading=loading)
        known = mark == self._mark and parts.settled.startswith(self._settled)
        keep = len(self._settled) if known else 0
        self._mark, self._settled = self._mark + 1, parts.settled
        return {
            "mark": self._mark,
            "lead": parts.lead,
            "keep": keep,
            "settled": parts.settled[keep:],
            "rest": parts.rest,
        }


def between(info: hsd.FamilyInfo | None) -> float:
    """Seconds from an answer to the page's next question, while this family writes."""
    return BETWEEN_ON_CPU_SECONDS if info is not None and info.device.startswith("cpu") else BETWEEN_SECONDS


def young(live: Live | None) -> float:
    """Seconds until a reply is to be shown; one that waits for another, or for models, is shown at once."""
    return live.since + HOLD_SECONDS - time.monotonic() if live and live.since else 0.0


def loading(session: Session) -> bool:
    """Whether the reply waits for models."""
    return session.engine.state in ("starting", "loading")


def server_function(session: Session, tabs: Tabs, shares: Shares) -> Callable[..., Any]:
    """A function for the page: given the reply that it shows and the mark of the last answer, what is new of it.

    The answer is that of `Feed.answer` and, as `between`, the seconds to wait; `{"over": True}` where the tab's
    conversation is not waiting for that reply.
    """

    def told(page: Page, asked: Mapping[str, Any]) -> dict[str, Any]:
        tab = tabs.at(page)
        live = session.live(tab.open)
        if live is None or live.message_id != asked.get("reply"):
            return {"over": True}
        mark = asked.get("mark")
        # What is no mark fits no answer: the page is told all there is.
        begun = time.thread_time()
        answer = feed(tab, live).answer(live, mark if isinstance(mark, int) else 0, loading=loading(session))
        spent = time.thread_time() - begun
        return {**answer, "between": max(between(session.engine.info), BETWEEN_PER_SECOND * spent)}

    async def growing(asked: Mapping[str, Any], request: gr.Request) -> dict[str, Any]:
        page = await Page.of(request)
        # A long block of code takes a while to be rendered, for which the other tabs must not wait.
        answer: dict[str, Any] = await shares.run(page, told, page, asked if isinstance(asked, dict) else {})
        return answer

    return growing


class Page:
    """A request as the tabs want it: a page's own functions are asked without Gradio's wrapping."""

    def __init__(self, request: Any, session_hash: str) -> None:
        self.cookies, self.session_hash = request.cookies, session_hash

    @classmethod
    async def of(cls, request: Any) -> Page:
        """The page that calls a function of ours."""
        return cls(request, str((await request.json())["session_hash"]))


def feed(tab: Tab, live: Live) -> Feed:
    """The tab's feed of this reply."""
    if tab.feed is None or tab.feed.reply != live.message_id:
        tab.feed = Feed(live.message_id)
    told: Feed = tab.feed
    return told
