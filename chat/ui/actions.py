"""What a person's clicks and keys do to the session and to their own tab; the page then shows it by watching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

import hsd
from chat.records import Message
from chat.session import Session
from chat.settings import Settings
from chat.ui import reply, settings
from chat.ui.history import SHOWN
from chat.ui.levels import looks
from chat.ui.tabs import Tab, Tabs


class Actions:
    """Handlers of the page's events. Each leaves its problem, if any, as a sentence on the tab."""

    def __init__(self, session: Session, tabs: Tabs) -> None:
        self.session, self.tabs = session, tabs

    def _tab(self, request: gr.Request) -> Tab:
        tab = self.tabs.of(request.session_hash)
        tab.problem = ""
        return tab

    def enter(self, wanted: str, request: gr.Request) -> list[Any]:
        """The page was opened: the conversation of its address, or else the latest."""
        tab = self._tab(request)
        self.session.visited.set()
        try:
            if wanted and wanted != "new" and self.session.store.conversation(wanted):
                tab.open = wanted
            elif wanted != "new":
                tab.open = self.session.latest()
        except hsd.StoreError as error:
            tab.problem = str(error)
        tab.entered = True
        return self._settings_of(tab)

    def leave(self, request: gr.Request) -> None:
        """The tab was closed; what it started goes on."""
        self.tabs.drop(request.session_hash)

    def send(self, request: gr.Request, text: str, *values: Any) -> Any:
        """Send the message; the box is emptied only when it has been stored."""
        tab = self._tab(request)
        try:
            tab.open = self.session.send(tab.open, text or "", settings.read(*values))
        except hsd.HsdError as error:
            tab.problem = str(error)
            return gr.skip()
        tab.shown = SHOWN
        return ""

    def stop(self, request: gr.Request) -> None:
        """Stop the reply of the open conversation."""
        tab = self._tab(request)
        if tab.open:
            self.session.stop(tab.open)

    def new(self, request: gr.Request) -> list[Any]:
        """Show an empty conversation; it is stored with its first message."""
        tab = self._tab(request)
        tab.open, tab.undo = None, None
        return settings.show(Settings(plan=self.session.default_plan))

    def search(self, words: str, request: gr.Request) -> None:
        """Narrow the list."""
        self._tab(request).search = words or ""

    def choose(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """An action on an entry of the list: open, rename, delete, restore."""
        tab = self._tab(request)
        data = event._data or {}
        identifier = str(data.get("id", ""))
        before = tab.open
        try:
            self._on_entry(tab, str(data.get("action")), identifier, str(data.get("title", "")))
        except hsd.HsdError as error:
            tab.problem = str(error)
        return self._settings_of(tab) if tab.open != before else [gr.skip()] * len(settings.NAMES)

    def _on_entry(self, tab: Tab, action: str, identifier: str, title: str) -> None:
        if action == "open":
            tab.open, tab.shown, tab.undo = identifier, SHOWN, None
        elif action == "rename":
            self.session.rename(identifier, title)
        elif action == "restore":
            self.session.restore(identifier)
            tab.open, tab.undo = identifier, None
        elif action == "delete":
            conversation = self.session.store.conversation(identifier)
            self.session.delete(identifier)
            tab.undo = (identifier, conversation.title) if conversation else None
            tab.open = None if tab.open == identifier else tab.open

    def turn(self, event: gr.EventData, request: gr.Request, *values: Any) -> Any:
        """An action on a turn: another reply, its prompt back into the box, or earlier turns."""
        tab = self._tab(request)
        data = event._data or {}
        action, identifier = data.get("action"), str(data.get("id", ""))
        if action == "earlier":
            tab.shown += 5 * SHOWN
        elif action == "again":
            try:
                self.session.regenerate(identifier, settings.read(*values))
            except hsd.HsdError as error:
                tab.problem = str(error)
        elif action == "edit":
            return self._prompt_of(identifier) or gr.skip()
        elif action == "example" and identifier.isdecimal() and int(identifier) < len(self.session.examples):
            return self.session.examples[int(identifier)]
        return gr.skip()

    def _prompt_of(self, reply_id: str) -> str:
        message = self.session.store.message(reply_id)
        prompt = self.session.store.message(message.parent_id) if message and message.parent_id else None
        return prompt.text if prompt else ""

    def _settings_of(self, tab: Tab) -> list[Any]:
        conversation = self.session.store.conversation(tab.open) if tab.open else None
        stored = conversation.settings if conversation else {}
        return settings.show(Settings.from_dict({"plan": self.session.default_plan, **stored}))


def provenance(session: Session) -> Callable[[str], str]:
    """A function for the page that says where the tokens of one reply came from; asked for, since it is long."""

    def where(message_id: str) -> str:
        message: Message | None = session.store.message(str(message_id))
        if message is None:
            return '<p class="quiet">This reply is not there any more.</p>'
        info = session.engine.info
        known = looks(info.models, info.target) if info else looks(session.models)
        return reply.provenance(message, known)

    return where
