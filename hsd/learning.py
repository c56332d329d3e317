"""What is kept of a reply, and idle work: which finished ones are scored, and how much time that may take."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hsd import planning, scoring
from hsd.conversations import Conversation
from hsd.generation import Generation, Request
from hsd.levels import Round
from hsd.planner import Planner
from hsd.planning import Work
from hsd.sampling import Sampler
from hsd.scoring import Scores
from hsd.stats import ReplyRecord, Stats, SwitchRecord
from hsd.types import LOOKUP, Plan, Reply

SHARE = 0.1
"""Of the time of the replies, what idle work may take."""

STRETCH = 0.5
"""Seconds that idle work takes at most before it lets everything else on the machine have its turn."""

_LEAST = 1.0  # seconds that it may take in any case, so that fast models are known after a few replies
_PASS = 0.3  # seconds of one pass
_NARROWEST, _WIDEST = 32, 256  # tokens of one; narrower ones take much longer for each token
_OUTCOME = 300  # tokens of a plan that make the outcome of a switch to it
_WAITING = 8  # finished replies that wait; older ones are let go


class Allowance:
    """Seconds that idle work may take: a share of what replies took.

    Args:
        share: of their time.
    """

    def __init__(self, share: float = SHARE) -> None:
        self.share = share
        self.replies = self.spent = 0.0

    @property
    def left(self) -> float:
        """Seconds that may be spent now; below 0 where more was spent than allowed."""
        return max(self.share * self.replies, _LEAST) - self.spent

    @property
    def earned(self) -> float:
        """The same of the share alone: for work that can wait until replies have taken their time."""
        return self.share * self.replies - self.spent

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Counts the time inside."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - begun


@dataclass(slots=True)
class Scorable:
    """A finished reply that can be scored as long as its conversation holds its text.

    Args:
        conversation: whose caches hold it; a weak reference, so that waiting here keeps no memory.
        turn: what `conversation.turn` was then.
        tokens: prompt and reply.
        request: what was asked.
        sampler: the reply's own.
        chances: the target's probability of every token of the reply; None where they are not known.
        reply_id: its row in the statistics.
        work: the passes that score it, once they have begun.
    """

    conversation: weakref.ref[Conversation]
    turn: int
    tokens: tuple[int, ...]
    request: Request
    sampler: Sampler
    chances: tuple[float, ...] | None
    reply_id: int
    work: Generator[None, None, Scores] | None = None


class Learner:
    """Scores finished replies while nobody waits.

    A lookup is scored on every reply, because that takes no pass. Drafts are scored on as many replies as the allowance
    is enough for, newest first. A reply of which nothing is known yet is not picked for what it says: what one costs
    follows from its length alone.

    Args:
        planner: knows what passes take.
        stats: takes the scores.
        names: the family's models, cheapest first.
    """

    def __init__(self, planner: Planner, stats: Stats, names: Sequence[str]) -> None:
        self._planner = planner
        self._stats = stats
        self._names = list(names)
        self._waiting: deque[Scorable] = deque(maxlen=_WAITING)
        self.allowance = Allowance()

    def replied(self, reply: Reply, made: Generation, conversation: Conversation | None, reply_id: int) -> None:
        """A reply was finished: a share of its time may be spent here, and it waits to be scored.

        Args:
            reply, made: the reply, and what made it.
            conversation: whose caches hold it; None if it cannot be scored.
            reply_id: its row in the statistics.
        """
        self.allowance.replies += reply.stats.seconds
        if conversation is None or not reply.token_ids:
            return
        tokens = (*made.request.prompt, *reply.token_ids)
        own = scoring.lookup_scores(tokens, len(made.request.prompt), self._names[-1])
        self._stats.record_scores(reply_id, own.overlaps, own.confidences)
        if len(self._names) > 1:
            link = weakref.ref(conversation)
            self._waiting.append(
                Scorable(link, conversation.turn, tokens, made.request, made.sampler, made.chances, reply_id)
            )

    def clear(self) -> None:
        """Forgets what waits."""
        self._waiting.clear()

    @property
    def waits(self) -> bool:
        """Whether a reply waits that can be scored now."""
        return self._next() is not None

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Scores what waits, for at most `STRETCH` seconds; whether a reply was scored to its end.

        Args:
            should_stop: asked before every pass.
        """
        scored, longest, begun = False, _PASS, time.perf_counter()
        while not should_stop() and (before := time.perf_counter()) - begun + longest < STRETCH:
            reply = self._next()
            if reply is None:
                break
            scored = self._advance(reply) or scored
            longest = max(longest, time.perf_counter() - before)
        return scored

    def _next(self) -> Scorable | None:
        """The newest reply that waits, if there is time left for it."""
        while self._waiting:
            newest = self._waiting[-1]
            conversation = newest.conversation()
            if conversation is not None and conversation.turn == newest.turn:
                return newest if newest.work or self._seconds(newest, conversation) <= self.allowance.left else None
            self._waiting.pop()  # dropped, edited or gone on since: no cache holds its text alone
        return None

    def _seconds(self, reply: Scorable, conversation: Conversation) -> float:
        """What scoring a reply will take."""
        read = self._names[:-1] if reply.chances is not None else self._names
        held = {name: len(reader) for name, reader in conversation.readers.items()}
        behind = {name: len(reply.tokens) - min(held.get(name, 0), len(reply.request.prompt)) for name in read}
        return sum(count * self._planner.profile.prompt_ms(name) / 1000 for name, count in behind.items())

    def _advance(self, reply: Scorable) -> bool:
        """One pass; whether it was the last one."""
        conversation = reply.conversation()
        assert conversation is not None
        if reply.work is None:
            prompt = len(reply.request.prompt)
            reply.work = scoring.passes(
                conversation, self._names, reply.tokens, prompt, reply.sampler, reply.chances, self._width
            )
        try:
            with self.allowance.spending():
                next(reply.work)
            return False
        except StopIteration as end:
            self._waiting.remove(reply)
            for name in self._names[:-1]:
                self._planner.profile.learn_reading(name, conversation.reader(name).meter.passes)
            scores: Scores = end.value
            return self._stats.record_scores(reply.reply_id, scores.overlaps, scores.confidences)

    def _width(self, name: str) -> int:
        """Most tokens of one pass."""
        return max(_NARROWEST, min(_WIDEST, int(1000 * _PASS / self._planner.profile.prompt_ms(name))))


class Outcomes:
    """Stores changes of plan inside replies, and beside every change what the new plan then took.

    Args:
        planner: knows the changes between replies.
        stats: takes them.
    """

    def __init__(self, planner: Planner, stats: Stats) -> None:
        self._planner = planner
        self._stats = stats
        self._sums: dict[int, tuple[int, float]] = {}  # switch -> tokens and ms since

    def replied(self, reply: Reply, made: Generation, reply_id: int) -> None:
        """A reply was finished."""
        work = work_of(reply)
        if work and not made.switches and reply.finish_reason in ("stop", "length"):
            self._planner.profile.worked(made.request.params.greedy, work)
        marks = [0, *(rounds for _, rounds in made.switches), len(made.rounds)]
        for (switch, begin), end in zip(made.switches, marks[2:], strict=True):
            tokens, ms = _taken(made.rounds[begin:end])
            self._stats.record_switch(
                SwitchRecord(
                    family=self._planner.family,
                    from_plan=str(switch.from_plan),
                    to_plan=str(switch.plan),
                    reason=switch.reason,
                    from_forecast_ms=switch.from_ms,
                    to_forecast_ms=switch.to_ms,
                    reply_id=reply_id,
                    at_token=switch.at_token,
                    outcome_ms=ms / tokens if tokens else None,
                )
            )
        for number, plan in list(self._planner.awaited.items()):
            # At whatever thresholds: they differ where nothing stops by value.
            if plan.names == made.request.plan.names:
                self._note(number, *_taken(made.rounds[: marks[1]]))

    def _note(self, number: int, tokens: int, ms: float) -> None:
        """More is known of a change between replies; after enough tokens its outcome stands."""
        before = self._sums.get(number, (0, 0.0))
        tokens, ms = self._sums[number] = before[0] + tokens, before[1] + ms
        if tokens:
            self._stats.record_outcome(number, ms / tokens)
        if tokens >= _OUTCOME:
            del self._planner.awaited[number], self._sums[number]


def _taken(rounds: Sequence[Round]) -> tuple[int, float]:
    """Tokens and ms of rounds."""
    return sum(len(r.tokens) for r in rounds), 1000 * sum(r.seconds for r in rounds)


def work_of(reply: Reply) -> Work | None:
    """What a reply did outside model passes; None where the prompt alone was read."""
    stats = reply.stats
    if not stats.target_passes:
        return None
    first, *others = stats.levels
    verifying = others if others else [first]
    drafted = first.passes if others and first.name != LOOKUP else 0
    return Work(
        drafted=drafted,
        middle=sum(level.passes for level in others[:-1]),
        rounds=stats.target_passes,
        rows=round(sum(level.width * level.passes for level in verifying)),
        outside_ms=1000 * (stats.decode_seconds - stats.model_seconds),
    )


def record_of(reply: Reply, request: Request, rounds: Sequence[Round], family: str, device: str) -> ReplyRecord:
    """What is stored of a reply.

    Args:
        reply, request: the reply and what was asked.
        rounds: the target's rounds.
        family: key of the family in the statistics.
        device: where the target ran.
    """
    stats = reply.stats
    last = {stage.name: stage.threshold for stage in Plan.parse(stats.plan).drafts}
    return ReplyRecord(
        family=family,
        device=device,
        plan=stats.plan,
        temperature=request.params.temperature,
        verification=request.verification,
        prompt_tokens=stats.prompt_tokens,
        reused_tokens=stats.reused_tokens,
        reply_tokens=stats.tokens,
        seconds=stats.seconds,
        first_token_seconds=stats.first_token_seconds,
        target_passes=stats.target_passes,
        finish_reason=reply.finish_reason,
        baseline_seconds=stats.baseline_seconds,
        baseline=stats.baseline,
        speedup=stats.speedup,
        forecast_ms_per_token=stats.forecast_ms_per_token,
        decode_seconds=stats.decode_seconds,
        levels=stats.levels,
        thresholds=tuple(last.get(level.name) for level in stats.levels),
        rounds=tuple((r.proposed, r.accepted, r.seconds * 1000) for r in rounds),
        seed=reply.seed,
        planner_json=request.frozen() if request.frozen else "",
        sketch=planning.sketch(request.prompt).astype("<f2").tobytes(),
    )
