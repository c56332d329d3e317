"""What a model thought before it answered, told apart from the answer and folded."""

from __future__ import annotations

import hsd
from chat.records import Message
from chat.ui.text import escape, plural


def split(message: Message) -> tuple[str, str]:
    """Thinking and answer of a stored reply."""
    thought, answer, _ = hsd.split_thinking(message.text, older=not (message.stats or {}).get("marked"))
    return thought, answer


def folded(thought: str, *, over: bool = True) -> str:
    """The thinking as one line that opens; empty where there was none."""
    if not thought:
        return ""
    words = plural(len(thought.split()), "word")
    summary = f"Thought, {words}" if over else f"Thinking, {words} so far…"
    return f'<details class="think"><summary>{summary}</summary><div>{escape(thought)}</div></details>'
