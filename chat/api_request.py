"""A reply that a client of the API waits for: it is told as it grows, and nothing of it is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import hsd
from chat.request import EngineLike, Request

BEGIN, END = "<think>", "</think>"

Where = Literal["begin", "thought", "gap", "answer"]


class Split:
    """What a model thinks and what it answers, told apart while its text grows.

    Args:
        where: "thought" where the prompt has opened the thinking already, "answer" where no mark is to be looked for.

    Attributes:
        thought, answer: both only grow, and neither ever holds a part of a mark. Any thread may look.
    """

    def __init__(self, where: Where = "begin") -> None:
        self.thought = self.answer = ""
        self._where, self._held = where, ""

    def push(self, text: str) -> None:
        """More of the text."""
        self._held += text
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
        begun = next((size for size in range(len(END) - 1, 0, -1) if thought.endswith(END[:size])), 0)
        sure = thought[: len(thought) - begun].rstrip()
        self.thought += sure
        self._held = thought[len(sure) :]

    def flush(self) -> None:
        """The text is over: what was held back belongs where it stands."""
        if self._where == "thought":
            self.thought += self._held.rstrip()
        elif self._where == "begin":
            self.answer += self._held
        self._held = ""


def begins(tokenizer: Any, messages: Sequence[Mapping[str, Any]], thinking: bool | None) -> Where:
    """Where a reply begins: inside its thinking, if the chat template or the reply that goes on has opened it."""
    begun = str(messages[-1]["content"]).lstrip() if messages[-1]["role"] == "assistant" else ""
    if begun:
        return "thought" if begun.startswith(BEGIN) and END not in begun else "answer"
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or BEGIN not in template:
        return "begin"
    switch = {"enable_thinking": thinking} if thinking is not None and "enable_thinking" in template else {}
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **switch)
    except Exception:
        return "begin"  # templates may raise anything; the engine says so in words
    return "thought" if str(text).rstrip().endswith(BEGIN) else "begin"


@dataclass(slots=True)
class ApiRequest(Request):
    """A reply for a client of the API. All but `tell` is written in the worker's thread.

    Args:
        tell: called after every change, from any thread; with True after the last.
        split: the text so far.
        accepted: the engine has taken the prompt.
        reply: how it ended, if the engine said so.
        problem: why the engine refused.
        over: nothing changes any more.
        error: what the worker says of a failure.
    """

    tell: Callable[[bool], None] = lambda last: None
    split: Split = field(default_factory=Split)
    accepted: bool = False
    reply: hsd.Reply | None = None
    problem: hsd.HsdError | None = None
    over: bool = False
    error: str | None = None

    def run(self, engine: EngineLike, changed: Callable[[str], None]) -> dict[str, Any]:
        """Follow the reply to its end; nothing of the messages is left out, whatever the family does on the page.

        Raises:
            HsdError: what the engine refuses; kept in `problem` too.
        """
        self.split = Split(begins(engine.tokenizer, self.messages, self.params.thinking))
        try:
            for event in engine.stream(self.messages, self.params, plan=self.plan, cancel=self.cancel, drop=False):
                match event:
                    case hsd.Tokens():
                        self.add(event)
                        self.split.push(event.text)
                    case hsd.Started():
                        self.accepted = True
                    case hsd.Finished():
                        self.reply = event.reply
                self.tell(False)
        except hsd.HsdError as error:
            self.problem = error
            raise
        return {}

    def ending(self, values: dict[str, Any]) -> dict[str, Any]:
        """Nothing is stored of how it ended; the client is told."""
        self.split.flush()
        self.error = values.get("error")
        self.over = True
        self.tell(True)
        return {}
