"""One request over HTTP and its answer, as ASGI has them: a body of bounded size, JSON or events, and who went away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any

from chat.api_fields import ApiError

MOST_BYTES = 4 << 20
"""Of a body. The longest context there is has less text."""

DRAIN_BYTES = 16 * MOST_BYTES
"""Read and thrown away of a body that is too large: who is still sending cannot hear why it was refused."""

BODY_SECONDS = 30.0
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

    async def body(self) -> bytes:
        """The body.

        Raises:
            ApiError: it is too large, or does not come.
            Gone: the client went away before its end.
        """
        if self._declared() > DRAIN_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._whole(keep=MOST_BYTES)
        except TimeoutError as error:
            raise ApiError(408, "The body did not come.", "Send it at once.", code="timeout") from error

    def _declared(self) -> int:
        length = self.header("content-length")
        return int(length) if length.isdigit() else 0

    async def _whole(self, keep: int) -> bytes:
        chunks, size = [], 0
        while size <= DRAIN_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= keep:
                chunks.append(chunk)
            if not message.get("more_body"):
                self._read = True
                break
        if size > keep:
            raise _too_large()
        return b"".join(chunks)

    async def reply(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """The whole answer, as JSON."""
        # What a client wrote comes back in errors, and JSON can write halves of characters.
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        await self._head(status, {"content-type": "application/json", "content-length": str(len(body))}, headers)
        await self._body(body, more=False)

    async def refuse(self, error: ApiError) -> None:
        """The answer is an error."""
        if not self._read and 0 < self._declared() <= DRAIN_BYTES:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    await self._whole(keep=0)
            except (ApiError, TimeoutError):
                pass
        await self.reply(error.status, error.body, error.headers)

    async def events(self) -> None:
        """Begin to answer with events."""
        kind = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        await self._head(200, kind, None)

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

    async def _head(self, status: int, own: Mapping[str, str], more: Mapping[str, str] | None) -> None:
        headers = {**own, "cache-control": "no-store", **(more or {})}
        self.begun = True
        await self._give(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
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


def _too_large() -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {MOST_BYTES >> 20} MB.",
        "Send fewer or shorter messages.",
        code="request_too_large",
    )
