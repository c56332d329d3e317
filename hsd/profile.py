"""What the passes of a family take on this machine: measured, stored, restored, refreshed while the app runs."""

from __future__ import annotations

import itertools
import platform
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from hsd.failures import failed_pass
from hsd.planning import Overhead, Work, fit_overhead, in_place, with_overhead
from hsd.runtime import MAX_WIDTH, LanguageModel, Pass
from hsd.runtime.costs import StepCosts, bucket
from hsd.stats import CostRecord, Stats
from hsd.types import LOOKUP, LoadProgress

LOOKUP_MS = 0.004
"""Milliseconds charged for one proposal of the lookup level.

Under 0.001 was measured at 32k tokens of context (proposing and appending); a little more, so that it is never free.
"""


MAX_MS = 1e6
"""A stored step that took longer than a quarter of an hour is no step time."""

_PASSES = 256  # last passes in replies that say how far steps in place are from steps that were measured alone

_PROMPTS = 16  # last passes over prompts that say what a token of one takes

_WIDE = 32  # tokens of a pass from which on it says what a token of a prompt takes

_TIMED = 2  # plain steps that are timed at a time

_WORKS = 48
"""Last replies that the time outside passes is fitted on."""


class Profile:
    """Step times of a family's models.

    Args:
        family: key under which they are kept.
        models: name -> model, cheapest first, the target last.
        stats: keeps them between two starts.
    """

    def __init__(self, family: str, models: Mapping[str, LanguageModel], stats: Stats) -> None:
        self._family = family
        self._models = models
        self._stats = stats
        self._target = list(models)[-1]
        self._costs = {name: StepCosts(model) for name, model in models.items()}
        self._in_turn = itertools.cycle(models)
        self._works: dict[bool, deque[Work]] = {True: deque(maxlen=_WORKS), False: deque(maxlen=_WORKS)}
        self._overheads: dict[bool, Overhead] = {}
        self._recent: dict[str, deque[Pass]] = {name: deque(maxlen=_PASSES) for name in models}
        self._prompts: dict[str, deque[float]] = {name: deque(maxlen=_PROMPTS) for name in models}  # ms a token
        self._tables: dict[tuple[str, int], list[float]] = {}  # measured alone
        self._widths: dict[tuple[str, int], list[float]] = {}  # as they are in replies

    @property
    def measured(self) -> bool:
        """Whether every model's costs are known at every width."""
        return all(costs.known(1) and costs.known(MAX_WIDTH) for costs in self._costs.values())

    @property
    def knows_baseline(self) -> bool:
        """Whether the target's plain step was ever timed."""
        return self._costs[self._target].known(1)

    def restore(self) -> None:
        """Takes over the costs of an earlier run on this machine, as far as there are some."""
        stored = self._stats.costs(machine_key(), self._family, **self._keys())
        for name in self._models:
            for width, ms in enumerate(stored.get(name, ()), 1):
                if not 0 < ms < MAX_MS:
                    break  # no time: this model is measured anew
                self._costs[name].restore(0, width, ms)
        self._measured_anew()

    def begin(self, tell: Callable[[LoadProgress], None]) -> None:
        """Knows every cost, from an earlier run or by measuring; `tell` hears what is being measured."""
        self.restore()
        if not self.measured:
            self.measure(lambda name: tell(LoadProgress(name, "measuring step times")))

    def ages(self) -> dict[str, float]:
        """Model -> seconds since the oldest of its stored step times was measured."""
        return self._stats.cost_ages(machine_key(), self._family, **self._keys())

    def ready(self, needed: bool) -> None:
        """Measures what a reply needs to know beforehand: the target's plain step, and for `auto` every cost.

        Raises:
            ModelError: a pass failed.
        """
        if self.measured or (not needed and self.knows_baseline):
            return
        try:
            if needed:
                self.measure()
            else:
                self._costs[self._target].measure((1,), (0,))
        except Exception as error:
            raise failed_pass(self._target, error) from error

    def measure(self, tell: Callable[[str], None] = lambda _: None, stop: Callable[[], bool] = lambda: False) -> None:
        """Measures every model's step behind a short context and stores it; half a second a model, or one round of
        few widths. Behind long contexts replies measure what they use."""
        for name, costs in self._costs.items():
            tell(name)
            costs.measure(buckets=(0,), repeats=5 if not costs.known(1) else 2, stop=stop)
        self._measured_anew()
        self.store()

    def refresh(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Times the target's plain step, and one model, in turn, at some widths.

        The baseline must not be older than what it is compared with, and a first measurement taken at a busy moment
        must not last.

        Args:
            seconds: that it should take at most, by what passes took until now.
            stop: asked before every pass.
        """
        plain = self._costs[self._target]
        left = seconds - (_TIMED + 1) * plain.cost(1).ms / 1000
        if left > 0:
            plain.measure((1,), (0,), repeats=_TIMED, stop=stop)
        name = next(self._in_turn)
        costs, taken = self._costs[name], sum(self.widths(name)) / 1000
        if 2 * taken < left:
            costs.measure(buckets=(0,), repeats=1, stop=stop)
        elif self.widths(name)[0] / 1000 + self.widths(name)[-1] / 1000 < left:
            # One width beside the plain step, to be compared with it.
            costs.measure((1, costs.rarest()), (0,), repeats=0, stop=stop)
        self._measured_anew()
        self.store()

    def prompt_ms(self, name: str) -> float:
        """Milliseconds that a model takes for one token of a prompt, in wide passes."""
        known = self._prompts[name]
        return median(known) if known else self.widths(name)[-1] / MAX_WIDTH

    def learn(self, name: str, passes: Iterable[Pass]) -> None:
        """Takes a reply's own passes into account."""
        passes = list(passes)
        self._costs[name].add(passes)
        self._recent[name].extend(p for p in passes if p.last and p.width <= MAX_WIDTH)
        self.learn_reading(name, passes)
        self._widths.clear()

    def learn_reading(self, name: str, passes: Iterable[Pass]) -> None:
        """Takes passes over prompts into account."""
        wide = (p for p in passes if not p.last and p.width >= _WIDE)
        self._prompts[name].extend(1000 * p.seconds / p.width for p in wide)

    def worked(self, greedy: bool, work: Work) -> None:
        """Takes what a reply spent outside model passes into account."""
        self._works[greedy].append(work)
        self._overheads.pop(greedy, None)

    def overhead(self, greedy: bool) -> Overhead:
        """What happens around passes, fitted on the last replies; those of the other kind stand in at first."""
        kind = greedy if self._works[greedy] else not greedy
        if kind not in self._overheads:
            self._overheads[kind] = fit_overhead(self._works[kind])
        return self._overheads[kind]

    def store(self) -> None:
        """Keeps what was measured for the next start."""
        device = str(self._models[self._target].device)
        self._stats.record_costs(
            CostRecord(
                machine=machine_key(),
                device=device,
                family=self._family,
                model=name,
                dtype=model.dtype,
                runtime=runtime_key(model),
                context_tokens=128,
                width_tokens=width,
                median_ms=cost.ms,
                spread_ms=cost.spread_ms,
                samples=cost.samples,
            )
            for name, model in self._models.items()
            for width, cost in self._costs[name].all_widths()
        )

    def plain_ms(self, contexts: Sequence[int]) -> float:
        """Milliseconds of one plain step of the target at each of these context lengths, added up.

        Medians: what else the machine does slows plain decoding as it slows the reply.
        """
        places = Counter(context // 256 for context in contexts)
        return sum(count * self._costs[self._target].cost(1, 256 * place).ms for place, count in places.items())

    def table(self, context: int = 0) -> dict[str, list[float]]:
        """Milliseconds of a pass at widths 1 to 16 for every level, the lookup first, the target last."""
        return {LOOKUP: [LOOKUP_MS], **{name: self.widths(name, context) for name in self._costs}}

    def costs(self, greedy: bool, context: int = 0) -> dict[str, list[float]]:
        """The same with what happens around the passes: what plans are priced with."""
        return with_overhead(self.table(context), self.overhead(greedy))

    def widths(self, name: str, context: int = 0) -> list[float]:
        """Milliseconds of one model at widths 1 to 16: the steps as measured, at the level of the last replies' passes.

        Measurements of all widths together say best which width costs more than which. But inside a reply passes take
        longer: other levels have been through the processor's caches in between.
        """
        key = name, bucket(context)
        if key not in self._widths:
            table = self._alone(name, context)
            self._widths[key] = [ratio * ms for ratio, ms in zip(self._in_place(name), table, strict=True)]
        return self._widths[key]

    def _in_place(self, name: str) -> list[float]:
        """What passes of the last replies took, over what the table says, by width.

        A draft's pass after a full acceptance reads two tokens for one row; it counts as the step of one that it is in
        the plan.
        """
        passes = []
        for entry in self._recent[name]:
            width = 1 if entry.last == 1 else entry.width
            passes.append((width, 1000 * entry.seconds, self._alone(name, entry.context)[width - 1]))
        return in_place(passes, MAX_WIDTH).tolist()

    def _alone(self, name: str, context: int) -> list[float]:
        """Milliseconds at widths 1 to 16 as measured alone."""
        key = name, bucket(context)
        if key not in self._tables:
            self._tables[key] = self._costs[name].table(context)
        return self._tables[key]

    def _measured_anew(self) -> None:
        self._tables.clear()
        self._widths.clear()

    def _keys(self) -> dict[str, Any]:
        return {
            "device": str(self._models[self._target].device),
            "dtype": {name: model.dtype for name, model in self._models.items()},
            "runtime": {name: runtime_key(model) for name, model in self._models.items()},
        }


def machine_key() -> str:
    """What step times are valid for: processor, cores, GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.node()}/{platform.machine()}/{torch.get_num_threads()} threads/{gpu}"


def runtime_key(model: LanguageModel) -> str:
    """What computes a model's steps, and in which version."""
    return f"{model.kind}-1/torch-{torch.__version__}"
