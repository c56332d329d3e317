"""A conversation as a file, and a file as a conversation. What a file says is believed as little as possible."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hsd
from chat import limits
from chat.disk import new_id
from chat.records import Conversation, Message
from chat.settings import Settings

FORMAT = "hsd-chat"
VERSION = 1
MAX_BYTES = limits.FILE_LETTERS
MAX_MESSAGES = limits.MESSAGES
MAX_TEXT = limits.MESSAGE_LETTERS
_STATES = ("done", "cancelled", "interrupted")


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation out of a file, with ids of its own."""

    title: str
    settings: Mapping[str, Any]
    messages: tuple[Message, ...]
    leaf_id: str


def to_markdown(conversation: Conversation, path: Sequence[Message]) -> str:
    """The visible branch, for people."""
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(conversation.created))
    parts = [f"# {conversation.title}", day]
    for message in path:
        parts += [f"## {'You' if message.role == 'user' else 'Reply'}", message.text or "(no text)"]
        if message.state != "done":
            parts.append(f"*({message.state})*")
    return "\n\n".join(parts) + "\n"


def to_json(conversation: Conversation, messages: Sequence[Message]) -> str:
    """All branches with everything that is stored about them."""
    fields = [f.name for f in dataclasses.fields(Message) if f.name != "conversation_id"]
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "title": conversation.title,
            "created": conversation.created,
            "settings": dict(conversation.settings),
            "leaf_id": conversation.leaf_id,
            "messages": [{name: getattr(m, name) for name in fields} for m in messages],
        },
        ensure_ascii=False,
        indent=1,
    )


def from_json(text: str) -> Imported:
    """A conversation out of what `to_json` made.

    Texts, roles and the shape of the tree are taken. Statistics, token ids and levels are not: they would be shown as
    measured here.

    Raises:
        HsdError: too large, or not of this format.
    """
    if len(text) > MAX_BYTES:
        raise hsd.HsdError(f"The file is larger than {MAX_BYTES // 1_000_000} MB.", "Import a smaller one.")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise _foreign("it is no JSON") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _foreign("its format is another")
    if data.get("version") != VERSION:
        raise _foreign(f"it has version {str(data.get('version'))[:20]}, this program reads {VERSION}")
    rows = data.get("messages")
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_MESSAGES:
        raise _foreign(f"it holds no messages, or more than {MAX_MESSAGES:,}")
    messages = _messages(rows)
    leaf = messages.get(data["leaf_id"]) if isinstance(data.get("leaf_id"), str) else None
    title = " ".join(str(data.get("title") or "").split())[:200] or "Imported"
    return Imported(
        title, _settings(data.get("settings")), tuple(messages.values()), (leaf or next(reversed(messages.values()))).id
    )


def _messages(rows: Sequence[Any]) -> dict[str, Message]:
    """Old id -> message; a parent must have come before, so that no circle can be built."""
    found: dict[str, Message] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or row["id"] in found:
            raise _foreign("a message has no id of its own")
        above = row.get("parent_id")
        parent = found.get(above) if isinstance(above, str) else None
        role, text = row.get("role"), row.get("text")
        if role not in ("user", "assistant") or not isinstance(text, str):
            raise _foreign("a message has no role or no text")
        if len(text) > MAX_TEXT:
            raise _foreign(f"a message has more than {MAX_TEXT:,} characters")
        if (above is not None and parent is None) or (parent.role if parent else "assistant") == role:
            raise _foreign("its messages do not follow each other")
        state = row.get("state")
        found[row["id"]] = Message(
            id=new_id(),
            conversation_id="",
            parent_id=parent.id if parent else None,
            role=role,
            text=text,
            state=state if role == "assistant" and state in _STATES else "done" if role == "user" else "interrupted",
        )
    return found


def _settings(given: Any) -> dict[str, Any]:
    """Settings that are possible; none where they are not."""
    if not isinstance(given, dict):
        return {}
    try:
        settings = Settings.from_dict(given)
        settings.params()
        if not isinstance(settings.system, str) or not isinstance(settings.plan, str):
            return {}
    except (hsd.HsdError, TypeError, ValueError):
        return {}
    return dataclasses.asdict(settings)


def _foreign(why: str) -> hsd.HsdError:
    return hsd.HsdError(f"This file is no conversation that was exported here: {why}.", "Choose another file.")
