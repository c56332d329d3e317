"""What `chat.db` holds: its tables, and their rows as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chat import search

Role = Literal["user", "assistant"]
State = Literal["done", "running", "cancelled", "interrupted", "error"]

JSON_FIELDS = frozenset({"token_ids", "stats", "provenance", "pieces", "params", "race"})
CONVERSATION_COLUMNS = ("id", "title", "leaf_id", "settings", "pinned", "created", "updated")
MESSAGE_COLUMNS = (
    "id",
    "conversation_id",
    "parent_id",
    "role",
    "text",
    "state",
    "token_ids",
    "finish_reason",
    "error",
    "stats",
    "provenance",
    "pieces",
    "params",
    "created",
    "updated",
)

_V1 = (
    """CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        title TEXT NOT NULL,
        leaf_id TEXT,
        settings TEXT NOT NULL DEFAULT '{}',
        pinned INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        deleted REAL
    )""",
    """CREATE TABLE messages (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
        parent_id TEXT REFERENCES messages(id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        text TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('done', 'running', 'cancelled', 'interrupted', 'error')),
        token_ids TEXT,
        finish_reason TEXT,
        error TEXT,
        stats TEXT,
        provenance TEXT,
        pieces TEXT,
        params TEXT,
        owner TEXT,
        created REAL NOT NULL,
        updated REAL NOT NULL
    )""",
    "CREATE INDEX messages_conversation ON messages(conversation_id)",
    "CREATE INDEX messages_parent ON messages(parent_id)",
    "CREATE INDEX messages_running ON messages(updated) WHERE state = 'running'",
    "CREATE INDEX messages_stats ON messages(updated) WHERE stats IS NOT NULL",
)

# Large and seldom looked at, so it is no column that comes with every message.
_RACES = ("ALTER TABLE messages ADD COLUMN race TEXT",)
_PRESETS = ("CREATE TABLE presets (name TEXT PRIMARY KEY, settings TEXT NOT NULL)",)

# Empty for the person whose machine it is.
_VISITORS = ("ALTER TABLE conversations ADD COLUMN visitor TEXT NOT NULL DEFAULT ''",)
_LIST = ("CREATE INDEX conversations_list ON conversations(visitor, pinned DESC, updated DESC) WHERE deleted IS NULL",)

# Append only: a database on somebody's disk has already run the ones above.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1, search.TABLES, _RACES, _PRESETS, _VISITORS, _LIST, search.FOLDED)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One entry of the list. `leaf_id` is the message that the visible path ends in."""

    id: str
    title: str
    leaf_id: str | None
    settings: Mapping[str, Any]
    pinned: bool
    created: float
    updated: float

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Conversation:
        """Value of a row of `CONVERSATION_COLUMNS`."""
        values = dict(zip(CONVERSATION_COLUMNS, row, strict=True))
        return cls(**{**values, "settings": json.loads(values["settings"]), "pinned": bool(values["pinned"])})


@dataclass(frozen=True, slots=True)
class Message:
    """One node of the tree.

    Args:
        token_ids: the ids a reply was generated as; empty for prompts.
        error: what went wrong, sentence and hint, where `state` is "error".
        stats: `hsd.ReplyStats` without its provenance, as plain values; None while there are none.
        provenance: per token of the reply, the level that proposed it.
        pieces: the text of each token; empty where the reply did not end by itself.
        params: what the reply was asked for: sampling settings, plan, system prompt.
    """

    id: str
    conversation_id: str
    parent_id: str | None
    role: Role
    text: str
    state: State = "done"
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    error: str | None = None
    stats: Mapping[str, Any] | None = None
    provenance: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()
    params: Mapping[str, Any] | None = None
    created: float = 0.0
    updated: float = 0.0

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Message:
        """Value of a row of `MESSAGE_COLUMNS`."""
        values = dict(zip(MESSAGE_COLUMNS, row, strict=True))
        for name in JSON_FIELDS & values.keys():
            values[name] = json.loads(values[name]) if values[name] else None
        values["token_ids"] = tuple(values["token_ids"] or ())
        values["provenance"] = tuple(values["provenance"] or ())
        values["pieces"] = tuple(values["pieces"] or ())
        return cls(**values)
