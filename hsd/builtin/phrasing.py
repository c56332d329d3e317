"""A task asked for in many ways, and the one way to answer it.

The answer repeats the wish in the words of the page before the command. So a paraphrased question is first
mapped to the known wish and only then to the command, which a small model learns more easily.
"""

from __future__ import annotations

import re
from random import Random

from hsd.builtin.frames import CLOSINGS, FRAMES, OPENINGS, WITH_PROGRAM
from hsd.builtin.tldr import Page, Task

_SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("display", "show", "list", "print", "see", "view"),
    ("remove", "delete", "get rid of", "erase"),
    ("create", "make", "set up"),
    ("directory", "folder", "dir"),
    ("directories", "folders", "dirs"),
    ("execute", "run"),
    ("a specific", "a", "a given", "some"),
    ("search for", "find", "look for"),
    ("extract", "unpack", "open"),
    ("modify", "change", "edit"),
    ("terminate", "stop", "end"),
    ("retrieve", "get", "fetch"),
    ("download", "fetch", "get"),
    ("compress", "shrink", "pack"),
    ("computer", "machine", "box"),
    ("information", "info", "details"),
    ("connect to", "log in to"),
    ("start", "launch"),
    ("repository", "repo"),
    ("environment variable", "variable", "env variable"),
)
_CHOICES = {word: group for group in _SYNONYMS for word in group}
_WORDS = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _CHOICES), key=len, reverse=True)) + r")\b")
_FILLERS = re.compile(
    "a|an|the|of|to|in|into|with|from|my|its|it|as|at|on|for|by|that|which|is|are|and|all|given", re.IGNORECASE
)
_DOUBLED = re.compile(
    "cut|drop|forget|get|grep|let|log|pop|put|quit|run|scan|set|shut|split|stop|strip|sum|tag|trim|unzip|zip"
)
_TYPED = re.compile(r"[a-z]{5,}")


def lowered(wish: str) -> str:
    """The wish as it stands inside a sentence: no capital unless it is a name or an acronym."""
    first = wish.split(maxsplit=1)[0]
    return wish if first[1:] != first[1:].lower() else wish[0].lower() + wish[1:]


def doing(wish: str) -> str:
    """The wish with its verb in -ing: "list files" becomes "listing files".

    >>> doing("remove duplicate lines"), doing("stop a service"), doing("see the date")
    ('removing duplicate lines', 'stopping a service', 'seeing the date')
    """
    verb, _, rest = wish.partition(" ")
    if _DOUBLED.fullmatch(verb):
        verb += verb[-1]
    elif verb.endswith("e") and not verb.endswith(("ee", "ye")):
        verb = verb[:-1]
    return f"{verb}ing {rest}".strip()


def keywords(wish: str) -> str:
    """What is left for a search field: no small words."""
    kept = [word for word in wish.split() if not _FILLERS.fullmatch(word)]
    return " ".join(kept) or wish


def answer(task: Task) -> str:
    """The reply to every question that asks for `task`."""
    if ":" in task.wish or not task.wish[0].isalpha():
        return f"{task.wish}, with `{task.program}`:\n\n```sh\n{task.command}\n```"
    return f"To {lowered(task.wish)}, use `{task.program}`:\n\n```sh\n{task.command}\n```"


def question(task: Task, rng: Random, *, frames: tuple[str, ...] = ()) -> str:
    """A question for `task`. Without `frames` the less known commands are always named: a wish alone, asked of one in
    thousands of them, can only teach to invent names."""
    named = task.rank > 0 or rng.random() < 0.4
    frame = rng.choice(frames or (WITH_PROGRAM if named else FRAMES))
    return ask(frame, task.wish, task.program, rng)


def ask(frame: str, wish: str, program: str, rng: Random) -> str:
    """Fill a frame, with other words of the same meaning and with the carelessness of people who type."""
    wish = _WORDS.sub(lambda m: rng.choice(_CHOICES[m[1]]) if rng.random() < 0.3 else m[1], lowered(wish))
    verb = wish.split()[0]
    if "{doing}" in frame and (not (verb.isalpha() and verb.islower()) or verb.endswith("ly")):
        frame = frame.replace("{doing}", "{wish}")
    text = frame.format(wish=wish, program=program, doing=doing(wish), keywords=keywords(wish))
    if frame.startswith(("{wish}", "{doing}")) and rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.08:
        text = rng.choice(OPENINGS) + (text[0].lower() + text[1:] if rng.random() < 0.7 else text)
    if rng.random() < 0.07:
        text = text.rstrip("?.!") + rng.choice(CLOSINGS)
    return careless(text, rng, keep=program)


def careless(text: str, rng: Random, keep: str = "") -> str:
    """Now and then no capital, no mark at the end, or a slip of the finger.

    Args:
        keep: a word that is never misspelt.
    """
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.04:
        text = text.lower()
    if rng.random() < 0.12:
        text = text.rstrip("?.!") or text
    if rng.random() < 0.06:
        text = _slip(text, rng, keep)
    return text


def _slip(text: str, rng: Random, keep: str) -> str:
    """One word of five letters or more loses a letter, doubles one or swaps two; paths and names stay whole."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if _TYPED.fullmatch(word.strip("?.!,")) and word not in keep]
    if not places:
        return text
    place = rng.choice(places)
    word, at = words[place], rng.randrange(1, 4)
    pair = word[at : at + 2]
    words[place] = word[:at] + rng.choice((pair[1:], pair[0] + pair, pair[::-1])) + word[at + 2 :]
    return " ".join(words)


def what_is(page: Page) -> str:
    """Says what a command is for, with its first task as the example."""
    example = page.tasks[0].command
    return f"`{page.program}` is a command-line tool: {lowered(page.summary)}. For example:\n\n```sh\n{example}\n```"
