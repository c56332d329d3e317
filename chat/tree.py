"""Branches of a conversation: which messages stand beside each other, and where a branch ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from chat.records import Message
from chat.store import Store


def siblings(store: Store, conversation_id: str) -> dict[tuple[str | None, str], list[str]]:
    """(parent, role) -> ids of the messages that stand there, oldest first, where there is more than one."""
    found = defaultdict(list)
    for message_id, parent_id, role in store.rows(
        "SELECT id, parent_id, role FROM messages WHERE conversation_id = ? ORDER BY created, rowid", conversation_id
    ):
        found[parent_id, role].append(message_id)
    return {place: ids for place, ids in found.items() if len(ids) > 1}


def places(store: Store, conversation_id: str, path: Iterable[Message]) -> dict[str, tuple[int, int]]:
    """Message id -> (its place from 1, how many there are), for the messages of a path that have siblings."""
    beside = siblings(store, conversation_id)
    result = {}
    for message in path:
        ids = beside.get((message.parent_id, message.role), ())
        if message.id in ids:
            result[message.id] = (list(ids).index(message.id) + 1, len(ids))
    return result


def neighbour(store: Store, message: Message, step: int) -> str | None:
    """The sibling `step` places further, or None past either end."""
    ids = siblings(store, message.conversation_id).get((message.parent_id, message.role), [])
    place = ids.index(message.id) + step if message.id in ids else -1
    return ids[place] if 0 <= place < len(ids) else None


def going_on(store: Store, reply: Message, params: Mapping[str, Any]) -> str:
    """Makes a reply ready to go on; the id of the one that does.

    That is itself where it ends what is shown. Where it was answered, the answer was to what it was then: another one
    beside it begins as it does.
    """
    conversation = store.conversation(reply.conversation_id)
    if conversation and conversation.leaf_id == reply.id:
        store.resume(reply.id)
        return reply.id
    with store.together():
        reply_id = store.add_reply(reply.conversation_id, str(reply.parent_id), params)
        ids, provenance = list(reply.token_ids), list(reply.provenance)
        store.update(reply_id, text=reply.text, token_ids=ids, provenance=provenance)
    return reply_id


def hidden_below(store: Store, conversation_id: str, leaf_id: str | None) -> str | None:
    """The end of what was written below the visible path, or None: there is something after messages were undone."""
    rows = store.rows(
        "SELECT id FROM messages WHERE conversation_id = ? AND parent_id IS ?"
        " ORDER BY created DESC, rowid DESC LIMIT 1",
        conversation_id,
        leaf_id,
    )
    return newest_below(store, rows[0][0]) if rows else None


def newest_below(store: Store, message_id: str) -> str:
    """The message that was written last in the branch that begins here: it has no message below it."""
    rows = store.rows(
        """WITH RECURSIVE down(id) AS (
            SELECT ? UNION ALL SELECT m.id FROM messages m JOIN down ON m.parent_id = down.id
        ) SELECT m.id FROM messages m JOIN down ON m.id = down.id ORDER BY m.created DESC, m.rowid DESC LIMIT 1""",
        message_id,
    )
    return str(rows[0][0]) if rows else message_id
