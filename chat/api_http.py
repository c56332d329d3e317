"""One request over HTTP and its answer, as ASGI has them: a body of bounded size, JSON or events, and who went away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from chat.api_fields import ApiError

MOST_BYTES = 4 << 20
"""Of a body. The longest context there is has less text."""

DRAIN_BYTES = 32 * MOST_BYTES
"""Thrown away of a body whose length was declared, after the answer: a client that is still sending hears it then."""

DRAIN_UNDECLARED_BYTES = 1 << 20
"""The same of a body that did not say how long it is."""

DRAIN_SECONDS = 10.0
BODY_SECONDS = 30.0
SLOWEST = 64 << 10
"""Bytes a second of a body. It has the time that this takes, and `BODY_SECONDS`."""

SEND_SECONDS = 60.0
"""A client that takes nothing for so long has gone, whatever its connection says."""


class Gone(Exception):
    """The client is not there any more."""


class Exchange:
    """A request and its answer.

    Args:
        scope, receive, send: of ASGI.

    Attributes:
        begun: the answer's head was sent.
    """

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.begun = self._read = False

    @property
    def method(self) -> str:
        """In capitals."""
        return str(self._scope["method"])

    @property
    def path(self) -> str:
        """Without what follows a question mark."""
        return str(self._scope["path"])

    @property
    def client(self) -> str:
        """The address that asks."""
        return str((self._scope.get("client") or ("unknown",))[0])

    def header(self, name: str) -> bytes:
        """A header as it came, empty where there is none."""
        wanted = name.encode()
        return next((bytes(value) for key, value in self._scope["headers"] if key == wanted), b"")

    def headers(self, name: str) -> list[bytes]:
        """All headers of this name."""
        wanted = name.encode()
        return [bytes(value) for key, value in self._scope["headers"] if key == wanted]

    async def body(self, most: int = MOST_BYTES, seconds: float | None = None) -> bytes:
        """The body, of at most so many bytes. What is too large is not read to its end.

        Args:
            seconds: that it may take, in addition to those for its size; None is `BODY_SECONDS`.

        Raises:
            ApiError: it is too large, or does not come.
            Gone: the client went away before its end.
        """
        if self.declared > most:
            raise too_large(most)
        body = bytearray()
        until = asyncio.get_running_loop().time() + (BODY_SECONDS if seconds is None else seconds)
        try:
            async with asyncio.timeout_at(until) as limit:
                more = True
                while more:
                    chunk, more = await self._chunk()
                    body += chunk
                    if len(body) > most:
                        raise too_large(most)
                    limit.reschedule(until + len(body) / SLOWEST)
            return bytes(body)
        except TimeoutError as error:
            raise ApiError(408, "The body did not come.", "Send it at once.", code="timeout") from error

    @property
    def declared(self) -> int:
        """How many bytes the body is said to have; 0 where nothing is said."""
        length = self.header("content-length")
        return int(length[:18]) if length.isdigit() and not self.header("transfer-encoding") else 0

    async def _chunk(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self._read = not message.get("more_body")
        return message.get("body", b""), not self._read

    async def _drain(self) -> None:
        """Read on for a while, and throw it away: a connection that is closed earlier can take the answer with it."""
        left = DRAIN_BYTES if self.declared else DRAIN_UNDECLARED_BYTES
        if self.declared > DRAIN_BYTES or self.header("expect"):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._read and left > 0:
                    left -= len((await self._chunk())[0])

    async def reply(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer, as JSON."""
        # What a client wrote comes back in errors, and JSON can write halves of characters.
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        await self.answer(status, "application/json", body, [*(headers or {}).items()])

    async def answer(self, status: int, kind: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
        """The whole answer. If the request's body was not read, the connection ends with it."""
        unread = not self._read and (self.declared > 0 or bool(self.header("transfer-encoding")))
        own = [("content-type", kind), ("content-length", str(len(body)))]
        await self._head(status, [*own, *headers, *([("connection", "close")] if unread else [])])
        await self._body(b"" if self.method == "HEAD" else body, more=unread)
        if unread:
            await self._drain()
            await self._body(b"", more=False)

    async def refuse(self, error: ApiError) -> None:
        """The answer is an error."""
        await self.reply(error.status, error.body, error.headers)

    async def events(self) -> None:
        """Begin to answer with events."""
        await self._head(200, [("content-type", "text/event-stream; charset=utf-8"), ("x-accel-buffering", "no")])

    async def event(self, value: Any) -> None:
        """One event. In ASCII, so that every way to cut lines leaves it whole."""
        await self._body(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")

    async def comment(self, text: str) -> None:
        """A line that clients skip; it keeps a connection open that would be taken for dead."""
        await self._body(f": {text}\n\n".encode())

    async def done(self) -> None:
        """End the events."""
        await self._body(b"data: [DONE]\n\n", more=False)

    async def unless_gone(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this as long as the client is there. The body must have been read."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        headers = [*headers, ("cache-control", "no-store")]
        self.begun = True
        await self._give(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers],
            }
        )

    async def _body(self, body: bytes, more: bool = True) -> None:
        await self._give({"type": "http.response.body", "body": body, "more_body": more})

    async def _give(self, message: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._send(message)
        except TimeoutError as error:
            raise Gone from error


def too_large(most: int) -> ApiError:
    """The body has more bytes than this."""
    return ApiError(
        413,
        f"The body is larger than {most >> 20} MB." if most >> 20 else f"The body is larger than {most >> 10} kB.",
        "Send fewer or shorter messages.",
        code="request_too_large",
    )


def replayed(body: bytes, receive: Any) -> Any:
    """A `receive` of ASGI that gives a body that was read, once, and then what else comes."""
    given = False

    async def replay() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
