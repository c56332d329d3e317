"""The family's own conversations: written by hand, kept as data in this package.

`howto.jsonl`  one task a line: program, wish, command, and other words for the wish ("asked": wishes to be framed,
               or whole questions if they end with a question mark).
others         one conversation a line: turns of {"asked": [one of these], "reply": text}.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hsd.builtin import DATA
from hsd.builtin.conversation import Conversation, conversation
from hsd.builtin.lines import rows
from hsd.builtin.phrasing import FRAMES, WITH_PROGRAM, answer, ask, careless
from hsd.builtin.tldr import Task
from hsd.errors import HsdError

SCRIPTS: tuple[str, ...] = ("app", "small_talk", "limits", "follow_ups")


@dataclass(frozen=True)
class Script:
    """A conversation with several ways to say each of the user's lines."""

    asked: tuple[tuple[str, ...], ...]
    replies: tuple[str, ...]

    def play(self, rng: Random) -> Conversation:
        """One conversation, each question in one of its ways."""
        texts: list[str] = []
        for ways, reply in zip(self.asked, self.replies, strict=True):
            texts += [careless(rng.choice(ways), rng), reply]
        return conversation(*texts)


@dataclass(frozen=True)
class HowTo:
    """A task with hand-written ways to ask for it."""

    task: Task
    asked: tuple[str, ...]

    def play(self, rng: Random, frames: tuple[str, ...] = ()) -> Conversation:
        """One question with its answer; `frames` replaces the frames of training."""
        words = rng.choice((self.task.wish, *self.asked, *self.asked))
        if words.endswith("?"):
            return conversation(careless(words, rng), answer(self.task))
        frame = rng.choice(frames or (WITH_PROGRAM if rng.random() < 0.2 else FRAMES))
        return conversation(ask(frame, words, self.task.program, rng), answer(self.task))


def read_scripts(name: str) -> list[Script]:
    """Scripts of one of the data files.

    Args:
        name: one of `SCRIPTS`.
    Raises:
        HsdError: a line is not what the module's text says.
    """
    scripts = []
    for where, row in rows(DATA / f"{name}.jsonl", {"turns"}):
        turns = row.get("turns")
        if not turns or any(not turn.get("asked") or not turn.get("reply") for turn in turns):
            raise HsdError(f"{where}: every turn needs 'asked' and 'reply'.", "See hsd/builtin/own.py for the form.")
        scripts.append(Script(tuple(tuple(t["asked"]) for t in turns), tuple(t["reply"] for t in turns)))
    return scripts


def read_howtos() -> list[HowTo]:
    """The hand-written tasks of `howto.jsonl`, all of rank 0."""
    howtos = []
    for _, row in rows(DATA / "howto.jsonl", {"program", "wish", "command", "asked"}):
        howtos.append(HowTo(Task(row["program"], row["wish"], row["command"], 0), tuple(row["asked"])))
    return howtos
