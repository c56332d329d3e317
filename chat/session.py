"""Everything a person can do with the chat, without a page: send, stop, open, rename, delete, watch.

State lives here and in the store, never in a browser tab: any number of tabs may watch, and may go away.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hsd
from chat import limits, plans, tree
from chat.choosing import Choosing
from chat.library import TEMPORARY
from chat.prompt import make_title, messages_for_engine, newest_turns
from chat.records import Conversation, Message, Role
from chat.request import Busy, EngineView, Live, Load, Request
from chat.settings import Settings
from chat.store import Store
from chat.worker import Worker

MAX_WAITING = 20
"""Messages of one conversation that may wait behind the reply that is being written."""

LETTERS_PER_TOKEN = 16
"""More than any tokenizer's mean: what is cut off by it would not have fitted."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A conversation at a moment. `messages` leaves out the reply that `live` is, and what waits behind it.

    `waiting`: messages that were sent while that reply was written, in the order in which they will be answered.

    `places`: of the messages that have siblings, their place among them and how many there are. `above`: messages
    before them that were not asked for. `undone`: the end of what was taken back and can be brought back.
    """

    conversation: Conversation | None
    messages: tuple[Message, ...]
    live: Live | None
    version: int
    places: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    above: int = 0
    undone: str | None = None
    waiting: tuple[Message, ...] = ()


class Session(Choosing):
    """The chat of one store and one engine.

    Args:
        store: where the conversations are.
        load: makes the engine; see `Worker`.
        title: the family's title, shown before it is loaded.
        models: names of its models, cheapest first, shown before they are loaded.
        plan: the plan a new conversation starts with.
        examples: messages to start with.
        may_drop: the family leaves the oldest turns out where the context is full.
        family: the family's name.
        idle_seconds: see `Worker`.
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
        may_drop: bool = False,
        family: str = "",
        idle_seconds: float | None = None,
    ) -> None:
        super().__init__(store)
        self.family = family
        self.title, self.models, self.default_plan, self.examples = title, models, plan, examples
        self._may_drop = may_drop
        self.guests, self.until = False, ""
        """Whether visitors are told apart; when a shared link ends, in words."""
        self.visited = threading.Event()
        """Set when the first page has been opened."""
        self._sending = threading.Lock()
        self.worker = Worker(load, self._save, self._touch, idle_seconds)

    def start(self) -> None:
        """Load the engine in the background."""
        self.worker.start()

    def close(self) -> None:
        """Stop everything; unfinished replies are stored as interrupted."""
        self.worker.close()
        self.store.close()
        self._passing.close()

    def load(self) -> None:
        """Load the engine once more, after it failed or was unloaded."""
        self.worker.load()

    def unload(self) -> None:
        """Give the engine's memory back; the next message loads it again. Raises HsdError while it is at work."""
        if self.worker.busy:
            raise Busy("A reply is being written.", lambda: not self.worker.busy)
        self.worker.unload()

    # Watching

    def _save(self, message_id: str, values: Mapping[str, Any]) -> None:
        self._of(message_id).update(message_id, **values)
        if "race" in values and (message := self.message(message_id)):
            self._touch(message.conversation_id)
        if values.get("state") == "done":
            self._name(message_id)
        if "state" in values:
            self._touch("list")

    def _name(self, message_id: str) -> None:
        """Give a conversation whose first message says little the title of its first exchange."""
        store = self._of(message_id)
        path = store.path_to(message_id, 3)
        conversation = store.conversation(path[0].conversation_id) if len(path) == 2 else None
        if conversation and conversation.title == make_title(path[0].text):
            title = make_title(path[0].text, path[1].text)
            if title != conversation.title:
                store.rename(conversation.id, title)

    @property
    def engine(self) -> EngineView:
        """The engine now."""
        return self.worker.view

    @property
    def notice(self) -> str | None:
        """A sentence every page should show, or None."""
        return self.worker.saving.notice

    def snapshot(self, conversation_id: str | None, last: int = -1) -> Snapshot:
        """What a page shows of a conversation: its `last` messages, all if negative; empty where there is none."""
        version = self.version
        # The worker first: a reply that ends in between is then in the store and not twice on the page.
        requests = self.worker.requests(conversation_id) if conversation_id else []
        live = Live.of(*requests[0]) if requests else None
        conversation = self.conversation(conversation_id)
        if conversation is None:
            return Snapshot(None, (), None, version)
        store = self._of(conversation.id)
        # Each request behind the first is a message and the place of its reply.
        wanted = last if last < 0 else last + 2 * len(requests[1:])
        path = [self._with_unsaved(m) for m in store.path_to(conversation.leaf_id, wanted)]
        above = store.path_length(conversation.leaf_id) - len(path)
        at = next((place for place, m in enumerate(path) if live and m.id == live.message_id), None)
        waiting: list[Message] = []
        if at is None:
            live = None
        else:
            waiting = [m for m in path[at + 1 :] if m.role == "user"]
            path = path[:at]
        places = tree.places(store, conversation.id, path)
        undone = None if live else tree.hidden_below(store, conversation.id, conversation.leaf_id)
        return Snapshot(conversation, tuple(path), live, version, places, above, undone, tuple(waiting))

    def live(self, conversation_id: str | None) -> Live | None:
        """The running reply alone, without a look into the store."""
        found = self.worker.request(conversation_id) if conversation_id else None
        return Live.of(*found) if found else None

    def waiting(self, conversation_id: str | None) -> tuple[str, ...]:
        """Ids of the replies that wait behind the running one, without a look into the store."""
        requests = self.worker.requests(conversation_id) if conversation_id else []
        return tuple(request.message_id for request, _ in requests[1:])

    def _with_unsaved(self, message: Message) -> Message:
        values = {k: v for k, v in self.worker.saving.waiting(message.id).items() if k != "race"}
        return dataclasses.replace(message, **values) if values else message

    # Conversations

    def delete(self, conversation_id: str) -> None:
        """Stop it and take it off the list; `restore` brings it back."""
        self.worker.cancel(conversation_id)
        super().delete(conversation_id)

    def forget(self, conversation_id: str) -> None:
        """Stop and drop a temporary conversation; others stay and go on."""
        if conversation_id.startswith(TEMPORARY):
            self.worker.cancel(conversation_id)
            super().forget(conversation_id)

    def switch(self, message_id: str, step: int) -> None:
        """Show the branch of the sibling `step` places further. Raises HsdError while a reply is being written."""
        message = self.message(message_id)
        if message:
            self._check_free(message.conversation_id)
            super().switch(message_id, step)

    def undo(self, conversation_id: str) -> str:
        """Take the last message and its reply off the visible path; the message's text. Both stay, for `redo`.

        Raises:
            HsdError: there is none, or a reply is being written.
        """
        self._check_free(conversation_id)
        conversation = self.conversation(conversation_id)
        path = self._of(conversation_id).path_to(conversation.leaf_id, 2) if conversation else []
        prompt = next((message for message in reversed(path) if message.role == "user"), None)
        if prompt is None:
            raise hsd.HsdError("There is nothing to take back.", "Send a message first.")
        self._of(conversation_id).show(conversation_id, prompt.parent_id)
        self._touch(conversation_id, "list")
        return prompt.text

    def redo(self, conversation_id: str) -> None:
        """Bring back everything that `undo` took off."""
        self._check_free(conversation_id)
        conversation = self.conversation(conversation_id)
        store = self._of(conversation_id)
        undone = tree.hidden_below(store, conversation_id, conversation.leaf_id) if conversation else None
        if undone:
            store.show(conversation_id, undone)
            self._touch(conversation_id, "list")

    # Replies

    def send(
        self,
        conversation_id: str | None,
        text: str,
        settings: Settings,
        *,
        temporary: bool = False,
        visitor: str = "",
    ) -> str:
        """Store a message and queue its reply; the conversation, made if it is None.

        Where a reply of the conversation is still being written, the message waits its turn behind it.

        Args:
            temporary: a conversation that is made is kept in memory alone.
            visitor: whose a conversation that is made is.

        Raises:
            HsdError: an empty message, an impossible setting, or too many that wait. Nothing is stored.
        """
        if not text.strip():
            raise hsd.PromptError("The message is empty.", "Write something first.")
        limits.check_message(text)
        self.check_waiting(visitor)
        params = self._params(settings)
        with self._sending:
            known = self.conversation(conversation_id)
            store = self._of(known.id) if known else self._passing if temporary else self.store
            with store.together():
                title = "Temporary chat" if temporary else make_title(text)
                conversation_id = known.id if known else store.create(title, visitor)
                self._check_room(conversation_id)
                parent = self._parent_for_next(conversation_id)
                store.keep_settings(conversation_id, dataclasses.asdict(settings))
                _, reply_id = store.add_turn(conversation_id, parent, text, dataclasses.asdict(settings))
            self._submit(conversation_id, reply_id, params, settings)
        return conversation_id

    def take_back(self, message_id: str) -> str:
        """Let a message wait no longer; its text. Those behind it stay. It is kept as a branch, for `redo`.

        Raises:
            HsdError: its reply has begun.
        """
        with self._sending:
            message = self._expect(message_id, "user")
            store = self._of(message_id)
            replies = [i for (i,) in store.rows("SELECT id FROM messages WHERE parent_id = ?", message_id)]
            waiting = set(self.waiting(message.conversation_id)).intersection(replies)
            reply_id = next(iter(waiting), "")
            if not self.worker.withdraw(reply_id):
                raise hsd.HsdError("This message waits no longer.", "Stop its reply, or undo it when that is over.")
            conversation = self.conversation(message.conversation_id)
            with store.together():
                store.move_below(reply_id, message.parent_id)
                if conversation and conversation.leaf_id == reply_id:
                    store.show(conversation.id, message.parent_id)
        self._touch(message.conversation_id, "list")
        return message.text

    def regenerate(self, message_id: str, settings: Settings) -> None:
        """Another reply to the same prompt, beside the one there is."""
        params = self._params(settings)
        self.check_waiting(self._of(message_id).visitor_of(message_id) or "")
        with self._sending:
            message = self._expect(message_id, "assistant")
            self._check_free(message.conversation_id)
            store, asked = self._of(message_id), dataclasses.asdict(settings)
            with store.together():
                store.keep_settings(message.conversation_id, asked)
                reply_id = store.add_reply(message.conversation_id, str(message.parent_id), asked)
            self._submit(message.conversation_id, reply_id, params, settings)

    def edit(self, message_id: str, text: str, settings: Settings) -> None:
        """Send another text in the place of an own message; what was said after the old one stays, as a branch."""
        if not text.strip():
            raise hsd.PromptError("The message is empty.", "Write something first.")
        limits.check_message(text)
        self.check_waiting(self._of(message_id).visitor_of(message_id) or "")
        params = self._params(settings)
        with self._sending:
            message = self._expect(message_id, "user")
            self._check_free(message.conversation_id)
            store, asked = self._of(message_id), dataclasses.asdict(settings)
            with store.together():
                store.keep_settings(message.conversation_id, asked)
                _, reply_id = store.add_turn(message.conversation_id, message.parent_id, text, asked)
            self._submit(message.conversation_id, reply_id, params, settings)

    def resume(self, message_id: str, settings: Settings) -> None:
        """Let a reply that was cut off go on where it ended; where more was said after it, as another one beside it.

        Raises:
            HsdError: there is nothing to go on from.
        """
        self.check_waiting(self._of(message_id).visitor_of(message_id) or "")
        with self._sending:
            message = self._expect(message_id, "assistant")
            self._check_free(message.conversation_id)
            if message.params:
                # What stands before its first word stays what it was.
                begun = Settings.from_dict(message.params)
                settings = dataclasses.replace(settings, system=begun.system, thinking=begun.thinking)
            params = self._params(settings)
            if not self.conversation(message.conversation_id) or not message.text or message.state == "running":
                raise hsd.HsdError("There is nothing to go on from.", "Try again instead.")
            reply_id = tree.going_on(self._of(message_id), message, dataclasses.asdict(settings))
            self._submit(message.conversation_id, reply_id, params, settings, begun=message)

    def _expect(self, message_id: str, role: Role) -> Message:
        message = self.message(message_id)
        if message is None or message.role != role:
            raise hsd.HsdError("This message is not there any more.", "Reload the page.")
        return message

    def stop(self, conversation_id: str) -> None:
        """Stop this conversation's reply within a round; others go on, and so do messages that wait behind it."""
        self.worker.cancel(conversation_id, first=True)
        self._touch(conversation_id)

    def _check_free(self, conversation_id: str) -> None:
        if self.worker.request(conversation_id):
            over = functools.partial(self._free, conversation_id)
            raise Busy("The last reply is still being written.", over)

    def _check_room(self, conversation_id: str) -> None:
        def room() -> bool:
            return len(self.waiting(conversation_id)) < MAX_WAITING

        if not room():
            raise Busy(f"{MAX_WAITING} messages wait here already.", room, "Send it after the next reply.")

    def _free(self, conversation_id: str) -> bool:
        return self.worker.request(conversation_id) is None

    def _params(self, settings: Settings) -> hsd.SamplingParams:
        """The sampling settings. Raises ConfigError: one is impossible, or the plan is none of this family."""
        plans.checked(settings.plan, *self.levels())
        limits.check_message(settings.system, "system prompt")
        return settings.params()

    def _parent_for_next(self, conversation_id: str) -> str | None:
        conversation = self.conversation(conversation_id)
        path = self._of(conversation_id).path_to(conversation.leaf_id, 2) if conversation else []
        if not path:
            return None
        # A prompt that was refused would make every later one fail too: the next one takes its place, as a branch.
        if path[-1].finish_reason == "refused":
            return path[-2].parent_id
        return path[-1].id

    def _submit(
        self,
        conversation_id: str,
        reply_id: str,
        params: hsd.SamplingParams,
        settings: Settings,
        begun: Message | None = None,
    ) -> None:
        request = Request(
            reply_id,
            conversation_id,
            (),
            params,
            settings.plan,
            visitor=self._of(conversation_id).visitor_of(conversation_id) or "",
            read=functools.partial(self._read, reply_id, settings.system),
        )
        if begun:
            request.text = request.begun = begun.text
            request.ids, request.provenance = list(begun.token_ids), list(begun.provenance)
            request.before = len(begun.token_ids)
        self.worker.submit(request)
        self._touch(conversation_id, "list")

    def _read(self, reply_id: str, system: str) -> tuple[list[dict[str, Any]], int]:
        """What a reply answers, and how many turns were left out of it since they cannot fit."""
        path = [self._with_unsaved(m) for m in self._of(reply_id).path_to(reply_id)[:-1]]
        messages, info = messages_for_engine(path, system), self.engine.info
        if self._may_drop and info:
            return newest_turns(messages, LETTERS_PER_TOKEN * info.context)
        return messages, 0
