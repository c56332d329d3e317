"""What is trained on, in which shares. A round is about half a million tokens; round r is a function of (seed, r).

Every source is walked in seeded permutations, so an item comes again only after all others of its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TypeVar

from hsd.builtin import DATA, own, persona, questions, sums
from hsd.builtin.conversation import Conversation, Turn, conversation, held_out
from hsd.builtin.frames import HELD_OUT_FRAMES, NEXT, WHAT_IS
from hsd.builtin.phrasing import answer, ask, careless, question, what_is
from hsd.builtin.tldr import Page, Task, read_pages

SYSTEMS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are a small model that knows command-line help and small talk.",
    "Answer the question.",
)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Shares:
    """Conversations of each kind in one round."""

    howtos: int = 2000
    named: int = 700
    common_tasks: int = 1500
    other_tasks: int = 900
    what_is: int = 300
    dialogues: int = 240
    app: int = 1000
    small_talk: int = 500
    limits: int = 450
    follow_ups: int = 500
    sums: int = 900


class Mixture:
    """All text of the family, read once.

    Args:
        corpus: folder with the files that `tldr` and `persona` name; None for the package's own data alone.
        size: how many parameters the family says that it has.
    """

    def __init__(
        self, corpus: Path | None, seed: int = 0, shares: Shares | None = None, size: str = "32 million"
    ) -> None:
        self.seed = seed
        self.shares = shares or Shares()
        self.howtos = own.read_howtos()
        self.named = own.read_howtos("named")
        self.scripts = {name: own.read_scripts(name, size) for name in own.SCRIPTS}
        common = frozenset((DATA / "common_commands.txt").read_text().split())
        pages = read_pages(corpus, common) if corpus else []
        self.common_pages = [page for page in pages if page.rank == 0]
        self.other_pages = [page for page in pages if page.rank > 0 and not held_out(page.program, 100)]
        self.held_out_pages = [page for page in pages if page.rank > 0 and held_out(page.program, 100)]
        dialogues = persona.read_dialogues(corpus) if corpus else []
        self.dialogues = [d for i, d in enumerate(dialogues) if not held_out(f"dialogue {i}", 50)]
        self.held_out_dialogues = [d for i, d in enumerate(dialogues) if held_out(f"dialogue {i}", 50)]

    @cached_property
    def _forbidden(self) -> frozenset[str]:
        return frozenset(map(questions.plain, questions.never_trained()))

    def is_forbidden(self, turns: Conversation) -> bool:
        """Whether something is asked that is kept for judging."""
        return any(questions.plain(turn.content) in self._forbidden for turn in turns if turn.role == "user")

    def round(self, number: int) -> list[Conversation]:
        """The conversations of one round, in the order in which they are trained on."""
        rng = Random(f"{self.seed} {number}")
        short = [turns for turns in self._short(number, rng) if not self.is_forbidden(turns)]
        rng.shuffle(short)
        joined = list(_join(short, rng))
        joined += [self._dialogue(d, rng) for d in self._take("dialogues", self.dialogues, number)]
        rng.shuffle(joined)
        return joined

    def hand_written(self) -> list[str]:
        """What people ask in the package's own data, word for word; what has names to fill in is left out."""
        asked = [text.lstrip("~") for howto in (*self.howtos, *self.named) for text in howto.asked]
        asked += [text for name in own.SCRIPTS for s in self.scripts[name] for ways in s.asked for text in ways]
        return [text for text in asked if "%" not in text]

    def held_out(self) -> dict[str, list[Conversation]]:
        """Texts for held-out loss: known tasks in an unseen frame, unseen pages, unseen dialogues, unseen questions."""
        rng = Random("held out")
        frames = HELD_OUT_FRAMES
        known = [h.play(rng, frames) for h in self.howtos[::4]]
        known += [_asked(t, rng, frames) for p in self.common_pages for t in p.tasks if held_out(t.command, 8)]
        sets = {
            "known tasks": known,
            "unseen pages": [_asked(task, rng) for page in self.held_out_pages for task in page.tasks[:3]],
            "dialogues": [turns for turns, _ in self.held_out_dialogues],
            "unseen questions": questions.read_replies(),
        }
        return {name: found for name, found in sets.items() if found}

    def _short(self, number: int, rng: Random) -> Iterator[Conversation]:
        yield from (h.play(rng) for h in self._take("howtos", self.howtos, number))
        yield from (h.play(rng) for h in self._take("named", self.named, number))
        for kind, pages in (("common_tasks", self.common_pages), ("other_tasks", self.other_pages)):
            tasks = [(page, i) for page in pages for i in range(len(page.tasks))]
            yield from (_task(page, i, rng) for page, i in self._take(kind, tasks, number))
        explained = [page for page in self.common_pages for _ in range(3)] + self.other_pages[::8]
        for page in self._take("what_is", explained, number):
            yield conversation(careless(rng.choice(WHAT_IS).format(program=page.program), rng), what_is(page))
        for name in own.SCRIPTS:
            yield from (script.play(rng) for script in self._take(name, self.scripts[name], number))
        kinds: tuple[Callable[[Random], Conversation], ...] = (sums.arithmetic, sums.units)
        yield from (rng.choice(kinds)(rng) for _ in range(self.shares.sums))

    def _take(self, kind: str, items: Sequence[_T], number: int) -> Iterator[_T]:
        """The items of a source that fall into a round, without replacement until the source is used up."""
        count = getattr(self.shares, kind) if items else 0
        order: list[int] = []
        epoch = -1
        for position in range(number * count, (number + 1) * count):
            if position // len(items) != epoch:
                epoch = position // len(items)
                order = list(range(len(items)))
                Random(f"{self.seed} {kind} {epoch}").shuffle(order)
            yield items[order[position % len(items)]]

    @staticmethod
    def _dialogue(dialogue: tuple[Conversation, str], rng: Random) -> Conversation:
        turns, character = dialogue
        return persona.in_character(turns, character) if rng.random() < 0.3 else turns


def _task(page: Page, index: int, rng: Random) -> Conversation:
    """A task asked for; a fifth of the time with a second task of the same page as the follow-up."""
    first = page.tasks[index]
    turns = _asked(first, rng)
    others = [task for task in page.tasks if task is not first]
    if not others or rng.random() > 0.2:
        return turns
    second = rng.choice(others)
    asked = ask(rng.choice(NEXT), second.wish, second.program, rng)
    return turns + conversation(asked, answer(second))


def _asked(task: Task, rng: Random, frames: tuple[str, ...] = ()) -> Conversation:
    return conversation(question(task, rng, frames=frames), answer(task))


def _join(short: list[Conversation], rng: Random) -> Iterator[Conversation]:
    """Some conversations go on with another subject, some have a system message: people do both."""
    held: Conversation = ()
    for turns in short:
        held += turns
        if len(held) < 8 and rng.random() < 0.25:
            continue
        yield (Turn("system", rng.choice(SYSTEMS)), *held) if rng.random() < 0.08 else held
        held = ()
    if held:
        yield held
