"""What one browser tab is looking at. Everything else lives in the session, for all tabs alike."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chat import limits
from chat.guard import visitor
from chat.ui.history import SHOWN

LISTED = 200
"""Conversations that the list shows at once; older ones come on demand, and search finds all."""


@dataclass(slots=True)
class Tab:
    """`open` is the conversation on show, None for a new one; `problem` a sentence the last action left, which goes
    with the next action, or as soon as `over` says that its reason is.

    `entered` is set once it is known what to show, `rendered` is the last reply that the history on show holds.
    `temporary`: what is begun here is kept in memory alone. `asked`: when its page last asked for anything.
    `given`: the conversation whose settings the page was last given, "new" for one that is not begun, "" for none yet;
    None where this program has not opened the page.
    `view` is "" for the chat, "plan", or "race:" and a reply; None until that is known. `said` is a sentence it left,
    `plan` one that was set by hand before there is a conversation, `pinned` what the field for it was last given.
    `visitor`: whose it is where there are guests, "" where there are none. `listed`: conversations in the list.
    `feed`: what its page was told of the reply that is being written, see growing.py. `given_parts`: what it was given
    of each group of parts, see watch.py.
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
    asked: float = 0.0
    view: str | None = None
    plan: str = ""
    pinned: str = ""
    said: str = ""
    visitor: str = ""
    listed: int = LISTED
    feed: Any = None
    given_parts: dict[str, Any] = field(default_factory=dict)


class Tabs:
    """Tabs by gradio's session hash; those that asked longest ago are forgotten where there are too many.

    Args:
        belongs: whether a conversation, by its id, is a visitor's.
        guests: visitors are told apart.
        gone: called with a tab that was closed or forgotten.
    """

    def __init__(
        self,
        belongs: Callable[[str, str], bool] = lambda _, __: True,
        guests: bool = False,
        gone: Callable[[Tab], None] = lambda _: None,
    ) -> None:
        self._tabs: dict[str, Tab] = {}  # the one that asked longest ago comes first
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._belongs, self._guests, self.gone = belongs, guests, gone

    def visitor(self, request: Any) -> str:
        """Who asks; "" where visitors are not told apart."""
        return visitor(request) if self._guests else ""

    def _key(self, request: Any) -> tuple[str, str]:
        """A tab is its visitor's alone, whoever else may know its hash."""
        return self.visitor(request), request.session_hash or ""

    def at(self, request: Any, open_id: str = "") -> Tab:
        """The tab that asks; one that is new, or was taken for closed, shows `open_id` if that is its visitor's."""
        who, key = self._key(request)
        return self.of(key, open_id if not open_id or self._belongs(open_id, who) else "new", who)

    def known(self, request: Any) -> Tab | None:
        """The tab that asks, where it is known what it shows; that looks nothing up."""
        who, key = self._key(request)
        with self._lock:
            tab = self._tabs.get(f"{who} {key}")
        return self.of(key, "", who) if tab and tab.entered else None

    def of(self, key: str, open_id: str = "", who: str = "") -> Tab:
        """The tab of this hash."""
        with self._lock:
            name = f"{who} {key}"
            tab = self._tabs.pop(name, None)
            if tab is None:
                tab = Tab(visitor=who)
                self._count[who] += 1
            self._tabs[name], tab.asked = tab, time.monotonic()
            if open_id and not tab.entered:
                tab.open, tab.entered = open_id if open_id != "new" else None, True
            forgotten = [self._pop(name) for name in self._too_many(tab)]
        for each in forgotten:
            self.gone(each)
        return tab

    def _too_many(self, new: Tab) -> list[str]:
        """Names of tabs to forget: the ones that are silent for long, and the most silent of too many."""
        excess = len(self._tabs) - limits.TABS
        names = []
        for place, (name, tab) in enumerate(self._tabs.items()):
            if place >= excess and new.asked - tab.asked < limits.TAB_SECONDS:
                break
            names.append(name)
        if self._guests and self._count[new.visitor] > limits.TABS_OF_A_VISITOR:
            own = next(name for name, tab in self._tabs.items() if tab.visitor == new.visitor)
            names += [own] if own not in names else []
        return names

    def _pop(self, name: str) -> Tab:
        tab = self._tabs.pop(name)
        self._count[tab.visitor] -= 1
        if not self._count[tab.visitor]:
            del self._count[tab.visitor]
        return tab

    def shows(self, conversation_id: str) -> bool:
        """Whether any tab has it open."""
        with self._lock:
            return any(tab.open == conversation_id for tab in self._tabs.values())

    def drop(self, request: Any) -> Tab | None:
        """Forget a tab that was closed; the tab."""
        with self._lock:
            name = " ".join(self._key(request))
            tab = self._pop(name) if name in self._tabs else None
        if tab:
            self.gone(tab)
        return tab
