"""What a model thought before it answered, told apart from the answer and folded."""

from __future__ import annotations

import re

import hsd
from chat.records import Message
from chat.ui.text import escape, plural

_END_LINE = re.compile(r"^</think>[ \t]*(?:\n[ \t]*\n|\Z)", re.M)
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.M)


def split(message: Message) -> tuple[str, str]:
    """Thinking and answer of a stored reply.

    Replies of earlier versions lack the opening mark where the prompt had written it. The closing mark ends the
    thinking there, if it has a line of its own, an empty line follows, and no block of code is open.
    """
    text = message.text
    thought, answer, over = hsd.split_thinking(text)
    if not thought and over and not (message.stats or {}).get("marked"):
        end = _END_LINE.search(text)
        before = text[: end.start()] if end else ""
        if end and "<think>" not in before and len(_FENCE.findall(before)) % 2 == 0:
            return before.strip(), text[end.end() :].lstrip()
    return thought, answer


def folded(thought: str, *, over: bool = True) -> str:
    """The thinking as one line that opens; empty where there was none."""
    if not thought:
        return ""
    words = plural(len(thought.split()), "word")
    summary = f"Thought, {words}" if over else f"Thinking, {words} so far…"
    return f'<details class="think"><summary>{summary}</summary><div>{escape(thought)}</div></details>'
