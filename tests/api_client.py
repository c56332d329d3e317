"""A client of the API, over plain sockets: what it sends is what the test wrote, and it can go away at any moment."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat_server import free_port

from chat import app
from chat.session import Session
from chat.store import Store

CHAT = "/v1/chat/completions"


def said(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


@dataclass
class Client:
    """Talks to the server on a port."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    page: Any = None

    def send(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> http.client.HTTPConnection:
        """A request whose answer has not been read. Headers: `content_type` is content-type."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        line.request(method, path, body, {"content-type": "application/json", **self.headers, **named})
        return line

    def ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, JSON) of an answer."""
        line = self.send(method, path, body, **headers)
        try:
            answer = line.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read() or b"null")
        finally:
            line.close()

    def chat(self, messages: Any, **fields: Any) -> tuple[int, Any]:
        """(status, JSON) of a reply in one piece."""
        status, _, value = self.ask("POST", CHAT, json.dumps({"messages": messages, **fields}).encode())
        return status, value

    def stream(self, messages: Any, **fields: Any) -> Streamed:
        """A reply as it grows."""
        body = json.dumps({"messages": messages, "stream": True, **fields}).encode()
        return Streamed(self.send("POST", CHAT, body))


class Streamed:
    """The events of an answer; iterating reads them as they come. `status` waits for the answer to begin."""

    def __init__(self, line: http.client.HTTPConnection) -> None:
        self.line = line
        self._answer: http.client.HTTPResponse | None = None
        self.comments: list[str] = []
        self.done = False

    @property
    def answer(self) -> http.client.HTTPResponse:
        if self._answer is None:
            self._answer = self.line.getresponse()
        return self._answer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.getheader("content-type", "").startswith("text/event-stream")
        for raw in self.answer:
            line = raw.decode("ascii").rstrip("\n")
            if line.startswith(":"):
                self.comments.append(line[1:].strip())
            elif line == "data: [DONE]":
                self.done = True
            elif line:
                assert line.startswith("data: ") and not self.done, line
                yield json.loads(line.removeprefix("data: "))

    def leave(self) -> None:
        """Go away, as a program that was ended does."""
        answer, self._answer = self._answer, None
        if answer:
            answer.close()
        self.line.close()


def joined(parts: list[dict[str, Any]], name: str = "content") -> str:
    """The text of a stream."""
    return "".join(c["delta"].get(name) or "" for part in parts for c in part["choices"])


@contextmanager
def served(
    folder: Path, load: Callable[[Any], Any], password: str | None = None, start: bool = True, **arguments: Any
) -> Iterator[tuple[Session, Client]]:
    """The real server in this process, over an engine of the test's."""
    store = Store(folder / f"{free_port()}.db")
    session = Session(store, load, models=("tiny", "small", "big"), family="scripted", title="Scripted family")
    asked = app.Arguments(port=free_port(), browser=False, **arguments)
    session.guests = asked.guests
    page, _, _ = app.launch(session, asked, password)
    if start:
        session.start()
    try:
        yield session, Client(asked.port, page=page)
    finally:
        session.close()
        page.close(verbose=False)


def problem(value: Any) -> dict[str, Any]:
    """What an answer says went wrong, in OpenAI's shape and ours: a sentence."""
    assert set(value) == {"error"} and set(value["error"]) == {"message", "type", "param", "code"}, value
    assert value["error"]["message"].endswith("."), value
    return dict(value["error"])
