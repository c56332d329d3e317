"""What the worker is given and shows: the engine it uses, a request with its growing reply, the engine's state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import hsd

EngineState = Literal["starting", "loading", "ready", "failed", "closed"]


class EngineLike(Protocol):
    """What the worker asks of an engine; `hsd.Engine` is one."""

    @property
    def info(self) -> hsd.FamilyInfo: ...

    @property
    def tokenizer(self) -> Any: ...

    def stream(
        self, messages: Sequence[Mapping[str, Any]], params: hsd.SamplingParams, *, plan: str, cancel: threading.Event
    ) -> Iterator[hsd.Event]: ...

    def learn(self, should_stop: Callable[[], bool]) -> None: ...

    def close(self) -> None: ...


Load = Callable[[Callable[[hsd.LoadProgress], None]], EngineLike]


@dataclass(slots=True)
class Request:
    """A reply somebody waits for, and what is there of it so far."""

    message_id: str
    conversation_id: str
    messages: Sequence[Mapping[str, Any]]
    params: hsd.SamplingParams
    plan: str
    cancel: threading.Event = field(default_factory=threading.Event)
    started: float | None = None
    text: str = ""
    ids: list[int] = field(default_factory=list)
    provenance: list[str] = field(default_factory=list)
    decided_plan: str = ""
    dropped_turns: int = 0

    def add(self, event: hsd.Tokens) -> None:
        """Append one round of the target."""
        self.text += event.text
        self.ids.extend(event.ids)
        self.provenance.extend(event.provenance)

    def partial(self) -> dict[str, Any]:
        """Columns of the reply so far."""
        return {"text": self.text, "token_ids": list(self.ids), "provenance": list(self.provenance)}


@dataclass(frozen=True, slots=True)
class EngineView:
    """What a page may know of the engine at a moment. `seconds`: since the loading began."""

    state: EngineState = "starting"
    progress: hsd.LoadProgress | None = None
    error: str | None = None
    info: hsd.FamilyInfo | None = None
    plan: str = ""
    reason: str = ""
    seconds: float = 0.0
    waiting: int = 0


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """Text of each token, such that together they are the text of all.

    Tokens are decoded with the ones just before them, since a blank at the start may depend on those. Of the tokens
    that make up one character the last holds it, and the others are empty.
    """
    result, context, begin = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[context:begin])), decode(list(ids[context:end]))
        if now.endswith("\ufffd") and end < len(ids):
            result.append("")
            continue
        result.append(now[len(before) :])
        context, begin = begin, end
    return result
