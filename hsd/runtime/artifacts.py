"""Compiled functions as files: where they lie, which are missing, which failed and why."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORK = "work-"
"""Beginning of the names of folders in which something is being compiled."""


class Artifacts:
    """Some compiled functions on disk, each in a file of its own.

    Args:
        folder: where they are kept; its name says what they are valid for.
        names: of the functions.
        suffix: of their files.
    """

    def __init__(self, folder: Path, names: Iterable[str], suffix: str = ".pt2") -> None:
        self.folder = folder
        self.names = tuple(names)
        self.suffix = suffix

    def path(self, name: str) -> Path:
        """Where a compiled function lies or will lie."""
        return self.folder / f"{name}{self.suffix}"

    def failure(self, name: str) -> Path:
        """Where it is written why one could not be made; it is not tried again."""
        return self.folder / f"{name}.failed"

    def missing(self) -> list[str]:
        """Which of them are neither there nor known to fail."""
        return [n for n in self.names if not self.path(n).exists() and not self.failure(n).exists()]

    def failed(self) -> list[str]:
        """Which of them could not be made."""
        return [n for n in self.names if self.failure(n).exists()]

    def found(self) -> list[str]:
        """Which of them are there."""
        return [n for n in self.names if self.path(n).exists()]

    def set_aside(self, name: str, error: Exception) -> None:
        """A file that cannot be used is not tried again; what it stood for is always there."""
        with contextlib.suppress(OSError):
            write(self.failure(name), f"{type(error).__name__}: {error}")
            self.path(name).unlink(missing_ok=True)

    def used(self) -> None:
        """Notes when they were used last, for `prune`."""
        with contextlib.suppress(OSError):
            os.utime(self.folder)


class Buildable(Artifacts, ABC):
    """Artifacts that can be made where they are missing."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What the compiling process must know, as plain values and tensors."""


def write(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
