"""A reply that a client of the API waits for: it is told as it grows, and nothing of it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hsd
from chat.api_answers import fingerprint
from chat.request import EngineLike, Request


@dataclass(slots=True)
class ApiRequest(Request):
    """A reply for a client of the API. All but `tell` is written in the worker's thread.

    Args:
        tell: called after every change, from any thread; with True after the last.
        split: the text so far, with what the client has sent of it.
        sent: letters of the thinking and of the answer that the client has sent.
        accepted: the engine has taken the prompt.
        reply: how it ended, if the engine said so.
        problem: why the engine refused.
        context: of the engine that took it, in tokens.
        fingerprint: of what determines the reply; None until the engine has taken the prompt.
        over: nothing changes any more.
        error: what the worker says of a failure.
    """

    tell: Callable[[bool], None] = lambda last: None
    split: hsd.ThinkingSplit = field(default_factory=hsd.ThinkingSplit)
    sent: tuple[int, int] = (0, 0)
    accepted: bool = False
    reply: hsd.Reply | None = None
    problem: hsd.HsdError | None = None
    context: int = 0
    fingerprint: str | None = None
    over: bool = False
    error: str | None = None

    @property
    def thought(self) -> str:
        """What was thought so far."""
        return self.split.thought[self.sent[0] :]

    @property
    def answer(self) -> str:
        """What was answered so far."""
        return self.split.answer[self.sent[1] :]

    def run(self, engine: EngineLike, changed: Callable[[str], None]) -> dict[str, Any]:
        """Follow the reply to its end; nothing of the messages is left out, whatever the family does on the page.

        Raises:
            HsdError: what the engine refuses; kept in `problem` too.
        """
        info = engine.info
        self.context = info.context
        last = self.messages[-1]
        if last["role"] == "assistant":
            begun = hsd.with_thinking(last.get("reasoning_content", ""), last["content"])
            self.split.push(begun)
            if not begun.lstrip().startswith("<think>"):
                self.split.flush()  # the answer has begun, also with "<"
            self.sent = len(self.split.thought), len(self.split.answer)
        try:
            for event in engine.stream(self.messages, self.params, plan=self.plan, cancel=self.cancel, drop=False):
                match event:
                    case hsd.Tokens():
                        self.add(event)
                        self.split.push(event.text)
                    case hsd.Started():
                        self.fingerprint = fingerprint(info, event.plan)
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
