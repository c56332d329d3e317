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

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answer(port: int, path: str = "/", body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """(status, text) of a page; status 0 where nobody answers."""
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", body, headers), timeout=5) as response:
            return response.status, response.read().decode()
    except OSError as error:
        return getattr(error, "code", 0), ""


def log_of(folder: Path) -> Path:
    """What the server of this data folder has printed, beside the folder."""
    return folder.with_name(f"{folder.name}.log")


def serve(
    *arguments: str, folder: Path, port: int | None = None, **environment: str
) -> tuple[subprocess.Popen, int, float]:
    """A server and its port, once it answers, with the seconds that took.

    Args:
        environment: further variables.
    """
    port, begun = port or free_port(), time.monotonic()
    command = [sys.executable, "-m", "chat", "--no-browser", "--data-dir", str(folder), "--port", str(port), *arguments]
    environment = {**os.environ, **environment}
    # Not a pipe: nobody reads it while the server runs, and a server that fills it waits for ever.
    log = log_of(folder)
    with log.open("ab") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    while answer(port)[0] == 0:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() - begun < 180
        time.sleep(0.05)
    return server, port, time.monotonic() - begun


class Server:
    """A server over one data folder; starting it again keeps the data and the address."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self._arguments, self._port = folder, arguments, free_port()
        self.address, self.log = f"http://127.0.0.1:{self._port}/", log_of(folder)
        self.start()

    def start(self) -> None:
        self.process, _, self.seconds = serve(*self._arguments, folder=self.folder, port=self._port)

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


class Scripted(Server):
    """The real server over a scripted engine, see `chat_fakes`; its models say a word every `pause` seconds."""

    def __init__(self, folder: Path, pause: float, password: str | None = None) -> None:
        self._pause, self._password = pause, password
        super().__init__(folder)

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "tests" / "chat_fakes.py"), str(self._port), str(self.folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, str(self._pause), *([self._password] if self._password else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def run(self, sql: str) -> str:
        """Run a statement on the connection that the server stores with; what it found."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(sql, file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


@contextmanager
def scripted(folder: Path, pause: float, password: str | None = None) -> Iterator[Scripted]:
    """A server over a scripted engine as long as it is needed; with a password, one for guests."""
    server = Scripted(folder, pause, password)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """A server as long as it is needed."""
    server = Server(folder, *arguments)
    try:
        yield server
    finally:
        server.stop()
