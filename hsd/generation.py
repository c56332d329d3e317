"""One reply, from the ids of its prompt to its last event."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
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
        begun: `time.perf_counter()` when the call came.
        stop: when the first level stops drafting by value; None leaves it to its threshold.
        forecast_ms: what the planner expects of the plan, ms per token.
        dropped_turns: oldest turns that were left out of the prompt.
        cancel: set from anywhere to end the reply within one round.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    plan: Plan
    verification: Verification
    begun: float
    stop: StopRule | None = None
    forecast_ms: float | None = None
    dropped_turns: int = 0
    cancel: threading.Event = field(default_factory=threading.Event)


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
            make_levels(plan.names, plan.thresholds, conversation.reader, conversation.index),
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
        self._prefilled = request.begun
        self.target_prefill_seconds = 0.0
        self._levels: tuple[LevelStats, ...] = ()
        self._passes = 0

    def events(self) -> Iterator[Event]:
        """Everything but the last event; `finish` makes that."""
        yield Started(
            self.request.plan, len(self.request.prompt), self._reused, dropped_turns=self.request.dropped_turns
        )
        if not self._prefill():
            return
        hierarchy = self._hierarchy_of()
        try:
            while not (self._out_of_time() or hierarchy.finished or self._text.stopped):
                yield self._take(hierarchy.round())
        finally:
            self._levels = hierarchy.statistics()
            self._passes = len(self.rounds)

    @property
    def reason(self) -> FinishReason:
        """Why the reply ended, if nothing went wrong."""
        if self._text.stopped or (self._ids and self._ids[-1] in self._end_ids):
            return "stop"
        if self.request.cancel.is_set():
            return "cancelled"
        return "timeout" if self._out_of_time() else "length"

    def finish(
        self, reason: FinishReason, error: HsdError | None, baseline: Callable[[Generation], float | None]
    ) -> Reply:
        """The finished reply. `baseline`: seconds plain decoding would have taken, given this."""
        now = time.perf_counter()
        request, seconds = self.request, now - self.request.begun
        plain = baseline(self) if self._ids and error is None else None
        stats = ReplyStats(
            seconds=seconds,
            first_token_seconds=(self._first_token or now) - request.begun,
            prompt_tokens=len(request.prompt),
            reused_tokens=self._reused,
            tokens=len(self._ids),
            speedup=plain / seconds if plain else None,
            baseline_seconds=plain,
            plan=str(request.plan),
            target_passes=self._passes,
            levels=self._levels,
            provenance=tuple(self._origins),
            prefill_seconds=self._prefilled - request.begun,
            decode_seconds=now - self._prefilled,
            model_seconds=sum(level.seconds for level in self._levels),
            forecast_ms_per_token=request.forecast_ms,
            verification=request.verification,
        )
        text = self._text.text
        return Reply(text, tuple(self._ids), reason, stats, None if error is None else str(error), request.params.seed)

    def tail(self) -> Tokens | None:
        """Text that was held back at the end, as an event; None if there is none."""
        rest = self._text.flush()
        return Tokens(rest, (), ()) if rest else None

    @property
    def context_lengths(self) -> range:
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
        self._prefilled = time.perf_counter()
        return True

    def _take(self, done: Round) -> Tokens:
        self.rounds.append(done)
        if self._first_token is None:
            self._first_token = time.perf_counter()
        ended = done.tokens[-1] in self._end_ids
        shown, used = self._text.push(done.tokens[: len(done.tokens) - ended])
        if not self._text.stopped:
            used += ended
        ids, origins = done.tokens[:used], done.origins[:used]
        self._ids += ids
        self._origins += origins
        return Tokens(shown, tuple(ids), tuple(origins))

    def _out_of_time(self) -> bool:
        limit = self.request.params.time_limit
        return self.request.cancel.is_set() or (limit is not None and time.perf_counter() - self.request.begun > limit)
