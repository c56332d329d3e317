"""Thinking and answer in the text of a reply: one form for all families, and the way from a family's marks to it.

In every text that leaves the engine, a reply that thinks begins with `<think>`, and the first `</think>` ends the
thinking. Marks elsewhere are ordinary text. `ThinkingSplit` reads this form, `Normalizer` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

BEGIN, END = "<think>", "</think>"
_END_LINE = re.compile(r"^</think>[ \t]*(?:\n[ \t]*\n|\Z)", re.M)
_FENCE = re.compile(r"^[ \t>]*(`{3,}(?=[^`\n]*$)|~{3,})([^\n]*)", re.M)
_ESCAPED_END = "<\u200b/think>"  # the same letters inside a thought that something else ends

Where = Literal["begin", "thought", "gap", "answer"]

# Stand for a family's special tokens in text on its way to the normal form. Unicode has set these characters aside
# for use inside a program.
OPEN, CLOSE, ANSWER, OVER = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
HEADER, CHANNEL, MESSAGE, MESSAGE_END = "\ufdd4", "\ufdd5", "\ufdd6", "\ufdd7"
MARKS = frozenset((OPEN, CLOSE, ANSWER, OVER, HEADER, CHANNEL, MESSAGE, MESSAGE_END))
_CHANNEL_MARKS = re.compile(f"([{HEADER}{CHANNEL}{MESSAGE}{MESSAGE_END}])")


class Split(NamedTuple):
    """A reply's text in two. `over`: nothing more of the thinking can follow."""

    thought: str
    answer: str
    over: bool


class ThinkingSplit:
    """What a model thinks and what it answers, told apart while its text grows.

    Attributes:
        thought, answer: both only grow, and neither ever holds a part of a mark. Any thread may look.
    """

    def __init__(self) -> None:
        self.thought = self.answer = ""
        self._where: Where = "begin"
        self._held = ""
        self._blanks: list[str] = []

    @property
    def over(self) -> bool:
        """Whether nothing more of the thinking can follow."""
        return self._where in ("gap", "answer") or (not self._held.strip() and self._where == "begin")

    def push(self, text: str) -> None:
        """More of the text."""
        if self._where != "answer" and not text.strip():
            # They wait for what follows; looking at all of them for each one more would take long.
            self._blanks.append(text)
            return
        self._held += "".join(self._blanks) + text
        self._blanks.clear()
        if self._where == "begin":
            start = self._held.lstrip()
            if start.startswith(BEGIN):
                self._where, self._held = "thought", start.removeprefix(BEGIN)
            elif not BEGIN.startswith(start):
                self._where = "answer"
        if self._where == "thought":
            self._think()
        if self._where == "gap" and (start := self._held.lstrip()):
            self._where, self._held = "answer", start
        if self._where == "answer":
            self.answer += self._held
            self._held = ""

    def _think(self) -> None:
        thought, mark, rest = (self._held if self.thought else self._held.lstrip()).partition(END)
        if mark:
            self.thought += thought.rstrip()
            self._where, self._held = "gap", rest
            return
        # Blanks at its end and what may become the mark wait for what follows.
        sure = thought[: len(thought) - overlap(thought, END)].rstrip()
        self.thought += sure
        self._held = thought[len(sure) :]

    def flush(self) -> None:
        """The text is over: what was held back belongs where it stands."""
        self._held += "".join(self._blanks)
        self._blanks.clear()
        if self._where == "thought":
            self.thought += self._held.rstrip()
        elif self._where == "begin":
            self.answer += self._held
        self._held = ""


def split_thinking(text: str, older: bool = False) -> Split:
    """Thinking and answer of a text that may still grow; what may become a mark is in neither.

    Args:
        older: the text may be of a version that left the opening mark out where the prompt had written it. The closing
            mark then ends the thinking if it has a line of its own, an empty line follows, and no code block is open.
    """
    split = ThinkingSplit()
    split.push(text)
    end = _END_LINE.search(text) if older and not text.lstrip().startswith(BEGIN) else None
    if end and BEGIN not in text[: end.start()] and not _in_code(text[: end.start()]):
        return Split(text[: end.start()].strip(), text[end.end() :].lstrip(), True)
    return Split(split.thought.rstrip(), split.answer, split.over)


def _in_code(text: str) -> bool:
    """Whether a code block is open at the end. One is closed by the same mark, as long at least, on a line alone."""
    fence = ""
    for mark, rest in _FENCE.findall(text):
        if not fence:
            fence = mark
        elif mark.startswith(fence) and not rest.strip():
            fence = ""
    return bool(fence)


def with_thinking(thought: str, answer: str) -> str:
    """A text in the normal form, of thinking and answer apart. Without an answer the thinking is not over."""
    thought = thought.strip()
    if not thought or answer.lstrip().startswith(BEGIN):
        return answer
    return f"{BEGIN}\n{thought}\n{END}\n\n{answer}" if answer else f"{BEGIN}\n{thought}"


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """How a family marks thinking.

    Args:
        pairs: opening and closing mark each, as text; the first one is used to write.
        tokens: special token id -> the character that stands for it; marks that are such tokens count as tokens alone.
        texts: of `pairs`, the marks that are no special tokens: the text itself is the mark.
        answers: marks around the answer, as text; they are left out.
        labels: words that stand behind an opening mark and belong to it.
        channels: messages have headers with the name of a channel, as gpt-oss's have.
        own: the template or the vocabulary has such marks; False where `<think>` is no more than a common habit.
    """

    pairs: tuple[tuple[str, str], ...] = ((BEGIN, END),)
    tokens: Mapping[int, str] = field(default_factory=dict)
    texts: frozenset[str] = frozenset((BEGIN, END))
    answers: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()
    channels: bool = False
    own: bool = False

    @property
    def normal(self) -> bool:
        """Whether the family's own text is in the normal form."""
        return self.pairs[0] == (BEGIN, END) and not self.channels

    @property
    def label(self) -> str:
        """The word that is written behind the opening mark; empty where there is none."""
        return self.labels[0] if self.labels else ""

    def opened(self, text: str) -> str:
        """The opening mark that a prompt ends with, in the normal form, and the blanks behind it; empty if none."""
        marks = "|".join(re.escape(mark) for mark, _ in self.pairs)
        labels = "|".join(re.escape(label) for label in self.labels)
        found = re.search(f"(?:{marks})(?:{labels})?(\\s*)\\Z", text)
        return BEGIN + found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Start:
    """Where the text of a reply begins.

    Args:
        where: of the normal form.
        lead: text that comes before the first text, because the prompt has opened the thinking.
        before: the last ids of a reply that goes on; joins between tokens depend on them.
        held: the end of its thinking, where that may be the beginning of the closing mark.
        said: the end of its answer, where a stop string may begin.
    """

    where: Where = "begin"
    lead: str = ""
    before: tuple[int, ...] = ()
    held: str = ""
    said: str = ""


class Normalizer:
    """Writes a reply's text in the normal form while it grows.

    Args:
        marks: of the family.
        start: where the text begins.

    Attributes:
        over: the answer was ended by a mark; what follows does not belong to the reply.
    """

    def __init__(self, marks: ThinkingMarks, start: Start) -> None:
        self._marks, self._where, self._lead = marks, start.where, start.lead
        self._channels = _Channels(start.where == "thought") if marks.channels else None
        self._held = self._known = start.held
        self._closing = self._closings(None)  # texts that end the thinking
        self._opens = True  # the reply may begin with an opening mark
        self._labelled = False  # an opening mark was read, and its label may follow
        self._fresh = start.where == "thought" and bool(start.lead)  # nothing was thought yet
        self._pending = False  # the thinking is over, and its closing mark is not written yet
        goes_on = bool(start.before) and start.where == "answer"
        self._tail = marks.answers[0][1] if goes_on and marks.answers else ""  # closes a mark around the answer
        self._before: list[str] = []
        self._answer: list[str] = []
        self.over = False

    @property
    def plain(self) -> bool:
        """Whether text that holds no token's mark can pass as it is: the answer has begun, and nothing is held."""
        return self._where == "answer" and not self._held and not self._tail and self._channels is None

    def push(self, text: str) -> tuple[str, str]:
        """Takes new text; returns what can be shown: what comes before the answer, and what is of the answer."""
        if self._channels is not None:
            text = self._channels.push(text)
        if self._lead and text:
            self._before.append(self._lead)
            self._lead = ""
        self._held += text
        steps = {"begin": self._begin, "thought": self._think, "gap": self._gap, "answer": self._say}
        while steps[self._where]():
            pass
        return self._given()

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the text."""
        rest, self._held = _unmarked(self._held), ""
        if self._where == "thought":
            self._before.append(rest.replace(END, _ESCAPED_END))
        elif self._where == "gap":
            self._before.append((END if self._pending else "") + rest)
        elif not self._tail:
            self._answer.append(rest)
        self._pending = False
        return self._given()

    def _given(self) -> tuple[str, str]:
        before = "".join(self._before)
        if self._known and before:
            before, self._known = before.removeprefix(self._known), ""
        given = before, "".join(self._answer)
        self._before.clear()
        self._answer.clear()
        return given

    def _closings(self, opened_by: str | None) -> list[str]:
        return [c for o, c in self._marks.pairs if c in self._marks.texts and opened_by in (None, o)]

    def _begin(self) -> bool:
        start = self._held.lstrip()
        if not start:
            if not self._marks.own:
                self._answer.append(self._held)
                self._held = ""
            return False
        blanks = self._held[: len(self._held) - len(start)]
        if self._opens:
            opens = [o for o, _ in self._marks.pairs if o in self._marks.texts]
            mark = next((m for m in (*opens, OPEN) if start.startswith(m)), None)
            if mark:
                self._before.append(blanks + BEGIN)
                self._closing = self._closings(None if mark == OPEN else mark)
                self._where, self._held, self._fresh = "thought", start.removeprefix(mark), False
                self._labelled = True
                return True
            if start[0] == ANSWER:
                self._opens, self._held = False, blanks + start[1:]
                return True
            if any(o.startswith(start) for o in opens):
                return False
        if BEGIN.startswith(start) and start != BEGIN:
            return False
        if start.startswith(BEGIN):  # letters of the answer that would be read as the mark
            self._before.append(BEGIN + END)
        self._where = "answer"
        return True

    def _think(self) -> bool:
        if self._fresh or self._labelled:
            # The model may write again what the prompt, or the mark, has said.
            said = (OPEN, *(o for o, _ in self._marks.pairs if o in self._marks.texts)) if self._fresh else ()
            said = (*said, *self._marks.labels) if self._labelled else said
            start = self._held.lstrip()
            mark = next((m for m in said if start.startswith(m)), None)
            if not mark and any(m.startswith(start) for m in said):
                return False
            self._held = start.removeprefix(mark) if mark else self._held
            self._fresh = self._labelled = False
        ends = {mark: self._held.find(mark) for mark in (CLOSE, ANSWER, OVER, *self._closing)}
        found = [(place, mark) for mark, place in ends.items() if place >= 0]
        if not found:
            keep = max(overlap(self._held, mark) for mark in (END, *self._closing))
            self._thought(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
            return False
        place, mark = min(found)
        self._thought(self._held[:place])
        self._held = self._held[place:] if mark in (ANSWER, OVER) else self._held[place + len(mark) :]
        self._where, self._pending = "gap", True
        return True

    def _thought(self, text: str) -> None:
        text = _unmarked(text)
        self._before.append(text.replace(END, _ESCAPED_END))

    def _gap(self) -> bool:
        start = self._held.lstrip()
        if not start:
            return False
        if start[0] in (CLOSE, ANSWER) or (start[0] == OPEN and not self._pending):
            self._held = start[1:]
            return True
        if start[0] == OPEN:  # the thinking goes on in another message
            self._before.append("\n\n")
            self._where, self._held, self._pending = "thought", start[1:], False
            self._closing = self._closings(None)
            return True
        for opening, closing in self._marks.answers:
            if start.startswith(opening):
                self._held, self._tail = start.removeprefix(opening).lstrip(), closing
                self._where = "answer"
                self._close("\n\n")
                return True
            if opening.startswith(start):
                return False
        self._close(self._held[: len(self._held) - len(start)])
        self._where, self._held = "answer", start
        return True

    def _close(self, blanks: str) -> None:
        self._before.append((END if self._pending else "") + blanks)
        self._pending = False

    def _say(self) -> bool:
        text, over, _ = self._held.partition(OVER)
        text = text.replace(OPEN, BEGIN).replace(CLOSE, END)
        self.over = self.over or bool(over)
        self._held = ""
        if self._tail and not over:
            place = text.find(self._tail)
            keep = overlap(text, self._tail)
            if place >= 0 and not text[place + len(self._tail) :].strip():
                keep = len(text) - place
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._answer.append(_unmarked(text))
        return False


class _Channels:
    """Headers of messages, as gpt-oss writes them, to the marks of a family that has a mark for each part.

    A header goes from its first token to the one that begins the message; the channel's name stands in it. What is on
    the channel "final" is the answer, all else is thinking.
    """

    def __init__(self, thinking: bool) -> None:
        self._header: str | None = None
        self._final = not thinking

    def push(self, text: str) -> str:
        out = []
        for part in _CHANNEL_MARKS.split(text):
            if part in (HEADER, CHANNEL):
                self._header = ""
            elif part == MESSAGE:
                name = (self._header or "final").split()
                self._header, self._final = None, not name or name[0] == "final"
                out.append(ANSWER if self._final else OPEN)
            elif part == MESSAGE_END:
                if self._header is None:
                    out.append(OVER if self._final else CLOSE)
            elif self._header is not None:
                self._header += part
            else:
                out.append(part)
        return "".join(out)


_MARKS = str.maketrans(dict.fromkeys((OPEN, CLOSE, ANSWER, OVER)))


def _unmarked(text: str) -> str:
    return text.translate(_MARKS)


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark` and is not the whole of it."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
