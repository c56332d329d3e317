"""What stands before every request: which hosts are served, what a page of ours may load, which visitor asks."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from typing import Any

COOKIE = "hsd-visitor"
YEAR_SECONDS = 365 * 24 * 3600

# Gradio's templates need inline script and eval; nothing may come from, or go to, anywhere else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def visitor(request: Any) -> str:
    """Who asks, as it is stored: what a browser was given, hashed, so that reading the database makes nobody a visitor.

    A browser that keeps no cookies is a new visitor with every page.
    """
    given = (getattr(request, "cookies", None) or {}).get(COOKIE) or f"page {getattr(request, 'session_hash', '')}"
    return hashlib.sha256(str(given).encode()).hexdigest()[:24]


class Guard:
    """ASGI middleware.

    Args:
        local_only: refuse requests that were addressed to another name: a web page elsewhere can point a name of its
            own at 127.0.0.1 and would otherwise read what is served here.
        guests: give every browser a cookie that tells it from others, see `visitor`.
        first: HTML that the page is to begin with, before any script that is there without it.
    """

    def __init__(self, app: Any, local_only: bool, guests: bool = False, first: str = "") -> None:
        self.app, self.local_only, self.guests, self.first = app, local_only, guests, first.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if self.local_only and not is_loopback(_host(scope)):
            await _refuse(scope, send)
            return

        new = self.guests and scope.get("path") == "/" and COOKIE not in _header(scope, b"cookie")
        cookie = f"{COOKIE}={secrets.token_urlsafe(18)}; Path=/; Max-Age={YEAR_SECONDS}; HttpOnly; SameSite=Lax"
        headers = (*_HEADERS, (b"set-cookie", cookie.encode())) if new else _HEADERS

        begins = bool(self.first) and scope.get("path") == "/" and scope.get("method") == "GET"
        held: dict[str, Any] | None = None  # how long the answer is may depend on its first part

        async def send_with_headers(message: Any) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                given = dict(message.get("headers", ()))
                message["headers"] = [*message.get("headers", ()), *headers]
                if (
                    begins
                    and given.get(b"content-type", b"").startswith(b"text/html")
                    and b"content-encoding" not in given
                ):
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                if _HEAD in message.get("body", b""):
                    message["body"] = message["body"].replace(_HEAD, _HEAD + self.first, 1)
                    start["headers"] = [_longer(header, len(self.first)) for header in start["headers"]]
                await send(start)
            await send(message)

        await self.app(scope, receive, send_with_headers)


_HEAD = b"<head>"


def _longer(header: tuple[bytes, bytes], add: int) -> tuple[bytes, bytes]:
    name, value = header
    return (name, str(int(value) + add).encode()) if name == b"content-length" else header


_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


def _header(scope: Any, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")


def _host(scope: Any) -> str:
    host = _header(scope, b"host")
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"This page is served to this machine only, as localhost.\n"})
