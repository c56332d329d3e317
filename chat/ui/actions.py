"""What a person's clicks and keys do to the session and to their own tab; the page then shows it by watching."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

import hsd
from chat import limits, presets
from chat.disk import storable
from chat.library import TEMPORARY
from chat.records import Message
from chat.request import Busy
from chat.session import Session
from chat.settings import NAMES, Settings
from chat.ui import reply, settings, thinking
from chat.ui.history import SHOWN
from chat.ui.levels import looks
from chat.ui.tabs import LISTED, Tab, Tabs

ENTER_SECONDS = 5.0
"""A message may reach the program before it knows what its page shows; it waits this long for that."""

FORGET_SECONDS = 60.0
"""A temporary conversation is forgotten this long after the last tab that showed it was closed."""


@dataclass(frozen=True, slots=True)
class Click:
    """A click on HTML of ours: the action, what it is about, and the text that came with it; each may be empty."""

    action: str
    id: str
    text: str

    @classmethod
    def of(cls, event: gr.EventData) -> Click:
        """What `hsdClick` in page.js sent; read whole, since Gradio raises for a name that was not sent."""
        data = event._data if isinstance(event._data, dict) else {}
        return cls(*(storable(str(data.get(name, ""))) for name in ("action", "id", "text")))


class Actions:
    """Handlers of the page's events. Each leaves its problem, if any, as a sentence on the tab."""

    def __init__(self, session: Session, tabs: Tabs) -> None:
        self.session, self.tabs = session, tabs
        tabs.gone = self._left

    def _about(self, tab: Tab, event: gr.EventData) -> Click:
        """The click. Raises HsdError where it is about what is another visitor's."""
        click = Click.of(event)
        if click.id and click.action != "example" and not self.session.belongs(click.id, tab.visitor):
            raise hsd.HsdError("This is not there any more.", "Reload the page.")
        return click

    def _tab(self, request: gr.Request) -> Tab:
        tab = self.tabs.at(request)
        tab.problem, tab.over = "", None
        return tab

    def _show_settings(self, tab: Tab, settings_: Settings | None = None) -> list[Any]:
        """Settings for the fields, the open conversation's unless others are given, and whose they are."""
        tab.given = tab.open or "new"
        return [*settings.show(settings_ or self._stored(tab)), tab.given]

    def _stored(self, tab: Tab) -> Settings:
        conversation = self.session.conversation(tab.open)
        stored = conversation.settings if conversation else {}
        return Settings.from_dict({"plan": self.session.default_plan, **stored})

    def _asked(self, tab: Tab, held: str, values: Sequence[Any]) -> Settings:
        """What the fields say; what is stored while they hold another conversation's settings, or none yet."""
        return settings.read(*values) if _arrived(tab, held) else self._stored(tab)

    def enter(self, wanted: str, request: gr.Request) -> list[Any]:
        """The page was opened: the conversation of its address, or else the latest."""
        tab = self._tab(request)
        tab.given = ""
        self.session.visited.set()
        try:
            own = bool(wanted) and wanted != "new" and self.session.belongs(wanted, tab.visitor)
            if own and self.session.conversation(wanted):
                tab.open, tab.temporary = wanted, wanted.startswith(TEMPORARY)
            elif wanted != "new":
                tab.open = self.session.latest(tab.visitor)
            return self._show_settings(tab)
        except hsd.StoreError as error:
            _say(tab, error)
            return self._unchanged()
        finally:
            tab.entered = True

    def leave(self, request: Any) -> None:
        """The tab was closed; what it started goes on."""
        self.tabs.drop(request)

    def _left(self, tab: Tab) -> None:
        if tab.open and tab.temporary:
            # A reload leaves too, and comes back at once.
            timer = threading.Timer(FORGET_SECONDS, self._forget_unseen, [tab.open])
            timer.daemon = True
            timer.start()

    def _forget_unseen(self, conversation_id: str) -> None:
        if not self.tabs.shows(conversation_id):
            self.session.forget(conversation_id)

    def _show(self, tab: Tab, conversation_id: str | None, *, temporary: bool = False) -> None:
        """Open another conversation; a temporary one that is left for it is forgotten."""
        left, tab.open, tab.temporary = tab.open, conversation_id, temporary
        tab.view, tab.plan, tab.said = "", "", ""
        if left and left != conversation_id and not self.tabs.shows(left):
            self.session.forget(left)

    def send(self, request: gr.Request, text: str, held: str, *values: Any) -> list[Any]:
        """Send the message.

        Args:
            held: whose settings the fields hold, see `Tab.given`; a message may be sent before they are there.

        Returns:
            A word for `hsdSent` in unsent.js, which takes a stored message out of the box and leaves what was typed
            since; then the settings' fields.
        """
        tab = self._tab(request)
        if not text:
            # Enter was pressed once more than needed.
            return [gr.skip(), *self._unchanged()]
        try:
            _check_entered(tab)
            arrived = _arrived(tab, held)
            asked = self._asked(tab, held, values)
            tab.open = self.session.send(tab.open, text, asked, temporary=tab.temporary, visitor=tab.visitor)
        except hsd.HsdError as error:
            _say(tab, error)
            return [f"refused {time.time_ns()}", *self._unchanged()]
        tab.shown = SHOWN
        return [f"stored {time.time_ns()}", *(self._unchanged() if arrived else self._show_settings(tab, asked))]

    async def entered(self, request: gr.Request) -> None:
        """Wait until it is known what the tab shows, as long as a message may wait for that."""
        end, tab = time.monotonic() + ENTER_SECONDS, self.tabs.at(request)
        while not tab.entered and time.monotonic() < end:
            await asyncio.sleep(0.02)

    def stop(self, request: gr.Request) -> None:
        """Stop the reply of the open conversation."""
        tab = self._tab(request)
        if tab.open:
            self.session.stop(tab.open)

    def new(self, request: gr.Request) -> list[Any]:
        """Show an empty conversation; it is stored with its first message."""
        tab = self._tab(request)
        self._show(tab, None)
        tab.undo = None
        return self._show_settings(tab)

    def search(self, words: str, request: gr.Request) -> None:
        """Narrow the list."""
        # One letter more than may be looked for, so that it is refused; a tab keeps it for hours.
        self._tab(request).search = storable((words or "")[: limits.SEARCH_LETTERS + 1])

    def choose(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """An action on an entry of the list: open, rename, delete, restore."""
        tab = self._tab(request)
        before = tab.open
        try:
            self._on_entry(tab, self._about(tab, event))
        except hsd.HsdError as error:
            _say(tab, error)
        return self._show_settings(tab) if tab.open != before else self._unchanged()

    def _on_entry(self, tab: Tab, click: Click) -> None:
        action, identifier = click.action, click.id
        if action == "open":
            if self.session.conversation(identifier) is None:
                raise hsd.HsdError(
                    "This conversation is not there any more.", "It was deleted, or was a temporary one."
                )
            self._show(tab, identifier)
            tab.shown, tab.undo = SHOWN, None
        elif action == "rename":
            self.session.rename(identifier, click.text)
        elif action == "pin":
            self.session.pin(identifier)
        elif action == "more":
            tab.listed += 5 * LISTED
        elif action == "restore":
            self.session.restore(identifier)
            self._show(tab, identifier)
            tab.undo = None
        elif action == "delete":
            conversation = self.session.conversation(identifier)
            self.session.delete(identifier)
            tab.undo = (identifier, conversation.title) if conversation else None
            tab.open = None if tab.open == identifier else tab.open

    def bring(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Import the text of a file that the browser has read, and show what was in it; or change the family."""
        tab, click = self._tab(request), Click.of(event)
        try:
            if click.action == "family":
                return self._family(self.session.choose, click.id)
            if click.action == "found":
                return self._family(self.session.choose_found, click.id)
            if click.action == "import":
                self._show(tab, self.session.imported(click.text, tab.visitor))
                tab.shown, tab.undo = SHOWN, None
                return self._show_settings(tab)
        except hsd.HsdError as error:
            _say(tab, error)
        return self._unchanged()

    def _unchanged(self) -> list[Any]:
        return [gr.skip()] * (len(NAMES) + 1)

    def _family(self, choose: Callable[[str], None], name: str) -> list[Any]:
        choose(name)
        # A plan names levels, which are others in another family.
        return [*(self.session.default_plan if name == "plan" else gr.skip() for name in NAMES), gr.skip()]

    def preset(self, name: str | None, request: gr.Request, *values: Any) -> list[Any]:
        """Settings of a preset; a name that is new is only being typed."""
        tab = self._tab(request)
        try:
            if name in presets.names(self.session.store):
                return settings.show(presets.apply(self.session.store, str(name), settings.read(*values)))
        except hsd.HsdError as error:
            _say(tab, error)
        return self._unchanged()[:-1]

    def known_presets(self, request: gr.Request) -> Any:
        """The presets there are now: the page itself is as old as the program."""
        return self._preset(request, lambda: None)

    def keep_preset(self, name: str | None, request: gr.Request, *values: Any) -> Any:
        """Keep the settings under this name."""
        name = storable(name or "")
        return self._preset(request, lambda: presets.keep(self.session.store, name, settings.read(*values)))

    def forget_preset(self, name: str | None, request: gr.Request) -> Any:
        """Forget what is kept under this name."""
        return self._preset(request, lambda: presets.drop(self.session.store, storable(name or "")))

    def _preset(self, request: gr.Request, change: Callable[[], None]) -> Any:
        tab = self._tab(request)
        try:
            change()
        except hsd.HsdError as error:
            _say(tab, error)
            return gr.skip()
        return gr.update(choices=presets.names(self.session.store))

    def engine(self, event: gr.EventData, request: gr.Request) -> None:
        """Load the engine, or give its memory back."""
        tab, action = self._tab(request), Click.of(event).action
        try:
            if action == "unload" and self.session.guests:
                raise hsd.HsdError("Others use this engine too.", "Whoever started the program can stop it.")
            if action == "unload":
                self.session.unload()
            elif action == "load":
                self.session.load()
        except hsd.HsdError as error:
            _say(tab, error)

    def take_back(self, event: gr.EventData, request: gr.Request, unsent: str) -> Any:
        """Let a message wait no longer: it goes back into the box, before what was typed there since."""
        tab = self._tab(request)
        try:
            text = self.session.take_back(self._about(tab, event).id)
        except hsd.HsdError as error:
            _say(tab, error)
            return gr.skip()
        return f"{text}\n\n{unsent}" if (unsent or "").strip() else text

    def turn(self, event: gr.EventData, request: gr.Request, unsent: str, held: str, *values: Any) -> Any:
        """An action on a turn: another reply, more of it, another prompt, another branch, undo, or earlier turns."""
        tab, action, identifier = self._tab(request), "", ""
        try:
            click = self._about(tab, event)
            action, identifier = click.action, click.id
            if action == "undo" and tab.open:
                prompt = self.session.undo(tab.open)
                return gr.skip() if (unsent or "").strip() else prompt
            self._on_turn(tab, click, self._asked(tab, held, values))
        except hsd.HsdError as error:
            _say(tab, error)
        if action == "edit":
            return self._prompt_of(identifier) or gr.skip()
        if action == "example" and identifier.isdecimal() and int(identifier) < len(self.session.examples):
            return self.session.examples[int(identifier)]
        return gr.skip()

    def _on_turn(self, tab: Tab, click: Click, asked: Settings) -> None:
        action, identifier = click.action, click.id
        if action == "temporary" and tab.open is None:
            tab.temporary = not tab.temporary
        elif action == "redo" and tab.open:
            self.session.redo(tab.open)
        elif action == "earlier":
            tab.shown += 5 * SHOWN
        elif action == "again":
            self.session.regenerate(identifier, asked)
        elif action == "resume":
            self.session.resume(identifier, asked)
        elif action == "resend":
            self.session.edit(identifier, click.text, asked)
        elif action in ("previous", "next"):
            self.session.switch(identifier, 1 if action == "next" else -1)

    def _prompt_of(self, reply_id: str) -> str:
        message = self.session.message(reply_id)
        prompt = self.session.message(message.parent_id) if message else None
        return prompt.text if prompt else ""


def _say(tab: Tab, error: hsd.HsdError) -> None:
    """Leave an error on the tab, until the next action or the end of its reason."""
    tab.problem, tab.over = str(error), getattr(error, "over", None)


def _arrived(tab: Tab, held: str) -> bool:
    """Whether the fields hold what the page was last given, as a person may have changed it since."""
    return tab.given is None or (bool(held) and held == tab.given)


def _check_entered(tab: Tab) -> None:
    """Raises HsdError where it is not known what the tab shows: the page waits for that before it sends."""
    if not tab.entered:
        raise Busy("The page is still being opened.", lambda: tab.entered, "Send the message again.")


def exported(session: Session, tabs: Tabs) -> Callable[..., dict[str, str]]:
    """A function for the page that gives a conversation as a file: {"name", "text"}, or {"problem"}."""

    def exported(wanted: Mapping[str, Any], request: gr.Request) -> dict[str, str]:
        try:
            wanted = wanted if isinstance(wanted, dict) else {}
            identifier = str(wanted.get("id"))
            own = session.belongs(identifier, tabs.visitor(request))
            name, text = session.exported(identifier if own else None, str(wanted.get("kind")))
        except hsd.HsdError as error:
            return {"problem": str(error)}
        return {"name": name, "text": text}

    return exported


def written(session: Session, tabs: Tabs) -> Callable[..., str | None]:
    """A function for the page that gives a message as it is stored, a reply without its thinking.

    A reply that is being written is given as far as it goes; None stands for a message that is gone, or another's.
    """

    def written(message_id: str, request: gr.Request) -> str | None:
        identifier = storable(str(message_id))
        message = session.message(identifier) if session.belongs(identifier, tabs.visitor(request)) else None
        if message is None:
            return None
        live = session.live(message.conversation_id)
        if live and live.message_id == message.id:
            return hsd.split_thinking(live.text).answer
        return message.text if message.role == "user" else thinking.split(message)[1]

    return written


def provenance(session: Session, tabs: Tabs) -> Callable[..., str]:
    """A function for the page that says where the tokens of one reply came from; asked for, since it is long."""

    def where(message_id: str, request: gr.Request) -> str:
        own = session.belongs(str(message_id), tabs.visitor(request))
        message: Message | None = session.message(str(message_id)) if own else None
        if message is None:
            return '<p class="quiet">This reply is not there any more.</p>'
        return reply.provenance(message, looks(*session.levels()))

    return where
