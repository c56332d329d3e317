"""Held-out questions, and when a reply answers one. Written by hand; training never sees them.

`held_out_howto.jsonl`  one question a line: {"asked": text, "commands": [one of these is right]}.
`held_out_app.jsonl`    {"asked": text, "facts": [[one of these words must be there], …]}: every fact is needed.
`held_out.jsonl`        {"asked": text, "reply": the expected reply}.
`held_out_sums.jsonl`   the same; sums and conversions of numbers that training never asked about, drawn with a seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from hsd.builtin import DATA
from hsd.builtin.conversation import Conversation, conversation
from hsd.builtin.lines import rows

SIMILAR = 0.9
"""Edit similarity from which on a command counts as right."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_FENCE = re.compile(r"```(?:sh|bash)?\n(.*?)(?:\n?```|$)", re.DOTALL)


@dataclass(frozen=True)
class CommandQuestion:
    """A question that a command answers; any of `commands` is right."""

    asked: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class FactQuestion:
    """A question about the app; a right reply has one word of every fact. Needed, but no proof of a good reply."""

    asked: str
    facts: tuple[tuple[str, ...], ...]


def read_commands() -> list[CommandQuestion]:
    """The 200 questions of `held_out_howto.jsonl`. Raises HsdError for a broken line."""
    found = rows(DATA / "held_out_howto.jsonl", {"asked", "commands"})
    return [CommandQuestion(row["asked"], tuple(row["commands"])) for _, row in found]


def read_facts() -> list[FactQuestion]:
    """The 50 questions of `held_out_app.jsonl`. Raises HsdError for a broken line."""
    found = rows(DATA / "held_out_app.jsonl", {"asked", "facts"})
    return [FactQuestion(row["asked"], tuple(map(tuple, row["facts"]))) for _, row in found]


def read_replies() -> list[Conversation]:
    """Questions with the reply that training would have given them, of `held_out.jsonl`."""
    return [conversation(row["asked"], row["reply"]) for _, row in rows(DATA / "held_out.jsonl", {"asked", "reply"})]


def read_sums() -> list[Conversation]:
    """The 60 of `held_out_sums.jsonl`, with the reply that training would have given. Raises HsdError."""
    return [
        conversation(row["asked"], row["reply"]) for _, row in rows(DATA / "held_out_sums.jsonl", {"asked", "reply"})
    ]


def never_trained() -> list[str]:
    """Every held-out question, and the prompts of the benchmark (a copy: the benchmark is no part of training)."""
    listed = (DATA / "never_asked.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    asked = [q.asked for q in read_commands()] + [q.asked for q in read_facts()]
    return [*listed, *asked, *(turns[0].content for turns in (*read_replies(), *read_sums()))]


def plain(text: str) -> str:
    """Letters and digits alone, lower case: what two wordings must share to count as the same."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def command_of(reply: str) -> str:
    """The first block of code of a reply, blanks put in order; "" where there is none."""
    block = _FENCE.search(reply)
    return " ".join(block[1].split()) if block else ""


def result_of(reply: str) -> str:
    """The last number of a reply, where sums and conversions have their result; "" where there is none."""
    found = _NUMBER.findall(reply)
    return found[-1] if found else ""


def similarity(command: str, accepted: tuple[str, ...]) -> float:
    """Edit similarity (difflib's ratio, 0 to 1) to the nearest accepted command."""
    return max(SequenceMatcher(None, command, wanted, autojunk=False).ratio() for wanted in accepted)


def has_facts(reply: str, facts: tuple[tuple[str, ...], ...]) -> bool:
    """Whether a word of every fact stands in the reply, whatever its case; a word of up to three letters as a whole."""
    text = reply.lower()

    def stands(word: str) -> bool:
        end = r"(?!\w)" if len(word) <= 3 else ""
        return re.search(r"(?<!\w)" + re.escape(word.lower()) + end, text) is not None

    return all(any(map(stands, words)) for words in facts)
