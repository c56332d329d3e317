"""Whose turn it is at the engine, and streams that any thread may close."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator

from hsd.errors import HsdError
from hsd.types import Event, Finished

_LOOK = 0.05  # seconds between two looks at whether a waiting request was cancelled


class Turn:
    """One at a time; others wait. A thread that would wait for itself is told so instead of waiting for ever.

    A stream may be closed by another thread than the one that began it, so this is no RLock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def take(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Waits for the turn; False if `give_up` became true first.

        Raises:
            HsdError: this very thread holds it.
        """
        while not self._lock.acquire(timeout=_LOOK):
            if self._holder == threading.get_ident():
                raise HsdError("Another reply of this engine is still being streamed.", "Finish or close it first.")
            if give_up():
                return False
        self._holder = threading.get_ident()
        return True

    def give(self) -> None:
        """Lets the next one go on."""
        self._holder = None
        self._lock.release()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give()


class Stream(Iterator[Event]):
    """Events of one reply.

    Args:
        events: makes them.
        cancel: ends the reply within one round.
    """

    def __init__(self, events: Generator[Event, None, None], cancel: threading.Event) -> None:
        self._events = events
        self._cancel = cancel
        self._one = threading.Lock()  # a generator runs in one thread at a time

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        with self._one:
            event = next(self._events)
            if isinstance(event, Finished):
                self._events.close()  # whoever has the reply need not ask for more to let others go on
            return event

    def close(self) -> None:
        """Ends the reply: at once, or within one round where another thread is waiting for the next event."""
        self._cancel.set()
        with self._one:
            self._events.close()

    def __del__(self) -> None:
        self.close()
