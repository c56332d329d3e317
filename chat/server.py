"""The web server: the page and the API behind the guard, on the sockets of a host, in a thread of its own.

Gradio's own start is not used. It cannot serve IPv6, asks itself over a proxy whether it is up, and gives a shared page
scripts from elsewhere.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from typing import Any

import uvicorn

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves an ASGI application until it is closed.

    Args:
        app: what answers.
        sockets: bound ones.
        behind_tunnel: requests of this machine may say whose they are.
    """

    def __init__(self, app: Any, sockets: list[socket.socket], behind_tunnel: bool = False) -> None:
        super().__init__(
            uvicorn.Config(app, log_level="warning", lifespan="on", proxy_headers=behind_tunnel, server_header=False)
        )
        self._sockets = sockets
        self._thread = threading.Thread(target=self.run, args=(sockets,), daemon=True, name="server")

    def start(self) -> None:
        """Return once it answers. Raises OSError where it ended instead."""
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
