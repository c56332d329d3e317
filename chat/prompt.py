"""From messages to what an engine reads: a path of the tree, and a reply that is to go on where it ended."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import hsd
from chat.records import Message

LEAST_LETTERS = 16
"""A message counts as this long at least: it takes a token, however short it is, and thousands take time to be read."""

TITLE_LENGTH = 60
GREETING_LENGTH = 16
_NAME = re.compile(r"`([^`]+)`:")  # two lines begin a file as the page writes it: its name, and a fence
_FENCE = re.compile(r"(`{3,})[^`]*")


def make_title(text: str, reply: str = "") -> str:
    """A first message's beginning on one line; where that says as little as "Hi!", its reply's beginning too."""
    words = " ".join(_without_files(text).split())
    if reply and len(words) <= GREETING_LENGTH and len(words.split()) <= 2:
        answer = hsd.split_thinking(reply).answer
        plain = " ".join(re.sub(r"```.*?(```|$)|[`*_#>]", " ", answer, flags=re.S).split())
        words = f"{words} · {plain}" if plain else words
    if len(words) <= TITLE_LENGTH:
        return words
    cut = words[:TITLE_LENGTH]
    return (cut.rsplit(" ", 1)[0] if " " in cut[TITLE_LENGTH // 2 :] else cut) + "…"


def _without_files(text: str) -> str:
    """A message with the names of its files in their place. It looks at every line once, whatever is written there."""
    lines, kept = text.split("\n"), list[str]()
    alone = defaultdict[str, list[int]](list)  # fences, and where each is all of a line
    for at, line in enumerate(lines):
        if line.startswith("```"):
            alone[line].append(at)
    at = 0
    while at < len(lines):
        name = _NAME.fullmatch(lines[at])
        fence = _FENCE.fullmatch(lines[at + 1]) if name and at + 1 < len(lines) else None
        ends = alone.get(fence[1], []) if fence else []
        end = bisect_right(ends, at + 1)
        if name and end < len(ends):
            kept.append(f" {name[1]} ")
            at = ends[end]
        else:
            kept.append(lines[at])
        at += 1
    return "\n".join(kept)


def messages_for_engine(path: Sequence[Message], system: str = "") -> list[dict[str, Any]]:
    """A path of the tree as chat messages. A turn that got no answer is left out, but for the last."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
    for message in path:
        if message.role == "user":
            messages.append({"role": "user", "content": message.text})
        elif message.text:
            entry: dict[str, Any] = {"role": "assistant", "content": message.text}
            if message.token_ids:
                entry["token_ids"] = list(message.token_ids)
            messages.append(entry)
        elif messages and messages[-1]["role"] == "user":
            messages.pop()
    return messages


def newest_turns(messages: Sequence[dict[str, Any]], letters: int) -> tuple[list[dict[str, Any]], int]:
    """The newest turns that have no more than so many letters, the last at least, and how many were left out.

    For what is many times the context: the engine drops the rest, but reads the whole anew for every turn it drops.
    """
    head = [m for m in messages[:1] if m["role"] == "system"]
    begins = [place for place, m in enumerate(messages) if m["role"] == "user"]
    total, kept = 0, len(begins)
    for place, end in zip(reversed(begins), reversed([*begins[1:], len(messages)]), strict=True):
        total += sum(max(len(m["content"]), LEAST_LETTERS) for m in messages[place:end])
        if total > letters and kept < len(begins):
            break
        kept -= 1
    return ([*head, *messages[begins[kept] :]] if kept else list(messages)), kept
