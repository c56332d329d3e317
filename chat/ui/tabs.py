"""What one browser tab is looking at. Everything else lives in the session, for all tabs alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chat.guard import visitor
from chat.ui.history import SHOWN

MAX_TABS = 1000
LISTED = 200
"""Conversations that the list shows at once; older ones come on demand, and search finds all."""


@dataclass(slots=True)
class Tab:
    """`open` is the conversation on show, None for a new one; `problem` a sentence the last action left, which goes
    with the next action, or as soon as `over` says that its reason is.

    `entered` is set once it is known what to show, `rendered` is the last reply that the history on show holds.
    `temporary`: what is begun here is kept in memory alone. `closed` ends the events that write the page: Gradio tells
    none that waits that nobody is there any more.
    `given`: the conversation whose settings the page was last given, "new" for one that is not begun, "" for none yet;
    None where this program has not opened the page.
    `view` is "" for the chat, "plan", or "race:" and a reply; None until that is known. `said` is a sentence it left,
    `plan` one that was set by hand before there is a conversation, `pinned` what the field for it was last given.
    `visitor`: whose it is where there are guests, "" where there are none. `listed`: conversations in the list.
    `feed`: what its page was told of the reply that is being written, see growing.py.
    """

    open: str | None = None
    search: str = ""
    undo: tuple[str, str] | None = None
    problem: str = ""
    over: Callable[[], bool] | None = None
    shown: int = SHOWN
    temporary: bool = False
    entered: bool = False
    given: str | None = None
    rendered: str = ""
    closed: bool = False
    view: str | None = None
    plan: str = ""
    pinned: str = ""
    said: str = ""
    visitor: str = ""
    listed: int = LISTED
    feed: Any = None


class Tabs:
    """Tabs by gradio's session hash; the oldest go where there are too many.

    Args:
        belongs: whether a conversation, by its id, is a visitor's.
        guests: visitors are told apart.
    """

    def __init__(self, belongs: Callable[[str, str], bool] = lambda _, __: True, guests: bool = False) -> None:
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()
        self._belongs, self._guests = belongs, guests

    def visitor(self, request: Any) -> str:
        """Who asks; "" where visitors are not told apart."""
        return visitor(request) if self._guests else ""

    def _key(self, request: Any) -> tuple[str, str]:
        """A tab is its visitor's alone, whoever else may know its hash."""
        return self.visitor(request), request.session_hash or ""

    def at(self, request: Any, open_id: str = "") -> Tab:
        """The tab that asks; one that is new, or was taken for closed, shows `open_id` if that is its visitor's."""
        who, key = self._key(request)
        return self.of(key, open_id if not open_id or not who or self._belongs(open_id, who) else "new", who)

    def of(self, key: str, open_id: str = "", who: str = "") -> Tab:
        """The tab of this hash."""
        with self._lock:
            tab = self._tabs.setdefault(f"{who} {key}", Tab(visitor=who))
            if open_id and not tab.entered:
                tab.open, tab.entered = open_id if open_id != "new" else None, True
            while len(self._tabs) > MAX_TABS:
                self._tabs.pop(next(iter(self._tabs))).closed = True
            return tab

    def shows(self, conversation_id: str) -> bool:
        """Whether any tab has it open."""
        with self._lock:
            return any(tab.open == conversation_id for tab in self._tabs.values())

    def drop(self, request: Any) -> Tab | None:
        """Forget a tab that was closed; the tab."""
        with self._lock:
            tab = self._tabs.pop(" ".join(self._key(request)), None)
            if tab:
                tab.closed = True
            return tab
