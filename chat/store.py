"""Conversations in `chat.db`: a tree of messages, so that a branch copies nothing.

A conversation points at one leaf; the path from the root to it is what a person sees. The prompt is stored before its
reply, the reply while it grows. Knows nothing of engines, pages or threads other than that several may call it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

import hsd
from chat import limits
from chat.disk import Connection, alive, explain, new_id, owner
from chat.records import (
    CONVERSATION_COLUMNS,
    JSON_FIELDS,
    MESSAGE_COLUMNS,
    MIGRATIONS,
    Conversation,
    Message,
    Role,
    State,
)
from chat.search import check, condition, prepare

BUSY_SECONDS = 5.0
KEEP_DELETED_SECONDS = 24 * 3600.0


class Store:
    """`chat.db`, opened for this process.

    Args:
        path: the file; ":memory:" for one that is in memory alone.
        prefix: begins all ids.

    Raises:
        StoreError: newer than this version, damaged, locked, read-only, or on a full disk.
    """

    def __init__(self, path: str | os.PathLike[str], prefix: str = "") -> None:
        self.path, self._prefix = Path(path), prefix
        self._lock = threading.RLock()
        if str(path) != ":memory:":
            hsd.private_file(path)
        try:
            # Several threads share the connection; the lock above keeps them apart.
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False, factory=Connection)
        except sqlite3.Error as error:
            raise explain(error, self.path) from error
        try:
            with self._errors():
                prepare(connection)
                self.db = Database(connection)
                self._prepare()
        except hsd.StoreError:
            connection.close()
            raise

    def _prepare(self) -> None:
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA foreign_keys = ON")
        with self._write():
            self._migrate()
            self._mark_interrupted()
            self.db.execute(
                "DELETE FROM conversations WHERE deleted IS NOT NULL AND deleted < ?",
                [time.time() - KEEP_DELETED_SECONDS],
            )

    def _migrate(self) -> None:
        known = len(MIGRATIONS)
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version > known:
            raise hsd.StoreError(
                f"{self.path} was written by a newer version (format {version}, this one knows {known}).",
                "Update this program, or start it with another --data-dir.",
            )
        for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in migration:
                self.db.execute(statement)
            self.db.execute(f"PRAGMA user_version = {number}")

    def _mark_interrupted(self) -> None:
        rows = self.db.execute("SELECT id, owner FROM messages WHERE state = 'running'").fetchall()
        for message_id, writer in rows:
            if not alive(writer):
                self.db.execute("UPDATE messages SET state = 'interrupted' WHERE id = ?", [message_id])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise explain(error, self.path) from error

    @contextmanager
    def _write(self) -> Iterator[Database]:
        with self._errors():
            if self.db.conn.in_transaction:
                with self.db.atomic():
                    yield self.db
                return
            # The lock first: where a transaction has read and then wants to write, SQLite waits for no other program.
            self.db.execute("BEGIN IMMEDIATE")
            with self.db.conn:
                yield self.db

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is stored inside is stored as a whole, or not at all."""
        with self._write():
            yield

    def close(self) -> None:
        """Close the file; the object is of no use afterwards."""
        with self._lock:
            self.db.close()

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._errors():
            return list(self.db.execute(sql, values).fetchall())

    def write(self, sql: str, *values: Any) -> None:
        """Run one statement that changes something."""
        with self._write() as db:
            db.execute(sql, values)

    # Conversations

    def conversations(self, search: str = "", limit: int = 500, visitor: str = "") -> list[Conversation]:
        """A visitor's, pinned ones first, then the newest; with `search`, those that hold all the words."""
        check(search)
        where, values = condition(search)
        columns = ", ".join(CONVERSATION_COLUMNS)
        sql = f"SELECT {columns} FROM conversations c WHERE deleted IS NULL AND visitor = ? AND {where}"
        find = self._searched if search.strip() else self.rows
        rows = find(f"{sql} ORDER BY pinned DESC, updated DESC LIMIT ?", visitor, *values, limit)
        return [Conversation.from_row(row) for row in rows]

    def _searched(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a search finds, on a connection of its own: nobody waits for it, and it ends in time."""
        if str(self.path) == ":memory:":
            return self.rows(sql, *values)
        end = time.monotonic() + limits.SEARCH_SECONDS
        try:
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, factory=Connection)) as db:
                db.set_progress_handler(lambda: time.monotonic() > end, 10_000)
                return db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            if "interrupted" not in str(error):
                raise explain(error, self.path) from error
            raise hsd.HsdError("The search took too long.", "Search for longer words.") from None

    def conversation(self, conversation_id: str) -> Conversation | None:
        """The conversation, or None where it is unknown or deleted."""
        with self._errors():
            row = self.db.execute(
                f"SELECT {', '.join(CONVERSATION_COLUMNS)} FROM conversations WHERE id = ? AND deleted IS NULL",
                [conversation_id],
            ).fetchone()
        return Conversation.from_row(row) if row else None

    def latest(self, visitor: str = "") -> str | None:
        """Id of the conversation that a visitor last used, or None."""
        sql = "SELECT id FROM conversations WHERE deleted IS NULL AND visitor = ? ORDER BY updated DESC LIMIT 1"
        rows = self.rows(sql, visitor)
        return rows[0][0] if rows else None

    def visitor_of(self, identifier: str) -> str | None:
        """Whose a conversation or message is, deleted ones too; None where there is none of this id."""
        sql = "SELECT visitor FROM conversations WHERE id IN (?, (SELECT conversation_id FROM messages WHERE id = ?))"
        rows = self.rows(sql, identifier, identifier)
        return rows[0][0] if rows else None

    def create(self, title: str, visitor: str = "") -> str:
        """A new, empty conversation; its id."""
        conversation_id, now = new_id(self._prefix), time.time()
        with self._write() as db:
            db["conversations"].insert(
                {"id": conversation_id, "title": title, "created": now, "updated": now, "visitor": visitor}
            )
        return conversation_id

    def rename(self, conversation_id: str, title: str) -> None:
        """Give it another title."""
        with self._write() as db:
            db.execute("UPDATE conversations SET title = ? WHERE id = ?", [title, conversation_id])

    def show(self, conversation_id: str, leaf_id: str | None) -> None:
        """Make the path that ends in this message the visible one; None shows nothing."""
        with self._write() as db:
            db.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", [leaf_id, conversation_id])

    def move_below(self, old_parent: str, new_parent: str | None) -> None:
        """Let the messages that answer one message answer another one."""
        self.write("UPDATE messages SET parent_id = ? WHERE parent_id = ?", new_parent, old_parent)

    def pin(self, conversation_id: str, pinned: bool) -> None:
        """Keep it at the top of the list, or no longer."""
        with self._write() as db:
            db.execute("UPDATE conversations SET pinned = ? WHERE id = ?", [int(pinned), conversation_id])

    def keep_settings(self, conversation_id: str, settings: Mapping[str, Any]) -> None:
        """Remember what its next reply starts from."""
        with self._write() as db:
            db.execute("UPDATE conversations SET settings = ? WHERE id = ?", [json.dumps(settings), conversation_id])

    def delete(self, conversation_id: str) -> None:
        """Hide it; it is gone from the disk with the first start a day later."""
        with self._write() as db:
            db.execute("UPDATE conversations SET deleted = ? WHERE id = ?", [time.time(), conversation_id])

    def restore(self, conversation_id: str) -> None:
        """Undo `delete`."""
        with self._write() as db:
            db.execute("UPDATE conversations SET deleted = NULL WHERE id = ?", [conversation_id])

    def erase(self, conversation_id: str) -> None:
        """Remove it and its messages at once."""
        with self._write() as db:
            db.execute("DELETE FROM conversations WHERE id = ?", [conversation_id])

    # Messages

    def path_to(self, message_id: str | None, last: int = -1) -> list[Message]:
        """Messages from the root to this one; only the `last` of them unless that is negative."""
        with self._errors():
            rows = self.db.execute(
                f"""WITH RECURSIVE up(id, parent_id, depth) AS (
                    SELECT id, parent_id, 0 FROM messages WHERE id = ?
                    UNION ALL SELECT m.id, m.parent_id, depth + 1 FROM messages m JOIN up ON m.id = up.parent_id
                    WHERE ? < 0 OR depth + 1 < ?
                ) SELECT {", ".join(f"m.{name}" for name in MESSAGE_COLUMNS)}
                FROM up JOIN messages m ON m.id = up.id WHERE ? != 0 ORDER BY up.depth DESC""",
                [message_id, last, last, last],
            ).fetchall()
        return [Message.from_row(row) for row in rows]

    def path_length(self, message_id: str | None) -> int:
        """How many messages there are from the root to this one."""
        rows = self.rows(
            """WITH RECURSIVE up(id) AS (
                SELECT ? UNION ALL SELECT m.parent_id FROM messages m JOIN up ON m.id = up.id
            ) SELECT count(*) FROM up WHERE id IS NOT NULL""",
            message_id,
        )
        return int(rows[0][0])

    def messages(self, conversation_id: str) -> list[Message]:
        """All messages of all branches, each after the one it answers."""
        rows = self.rows(
            f"SELECT {', '.join(MESSAGE_COLUMNS)} FROM messages WHERE conversation_id = ? ORDER BY created, rowid",
            conversation_id,
        )
        return [Message.from_row(row) for row in rows]

    def message(self, message_id: str) -> Message | None:
        """One message, or None."""
        with self._errors():
            row = self.db.execute(
                f"SELECT {', '.join(MESSAGE_COLUMNS)} FROM messages WHERE id = ?", [message_id]
            ).fetchone()
        return Message.from_row(row) if row else None

    def race(self, message_id: str) -> dict[str, Any] | None:
        """The race of a reply, or None."""
        rows = self.rows("SELECT race FROM messages WHERE id = ?", message_id)
        return json.loads(rows[0][0]) if rows and rows[0][0] else None

    def recent_replies(self, limit: int = 50) -> list[Message]:
        """The last finished replies that have statistics, oldest first."""
        with self._errors():
            rows = self.db.execute(
                f"SELECT {', '.join(MESSAGE_COLUMNS)} FROM messages"
                " WHERE stats IS NOT NULL ORDER BY updated DESC LIMIT ?",
                [limit],
            ).fetchall()
        # A race writes to an old reply anew.
        return sorted((Message.from_row(row) for row in reversed(rows)), key=lambda message: message.created)

    def add_conversation(
        self, title: str, settings: Mapping[str, Any], messages: Sequence[Message], leaf_id: str, visitor: str = ""
    ) -> str:
        """Store a whole conversation; its id.

        It counts as deleted until the last message is stored. Others get their turn after every few messages: all of
        them take seconds.
        """
        with self._write():
            conversation_id = self.create(title, visitor)
            self.keep_settings(conversation_id, settings)
            self.delete(conversation_id)
        for begin in range(0, len(messages), limits.ROWS_AT_ONCE):
            with self._write():
                for m in messages[begin : begin + limits.ROWS_AT_ONCE]:
                    self._insert(conversation_id, m.id, m.parent_id, role=m.role, text=m.text, state=m.state)
            # A lock that is taken again at once is taken before those who wait for it wake up.
            time.sleep(0.001)
        with self._write():
            self.show(conversation_id, leaf_id)
            self.restore(conversation_id)
        return conversation_id

    def add_turn(
        self, conversation_id: str, parent_id: str | None, text: str, params: Mapping[str, Any]
    ) -> tuple[str, str]:
        """Store a prompt and the place of its reply in one transaction; (prompt id, reply id)."""
        prompt_id = new_id(self._prefix)
        with self._write():
            self._insert(conversation_id, prompt_id, parent_id, role="user", text=text)
            reply_id = self.add_reply(conversation_id, prompt_id, params)
        return prompt_id, reply_id

    def add_reply(self, conversation_id: str, prompt_id: str, params: Mapping[str, Any]) -> str:
        """Store the place of a reply to a prompt, and show the path that ends in it; the reply's id."""
        reply_id = new_id(self._prefix)
        with self._write() as db:
            self._insert(conversation_id, reply_id, prompt_id, role="assistant", params=params)
            db.execute(
                "UPDATE conversations SET leaf_id = ?, updated = ? WHERE id = ?",
                [reply_id, time.time(), conversation_id],
            )
        return reply_id

    def _insert(
        self,
        conversation_id: str,
        message_id: str,
        parent_id: str | None,
        *,
        role: Role,
        text: str = "",
        params: Mapping[str, Any] | None = None,
        state: State | None = None,
    ) -> None:
        now = time.time()
        state = state or ("done" if role == "user" else "running")
        self.db["messages"].insert(
            {
                "id": message_id,
                "conversation_id": conversation_id,
                "parent_id": parent_id,
                "role": role,
                "text": text,
                "state": state,
                "params": None if params is None else json.dumps(params),
                "owner": owner() if state == "running" else None,
                "created": now,
                "updated": now,
            }
        )

    def resume(self, message_id: str) -> None:
        """A reply is being written again, by this process; what there is of it stays."""
        self.update(message_id, state="running", owner=owner(), finish_reason=None, error=None)

    def update(self, message_id: str, **values: Any) -> None:
        """Set columns of a message; lists and mappings are stored as JSON. Their names are never a person's."""
        columns = {
            name: json.dumps(value) if name in JSON_FIELDS and value is not None else value
            for name, value in values.items()
        }
        columns["updated"] = time.time()
        # A message that was erased meanwhile is no error.
        names = ", ".join(f"{name} = ?" for name in columns)
        with self._write() as db:
            db.execute(f"UPDATE messages SET {names} WHERE id = ?", [*columns.values(), message_id])
