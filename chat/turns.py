"""Whose turn it is: requests of several visitors in a fair order.

Everybody's first request comes before anybody's second, and whoever was served longest ago comes first. Of one visitor
requests are served as they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chat.request import Request


class Turns:
    """Requests that wait. Not safe for threads: the worker holds its lock around every call."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._served: dict[str, int] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        """In the order in which they will be served, as far as it is known now."""
        earlier: Counter[str] = Counter()
        keys = []
        for arrival, request in enumerate(self._waiting):
            keys.append((earlier[request.visitor], self._served.get(request.visitor, 0), arrival))
            earlier[request.visitor] += 1
        return (self._waiting[place] for *_, place in sorted(keys))

    def add(self, request: Request) -> None:
        """Let one wait."""
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Let one wait no longer."""
        self._waiting.remove(request)

    def take(self) -> Request:
        """The next one, which waits no longer."""
        request = next(iter(self))
        self.remove(request)
        self._turn += 1
        # Of those who were not here for long nothing is known any more: they are as good as new.
        self._served = {v: at for v, at in self._served.items() if self._turn - at < 1000}
        self._served[request.visitor] = self._turn
        return request

    def clear(self) -> list[Request]:
        """All of them, which wait no longer."""
        left, self._waiting = list(self), []
        return left
