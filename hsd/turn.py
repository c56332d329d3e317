"""Whose turn it is at the engine."""

from __future__ import annotations

import threading

from hsd.errors import HsdError


class Turn:
    """One at a time; others wait. A thread that would wait for itself is told so instead of waiting for ever.

    A stream may be closed by another thread than the one that began it, so this is no RLock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            if self._holder == threading.get_ident():
                raise HsdError("Another reply of this engine is still being streamed.", "Finish or close it first.")
            self._lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._holder = None
        self._lock.release()
