"""What a file on a disk asks for: ids, text it can hold, whose process wrote it, and its errors as sentences."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

import hsd


def new_id(prefix: str = "") -> str:
    """Sixteen characters that nobody guesses; they appear in addresses."""
    return prefix + secrets.token_urlsafe(12)


def storable(text: str) -> str:
    """A lone surrogate is no text SQLite can hold; it must not lose the rest of a message."""
    return text.encode("utf-8", "replace").decode()


class Connection(sqlite3.Connection):
    """One that takes any text as a value, in whatever statement it comes: see `storable`."""

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """As that of sqlite3."""
        if isinstance(parameters, Mapping):
            parameters = {name: _storable(value) for name, value in parameters.items()}
        else:
            parameters = [_storable(value) for value in parameters]
        return super().execute(sql, parameters)


def _storable(value: Any) -> Any:
    return storable(value) if isinstance(value, str) else value


def owner() -> str:
    """This process, told apart from a later one with the same number."""
    return f"{os.getpid()}:{psutil.Process().create_time():.2f}"


def alive(owner: str | None) -> bool:
    """Whether the process of an `owner` still runs."""
    try:
        pid, created = (owner or "").split(":")
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 1
    except (ValueError, psutil.Error):
        return False


def explain(error: Exception, path: Path) -> hsd.StoreError:
    """What SQLite says, as a sentence and a hint."""
    text = str(error).lower()
    if "locked" in text or "busy" in text:
        return hsd.StoreError(
            f"The conversations in {path} are locked by another program.", "Close it, or wait a moment and try again."
        )
    # SQLite cannot even open a file in WAL mode where it may not make the two beside it.
    closed = "unable to open" in text and path.parent.is_dir() and not os.access(path.parent, os.W_OK)
    if closed or "readonly" in text or "read-only" in text:
        return hsd.StoreError(f"The conversations in {path} are read-only.", "Make the file and its folder writable.")
    if "full" in text:
        return hsd.StoreError(f"The disk that holds {path} is full.", "Free some space and try again.")
    if "malformed" in text or "not a database" in text:
        return hsd.StoreError(
            f"{path} is damaged: {error}.", "Move the file away to start afresh, or restore it from a copy."
        )
    return hsd.StoreError(f"The conversations in {path} cannot be used: {error}.", "Check the file and its folder.")
