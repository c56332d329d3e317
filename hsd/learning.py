"""What is kept of a reply, and idle work: which finished ones are scored, and how much time that may take."""

from __future__ import annotations

import itertools
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hsd import planning, scoring
from hsd.conversations import Conversation
from hsd.generation import Generation, Request
from hsd.levels import Round
from hsd.planner import Planner
from hsd.planning import Work
from hsd.sampling import Sampler
from hsd.stats import ReplyRecord, Stats, SwitchRecord, temperature_bucket
from hsd.types import LOOKUP, Plan, Reply

_SHARE = 0.05  # of the time of the replies, once the numbers are sure
_OUTCOME = 300  # tokens of a plan that make the outcome of a switch to it
_WAITING = 8  # finished replies that wait; older ones are let go
_WINDOW = 8  # newest replies whose verdicts are held against what was expected
_CONTRADICTION = -3.0  # standard errors from what was expected


@dataclass(frozen=True, slots=True)
class Scorable:
    """A finished reply that can be scored as long as its conversation holds its text.

    Args:
        conversation: whose caches hold it; a weak reference, so that waiting here keeps no memory.
        tokens: prompt and reply.
        request: what was asked.
        sampler: the reply's own.
        reply_id: its row in the statistics.
        due: whether a reply was to be scored before anything was known of this one. One that is scored because it was
            hard or long would make all look harder than they are.
    """

    conversation: weakref.ref[Conversation]
    tokens: tuple[int, ...]
    request: Request
    sampler: Sampler
    reply_id: int
    due: bool


class Doubts:
    """Whether drafts were kept less often, in finished replies, than the numbers that plans rest on say.

    The verdicts of a reply cost nothing and say at once what scoring, which has a small share of the time, would find
    out late: that a draft was replaced, or that the work is of another kind. They do not replace it: they hold for the
    pairs of one plan alone.

    Args:
        planner: what is expected.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._verdicts: dict[str, dict[tuple[str, str], deque[tuple[int, int]]]] = {}

    def replied(self, reply: Reply, made: Generation) -> None:
        """A reply was finished."""
        if made.switches:
            return
        found = self._verdicts.setdefault(
            temperature_bucket(made.request.params.temperature), defaultdict(lambda: deque(maxlen=_WINDOW))
        )
        for pair, kept, refused in verdicts_of(reply, made.rounds):
            found[pair].append((kept, refused))

    def contradict(self, temperature: float) -> bool:
        """Whether some pair's verdicts since the last scoring contradict what is expected of it."""
        rates = self._planner.evidence.rates(temperature)
        for pair, replies in self._verdicts.get(temperature_bucket(temperature), {}).items():
            kept, refused = (sum(counts) for counts in zip(*replies, strict=True))
            if (
                pair in rates
                and planning.shift_of([(kept, kept), *[(1, 0)] * refused], rates[pair]).seen < _CONTRADICTION
            ):
                return True
        return False

    def scored(self, temperature: float) -> None:
        """A reply was scored: what its verdicts said is known better now."""
        self._verdicts.pop(temperature_bucket(temperature), None)


def verdicts_of(reply: Reply, rounds: Sequence[Round]) -> list[tuple[tuple[str, str], int, int]]:
    """(draft and verifier, tokens kept, tokens refused) of every pair of a reply's chain.

    Tokens behind a refusal were not judged. Under the target every round is known. Below it only sums are, and a
    refusal can have cost a whole block: counted are as few as there can have been.
    """
    levels, blocks = reply.stats.levels, {s.name: s.threshold for s in Plan.parse(reply.stats.plan).drafts}
    out = []
    for draft, verifier in itertools.pairwise(levels):
        kept, lost = draft.accepted, draft.proposed - draft.accepted
        refused = -(-lost // max(blocks.get(draft.name, lost), 1))
        if verifier is levels[-1]:
            kept, refused = sum(r.accepted for r in rounds), sum(r.accepted < r.proposed for r in rounds)
        out.append(((draft.name, verifier.name), kept, refused))
    return out


class Learner:
    """Scores finished replies while nobody waits.

    Args:
        planner: says whether the numbers are sure already.
        stats: takes the scores.
        names: the family's models, cheapest first.
    """

    def __init__(self, planner: Planner, stats: Stats, names: Sequence[str]) -> None:
        self._planner = planner
        self._stats = stats
        self._names = list(names)
        self._waiting: deque[Scorable] = deque(maxlen=_WAITING)
        self._doubts = Doubts(planner)
        self.share = _SHARE
        self._reply_seconds = self._own_seconds = 0.0

    def replied(self, reply: Reply, made: Generation, conversation: Conversation | None, reply_id: int) -> None:
        """A reply was finished: a share of its time may be spent here, and it waits to be scored.

        Args:
            reply, made: the reply, and what made it.
            conversation: whose caches hold it; None if it cannot be scored.
            reply_id: its row in the statistics.
        """
        due = self._may(made.request.params.temperature)
        self._reply_seconds += reply.stats.seconds
        self._doubts.replied(reply, made)
        if conversation is not None and len(reply.token_ids) > 1:
            tokens = (*made.request.prompt, *reply.token_ids)
            self._waiting.append(Scorable(weakref.ref(conversation), tokens, made.request, made.sampler, reply_id, due))

    def clear(self) -> None:
        """Forgets what waits."""
        self._waiting.clear()

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Scores what waits, newest first; whether anything was scored. `should_stop` is asked before every pass."""
        scored = False
        while self._waiting and not should_stop():
            reply = self._waiting.pop()
            if reply.due and self._may(reply.request.params.temperature):
                scored = self._score(reply, should_stop) or scored
        return scored

    def _may(self, temperature: float) -> bool:
        """Whether a reply may be scored: a small share of the replies' time; until the numbers are sure, and once
        replies contradict them, as much as it takes."""
        estimates = self._planner.acceptances(temperature).values()
        sure = bool(estimates) and all(e.sure for e in estimates)
        return not sure or self._own_seconds <= self.share * self._reply_seconds or self._doubts.contradict(temperature)

    def _score(self, reply: Scorable, should_stop: Callable[[], bool]) -> bool:
        tokens = list(reply.tokens)
        conversation = reply.conversation()
        if conversation is None or conversation.shared(tokens) < len(tokens):
            return False  # dropped, edited or regenerated since: no cache holds its text
        begun = time.perf_counter()
        scores = scoring.score(conversation, self._names, tokens, len(reply.request.prompt), reply.sampler, should_stop)
        self._own_seconds += time.perf_counter() - begun
        if scores is None:
            self._waiting.append(reply)
            return False
        self._doubts.scored(reply.request.params.temperature)
        return self._stats.record_scores(reply.reply_id, scores.overlaps, scores.confidences)


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
    )
