"""What the statistics say of how often a family's drafts are accepted, as the planner needs it."""

from __future__ import annotations

import itertools
from typing import Any

from hsd import planning
from hsd.stats import AcceptanceEstimate, Positions, Stats, temperature_bucket

Pair = tuple[str, str]
"""(draft, verifier)."""

REPLAYED = 32
"""Last scored replies that plans are replayed on, and that calibrations and factors are fitted on."""


class Evidence:
    """Acceptances of one family, kept until another reply is scored.

    Args:
        family: key under which statistics are kept.
        stats: the rolling statistics.
    """

    def __init__(self, family: str, stats: Stats) -> None:
        self._family = family
        self._stats = stats
        self._known: dict[str, tuple[int, dict[Pair, AcceptanceEstimate]]] = {}
        self._factors: dict[str, tuple[int, dict[Pair, float]]] = {}
        self._positions: dict[tuple[str, int], tuple[int, list[Positions]]] = {}

    def estimates(self, temperature: float) -> dict[Pair, AcceptanceEstimate]:
        """What scoring measured at this temperature: the token-wise rule's acceptances."""
        name = temperature_bucket(temperature)
        if self._known.get(name, (-1, {}))[0] != self._stats.scored:
            self._known[name] = self._stats.scored, self._stats.acceptances(self._family, name)
        return self._known[name][1]

    def factors(self, temperature: float) -> dict[Pair, float]:
        """How much more block verification accepts, by (draft, target), learned from real rounds; greedy: nothing."""
        if temperature == 0:
            return {}
        name = temperature_bucket(temperature)
        if self._factors.get(name, (-1, {}))[0] != self._stats.scored:
            verdicts = self._stats.verdicts(self._family, name, last=REPLAYED)
            found = {pair: planning.block_factor(replies) for pair, replies in verdicts.items()}
            self._factors[name] = self._stats.scored, found
        return self._factors[name][1]

    def rates(self, temperature: float) -> dict[Pair, float]:
        """What is to be expected of every scored pair: the estimates with their factors."""
        scored = {pair: estimate.rate for pair, estimate in self.estimates(temperature).items()}
        return planning.corrected(scored, self.factors(temperature))

    def sequences(self, temperature: float, last: int = REPLAYED) -> list[dict[Pair, Any]]:
        """Overlaps by position of the last scored replies, newest first, with factors.

        Of a pair whose acceptance has moved, only what was scored since it did.
        """
        return [reply.overlaps for reply in self.positions(temperature, last)]

    def positions(self, temperature: float, last: int = REPLAYED) -> list[Positions]:
        """The same, and beside the overlaps of each reply the confidences of its models."""
        key = temperature_bucket(temperature), last
        if self._positions.get(key, (-1, []))[0] != self._stats.scored:
            self._positions[key] = self._stats.scored, self._read(temperature, last)
        return self._positions[key][1]

    def _read(self, temperature: float, last: int) -> list[Positions]:
        found = self._stats.positions(self._family, temperature_bucket(temperature), last=last)
        for pair, factor in self.factors(temperature).items():
            for overlaps in (reply.overlaps for reply in found):
                if pair in overlaps:
                    overlaps[pair] = (overlaps[pair] * factor).clip(max=1.0)
        moved = {pair: e.positions for pair, e in self.estimates(temperature).items() if e.moved}
        if not moved:
            return found
        ends = itertools.accumulate(len(next(iter(reply.overlaps.values()))) for reply in found)
        kept = [
            reply._replace(
                overlaps={pair: x for pair, x in reply.overlaps.items() if end <= moved.get(pair, end)},
            )
            for reply, end in zip(found, ends, strict=True)
        ]
        return [reply for reply in kept if reply.overlaps]
