"""Everything a person can do with the chat, without a page: send, stop, open, rename, delete, watch.

State lives here and in the store, never in a browser tab: any number of tabs may watch, and may go away.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hsd
from chat.prompt import make_title, messages_for_engine
from chat.records import Conversation, Message
from chat.request import EngineView, Load, Request
from chat.settings import Settings
from chat.store import Store
from chat.worker import Worker


@dataclass(frozen=True, slots=True)
class Live:
    """A reply that is not finished. `ahead`: requests before it; `started` is False while it waits."""

    message_id: str
    text: str
    tokens: int
    plan: str
    started: bool
    ahead: int
    stopping: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A conversation at a moment. `messages` leaves out the reply that `live` is."""

    conversation: Conversation | None
    messages: tuple[Message, ...]
    live: Live | None
    version: int


class Session:
    """The chat of one store and one engine.

    Args:
        store: where the conversations are.
        load: makes the engine; see `Worker`.
        title: the family's title, shown before it is loaded.
        models: names of its models, cheapest first, shown before they are loaded.
        plan: the plan a new conversation starts with.
        examples: messages to start with.
    """

    def __init__(
        self,
        store: Store,
        load: Load,
        *,
        title: str = "",
        models: tuple[str, ...] = (),
        plan: str = "auto",
        examples: tuple[str, ...] = (),
    ) -> None:
        self.store, self.title, self.models, self.default_plan = store, title, models, plan
        self.examples = examples
        self.visited = threading.Event()
        """Set when the first page has been opened."""
        self._changes = threading.Condition()
        self._version = 0
        self._topics: dict[str, int] = {}
        self._sending = threading.Lock()
        self.worker = Worker(load, self._save, self._touch)

    def start(self) -> None:
        """Load the engine in the background."""
        self.worker.start()

    def close(self) -> None:
        """Stop everything; unfinished replies are stored as interrupted."""
        self.worker.close()
        self.store.close()

    # Watching

    def _touch(self, topic: str) -> None:
        with self._changes:
            self._version += 1
            self._topics[topic] = self._version
            self._changes.notify_all()

    def _save(self, message_id: str, values: Mapping[str, Any]) -> None:
        self.store.update(message_id, **values)
        if "state" in values:
            self._touch("list")

    @property
    def version(self) -> int:
        """Grows with every change a page could show."""
        return self._version

    def changed(self, topic: str) -> int:
        """Version of the last change of "list", "engine" or a conversation's id."""
        return self._topics.get(topic, 0)

    def wait(self, version: int, timeout: float) -> int:
        """The version, as soon as it is above `version` or the time is up."""
        with self._changes:
            self._changes.wait_for(lambda: self._version > version, timeout)
            return self._version

    @property
    def engine(self) -> EngineView:
        """The engine now."""
        return self.worker.view

    @property
    def notice(self) -> str | None:
        """A sentence every page should show, or None."""
        return self.worker.saving.notice

    def snapshot(self, conversation_id: str | None) -> Snapshot:
        """What a page shows of a conversation; empty where it is unknown or deleted."""
        version = self._version
        # The worker first: a reply that ends in between is then in the store and not twice on the page.
        live = self._live(conversation_id) if conversation_id else None
        conversation = self.store.conversation(conversation_id) if conversation_id else None
        if conversation is None:
            return Snapshot(None, (), None, version)
        path = [self._with_unsaved(m) for m in self.store.path_to(conversation.leaf_id)]
        if live and path and path[-1].id == live.message_id:
            path.pop()
        else:
            live = None
        return Snapshot(conversation, tuple(path), live, version)

    def live(self, conversation_id: str | None) -> Live | None:
        """The running reply alone, without a look into the store."""
        return self._live(conversation_id) if conversation_id else None

    def _live(self, conversation_id: str) -> Live | None:
        found = self.worker.request(conversation_id)
        if found is None:
            return None
        request, ahead = found
        return Live(
            message_id=request.message_id,
            text=request.text,
            tokens=len(request.ids),
            plan=request.decided_plan,
            started=request.started is not None,
            ahead=ahead,
            stopping=request.cancel.is_set(),
        )

    def _with_unsaved(self, message: Message) -> Message:
        values = dict(self.worker.saving.waiting(message.id))
        return dataclasses.replace(message, **values) if values else message

    # Conversations

    def conversations(self, search: str = "") -> list[Conversation]:
        """Newest first."""
        return self.store.conversations(search)

    def latest(self) -> str | None:
        """The conversation that was last used, or None."""
        found = self.store.conversations(limit=1)
        return found[0].id if found else None

    def rename(self, conversation_id: str, title: str) -> None:
        """Give it another title. Raises HsdError for an empty one."""
        title = " ".join(title.split())
        if not title:
            raise hsd.HsdError("A title cannot be empty.", "Write at least one letter.")
        self.store.rename(conversation_id, title[:200])
        self._touch(conversation_id)
        self._touch("list")

    def delete(self, conversation_id: str) -> None:
        """Stop it and take it off the list; `restore` brings it back."""
        self.stop(conversation_id)
        self.store.delete(conversation_id)
        self._touch(conversation_id)
        self._touch("list")

    def restore(self, conversation_id: str) -> None:
        """Undo `delete`."""
        self.store.restore(conversation_id)
        self._touch(conversation_id)
        self._touch("list")

    # Replies

    def send(self, conversation_id: str | None, text: str, settings: Settings) -> str:
        """Store a message and queue its reply; the conversation, made if it is None.

        Raises:
            HsdError: an empty message, an impossible setting, or the last reply is still running. Nothing is stored.
        """
        if not text.strip():
            raise hsd.PromptError("The message is empty.", "Write something first.")
        params = settings.params()
        self._check_plan(settings.plan)
        with self._sending:
            if conversation_id and self.store.conversation(conversation_id) is None:
                conversation_id = None
            if conversation_id is None:
                conversation_id = self.store.create(make_title(text))
            self._check_free(conversation_id)
            parent = self._parent_for_next(conversation_id)
            self.store.keep_settings(conversation_id, dataclasses.asdict(settings))
            _, reply_id = self.store.add_turn(conversation_id, parent, text, dataclasses.asdict(settings))
            self._submit(conversation_id, reply_id, params, settings)
        return conversation_id

    def regenerate(self, message_id: str, settings: Settings) -> None:
        """Another reply to the same prompt, beside the one there is."""
        params = settings.params()
        self._check_plan(settings.plan)
        with self._sending:
            message = self.store.message(message_id)
            if message is None or message.role != "assistant" or message.parent_id is None:
                raise hsd.HsdError("This reply is not there any more.", "Reload the page.")
            self._check_free(message.conversation_id)
            reply_id = self.store.add_reply(message.conversation_id, message.parent_id, dataclasses.asdict(settings))
            self._submit(message.conversation_id, reply_id, params, settings)

    def stop(self, conversation_id: str) -> None:
        """Stop this conversation's reply within a round; others go on."""
        self.worker.cancel(conversation_id)
        self._touch(conversation_id)

    def _check_free(self, conversation_id: str) -> None:
        if self.worker.request(conversation_id):
            raise hsd.HsdError("The last reply is still being written.", "Wait for it, or stop it first.")

    def _check_plan(self, plan: str) -> None:
        if plan == "auto":
            return
        names = hsd.Plan.parse(plan).names
        info = self.engine.info
        known = info.models if info else self.models
        unknown = [name for name in names if known and name not in (*known, "lookup")]
        if unknown:
            raise hsd.ConfigError(
                f"The plan '{plan}' names '{unknown[0]}', which this family does not have.",
                f"Known levels: lookup, {', '.join(known)}.",
            )

    def _parent_for_next(self, conversation_id: str) -> str | None:
        conversation = self.store.conversation(conversation_id)
        path = self.store.path_to(conversation.leaf_id) if conversation else []
        if not path:
            return None
        # A prompt that was refused would make every later one fail too: the next one takes its place, as a branch.
        if path[-1].finish_reason == "refused":
            return path[-2].parent_id
        return path[-1].id

    def _submit(self, conversation_id: str, reply_id: str, params: hsd.SamplingParams, settings: Settings) -> None:
        messages = messages_for_engine(self.store.path_to(reply_id)[:-1], settings.system)
        self.worker.submit(Request(reply_id, conversation_id, messages, params, settings.plan))
        self._touch(conversation_id)
        self._touch("list")
