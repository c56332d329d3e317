"""The family's own conversations: written by hand, kept as data in this package. docs/builtin.md has the form.

`howto.jsonl`  one task a line: program, wish, command, and other words for the wish ("asked": wishes to be framed,
               whole sentences if they end with a full stop or a question mark, or things to look for after a "~").
`named.jsonl`  the same with names in it: `%file%` stands for one of the values of `slots.json`.
others         one conversation a line: turns of {"asked": [one of these], "reply": text}, which may have names too;
               with a "topic" the reply begins with "About TOPIC: ".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from hsd.builtin import DATA
from hsd.builtin.conversation import Conversation, conversation
from hsd.builtin.frames import FRAMES, QUERIES, WITH_PROGRAM
from hsd.builtin.lines import rows
from hsd.builtin.phrasing import answer, ask, careless
from hsd.builtin.tldr import Task
from hsd.errors import HsdError

SCRIPTS: tuple[str, ...] = ("app", "small_talk", "limits", "follow_ups")
_SLOT = re.compile(r"%([a-z]+)%")


@cache
def slots() -> dict[str, tuple[str, ...]]:
    """Values that a name in a conversation can have, by the name of its slot."""
    found = json.loads((DATA / "slots.json").read_text(encoding="utf-8"))
    return {name: tuple(values) for name, values in found.items()}


def filled(texts: Sequence[str], rng: Random) -> list[str]:
    """The texts with every slot filled, the same name everywhere; slots that hold other people's names differ."""
    names = dict.fromkeys(name for text in texts for name in _SLOT.findall(text))
    values = {name: rng.choice(slots()[name]) for name in names}
    return [_SLOT.sub(lambda m: values[m[1]], text) for text in texts]


@dataclass(frozen=True)
class Script:
    """A conversation with several ways to say each of the user's lines."""

    asked: tuple[tuple[str, ...], ...]
    replies: tuple[str, ...]

    def play(self, rng: Random) -> Conversation:
        """One conversation, each question in one of its ways, its slots filled."""
        texts: list[str] = []
        for ways, reply in zip(self.asked, self.replies, strict=True):
            texts += [careless(rng.choice(ways), rng), reply]
        return conversation(*filled(texts, rng))


@dataclass(frozen=True)
class HowTo:
    """A task with hand-written ways to ask for it."""

    task: Task
    asked: tuple[str, ...]

    def play(self, rng: Random, frames: tuple[str, ...] = ()) -> Conversation:
        """One question with its answer; `frames` replaces the frames of training, for what can be framed."""
        asked = [text for text in self.asked if not frames or not (text.endswith(("?", ".")) or text.startswith("~"))]
        words = rng.choice((self.task.wish, *asked, *asked))
        program, wish, command, words = filled((self.task.program, self.task.wish, self.task.command, words), rng)
        task = Task(program, wish, command, self.task.rank)
        if words.endswith(("?", ".")):
            return conversation(careless(words, rng), answer(task))
        if words.startswith("~"):
            return conversation(ask(rng.choice(QUERIES), words[1:], program, rng), answer(task))
        frame = rng.choice(frames or (WITH_PROGRAM if rng.random() < 0.2 else FRAMES))
        return conversation(ask(frame, words, program, rng), answer(task))


def read_scripts(name: str, size: str = "32 million") -> list[Script]:
    """Scripts of one of the data files.

    Args:
        name: one of `SCRIPTS`.
        size: what `%size of the target%` stands for.
    Raises:
        HsdError: a line is not what the module's text says.
    """
    scripts = []
    for where, row in rows(DATA / f"{name}.jsonl", {"turns"}):
        turns = row["turns"]
        if not turns or any(not turn.get("asked") or not turn.get("reply") for turn in turns):
            raise HsdError(f"{where}: every turn needs 'asked' and 'reply'.", "See hsd/builtin/own.py for the form.")
        # As an answer with a command first says again what it does: what is meant is decided before how it is said.
        topics = (f"About {turn['topic']}: " if "topic" in turn else "" for turn in turns)
        replies = tuple(
            topic + turn["reply"].replace("%size of the target%", size)
            for topic, turn in zip(topics, turns, strict=True)
        )
        _check_slots(where, [*replies, *(text for turn in turns for text in turn["asked"])])
        scripts.append(Script(tuple(tuple(turn["asked"]) for turn in turns), replies))
    return scripts


def read_howtos(name: str = "howto") -> list[HowTo]:
    """The hand-written tasks of `howto.jsonl` or `named.jsonl`, all of rank 0. Raises HsdError for a broken line."""
    howtos = []
    for where, row in rows(DATA / f"{name}.jsonl", {"program", "wish", "command", "asked"}):
        _check_slots(where, [row["wish"], row["command"], *row["asked"]])
        howtos.append(HowTo(Task(row["program"], row["wish"], row["command"], 0), tuple(row["asked"])))
    return howtos


def _check_slots(where: str, texts: Sequence[str]) -> None:
    unknown = {name for text in texts for name in _SLOT.findall(text)} - set(slots())
    if unknown:
        raise HsdError(f"{where} has a slot that slots.json does not know: {', '.join(sorted(unknown))}.")
