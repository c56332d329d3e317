"""A whole round of a chain in one call of the native library: what `hsd.hierarchy` does level by level, and the same.

A small draft's pass takes 20 microseconds. A round that goes back to Python after every pass spends a tenth of a reply
there, most of it on code that has left the processor's caches meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsd.runtime.base import LONGEST_BLOCK, MAX_WIDTH, Drafting
from hsd.runtime.cache import LeanCache
from hsd.runtime.layout import Round, Rung
from hsd.runtime.lean import FastStep, LeanModel
from hsd.runtime.native_steps import NativeStep, described_drafting
from hsd.runtime.reader import Reader

_MOST_COINS = 4096  # of a round: a deeper chain goes level by level
_AHEAD = 64  # coins tossed at once
_PASSES = 128  # of a level, after which they are handed on
_ROOM = 192  # tokens that caches get room for at once
_BEHIND = 64  # tokens that a level may have to catch up with; more is read before

_Pointers = ctypes.c_void_p * (MAX_WIDTH + 1)


class FailedRoundError(Exception):
    """A level could not do its part.

    Args:
        level: which.
        unknown: whether it met an id that its model does not know; else its distribution is none.
    """

    def __init__(self, level: int, unknown: bool) -> None:
        super().__init__(level, unknown)
        self.level, self.unknown = level, unknown


class _Line(NamedTuple):
    """A level: its reader, that one's parts, and the steps that the model has now."""

    reader: Reader
    model: LeanModel
    cache: LeanCache
    steps: Mapping[int, FastStep]


class Played(NamedTuple):
    """A round: its tokens, the level that drew each, and how much of the last block was accepted."""

    tokens: list[int]
    origins: list[int]
    proposed: int
    accepted: int


@dataclass(frozen=True, slots=True)
class _Bounds:
    """The most that a round can come to.

    Args:
        blocks: per level, tokens that it can hand up.
        coins: that are tossed.
        passes: per level.
    """

    blocks: list[int]
    coins: int
    passes: list[int]

    @classmethod
    def of(cls, thresholds: Sequence[int]) -> _Bounds:
        """Of a chain of models with these thresholds, the target's left out."""
        blocks, coins = [0], 0
        for at, threshold in enumerate(thresholds):
            # A level above the first verifies at most once for every token that it is to hold.
            coins = threshold if at == 0 else threshold * (coins + blocks[-1] + 1)
            blocks.append(blocks[-1] + threshold)
        coins += blocks[-1] + 1
        verdicts, passes = 1, []
        for at in reversed(range(len(thresholds) + 1)):
            each = 3 + (blocks[at] + 1) // MAX_WIDTH
            passes.append(verdicts * each + _BEHIND // MAX_WIDTH)
            verdicts *= max(thresholds[at - 1], 1) if at else 1
        return cls([*blocks[1:], blocks[-1] + 1], coins, passes[::-1])


class _Table:
    """What the library needs of one model, whatever the chain: its steps by width, and room for what they give.

    Args:
        steps: width -> step, of every width.
    """

    def __init__(self, steps: Mapping[int, NativeStep]) -> None:
        every = [steps[max(width, 1)].addresses for width in range(MAX_WIDTH + 1)]
        columns = [_Pointers(*column) for column in zip(*every, strict=True)]
        self.addresses = tuple(map(ctypes.addressof, columns))  # of the models, and of what they write to meanwhile
        self.functions = steps[1].functions
        self._alive = steps, columns
        self._rooms: dict[str, Tensor] = {}

    def room(self, name: str, rows: int, vocab: int) -> Tensor:
        """Float32 for `(rows, vocab)`; kept, since what is in it is of one round, and one reply is made at a time."""
        held = self._rooms.get(name)
        if held is None or held.numel() < rows * vocab:
            held = self._rooms[name] = torch.empty(rows * vocab, dtype=torch.float32)
        return held


def _table(model: LeanModel) -> _Table | None:
    """None where not every width is computed by the library."""
    steps = {width: step for width, step in model.steps.items() if isinstance(step, NativeStep)}
    if len(steps) < MAX_WIDTH:
        return None
    if model.table is None:  # kept with the model, so that it goes with it
        model.table = _Table(steps)
    assert isinstance(model.table, _Table)
    return model.table


class Rounds:
    """Rounds of one chain; see `make`. Between two of them nothing else may change the sequence or the caches."""

    def __init__(
        self,
        lines: Sequence[_Line],
        tables: Sequence[_Table],
        thresholds: Sequence[int],
        how: Drafting,
        rule: str,
        prompt: int,
        limit: int,
        bounds: _Bounds,
        toss: Callable[[], float],
    ) -> None:
        self._lines = list(lines)
        self._toss, self._coins = toss, bounds.coins if how.scale else 0
        self._most, self._limit, self._room = bounds.blocks[-1], limit, 0
        self._ahead = max(self._coins, _AHEAD) if self._coins else 0
        block, alive = described_drafting(how)
        numbers = max(4 * passes for passes in bounds.passes) + 4 * _PASSES
        self._full = _PASSES
        self._rungs, rows = (Rung * len(lines))(), list[Tensor]()
        self._logs = [(ctypes.c_double * numbers)() for _ in lines]
        for at, (rung, table, log) in enumerate(zip(self._rungs, tables, self._logs, strict=True)):
            rung.models, rung.scratch = table.addresses
            if how.scale:
                rows.append(table.room("rows", bounds.blocks[at], how.vocab))
                rung.rows = rows[-1].data_ptr()
            rung.threshold = thresholds[at] if at < len(thresholds) else 0
            rung.log = ctypes.addressof(log)
        target = tables[-1]
        logits = target.room("logits", bounds.blocks[-1] + 1, max(line.model.vocab for line in lines))
        self._tossed = (ctypes.c_double * max(self._ahead, 1))()
        self._tokens = (ctypes.c_int64 * 0)()
        self._rest = (ctypes.c_int64 * (2 * (self._most + 2)))()  # origins, and the likeliest tokens
        self._round = Round(
            rungs=self._rungs,
            top=len(lines) - 1,
            draft=block,
            block_wise=rule != "token",
            origins=ctypes.addressof(self._rest),
            prompt=prompt,
            limit=limit,
            coins=ctypes.addressof(self._tossed),
            tossed=self._ahead,  # none is left
            logits=logits.data_ptr(),
            best=ctypes.addressof(self._rest) + 8 * (self._most + 2),
            end=-1,
        )
        self._at = ctypes.byref(self._round)
        self._call = target.functions.hsd_round
        self._alive = alive, tables, rows, logits
        self._places: list[Any] = []  # where the caches lay when they were looked at last

    def play(self, tokens: Sequence[int]) -> Played | None:
        """One round behind these tokens; caches are as the tokens that it leaves want them.

        Args:
            tokens: the sequence; every cache holds a prefix of it.

        Returns:
            None where a level has too much to catch up with, or the models' steps have changed: nothing was done.

        Raises:
            FailedRoundError: a level failed. No cache's length has changed.
        """
        start, round_, rungs = len(tokens), self._round, self._rungs
        here = round_.end == start and start + self._most <= self._room
        if not (here and all(map(_lies_at, self._lines, self._places))) and not self._take_up(tokens):
            return None
        if round_.tossed + self._coins > self._ahead:
            self._toss_ahead()
        round_.start = start
        for rung, (_, model, cache, steps) in zip(rungs, self._lines, strict=True):
            if model.steps is not steps:
                return None
            rung.length = cache.length
        failed = self._call(self._at)
        if failed:
            raise FailedRoundError(failed // 4, failed % 4 == 1)
        full = False
        for rung, (_, _, cache, _) in zip(rungs, self._lines, strict=True):
            cache.length = rung.length
            full = full or rung.passes > self._full
        if full:
            self.note_passes()
        begin, end = start - round_.base, round_.end - round_.base
        return Played(self._tokens[begin:end], self._rest[: end - begin], round_.proposed, round_.accepted)

    def _take_up(self, tokens: Sequence[int]) -> bool:
        """Begins behind these tokens, with room for some rounds; False where a level has too much to catch up with."""
        start, round_ = len(tokens), self._round
        base = min(start - 1, *(cache.length for _, _, cache, _ in self._lines))
        if start - base > _BEHIND:
            return False
        room = min(start + self._most + _ROOM, self._limit)
        for _, _, cache, _ in self._lines:
            cache.reserve(room)
        self._places = [cache.addresses() for _, _, cache, _ in self._lines]
        for rung, place in zip(self._rungs, self._places, strict=True):
            rung.cache = ctypes.addressof(place)
        self._tokens = (ctypes.c_int64 * (room - base))(*tokens[base:])
        round_.tokens, round_.base = ctypes.addressof(self._tokens), base
        self._room = room if room < self._limit else start + self._limit  # nothing is written behind the limit
        return True

    def _toss_ahead(self) -> None:
        """Moves the coins that are left to the front, and tosses more behind them."""
        left = self._tossed[self._round.tossed : self._ahead]
        self._tossed[:] = [*left, *(self._toss() for _ in range(self._ahead - len(left)))]
        self._round.tossed = 0

    @property
    def current(self) -> bool:
        """Whether the models' steps are still those that this was made for."""
        return all(model.steps is steps for _, model, _, steps in self._lines)

    def leave(self) -> list[float]:
        """Somebody else goes on with the sequence: coins that were tossed and not used."""
        left, self._round.tossed = self._tossed[self._round.tossed : self._ahead], self._ahead
        self._round.end = -1  # caches may move meanwhile
        return left

    def note_passes(self) -> None:
        """Hands the passes since the last time to the meters."""
        for rung, (reader, *_), log in zip(self._rungs, self._lines, self._logs, strict=True):
            if rung.passes:
                reader.meter.keep_all(log[: 4 * rung.passes])
            rung.passes = 0

    def verdicts(self) -> list[tuple[int, int]]:
        """Per level, its tokens that were judged since the last time, and those of them that were accepted."""
        found = [(rung.proposed, rung.accepted) for rung in self._rungs]
        for rung in self._rungs:
            rung.proposed = rung.accepted = 0
        return found


def _lies_at(line: _Line, place: object) -> bool:
    return line.cache.addresses() is place


def make(
    readers: Sequence[Reader],
    thresholds: Sequence[int],
    how: Drafting,
    rule: str,
    prompt: int,
    limit: int,
    toss: Callable[[], float],
) -> Rounds | None:
    """Rounds of a chain of models in one call each.

    Args:
        readers: cheapest first, the target last.
        thresholds: of all but the target.
        how: how every level draws, and how the first one drafts.
        rule: "block" or "token".
        prompt: tokens before the reply.
        limit: longest sequence.
        toss: the next coin, in [0, 1).

    Returns:
        None where some level's passes are not all computed by the library, or the chain is too deep.
    """
    lines, tables = [], []
    for reader in readers:
        model, cache = reader.model, reader.cache
        if not (isinstance(model, LeanModel) and isinstance(cache, LeanCache) and model.context >= limit):
            return None
        table = _table(model)
        if table is None or model.vocab < how.vocab:
            return None
        lines.append(_Line(reader, model, cache, model.steps))
        tables.append(table)
    bounds = _Bounds.of(thresholds)
    if bounds.coins > _MOST_COINS or max(thresholds, default=0) > LONGEST_BLOCK:
        return None
    return Rounds(lines, tables, thresholds, how, rule, prompt, limit, bounds, toss)
