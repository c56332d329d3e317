"""What a pass costs: measured by width and context, refreshed by every reply, never smoothed over widths."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hsd.runtime.base import MAX_WIDTH, LanguageModel
from hsd.runtime.reader import Pass, Reader

BUCKETS = (512, 2048, 8192)
"""Upper ends of the context buckets, in tokens; the last bucket is open."""

_PLACES = (128, 1024, 4096, 16384)  # a context inside each bucket at which it is measured
_KEEP = 33  # newest samples per width and bucket; their median follows a machine that slows down within a reply or two


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

    def measure(
        self,
        widths: Sequence[int] = tuple(range(1, MAX_WIDTH + 1)),
        buckets: Sequence[int] = (0, 1),
        repeats: int = 5,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs passes of the given widths at a context inside each bucket and keeps their times.

        Buckets that the model's context does not reach are left out. `stop` is asked before every pass.
        """
        reader = Reader(self._model, self._model.new_cache())
        text = [i % min(self._model.vocab, 1000) for i in range(self._model.context)]
        for at in buckets:
            place = max(min(_PLACES[at], self._model.context - MAX_WIDTH - 1), 0)
            if bucket(place) != at:
                continue
            if not reader.prefill(text[:place], stop):
                return
            # Rounds over all widths, not all repeats of one: a busy moment then touches every width a little.
            for turn in range(repeats + 1):
                for width in widths:
                    if stop():
                        return
                    reader.rewind(place)
                    reader.read(text[: place + width], width)
                    if turn == 0:
                        reader.meter.passes.pop()  # the first pass of a width allocates
            self.add(reader.meter.passes)
            reader.meter.passes.clear()

    def add(self, passes: Iterable[Pass]) -> None:
        """Takes the passes of a reply into account."""
        for entry in passes:
            # Reading a prompt skips the head and would look like a cheap step.
            if entry.width <= MAX_WIDTH and entry.last:
                self._samples[bucket(entry.context), entry.width].append(entry.seconds * 1000)

    def restore(self, at: int, width: int, ms: float) -> None:
        """Takes a cost from an earlier run on this machine as one sample."""
        self._samples[at, width].append(ms)

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
        at = bucket(context)
        for near in (*range(at, -1, -1), *range(at + 1, len(BUCKETS) + 1)):
            samples = self._samples.get((near, width))
            if samples:
                return _summary(samples)
        self.measure((width,), (0,))
        return _summary(self._samples[0, width])

    def table(self, context: int = 0) -> list[float]:
        """Milliseconds at widths 1 to 16, for planning.

        Lower quartiles: other programs only ever add to a pass, and a burst that hits one width must not look like a
        step in the width.
        """
        return [self.cost(width, context).low_ms for width in range(1, MAX_WIDTH + 1)]

    def rows(self) -> list[tuple[int, int, Cost]]:
        """(bucket, width, cost) of everything measured, for storing."""
        return [(at, width, _summary(s)) for (at, width), s in sorted(self._samples.items()) if s]


def _summary(samples: Sequence[float] | deque[float]) -> Cost:
    values = list(samples)
    if len(values) < 2:
        return Cost(values[0], values[0], values[0] / 2, 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Cost(middle, low, (high - low) / 2, len(values))
