"""What a model thought before it answered: told apart from the answer, and folded."""

from __future__ import annotations

import re

from chat.ui.text import escape, plural

BEGIN, END = "<think>", "</think>"
_END_LINE = re.compile(r"^</think>[ \t]*$", re.M)


def split(text: str) -> tuple[str, str, bool]:
    """(thinking, answer, whether the thinking is over). Some templates write the opening mark into the prompt."""
    start = text.lstrip()
    if start.startswith(BEGIN):
        thought, mark, answer = start.removeprefix(BEGIN).partition(END)
        return thought.strip(), answer.lstrip(), bool(mark)
    end = _END_LINE.search(text)
    if end and BEGIN not in text[: end.start()]:
        return text[: end.start()].strip(), text[end.end() :].lstrip(), True
    if start and BEGIN.startswith(start):
        return "", "", False
    return "", text, True


def folded(thought: str, *, over: bool = True) -> str:
    """The thinking as one line that opens; empty where there was none."""
    if not thought:
        return ""
    words = plural(len(thought.split()), "word")
    summary = f"Thought, {words}" if over else f"Thinking, {words} so far…"
    return f'<details class="think"><summary>{summary}</summary><div>{escape(thought)}</div></details>'
