"""Tells a client of the reply that the worker writes for it, in one piece or as it grows."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time

import hsd
from chat.api_answers import FINISH, Answer
from chat.api_fields import ApiError, too_long
from chat.api_http import Exchange
from chat.api_request import ApiRequest

PATIENCE_SECONDS = 10.0
"""A stream begins after this long, even if its turn has not come: a silent connection is taken for dead."""

SPACING_SECONDS = 0.02
"""Between two parts of a stream; the engine needs the processor more than a faster trickle does."""


class News:
    """Wakes one waiting coroutine of the loop that made it, from any thread."""

    def __init__(self) -> None:
        self._loop, self._event, self._told = asyncio.get_running_loop(), asyncio.Event(), False
        self._last = asyncio.Event()

    def tell(self, last: bool = False) -> None:
        """Something changed; for the last time."""
        if last or not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._set, last)

    def _set(self, last: bool) -> None:
        self._event.set()
        if last:
            self._last.set()

    async def wait(self, seconds: float | None) -> bool:
        """Whether something changed since the last call, as soon as it has or the time is up."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        self._told = False
        return True

    async def pause(self, seconds: float) -> None:
        """Let some time pass, unless nothing is to come any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._last.wait()


class Telling:
    """A client and the answer it gets.

    Args:
        http: where it is.
        answer: the shape of what it is told.

    Attributes:
        news: of the request that it waits for.
    """

    def __init__(self, http: Exchange, answer: Answer) -> None:
        self._http, self._answer, self._called = http, answer, time.monotonic()
        self.news = News()

    async def whole(self, request: ApiRequest) -> None:
        """The reply in one piece. Raises ApiError where there is none."""
        while not request.over:
            await self.news.wait(None)
        reply, answer = _finished(request), self._shape(request)
        await self._http.reply(200, answer.whole(request.thought, request.answer, reply, self._queued(request)))

    async def stream(self, request: ApiRequest, counted: bool) -> None:
        """The reply as it grows. Raises ApiError where it is refused before anything was sent.

        Args:
            counted: the end says what it cost.
        """
        while not (request.accepted or request.over):
            if not await self.news.wait(PATIENCE_SECONDS):
                break
        if request.over:
            _finished(request)
        await self._http.events()
        await self._http.event(self._shape(request).part({"role": "assistant", "content": ""}))
        try:
            await self._parts(request)
            for part in self._shape(request).last(_finished(request), self._queued(request), counted):
                await self._http.event(part)
        except ApiError as error:
            await self._http.event(error.body)
        await self._http.done()

    async def _parts(self, request: ApiRequest) -> None:
        sent = {"reasoning_content": 0, "content": 0}
        while True:
            over = request.over  # before the text is looked at: what is there then is all
            more = False
            for name, text in (("reasoning_content", request.thought), ("content", request.answer)):
                if len(text) > sent[name]:
                    await self._http.event(self._shape(request).part({name: text[sent[name] :]}))
                    sent[name], more = len(text), True
            if over:
                return
            if more:
                await self.news.pause(SPACING_SECONDS)
            if not await self.news.wait(PATIENCE_SECONDS):
                await self._http.comment("reading" if request.accepted else "waiting")

    def _shape(self, request: ApiRequest) -> Answer:
        return dataclasses.replace(self._answer, fingerprint=request.fingerprint)

    def _queued(self, request: ApiRequest) -> float:
        return max(0.0, request.started - self._called) if request.started else 0.0


def failed(sentence: str, status: int = 500) -> ApiError:
    """Something went wrong here, and the client could not help it."""
    return ApiError(status, sentence, kind="server_error", code="server_error")


def _finished(request: ApiRequest) -> hsd.Reply:
    """The reply of a request that is over. Raises ApiError where it has none."""
    problem, reply = request.problem, request.reply
    if isinstance(problem, hsd.PromptError):
        if problem.tokens is not None:
            raise too_long(request.context, f"resulted in {problem.tokens} tokens")
        raise ApiError(400, problem.message, problem.hint, param="messages")
    if isinstance(problem, hsd.ConfigError):
        # All else was checked before; only the engine knows the vocabulary.
        raise ApiError(400, problem.message, problem.hint, param="logit_bias" if request.params.logit_bias else None)
    if reply and reply.finish_reason in FINISH:
        return reply
    if reply and reply.error:
        raise failed(reply.error)
    if request.error:
        raise failed(request.error, 500 if request.started else 503)
    raise failed("The server is ending.", 503)
