"""One reply, from the ids of its prompt to its last event."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from hsd.conversations import Conversation
from hsd.errors import HsdError
from hsd.failures import failed_pass
from hsd.hierarchy import Hierarchy
from hsd.kernels import Kernels
from hsd.levels import Round, TokenSequence, make_levels
from hsd.marks import Marks, Tokenizer
from hsd.params import SamplingParams
from hsd.planning import StopRule
from hsd.replanning import Switch, Watch
from hsd.runtime import Reader
from hsd.sampling import Sampler
from hsd.text import TextStream
from hsd.thinking import Start
from hsd.types import (
    LOOKUP,
    Event,
    FinishReason,
    LevelStats,
    Plan,
    Replanned,
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
        watch: may change the plan between two rounds; None keeps it to the end.
        frozen: for a reply with a seed, gives what its plan rests on, JSON; stored with it.
        start: where the text of the reply begins.
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
    watch: Watch | None = None
    frozen: Callable[[], str] | None = None
    start: Start = field(default_factory=Start)


class _Clock:
    """Seconds that a reply takes; as a context it stands still, while whoever listens is busy with an event."""

    def __init__(self, spent: float) -> None:
        self._zero = time.perf_counter() - spent
        self._stopped = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._zero

    def __enter__(self) -> None:
        self._stopped = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._zero += time.perf_counter() - self._stopped


class Generation:
    """A reply in the making.

    Args:
        request: what is asked.
        conversation: caches, turned to the prompt.
        tokenizer: ids to text.
        marks: of the family; its turns end the reply, too.
        vocab, end_ids, context: of the family.
        device: where the target's logits are.
        kernels: draw and verify in one function each.
    """

    def __init__(
        self,
        request: Request,
        conversation: Conversation,
        tokenizer: Tokenizer,
        *,
        marks: Marks,
        vocab: int,
        end_ids: tuple[int, ...],
        context: int,
        device: torch.device,
        kernels: Kernels | None = None,
    ) -> None:
        self.request = request
        self.rounds: list[Round] = []
        self._conversation = conversation
        self._end_ids = end_ids
        self.sampler = Sampler(request.params, request.prompt, vocab, device, kernels)
        self._sequence = TokenSequence(conversation.tokens, len(request.prompt))
        coins = random.Random(request.params.seed)
        self.readers: dict[str, Reader] = {}
        self._meet(request.plan)
        self._reused = self.readers[request.plan.target].length
        self._hierarchy_of = lambda plan, stop: Hierarchy(
            make_levels(plan.names, plan.thresholds, conversation.reader, lambda: conversation.index),
            self._sequence,
            self.sampler,
            end_ids=end_ids,
            limit=min(context, len(request.prompt) + request.params.max_tokens),
            rule=request.verification,
            coins=coins,
            stop=stop,
        )
        self.plan = request.plan
        self.switches: list[tuple[Switch, int]] = []  # and the rounds before it
        stop = dict.fromkeys((*request.params.stop, *marks.end_texts))
        self._text = TextStream(tokenizer, tuple(stop), marks.thinking, request.start)
        self._ids: list[int] = []
        self._origins: list[str] = []
        self._chances: list[float] = []
        self._first_token: float | None = None
        self._clock = _Clock(request.spent)
        self._prefilled = self._seconds = 0.0
        self.target_prefill_seconds = 0.0
        self._chain: Hierarchy | None = None
        self._past: list[tuple[LevelStats, ...]] = []  # of chains that were left
        self._levels: tuple[LevelStats, ...] = ()
        self._full = False

    def events(self) -> Iterator[Event]:
        """Everything but the last event; `finish` makes that."""
        request = self.request
        started = Started(request.plan, len(request.prompt), self._reused, dropped_turns=request.dropped_turns)
        with self._clock:
            yield started
        read = self._prefill()
        self._prefilled = self._clock.seconds
        if not read:
            return
        try:
            yield from self._decode()
            self._seconds = self._clock.seconds  # the last token is out; what follows is bookkeeping
        finally:
            chains = [*self._past, self._chain.statistics() if self._chain else ()]
            self._levels = merged(chains, list(self._conversation.models))

    def _decode(self) -> Iterator[Event]:
        """Round after round; between two of them the plan may change."""
        request = self.request
        hierarchy = self._chain = self._hierarchy_of(request.plan, request.stop)
        while not (self._text.stopped or hierarchy.finished or self._out_of_time()):
            done = hierarchy.round()
            event = self._take(done)
            with self._clock:
                yield event
            switch = request.watch.after(done, self._cached) if request.watch else None
            if switch is None or self._text.stopped or hierarchy.finished:
                continue
            self._past.append(hierarchy.statistics())
            self._chain = None
            if not self._catch_up(switch.plan):
                break
            hierarchy = self._chain = self._hierarchy_of(switch.plan, switch.stop)
            self.plan = switch.plan
            self.switches.append((switch, len(self.rounds)))
            with self._clock:
                yield Replanned(switch.plan, switch.reason)
        self._full = hierarchy.finished

    def _meet(self, plan: Plan) -> None:
        """Readers of all models of a plan."""
        models = self._conversation.models
        self.readers |= {name: self._conversation.reader(name) for name in plan.names if name in models}

    def _cached(self, name: str) -> int:
        """Leading tokens of the text that a model has cached."""
        held = self._conversation.readers
        return len(held[name]) if name in held else 0

    def _catch_up(self, plan: Plan) -> bool:
        """Levels that join read what there is of the text, as they would a prompt; False if it was stopped."""
        self._meet(plan)
        return self._read([name for name in plan.names[:-1] if name in self.readers], self._sequence.tokens[:-1])

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
        request, seconds = self.request, self._seconds or self._clock.seconds
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
            plan=str(self.plan),
            target_passes=self._levels[-1].passes if self._levels else 0,
            levels=self._levels,
            provenance=tuple(self._origins),
            prefill_seconds=self._prefilled,
            decode_seconds=seconds - self._prefilled,
            model_seconds=sum(level.seconds for level in self._levels),
            outside_seconds=seconds - sum(reader.meter.since(0)[2] for reader in self.readers.values()),
            forecast_ms_per_token=request.forecast_ms,
            verification=request.verification,
        )
        # A seed that was drawn here reproduces the reply only where nothing learned had a part in it.
        learned = request.stop or self.switches
        seed = None if learned and not request.params.greedy else request.params.seed
        return Reply(self._text.text, tuple(self._ids), reason, stats, None if error is None else str(error), seed)

    @property
    def chances(self) -> tuple[float, ...] | None:
        """The target's probability of every token of the reply; None where some are not known."""
        return tuple(self._chances) if len(self._chances) == len(self._ids) else None

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
        return self._read(list(self.readers), self._conversation.tokens[: len(self.request.prompt) - 1])

    def _read(self, names: Sequence[str], tokens: list[int]) -> bool:
        """Models read a text that they may hold a part of; False if it was stopped."""
        for name in names:
            begun = time.perf_counter()
            try:
                if not self.readers[name].prefill(tokens, self._out_of_time):
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
        self._chances += done.chances[:used]
        self._origins += origins
        return Tokens(shown, tuple(ids), tuple(origins), self._clock.seconds)

    def _out_of_time(self) -> bool:
        limit = self.request.params.time_limit
        return self.request.cancel.is_set() or (limit is not None and self._clock.seconds > limit)


def merged(chains: Sequence[Sequence[LevelStats]], order: Sequence[str]) -> tuple[LevelStats, ...]:
    """What every level did in all chains of a reply together.

    Args:
        chains: per chain, its levels.
        order: names of the family's models, cheapest first; a lookup comes before them.
    """
    names = [name for name in (LOOKUP, *order) if any(level.name == name for chain in chains for level in chain)]
    out = []
    for name in names:
        own = [level for chain in chains for level in chain if level.name == name]
        passes = sum(level.passes for level in own)
        out.append(
            LevelStats(
                name,
                sum(level.proposed for level in own),
                sum(level.accepted for level in own),
                passes,
                sum(level.seconds for level in own),
                sum(level.width * level.passes for level in own) / max(passes, 1),
            )
        )
    return tuple(out)
