"""Everything a person can do with conversations that needs no engine: list, rename, delete, switch branches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import hsd
from chat import transfer, tree
from chat.changes import Changes
from chat.records import Conversation, Message
from chat.store import Store

TEMPORARY = "temporary-"
"""Begins the ids of what is only in memory."""


class Library:
    """The conversations of a store, and temporary ones, which touch no disk and are not listed.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._passing = Store(":memory:", prefix=TEMPORARY)
        self._changes = Changes()

    @property
    def version(self) -> int:
        """Grows with every change a page could show."""
        return self._changes.version

    def changed(self, topic: str) -> int:
        """Version of the last change of "list", "engine" or a conversation's id."""
        return self._changes.of(topic)

    def wait(self, version: int, timeout: float) -> int:
        """The version, as soon as it is above `version` or the time is up."""
        return self._changes.wait(version, timeout)

    def _touch(self, *topics: str) -> None:
        for topic in topics:
            self._changes.touch(topic)

    def _of(self, identifier: str) -> Store:
        """Where a conversation or message is: on the disk, or only in memory."""
        return self._passing if identifier.startswith(TEMPORARY) else self.store

    def conversations(self, search: str = "", visitor: str = "", limit: int = 500) -> list[Conversation]:
        """A visitor's, newest first; "" is the person whose machine this is."""
        return self.store.conversations(search, limit, visitor)

    def belongs(self, identifier: str, visitor: str) -> bool:
        """Whether there is such a conversation or message of this visitor; no other id opens or stops anything."""
        return self._of(identifier).visitor_of(identifier) == visitor

    def known_visitor(self, visitor: str) -> bool:
        """Whether a conversation of this visitor is stored."""
        return bool(self.store.rows("SELECT 1 FROM conversations WHERE visitor = ? LIMIT 1", visitor))

    def conversation(self, conversation_id: str | None) -> Conversation | None:
        """The conversation, or None where it is unknown or deleted."""
        return self._of(conversation_id).conversation(conversation_id) if conversation_id else None

    def message(self, message_id: str | None) -> Message | None:
        """The message, or None."""
        return self._of(message_id).message(message_id) if message_id else None

    def last_stats(self, conversation_id: str | None) -> Mapping[str, Any] | None:
        """Statistics of the last reply of the visible branch that has some, or None."""
        conversation = self.conversation(conversation_id)
        message = self.message(conversation.leaf_id) if conversation else None
        # A few steps up are enough: a reply without them was stopped or failed.
        for _ in range(8):
            if message is None or message.stats:
                break
            message = self.message(message.parent_id)
        return message.stats if message else None

    def latest(self, visitor: str = "") -> str | None:
        """The conversation that a visitor last used, or None."""
        return self.store.latest(visitor)

    def rename(self, conversation_id: str, title: str) -> None:
        """Give it another title. Raises HsdError for an empty one."""
        title = " ".join(title.split())
        if not title:
            raise hsd.HsdError("A title cannot be empty.", "Write at least one letter.")
        self._of(conversation_id).rename(conversation_id, title[:200])
        self._touch(conversation_id, "list")

    def delete(self, conversation_id: str) -> None:
        """Take it off the list; `restore` brings it back."""
        self._of(conversation_id).delete(conversation_id)
        self._touch(conversation_id, "list")

    def restore(self, conversation_id: str) -> None:
        """Undo `delete`."""
        self._of(conversation_id).restore(conversation_id)
        self._touch(conversation_id, "list")

    def forget(self, conversation_id: str) -> None:
        """Drop a temporary conversation; others stay."""
        if conversation_id.startswith(TEMPORARY):
            self._passing.erase(conversation_id)
            self._touch(conversation_id)

    def pin(self, conversation_id: str) -> None:
        """Keep it at the top of the list; once more, and it goes back to its place."""
        conversation = self.conversation(conversation_id)
        if conversation:
            self.store.pin(conversation_id, not conversation.pinned)
            self._touch("list")

    def exported(self, conversation_id: str | None, kind: str) -> tuple[str, str]:
        """(name of a file, its text) of a conversation, "markdown" or "json". Raises HsdError where there is none."""
        conversation = self.conversation(conversation_id)
        if conversation is None:
            raise hsd.HsdError("There is no conversation to export.", "Open one first.")
        name = "-".join(re.findall(r"\w+", conversation.title))[:60] or "conversation"
        if kind == "json":
            return f"{name}.json", transfer.to_json(conversation, self._of(conversation.id).messages(conversation.id))
        return f"{name}.md", transfer.to_markdown(conversation, self._of(conversation.id).path_to(conversation.leaf_id))

    def imported(self, text: str, visitor: str = "") -> str:
        """Store a conversation out of an exported file's text; its id. Raises HsdError for anything else."""
        new = transfer.from_json(text)
        conversation_id = self.store.add_conversation(new.title, new.settings, new.messages, new.leaf_id, visitor)
        self._touch("list")
        return conversation_id

    def switch(self, message_id: str, step: int) -> None:
        """Show the branch of the sibling `step` places further, as it was last written."""
        message = self.message(message_id)
        store = self._of(message_id)
        beside = tree.neighbour(store, message, step) if message else None
        if message is None or beside is None:
            return
        store.show(message.conversation_id, tree.newest_below(store, beside))
        self._touch(message.conversation_id, "list")
