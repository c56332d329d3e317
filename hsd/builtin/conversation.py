"""What the corpus is made of: conversations, as plain values. Knows neither tokens nor where text comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

ROLES: tuple[str, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """One message: who says it (one of `ROLES`) and what."""

    role: str
    content: str

    def __post_init__(self) -> None:
        assert self.role in ROLES, self.role


Conversation = tuple[Turn, ...]


def conversation(*texts: str, system: str = "") -> Conversation:
    """User and assistant in turn, starting with the user; a system message first if one is given."""
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
    return (Turn("system", system), *turns) if system else turns


def as_messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """The form that chat templates take."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def held_out(key: str, one_in: int) -> bool:
    """Whether the example called `key` is kept out of training: a hash decides, never order or seed."""
    digest = blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % one_in == 0
