"""One reply, from the ids of its prompt to its last event."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from hsd.conversations import Conversation
from hsd.errors import HsdError
from hsd.hierarchy import Hierarchy, Round, TokenSequence, failed_pass, make_levels
from hsd.params import SamplingParams
from hsd.planning import StopRule
from hsd.prompts import Tokenizer
from hsd.runtime import Reader
from hsd.sampling import Sampler
from hsd.text import TextStream
from hsd.types import (
    Event,
    FinishReason,
    LevelStats,
    Plan,
    Reply,
    ReplyStats,
    Started,
    Tokens,
    Verification,
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the engine, complete: nothing here changes while the reply is made.

    Args:
        prompt: token ids.
        params: sampling settings; `seed` is set.
        plan: the plan to run, frozen.
        verification: rule above temperature 0.
        spent: seconds from the call until this was complete; waiting for other replies is not among them.
        stop: when the first level stops drafting by value; None leaves it to its threshold.
        forecast_ms: what the planner expects of the plan, ms per token.
        dropped_turns: oldest turns that were left out of the prompt.
        cancel: set from anywhere to end the reply within one round.
        plain: what the same prompt cost when it was decoded plainly; None leaves the baseline to an estimate.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    plan: Plan
    verification: Verification
    spent: float
    stop: StopRule | None = None
    forecast_ms: float | None = None
    dropped_turns: int = 0
    cancel: threading.Event = field(default_factory=threading.Event)
    plain: ReplyStats | None = None


class _Clock:
    """Seconds that a reply takes: it stands still while whoever listens is busy with an event."""

    def __init__(self, spent: float) -> None:
        self._zero = time.perf_counter() - spent

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._zero

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        at = time.perf_counter()
        try:
            yield
        finally:
            self._zero += time.perf_counter() - at


class Generation:
    """A reply in the making.

    Args:
        request: what is asked.
        conversation: caches, turned to the prompt.
        tokenizer: ids to text.
        vocab, end_ids, context: of the family.
        device: where the target's logits are.
    """

    def __init__(
        self,
        request: Request,
        conversation: Conversation,
        tokenizer: Tokenizer,
        *,
        vocab: int,
        end_ids: tuple[int, ...],
        context: int,
        device: torch.device,
    ) -> None:
        self.request = request
        self.rounds: list[Round] = []
        self._conversation = conversation
        self._end_ids = end_ids
        self.sampler = Sampler(request.params, request.prompt, vocab, device)
        self._sequence = TokenSequence(conversation.tokens, len(request.prompt))
        coins = random.Random(request.params.seed)
        plan = request.plan
        self.readers: dict[str, Reader] = {n: conversation.reader(n) for n in plan.names if n in conversation.models}
        self._reused = self.readers[plan.target].length
        self._hierarchy_of = lambda: Hierarchy(
            make_levels(plan.names, plan.thresholds, conversation.reader, lambda: conversation.index),
            self._sequence,
            self.sampler,
            end_ids=end_ids,
            limit=min(context, len(request.prompt) + request.params.max_tokens),
            rule=request.verification,
            coins=coins,
            stop=request.stop,
        )
        self._text = TextStream(tokenizer, request.params.stop)
        self._ids: list[int] = []
        self._origins: list[str] = []
        self._first_token: float | None = None
        self._clock = _Clock(request.spent)
        self._prefilled = 0.0
        self.target_prefill_seconds = 0.0
        self._levels: tuple[LevelStats, ...] = ()
        self._full = False

    def events(self) -> Iterator[Event]:
        """Everything but the last event; `finish` makes that."""
        request = self.request
        started = Started(request.plan, len(request.prompt), self._reused, dropped_turns=request.dropped_turns)
        with self._clock.stopped():
            yield started
        read = self._prefill()
        self._prefilled = self._clock.seconds
        if not read:
            return
        hierarchy = self._hierarchy_of()
        try:
            while not (self._text.stopped or hierarchy.finished or self._out_of_time()):
                event = self._take(hierarchy.round())
                with self._clock.stopped():
                    yield event
            self._full = hierarchy.finished
        finally:
            self._levels = hierarchy.statistics()

    @property
    def reason(self) -> FinishReason:
        """Why the reply ended, if nothing went wrong."""
        if self._text.stopped or (self._ids and self._ids[-1] in self._end_ids):
            return "stop"
        if self._full:
            return "length"
        return "cancelled" if self.request.cancel.is_set() else "timeout"

    def finish(self, reason: FinishReason, error: HsdError | None, plain_ms: Callable[[Sequence[int]], float]) -> Reply:
        """The finished reply.

        Args:
            reason, error: why it ended.
            plain_ms: ms of plain steps of the target at given context lengths, added up. The baseline is the target's
                own time on the prompt and one such step per token.
        """
        request, seconds = self.request, self._clock.seconds
        plain = None
        if self._ids and error is None and request.plain:
            plain = request.plain.prefill_seconds + request.plain.decode_seconds * len(self._ids) / request.plain.tokens
        elif self._ids and error is None:
            plain = self.target_prefill_seconds + plain_ms(self._context_lengths) / 1000
        stats = ReplyStats(
            seconds=seconds,
            first_token_seconds=self._first_token or seconds,
            prompt_tokens=len(request.prompt),
            reused_tokens=self._reused,
            tokens=len(self._ids),
            speedup=plain / seconds if plain else None,
            baseline_seconds=plain,
            baseline="measured" if request.plain else "estimated",
            plan=str(request.plan),
            target_passes=self._levels[-1].passes if self._levels else 0,
            levels=self._levels,
            provenance=tuple(self._origins),
            prefill_seconds=self._prefilled,
            decode_seconds=seconds - self._prefilled,
            model_seconds=sum(level.seconds for level in self._levels),
            forecast_ms_per_token=request.forecast_ms,
            verification=request.verification,
        )
        # A seed that was drawn here reproduces the reply only where nothing learned had a part in it.
        seed = None if request.stop and not request.params.greedy else request.params.seed
        return Reply(self._text.text, tuple(self._ids), reason, stats, None if error is None else str(error), seed)

    def tail(self) -> Tokens | None:
        """Text that was held back at the end, as an event; None if there is none."""
        rest = self._text.flush()
        return Tokens(rest, (), (), self._clock.seconds) if rest else None

    @property
    def _context_lengths(self) -> range:
        """Cached tokens before each token of the reply, had it been decoded plainly."""
        return range(len(self.request.prompt) - 1, len(self.request.prompt) - 1 + len(self._ids))

    def _prefill(self) -> bool:
        """Reads the prompt, all but its last token: that one is read by the first round of every level."""
        before_last = self._conversation.tokens[: len(self.request.prompt) - 1]
        for name, reader in self.readers.items():
            begun = time.perf_counter()
            try:
                if not reader.prefill(before_last, self._out_of_time):
                    return False
            except Exception as error:
                raise failed_pass(name, error) from error
            if name == self.request.plan.target:
                self.target_prefill_seconds = time.perf_counter() - begun
        return True

    def _take(self, done: Round) -> Tokens:
        self.rounds.append(done)
        if self._first_token is None:
            self._first_token = self._clock.seconds
        ended = done.tokens[-1] in self._end_ids
        shown, used = self._text.push(done.tokens[: len(done.tokens) - ended])
        if not self._text.stopped:
            used += ended
        ids, origins = done.tokens[:used], done.origins[:used]
        self._ids += ids
        self._origins += origins
        return Tokens(shown, tuple(ids), tuple(origins), self._clock.seconds)

    def _out_of_time(self) -> bool:
        limit = self.request.params.time_limit
        return self.request.cancel.is_set() or (limit is not None and self._clock.seconds > limit)
