"""The file behind the statistics: opened, migrated, shared by threads and processes, given up for memory if it fails.

A database that cannot be used costs the statistics, never the chat: after a failure the same calls go on in memory and
`warning` says so in one sentence. Only a file of a newer version raises, because then the whole program is too old.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import sqlite_utils

from hsd.errors import StoreError
from hsd.paths import private_file, private_folder
from hsd.stats.schema import MIGRATIONS

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long a write waits for another process."""


class Database:
    """One connection, one lock. `warning` is None as long as nothing was lost.

    Args:
        path: the file; None keeps everything in memory.
        busy_seconds: how long to wait for another process before giving up on one call.

    Raises:
        StoreError: the file was written by a newer version.
    """

    def __init__(self, path: Path | None, busy_seconds: float = BUSY_SECONDS) -> None:
        self.path = path
        self.warning: str | None = None
        self._busy_seconds = busy_seconds
        self._lock = threading.RLock()
        try:
            if path is not None:
                private_folder(path.parent)
                private_file(path)
            self._db = self._open(path)
        except (sqlite3.Error, OSError) as error:
            self._to_memory(error)

    def write(self, work: Callable[[sqlite_utils.Database], T], otherwise: T) -> T:
        """Result of `work` inside one transaction that holds the write lock; `otherwise` if another process held it."""
        return self._run(work, otherwise, "BEGIN IMMEDIATE")

    def read(self, work: Callable[[sqlite_utils.Database], T], otherwise: T) -> T:
        """Result of `work` on one consistent view of the data."""
        return self._run(work, otherwise, "BEGIN")

    def backup(self, to: Path) -> None:
        """Copies everything into a new file. Raises StoreError if that cannot be done."""
        with self._lock:
            try:
                private_file(to)
                with sqlite3.connect(to) as copy:
                    self._db.conn.backup(copy)
                copy.close()
            except sqlite3.Error as error:
                raise StoreError(
                    f"The statistics cannot be copied to {to}: {error}.", "Free some space, or check the folder."
                ) from error

    def bytes_used(self) -> int:
        """Size of the data, pages that were freed not counted."""

        def pages(db: sqlite_utils.Database) -> int:
            count, free, size = (
                int(db.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (count - free) * size

        return self.read(pages, 0)

    def shrink(self) -> None:
        """Gives freed pages back to the file system."""
        with self._lock, suppress(sqlite3.Error):
            self._db.conn.execute("PRAGMA incremental_vacuum").fetchall()

    def close(self) -> None:
        """Closes the connection; a second call does nothing."""
        with self._lock:
            self._db.conn.close()

    def _run(self, work: Callable[[sqlite_utils.Database], T], otherwise: T, begin: str) -> T:
        with self._lock:
            try:
                with self._transaction(begin):
                    return work(self._db)
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
                raise  # a mistake of ours, not of the file
            except sqlite3.Error as error:
                if _busy(error):
                    self.warning = (
                        f"Another process kept the statistics in {self.path} busy for {self._busy_seconds:g} s, "
                        "so something was not stored."
                    )
                    return otherwise
                if self.path is None:
                    raise
                self._to_memory(error)
                with self._transaction(begin):
                    return work(self._db)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        conn = self._db.conn
        conn.execute(begin)
        try:
            yield
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                with suppress(sqlite3.Error):
                    conn.execute("ROLLBACK")
            raise

    def _to_memory(self, error: Exception) -> None:
        self.warning = (
            f"The statistics in {self.path} cannot be used ({error}), so this session keeps its own in memory; "
            "move the file away, or make it writable, and start again."
        )
        if hasattr(self, "_db"):
            with suppress(sqlite3.Error):
                self._db.conn.close()
        self.path = None
        self._db = self._open(None)

    def _open(self, path: Path | None) -> sqlite_utils.Database:
        conn = sqlite3.connect(
            ":memory:" if path is None else path,
            timeout=self._busy_seconds,
            isolation_level=None,  # transactions are begun by hand: a deferred one cannot wait for a writer
            check_same_thread=False,
        )
        try:
            version = int(conn.execute("PRAGMA user_version").fetchone()[0])
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"The statistics in {path} have version {version}; this program knows versions up to "
                    f"{len(MIGRATIONS)}.",
                    "Install a newer version of hsd, or set HSD_HOME to another folder.",
                )
            conn.execute("PRAGMA foreign_keys = ON")
            conn.execute("PRAGMA synchronous = NORMAL")
            if path is not None:
                self._wal(conn)
            db = sqlite_utils.Database(conn)
            migrate(conn)
        except BaseException:
            conn.close()
            raise
        return db

    def _wal(self, conn: sqlite3.Connection) -> None:
        """Write-ahead log. Changing to it does not wait for another process that does the same, hence the loop."""
        until = time.monotonic() + self._busy_seconds
        while True:
            try:
                if conn.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    conn.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before the first table
                    conn.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError as error:
                if not _busy(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)


def migrate(conn: sqlite3.Connection, to: int = len(MIGRATIONS)) -> None:
    """Brings a database up to a version, all or nothing; another process may be doing the same."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        version = int(conn.execute("PRAGMA user_version").fetchone()[0])
        for statements in MIGRATIONS[version:to]:
            for statement in statements:
                conn.execute(statement)
        if version < to:
            conn.execute(f"PRAGMA user_version = {to:d}")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
