"""What a pass costs: measured by width and context, refreshed by every reply, never smoothed over widths."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hsd.runtime.base import MAX_WIDTH, LanguageModel
from hsd.runtime.reader import Pass, Reader

BUCKETS = (512, 2048, 8192)
"""Upper ends of the context buckets, in tokens; the last bucket is open."""

_PLACES = (128, 1024, 4096, 16384)  # a context inside each bucket at which it is measured
_PIECE = 32  # tokens of a pass on the way to the place of a measurement
_KEEP = 33  # newest samples per width and bucket; their median follows a machine that slows down within a reply or two
_LONGEST = 0.5  # seconds after which measuring a model ends
_FIRST = (1, 16, 4, 8, 2)  # widths that are always measured; others lie between them
_FAR = 0.25  # seconds that reading up to the place of a measurement may take
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
        widths: Sequence[int] = (),
        buckets: Sequence[int] = (0, 1),
        repeats: int = 5,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs passes at a context inside each bucket and keeps their times.

        A fast model is measured at every width, `repeats` times. A slow one is measured at few widths, behind a short
        context: a pass of 0.3 s says enough the first time, and replies measure what they use. `stop` is asked before
        every pass.

        Args:
            widths: of the passes; none is all of them, as far as a second goes.
            buckets: those that the model's context does not reach are left out.
            repeats: of each width.
            stop: whether to end now.
        """
        reader = Reader(self._model, self._model.new_cache())
        text = [i % min(self._model.vocab, 1000) for i in range(self._model.context)]
        for at in buckets:
            place = max(min(_PLACES[at], self._model.context - MAX_WIDTH - 1), 0)
            if bucket(place) != at:
                continue
            begun = time.monotonic()
            while len(reader) < place and time.monotonic() - begun < _FAR:
                if stop() or not reader.prefill(text[: min(len(reader) + _PIECE, place)], stop):
                    return
            if bucket(len(reader)) != at:
                return
            self._measure_at(reader, text, widths or _order(), not widths, repeats, stop)
            if time.monotonic() - begun > _LONGEST:
                return

    def _measure_at(
        self,
        reader: Reader,
        text: list[int],
        widths: Sequence[int],
        all_widths: bool,
        repeats: int,
        stop: Callable[[], bool],
    ) -> None:
        """Rounds over all widths, not all repeats of one: a busy moment then touches every width a little."""
        place, begun = len(reader), time.monotonic()
        reader.meter.passes.clear()
        for turn in range(repeats + 1):
            for width in widths:
                late = time.monotonic() - begun > _LONGEST
                if stop() or (late and (turn or (all_widths and width not in _FIRST))):
                    break
                reader.rewind(place)
                reader.read(text[: place + width], width)
        kept = _without_first(reader.meter.passes)
        self.add(kept)
        if len(widths) > 1:
            self.swept(kept)
        reader.meter.passes.clear()
        reader.rewind(place)

    def swept(self, passes: Iterable[Pass]) -> None:
        """Takes passes that were made to compare widths into account."""
        for entry in passes:
            self._swept[bucket(entry.context), entry.width].append(entry.seconds * 1000)

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
        than others. Lower quartiles: other programs only ever add to a pass. Widths that were not measured lie between
        their neighbours.
        """
        known = {}
        for width in range(1, MAX_WIDTH + 1):
            swept = self._nearest(self._swept, width, context)
            if swept is not None:
                known[width] = _summary(swept).low_ms
        if not known:
            known = {1: self.cost(1, context).low_ms}
        return np.interp(range(1, MAX_WIDTH + 1), list(known), list(known.values())).tolist()

    def rarest(self) -> int:
        """The width of which least is known."""
        return min(_order(), key=lambda width: len(self._swept.get((0, width), ())))

    @staticmethod
    def _nearest(samples: Mapping[tuple[int, int], deque[float]], width: int, context: int) -> deque[float] | None:
        """Samples of the context's bucket, or of the nearest one below that has some, or above."""
        at = bucket(context)
        order = (*range(at, -1, -1), *range(at + 1, len(BUCKETS) + 1))
        return next((found for near in order if (found := samples.get((near, width)))), None)

    def all_widths(self) -> list[tuple[int, Cost]]:
        """(width, cost) behind a short context, for storing: all of them, or none where the widest was not measured.

        A width that was not measured lies between its neighbours, and has no samples.
        """
        known = {width: _summary(s) for (at, width), s in sorted(self._samples.items()) if at == 0 and s}
        if not {1, MAX_WIDTH} <= known.keys():
            return list(known.items())
        times = np.interp(range(1, MAX_WIDTH + 1), list(known), [cost.ms for cost in known.values()]).tolist()
        return [(width, known.get(width) or Cost(ms, ms, ms / 2, 0)) for width, ms in enumerate(times, 1)]


def _without_first(passes: Sequence[Pass]) -> list[Pass]:
    """Passes but for the first short one of each width, which allocates, where there is another."""
    count = Counter(entry.width for entry in passes)
    seen: set[int] = set()
    out = []
    for entry in passes:
        first = entry.width not in seen
        seen.add(entry.width)
        if not (first and count[entry.width] > 1 and entry.seconds < _ALLOCATES):
            out.append(entry)
    return out


def _order() -> list[int]:
    """Every width, those first that say most of the others."""
    return [*_FIRST, *(width for width in range(1, MAX_WIDTH + 1) if width not in _FIRST)]


def _summary(samples: Sequence[float] | deque[float]) -> Cost:
    values = list(samples)
    if len(values) < 2:
        return Cost(values[0], values[0], values[0] / 2, 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Cost(middle, low, (high - low) / 2, len(values))
