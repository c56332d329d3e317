"""What a pass costs: measured by width and context, refreshed by every reply, never smoothed over widths."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hsd.runtime.base import MAX_WIDTH, LanguageModel
from hsd.runtime.reader import Pass, Reader

BUCKETS = (512, 2048, 8192)
"""Upper ends of the context buckets, in tokens; the last bucket is open."""

_PLACES = (128, 1024, 4096, 16384)  # a context inside each bucket at which it is measured
_KEEP = 33  # newest samples per width and bucket; their median follows a machine that slows down within a reply or two
_LONGEST = 2.0  # seconds that measuring in one bucket takes, but for a first round over all widths
_ALLOCATES = 0.005  # seconds of a pass that the allocations of a first one can be seen in
_SWEEPS = 15  # newest measurements of all widths together, per bucket


def bucket(context: int) -> int:
    """Index of the context bucket that holds `context` cached tokens."""
    return sum(context >= end for end in BUCKETS)


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of one pass: median, lower quartile, half the distance of the quartiles, and how many samples."""

    ms: float
    low_ms: float
    spread_ms: float
    samples: int


class StepCosts:
    """Step times of one model on this machine.

    Args:
        model: the model; it is run only by `measure` and by `cost` where nothing was measured yet.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._samples: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=_KEEP))
        self._swept: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=_SWEEPS))

    def measure(
        self,
        widths: Sequence[int] = tuple(range(1, MAX_WIDTH + 1)),
        buckets: Sequence[int] = (0, 1),
        repeats: int = 5,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs passes of the given widths at a context inside each bucket and keeps their times.

        Buckets that the model's context does not reach are left out. A model that is slow is measured in fewer rounds,
        and not behind a long context, which takes it long to read. `stop` is asked before every pass.
        """
        reader = Reader(self._model, self._model.new_cache())
        text = [i % min(self._model.vocab, 1000) for i in range(self._model.context)]
        for at in buckets:
            place = max(min(_PLACES[at], self._model.context - MAX_WIDTH - 1), 0)
            if bucket(place) != at:
                continue
            begun = time.monotonic()
            if not reader.prefill(text[:place], stop):
                return
            # Rounds over all widths, not all repeats of one: a busy moment then touches every width a little.
            dropped = False  # a pass of the first round: then there is a second one, however long it takes
            for turn in range(repeats + 1):
                if turn > dropped and time.monotonic() - begun > _LONGEST:
                    break
                for width in widths:
                    if stop():
                        return
                    reader.rewind(place)
                    reader.read(text[: place + width], width)
                    if turn == 0 and reader.meter.passes[-1].seconds < _ALLOCATES:
                        reader.meter.passes.pop()  # the first pass of a width allocates
                        dropped = True
            self.add(reader.meter.passes)
            if len(widths) > 1:
                for entry in reader.meter.passes:
                    self._swept[bucket(entry.context), entry.width].append(entry.seconds * 1000)
            reader.meter.passes.clear()
            if time.monotonic() - begun > _LONGEST:
                return

    def add(self, passes: Iterable[Pass]) -> None:
        """Takes the passes of a reply into account."""
        for entry in passes:
            # Reading a prompt skips the head and would look like a cheap step.
            if entry.width <= MAX_WIDTH and entry.last:
                self._samples[bucket(entry.context), entry.width].append(entry.seconds * 1000)

    def restore(self, at: int, width: int, ms: float) -> None:
        """Takes a cost from an earlier run on this machine as one sample."""
        self._samples[at, width].append(ms)
        self._swept[at, width].append(ms)

    def known(self, width: int, at: int = 0) -> bool:
        """Whether this width was measured in this bucket."""
        return bool(self._samples.get((at, width)))

    def cost(self, width: int, context: int = 0) -> Cost:
        """Cost of a pass of `width` new tokens behind `context` cached ones.

        A width that was never run is measured now; a bucket without samples takes the nearest one below that has some.

        Raises:
            ValueError: width is not in 1 to 16.
        """
        if not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"a pass of width {width} has no cost: widths are 1 to {MAX_WIDTH}")
        found = self._nearest(self._samples, width, context)
        if found is None:
            self.measure((width,), (0,))
            found = self._samples[0, width]
        return _summary(found)

    def table(self, context: int = 0) -> list[float]:
        """Milliseconds at widths 1 to 16, for planning: how the widths compare.

        Only from measurements of all widths together, so that every width has seen the same moments: a machine moves
        between states in which a wide pass costs half as much again, and widths that replies use have newer samples
        than others. Lower quartiles: other programs only ever add to a pass.
        """
        out = []
        for width in range(1, MAX_WIDTH + 1):
            swept = self._nearest(self._swept, width, context)
            out.append(self.cost(width, context).low_ms if swept is None else _summary(swept).low_ms)
        return out

    @staticmethod
    def _nearest(samples: Mapping[tuple[int, int], deque[float]], width: int, context: int) -> deque[float] | None:
        """Samples of the context's bucket, or of the nearest one below that has some, or above."""
        at = bucket(context)
        order = (*range(at, -1, -1), *range(at + 1, len(BUCKETS) + 1))
        return next((found for near in order if (found := samples.get((near, width)))), None)

    def rows(self) -> list[tuple[int, int, Cost]]:
        """(bucket, width, cost) of everything measured, for storing."""
        return [(at, width, _summary(s)) for (at, width), s in sorted(self._samples.items()) if s]


def _summary(samples: Sequence[float] | deque[float]) -> Cost:
    values = list(samples)
    if len(values) < 2:
        return Cost(values[0], values[0], values[0] / 2, 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Cost(middle, low, (high - low) / 2, len(values))
