"""Long measurements in pieces: what was measured is written at once, and a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Named results, one line of JSON each.

    Args:
        folder: where they are kept; None keeps them in memory only.
        name: of the file.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.known: dict[str, Any] = {}
        self._path = None if folder is None else folder / f"{name}.journal"
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").split("\n"):
                try:
                    self.known |= json.loads(line)
                except ValueError:
                    continue  # the line during which it was cut off

    def once(self, key: str, work: Callable[[], Any]) -> Any:
        """The result of this name, measured now unless it is there."""
        if key not in self.known:
            self.known[key] = json.loads(json.dumps(work()))
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({key: self.known[key]}) + "\n")
        return self.known[key]
