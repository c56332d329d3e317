"""What the worker is given and shows: the engine it uses, a request with its growing reply, the engine's state."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import hsd
from chat.plans import Known

log = logging.getLogger(__name__)

MOST_BYTES = 4
"""Bytes of the longest character, and so the most tokens that one can be made of."""

UNKNOWN = "not recorded"
"""Stands where nobody knows which level proposed a token."""

EngineState = Literal["starting", "loading", "ready", "failed", "unloaded", "closed"]


class EngineLike(Protocol):
    """What the worker asks of an engine; `hsd.Engine` is one."""

    @property
    def info(self) -> hsd.FamilyInfo: ...

    @property
    def tokenizer(self) -> Any: ...

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[int],
        params: hsd.SamplingParams,
        *,
        plan: str,
        cancel: threading.Event,
        drop: bool | None = None,
    ) -> Iterator[hsd.Event]: ...

    def race(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[int],
        params: hsd.SamplingParams,
        *,
        plan: str,
        cancel: threading.Event,
        tell: Callable[[hsd.Event], None],
    ) -> hsd.Race: ...

    def learn(self, should_stop: Callable[[], bool]) -> bool: ...

    def close(self) -> None: ...


Load = Callable[[Callable[[hsd.LoadProgress], None]], EngineLike]


class Busy(hsd.HsdError):
    """Refused for a reason that passes by itself; `over` says whether it has."""

    def __init__(self, message: str, over: Callable[[], bool], hint: str = "Wait for it, or stop it first.") -> None:
        super().__init__(message, hint)
        self.over = over


@dataclass(slots=True)
class Request:
    """A reply somebody waits for, and what is there of it so far.

    `read` gives the messages, and how many turns were left out of them, when the reply begins, in the place of
    `messages`: the reply before it may not be over when this one is asked for. `begun` is the text of a reply that
    goes on where it ended, `before` its number of tokens. `visitor`: who asked, for a queue that is fair.
    """

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
    begun: str = ""
    before: int = 0
    visitor: str = ""
    read: Callable[[], tuple[Sequence[Mapping[str, Any]], int]] | None = None

    def prompt(self, engine: EngineLike) -> Sequence[Mapping[str, Any]]:
        """What the engine is to read. Raises StoreError where it cannot be read from the store."""
        if self.read:
            self.messages, self.dropped_turns = self.read()
        if not self.begun:
            return self.messages
        begun = hsd.begun_ids(engine.tokenizer, self.ids, self.begun)
        self.ids, self.before = list(begun), len(begun)
        # Without names for all of its beginning, a reply's tokens cannot be told apart.
        self.provenance = (self.provenance + [UNKNOWN] * self.before)[: self.before]
        return [*self.messages, {"role": "assistant", "content": self.begun, "token_ids": list(begun)}]

    def add(self, event: hsd.Tokens) -> None:
        """Append one round of the target."""
        self.text += event.text
        self.ids.extend(event.ids)
        self.provenance.extend(event.provenance)

    def partial(self) -> dict[str, Any]:
        """Columns of the reply so far."""
        return {"text": self.text, "token_ids": list(self.ids), "provenance": list(self.provenance)}

    def ending(self, values: dict[str, Any]) -> dict[str, Any]:
        """What is stored of how it ended."""
        return values


@dataclass(frozen=True, slots=True)
class Live:
    """A reply that is not finished. `ahead`: requests before it; `started` is False while it waits.

    `since`: the monotonic clock when it began, 0 while it waits.
    """

    message_id: str
    text: str
    tokens: int
    plan: str
    started: bool
    ahead: int
    stopping: bool
    since: float = 0.0

    @classmethod
    def of(cls, request: Request, ahead: int) -> Live:
        """A request at this moment."""
        return cls(
            message_id=request.message_id,
            text=request.text,
            tokens=len(request.ids),
            plan=request.decided_plan,
            started=request.started is not None,
            ahead=ahead,
            stopping=request.cancel.is_set(),
            since=request.started or 0.0,
        )


def outcome(request: Request, reply: hsd.Reply, tokenizer: Any) -> dict[str, Any]:
    """Columns of a reply that is over. Where it went on after an interruption, its statistics are those of the rest."""
    stats = asdict(reply.stats)
    stats["tokens_per_second"] = reply.stats.tokens_per_second
    stats["dropped_turns"] = request.dropped_turns
    stats["seed"] = reply.seed
    stats["marked"] = True  # thinking in the text begins with its mark; that of older replies need not
    if request.before:
        stats["continued_after"] = request.before
    provenance = [*request.provenance[: request.before], *stats.pop("provenance")]
    ids = [*request.ids[: request.before], *reply.token_ids]
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    return {
        "text": request.begun + reply.text,
        "token_ids": ids,
        "provenance": provenance,
        "pieces": _pieces(decode, ids),
        "state": {"cancelled": "cancelled", "error": "error"}.get(reply.finish_reason, "done"),
        "finish_reason": reply.finish_reason,
        "error": reply.error,
        "stats": stats if reply.stats.tokens else None,
    }


def _pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    try:
        return pieces(decode, ids)
    except Exception:
        # Only the view of where tokens came from needs them; the reply is worth more.
        log.exception("the reply could not be cut into tokens")
        return []


@dataclass(frozen=True, slots=True)
class EngineView:
    """What a page may know of the engine at a moment. `seconds`: since the loading began; `known`: of its plans."""

    state: EngineState = "starting"
    progress: hsd.LoadProgress | None = None
    error: str | None = None
    info: hsd.FamilyInfo | None = None
    plan: str = ""
    reason: str = ""
    seconds: float = 0.0
    waiting: int = 0
    known: Known | None = None


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
            if end - begin > 2 * MOST_BYTES:
                # Bytes that are no character, and never will be; the last of them may still belong to one.
                over = end - MOST_BYTES
                result[over - 1] = decode(list(ids[context:over]))[len(before) :]
                context, begin = begin, over
            continue
        result.append(now[len(before) :])
        context, begin = begin, end
    return result
