"""What one browser tab is looking at. Everything else lives in the session, for all tabs alike."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from chat.ui.history import SHOWN

MAX_TABS = 1000


@dataclass(slots=True)
class Tab:
    """`open` is the conversation on show, None for a new one; `problem` a sentence the last action left.

    `entered` is set once it is known what to show, `rendered` is the last reply that the history on show holds.
    `temporary`: what is begun here is kept in memory alone. `closed` ends the events that write the page: Gradio tells
    none that waits that nobody is there any more.
    `given`: the conversation whose settings the page was last given, "new" for one that is not begun, "" for none yet;
    None where this program has not opened the page.
    `view` is "" for the chat, "plan", or "race:" and a reply; None until that is known. `said` is a sentence it left,
    `plan` one that was set by hand before there is a conversation, `pinned` what the field for it was last given.
    """

    open: str | None = None
    search: str = ""
    undo: tuple[str, str] | None = None
    problem: str = ""
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


class Tabs:
    """Tabs by gradio's session hash; the oldest go where there are too many."""

    def __init__(self) -> None:
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()

    def of(self, key: str | None, open_id: str = "") -> Tab:
        """The tab of this hash; one that is new, or was taken for closed, shows `open_id`."""
        with self._lock:
            tab = self._tabs.setdefault(key or "", Tab())
            if open_id and not tab.entered:
                tab.open, tab.entered = open_id if open_id != "new" else None, True
            while len(self._tabs) > MAX_TABS:
                self._tabs.pop(next(iter(self._tabs))).closed = True
            return tab

    def shows(self, conversation_id: str) -> bool:
        """Whether any tab has it open."""
        with self._lock:
            return any(tab.open == conversation_id for tab in self._tabs.values())

    def drop(self, key: str | None) -> Tab | None:
        """Forget a tab that was closed; the tab."""
        with self._lock:
            tab = self._tabs.pop(key or "", None)
            if tab:
                tab.closed = True
            return tab
