"""`hsd chat` in a process of its own, for tests that talk to it."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from steps import prepared

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(port: int, path: str = "/", **headers: str) -> tuple[int, str]:
    """(status, text) of a page; status 0 where nobody answers."""
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=5) as response:
            return response.status, response.read().decode()
    except OSError as error:
        return getattr(error, "code", 0), ""


def serve(*arguments: str, folder: Path) -> tuple[subprocess.Popen, int, float]:
    """A server and its port, once it answers, with the seconds that took."""
    port, begun = free_port(), time.monotonic()
    command = [sys.executable, "-m", "chat", "--no-browser", "--data-dir", str(folder), "--port", str(port), *arguments]
    environment = {**os.environ, **prepared(folder)}
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while answer(port)[0] == 0:
        assert server.poll() is None, server.stdout.read()
        assert time.monotonic() - begun < 60
        time.sleep(0.05)
    return server, port, time.monotonic() - begun


class Server:
    """A server over one data folder; starting it again keeps the data."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self._arguments = folder, arguments
        self.start()

    def start(self) -> None:
        self.process, port, self.seconds = serve(*self._arguments, folder=self.folder)
        self.address = f"http://127.0.0.1:{port}/"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def stored(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of its chat.db."""
        with closing(sqlite3.connect(self.folder / "chat.db")) as db:
            return db.execute(sql, values).fetchall()


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """A server as long as it is needed."""
    server = Server(folder, *arguments)
    try:
        yield server
    finally:
        server.stop()
