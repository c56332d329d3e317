"""One model reading one sequence: catch-up, bonus token, prompt and a new turn are the same operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hsd.runtime.base import MAX_WIDTH, PREFILL_WIDTH, Interruptible, KVCache, LanguageModel


@dataclass(slots=True)
class Pass:
    """One forward: `width` tokens read behind `context` cached ones, logits for the `last`, in `seconds`."""

    width: int
    context: int
    last: int
    seconds: float = 0.0


@dataclass(slots=True)
class Meter:
    """Times passes. On a GPU a pass is timed by events on its stream, so that timing never waits for the device."""

    device: torch.device
    _passes: list[Pass] = field(default_factory=list)
    _pending: list[tuple[Pass, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def run(self, entry: Pass, step: Callable[[], Tensor]) -> Tensor:
        """Runs and times one pass; one that fails is not kept."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            logits = step()
            entry.seconds = time.perf_counter() - begun
            self._passes.append(entry)
            return logits
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        logits = step()
        end.record()
        self._passes.append(entry)
        self._pending.append((entry, begin, end))
        return logits

    def keep(self, entry: Pass) -> None:
        """Keeps a pass that somebody else has timed, on a processor."""
        self._passes.append(entry)

    def since(self, mark: int) -> tuple[int, int, float]:
        """Passes, tokens read and seconds since there were `mark` passes."""
        known = self.passes[mark:]
        return len(known), sum(entry.width for entry in known), sum(entry.seconds for entry in known)

    @property
    def passes(self) -> list[Pass]:
        """All passes so far; waits for those that still run."""
        pending, self._pending = self._pending, []
        for entry, begin, end in pending:
            try:
                end.synchronize()
                entry.seconds = begin.elapsed_time(end) / 1000
            except RuntimeError:  # a dead GPU context: the failure itself is told elsewhere
                self._passes.remove(entry)
        return self._passes


class Reader:
    """A model with the cache of one conversation."""

    def __init__(self, model: LanguageModel, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self.meter = Meter(model.device)

    def __len__(self) -> int:
        """Leading tokens of the sequence that the cache holds."""
        return self.cache.length

    @property
    def length(self) -> int:
        """The same as `len`."""
        return self.cache.length

    def rewind(self, length: int) -> None:
        """Forgets everything behind the first `length` tokens; does nothing where less is held."""
        if length < self.cache.length:
            self.cache.rewind(length)

    def copy(self, length: int) -> Reader:
        """A reader with a cache of its own that holds at most the first `length` tokens."""
        return Reader(self.model, self.cache.copy(min(length, self.cache.length)))

    def read(self, sequence: Sequence[int], last: int, widest: int = MAX_WIDTH) -> Tensor:
        """Extends the cache to the end of the sequence.

        Args:
            sequence: all tokens; the cache holds a prefix of them.
            last: for how many of the last positions logits are wanted, at least 1. Those of them that the cache
                already holds are read again.
            widest: wider passes run in chunks of this many tokens.

        Returns:
            float logits `(last, vocab)`, valid until the next call.
        """
        end = len(sequence)
        self.rewind(end - last)
        start = self.cache.length
        if end - start <= widest:
            return self._forward(sequence[start:end], last)
        self.prefill(sequence[: end - last])
        parts = []
        for begin in range(end - last, end, widest):
            part = sequence[begin : min(begin + widest, end)]
            # Logits are valid until the next pass only.
            parts.append(self._forward(part, len(part)).clone())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def prefill(self, sequence: Sequence[int], stop: Callable[[], bool] = lambda: False) -> bool:
        """Reads the sequence without asking for logits, in chunks; `stop` is asked before each. False if it stopped."""
        while self.cache.length < len(sequence):
            if stop():
                return False
            start = self.cache.length
            width = 1 if start and self.model.single else PREFILL_WIDTH
            if not self._piece(sequence[start : start + width], stop):
                return False
        return True

    def _piece(self, ids: Sequence[int], stop: Callable[[], bool]) -> bool:
        """Reads a piece of a prompt; False if it was stopped inside the pass, where the model can be."""
        model = self.model
        if not isinstance(model, Interruptible):
            self._forward(ids, 0)
            return True
        before, begun = self.cache.length, time.perf_counter()
        if not model.prefill(ids, self.cache, stop):
            return False
        self.meter.keep(Pass(len(ids), before, 0, time.perf_counter() - begun))
        return True

    def _forward(self, ids: Sequence[int], last: int) -> Tensor:
        cache, before = self.cache, self.cache.length
        try:
            return self.meter.run(Pass(len(ids), before, last), lambda: self.model.forward(ids, cache, last))
        except BaseException:
            # A pass that failed half-way may have written some layers: what it read is not cached.
            if cache.length > before:
                cache.rewind(before)
            raise
