"""Ways to ask for a task and the one way to answer it.

The answer repeats the wish in the words of the page before the command. So a paraphrased question is first
mapped to the known wish and only then to the command, which a small model learns more easily.
"""

from __future__ import annotations

import re
from random import Random

from hsd.builtin.tldr import Page, Task

HELD_OUT_FRAME = "What would I type to {wish}?"
"""Never used in training: held-out loss asks for known tasks in these words."""

FRAMES: tuple[str, ...] = (
    "How do I {wish}?",
    "How do I {wish}?",
    "How do I {wish}?",
    "How can I {wish}?",
    "how to {wish}",
    "How to {wish}?",
    "What is the command to {wish}?",
    "What command do I use to {wish}?",
    "Which command can {wish}?",
    "I want to {wish}.",
    "I need to {wish}.",
    "Show me how to {wish}.",
    "Can you tell me how to {wish}?",
    "How do you {wish} in the terminal?",
    "How do I {wish} on Linux?",
    "How do I {wish} from the command line?",
    "{wish}",
)
WITH_PROGRAM: tuple[str, ...] = (
    "How do I {wish} with {program}?",
    "How do I {wish} with {program}?",
    "How do I {wish} using {program}?",
    "How can I use {program} to {wish}?",
    "how to {wish} with {program}",
    "{program}: {wish}",
    "{wish} with {program}",
    "Which {program} command do I need to {wish}?",
    "Show me how to {wish} with {program}.",
    "With {program}, how do I {wish}?",
)
NEXT: tuple[str, ...] = (
    "And how do I {wish}?",
    "And {wish}?",
    "and to {wish}?",
    "What if I want to {wish}?",
    "How do I {wish}?",
)
WHAT_IS: tuple[str, ...] = (
    "What is {program}?",
    "What does {program} do?",
    "What is {program} for?",
    "what is the {program} command",
    "Tell me about {program}.",
    "What can I do with {program}?",
)
_SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("display", "show", "list", "print", "see"),
    ("remove", "delete"),
    ("create", "make"),
    ("directory", "folder"),
    ("directories", "folders"),
    ("execute", "run"),
    ("a specific", "a", "a given"),
    ("search for", "find", "look for"),
    ("extract", "unpack"),
    ("view", "see", "show"),
    ("modify", "change", "edit"),
    ("terminate", "stop", "end"),
    ("retrieve", "get"),
)
_CHOICES = {word: group for group in _SYNONYMS for word in group}
_WORDS = re.compile(r"\b(" + "|".join(sorted(_CHOICES, key=len, reverse=True)) + r")\b")


def lowered(wish: str) -> str:
    """The wish as it stands inside a sentence: no capital unless it is a name or an acronym."""
    first = wish.split(maxsplit=1)[0]
    return wish if first[1:] != first[1:].lower() else wish[0].lower() + wish[1:]


def answer(task: Task) -> str:
    """The reply to every question that asks for `task`."""
    if ":" in task.wish or not task.wish[0].isalpha():
        return f"{task.wish}, with `{task.program}`:\n\n```sh\n{task.command}\n```"
    return f"To {lowered(task.wish)}, use `{task.program}`:\n\n```sh\n{task.command}\n```"


def question(task: Task, rng: Random, *, frames: tuple[str, ...] = ()) -> str:
    """A question for `task`; without `frames` one that names the program, more rarely for known commands."""
    named = rng.random() < (0.5 if task.rank == 0 else 0.9)
    frame = rng.choice(frames or (WITH_PROGRAM if named else FRAMES))
    return ask(frame, task.wish, task.program, rng)


def ask(frame: str, wish: str, program: str, rng: Random) -> str:
    """Fill a frame, with other words of the same meaning and with the carelessness of people who type."""
    wish = _WORDS.sub(lambda m: rng.choice(_CHOICES[m[1]]) if rng.random() < 0.3 else m[1], lowered(wish))
    text = frame.format(wish=wish, program=program)
    if frame.startswith("{wish}") and rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return careless(text, rng)


def careless(text: str, rng: Random) -> str:
    """Now and then no capital at the start, or no mark at the end."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.12:
        text = text.rstrip("?.!") or text
    return text


def what_is(page: Page) -> str:
    """Says what a command is for, with its first task as the example."""
    example = page.tasks[0].command
    return f"`{page.program}` is a command-line tool: {lowered(page.summary)}. For example:\n\n```sh\n{example}\n```"
