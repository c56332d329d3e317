"""What visitors have done in threads: a bounded number at once of each, so that nobody keeps the others waiting."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import gradio as gr
from fastapi import HTTPException

import hsd
from chat import limits

BUSY = "Too much is being done for you at once. Wait a moment, and try again."


@dataclass(slots=True)
class _Share:
    """What one visitor has running and waiting."""

    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(limits.AT_ONCE))
    count: int = 0


class Shares:
    """Runs functions in threads. What waits for its visitor's other ones holds no thread.

    Args:
        visitor: who a request is from.
    """

    def __init__(self, visitor: Callable[[Any], str]) -> None:
        self._visitor = visitor
        self._shares: dict[str, _Share] = {}
        self._threads: anyio.CapacityLimiter | None = None

    async def run(self, request: Any, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns. Raises what a page shows as a sentence where too much waits already."""
        with self.place(request) as share:
            async with share.turns:
                try:
                    return await anyio.to_thread.run_sync(function, *args, limiter=self._limiter())
                except hsd.HsdError as error:
                    raise _said(request, 503, str(error)) from None

    def place(self, request: Any) -> _Place:
        """A place among what the visitor has running and waiting; it is given back when the block ends."""
        return _Place(self._shares, self._visitor(request), request)

    def _limiter(self) -> anyio.CapacityLimiter:
        # It belongs to an event loop, which is not there when the page is built.
        self._threads = self._threads or anyio.CapacityLimiter(limits.THREADS)
        return self._threads

    def handler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function for Gradio, run as `run` does; the request is among its arguments."""

        @functools.wraps(function)
        async def run(*args: Any) -> Any:
            request = next(arg for arg in args if hasattr(arg, "cookies"))
            return await self.run(request, function, *args)

        return run


class _Place:
    def __init__(self, shares: dict[str, _Share], who: str, request: Any) -> None:
        self._shares, self._who, self._request = shares, who, request

    def __enter__(self) -> _Share:
        share = self._shares.setdefault(self._who, _Share())
        if share.count >= limits.QUEUED_AT_ONCE:
            raise _said(self._request, 429, BUSY)
        share.count += 1
        return share

    def __exit__(self, *_: object) -> None:
        share = self._shares[self._who]
        share.count -= 1
        if not share.count:
            del self._shares[self._who]


def _said(request: Any, status: int, sentence: str) -> Exception:
    """What Gradio shows as a sentence; a function of ours is answered with it."""
    if isinstance(request, gr.Request):
        return gr.Error(sentence, print_exception=False)
    return HTTPException(status, sentence)


class Handlers:
    """The methods of an object as handlers of `Shares`."""

    def __init__(self, shares: Shares, of: Any) -> None:
        self._shares, self._of = shares, of

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._shares.handler(getattr(self._of, name))
