"""Keeps what could not be stored and tries again: a locked or full disk must not cost a reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hsd


class Saving:
    """What is on its way to the disk.

    Args:
        save: stores columns of a message; may raise `hsd.StoreError`, then it is tried again later.
        changed: called when there is something new to say about it.
    """

    def __init__(self, save: Callable[[str, Mapping[str, Any]], None], changed: Callable[[], None]) -> None:
        self._save, self._changed = save, changed
        self._unsaved: dict[str, dict[str, Any]] = {}
        self.notice: str | None = None

    @property
    def behind(self) -> bool:
        """Whether something waits."""
        return bool(self._unsaved)

    def waiting(self, message_id: str) -> Mapping[str, Any]:
        """Columns of a message that could not be stored yet."""
        return self._unsaved.get(message_id, {})

    def store(self, message_id: str, values: Mapping[str, Any]) -> None:
        """Store columns, now or as soon as that works."""
        values = {**self._unsaved.get(message_id, {}), **values}
        try:
            self._save(message_id, values)
        except hsd.StoreError as error:
            self._unsaved[message_id] = values
            self.notice = f"{error} The reply is kept in memory and stored as soon as that works."
            self._changed()
        else:
            if self._unsaved.pop(message_id, None) is not None and not self._unsaved:
                self.notice = None
                self._changed()

    def again(self) -> None:
        """Try everything that waits."""
        for message_id in list(self._unsaved):
            self.store(message_id, {})
