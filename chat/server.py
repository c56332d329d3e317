"""The web server: the page and the API behind the guard, on the sockets of a host, in a thread of its own.

Gradio's own start is not used. It cannot serve IPv6, asks itself over a proxy whether it is up, and gives a shared page
scripts from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import socket
import threading
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
"""The head of a request is to be there so long after the connection, or after its own first byte."""

MOST_WAITING = 200
"""Connections whose head is not there yet; the oldest is closed where there are more."""

STUCK_SECONDS = 20.0
"""A client that takes nothing of an answer for so long has gone: what it does not take is held in memory."""

MOST_FILES = 1 << 16
"""Connections and files that the program asks to have open at once; systems give a tenth of that unasked, or less."""


class Connection(H11Protocol):
    """One that has to say what it wants, and to take it.

    Silent ones would take all the places that a program has for open files, answers that nobody reads all memory.

    Args:
        waiting: all of the server whose head is not there yet, the oldest first.
    """

    def __init__(self, *args: Any, waiting: dict[Connection, asyncio.TimerHandle], **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting = waiting
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """As uvicorn's."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._wait_no_longer()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._wait_no_longer()
        self._look_no_longer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """As uvicorn's: there is more to be sent than the client takes."""
        super().pause_writing()
        self._look_later(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """As uvicorn's."""
        self._look_no_longer()
        super().resume_writing()

    def _look_later(self, left: int) -> None:
        self._look_no_longer()
        self._stuck = self.loop.call_later(STUCK_SECONDS, self._look, left)

    def _look(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._look_later(left)

    def _look_no_longer(self) -> None:
        if self._stuck:
            self._stuck.cancel()
        self._stuck = None

    def _wait(self) -> None:
        if self not in self._waiting:
            self._waiting[self] = self.loop.call_later(HEAD_SECONDS, self._give_up)
        if len(self._waiting) > MOST_WAITING:
            next(iter(self._waiting))._give_up()

    def _wait_no_longer(self) -> None:
        if timer := self._waiting.pop(self, None):
            timer.cancel()

    def _give_up(self) -> None:
        self._wait_no_longer()
        self.timeout_keep_alive_handler()


class Server(uvicorn.Server):
    """Serves an ASGI application until it is closed.

    Args:
        app: what answers.
        sockets: bound ones.
        behind_tunnel: requests of this machine may say whose they are.
    """

    def __init__(self, app: Any, sockets: list[socket.socket], behind_tunnel: bool = False) -> None:
        connection: Any = functools.partial(Connection, waiting={})
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                ws="none",
                log_level="warning",
                lifespan="on",
                proxy_headers=behind_tunnel,
                server_header=False,
            )
        )
        self._sockets = sockets
        self._thread = threading.Thread(target=self.run, args=(sockets,), daemon=True, name="server")

    def start(self) -> None:
        """Return once it answers. Raises OSError where it ended instead."""
        _allow_files()
        self._thread.start()
        while not self.started:
            if not self._thread.is_alive():
                raise OSError("the server ended when it was started")
            time.sleep(0.001)

    def close(self) -> None:
        """Stop answering."""
        self.should_exit = True
        self._thread.join(timeout=5)
        for each in self._sockets:
            each.close()


def _allow_files() -> None:
    """Let the program have more files open, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def tunnel(listening: socket.socket) -> str | None:
    """The public address of what listens there, through Gradio's servers; None where there is none."""
    from gradio import networking

    host, port = listening.getsockname()[:2]
    try:
        address: str = networking.setup_tunnel(
            local_host={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host),
            local_port=port,
            share_token=secrets.token_urlsafe(32),
            share_server_address=None,
            share_server_tls_certificate=None,
        )
    except Exception:
        log.info("the public address could not be set up", exc_info=True)
        return None
    return "https://" + address.partition("://")[2] if "://" in address else f"https://{address}"
