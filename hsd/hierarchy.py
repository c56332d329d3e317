"""The round: draft, verify, cut. Hierarchical speculative decoding (Mohri et al. 2025, arXiv 2510.19705).

There is exactly one token sequence: prompt, committed reply, pending tokens. Level `l` asks level `l-1` for a block,
reads it in one pass, keeps what it accepts plus one token of its own, and repeats until it holds at least its
threshold; then it hands all of them up. The top level is the target, and what it emits is the reply. Plain decoding is
the chain of one level, Leviathan's scheme the chain of two; they take the same path through this file.

Every level emits tokens distributed as its own model has them, whatever stands below. Whether a level goes on may
depend on everything already fixed, never on a token yet to be drawn, and nothing sampled is ever dropped but by a
verdict.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from hsd.errors import HsdError
from hsd.failures import failed_pass, no_distribution
from hsd.levels import Level, Round, TokenSequence
from hsd.lookup import SuffixIndex
from hsd.planning import StopRule
from hsd.runtime import Reader
from hsd.sampling import Sampler
from hsd.types import LevelStats
from hsd.verify import NoDistributionError, Rows, Verdict, verify


class Hierarchy:
    """A chain of levels decoding one reply.

    Args:
        levels: cheapest first, the target last. All but a lookup are `Reader`s; only the first may be a lookup.
        sequence: tokens read so far; decoding goes on behind them.
        sampler: logits to distributions, the same for every level.
        end_ids: a token that ends the reply; no level drafts behind one.
        limit: longest sequence, prompt and reply together.
        rule: "block" or "token", above temperature 0.
        coins: source of all randomness, floats in [0, 1).
        stop: lets the first level stop by value before its threshold.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        sequence: TokenSequence,
        sampler: Sampler,
        *,
        end_ids: Collection[int],
        limit: int,
        rule: str,
        coins: random.Random,
        stop: StopRule | None = None,
    ) -> None:
        self.levels = list(levels)
        self._names = [level.name for level in self.levels]
        self.sequence = sequence
        self._sampler = sampler
        self._end_ids = frozenset(end_ids)
        self._limit = limit
        self._rule = rule
        self._coins = coins
        self._stop = stop
        self._indices = [level.source for level in self.levels if isinstance(level.source, SuffixIndex)]
        self._marks = [level.mark() for level in self.levels]

    @property
    def finished(self) -> bool:
        """Whether nothing more may be drawn: the sequence ends with an end token, or is as long as it may be."""
        return self._ended() or len(self.sequence.tokens) >= self._limit

    def round(self) -> Round:
        """One round of the target: a block from below, one verifying pass, at least one new token.

        Raises:
            ModelError: a level's logits are no distribution, or its forward failed. The sequence and every cache are
                cut back to what was committed before.
        """
        begun = time.perf_counter()
        return self._levels_in_turn()._replace(seconds=time.perf_counter() - begun)

    @torch.inference_mode()
    def _levels_in_turn(self) -> Round:
        """The round, pass after pass."""
        start = len(self.sequence.tokens)
        held = [(level.source, len(level.source)) for level in self.levels]
        try:
            proposed, accepted = self._verify(len(self.levels) - 1)
        except BaseException:
            self._cut(start)
            # What a failing pass wrote about tokens that stay may be as wrong as its logits.
            for source, length in held:
                if isinstance(source, Reader):
                    source.rewind(length)
            for level in self.levels:
                level.rows.clear()
            raise
        tokens = self.sequence.tokens[start:]
        chances = self.levels[-1].chances(tokens)
        self.levels[-1].rows.clear()
        self._settle()
        origins = self.sequence.origins[start - self.sequence.prompt_length :]
        return Round(tokens, origins, proposed, accepted, 0.0, chances)

    def _verify(self, at: int) -> tuple[int, int]:
        """Level `at` takes a block from below, verifies it in one pass, and appends one token of its own.

        Returns how many tokens the block had and how many of them were accepted.
        """
        level, tokens = self.levels[at], self.sequence.tokens
        start = len(tokens)
        if at > 0:
            self._fill(at - 1)
        block = tokens[start:]
        n = len(block)
        if n == 0 and not (self._ended() or start >= self._room(at)):
            self._draft(level)  # nothing to verify: plain decoding, and a lookup that knew nothing
            return 0, 0
        below = self.levels[at - 1].take_rows() if at > 0 else []
        verdict, rows = self._decide(level, block, below)
        k = verdict.accepted
        if at > 0:
            self.levels[at - 1].proposed += n
            self.levels[at - 1].accepted += k
        if k < n:
            self._cut(start + k)
        # Behind an end token, or where the sequence is full, the token of its own is not drawn.
        bonus = k < n or not (self._ended() or len(tokens) >= self._room(at))
        if bonus:
            self._append(verdict.token, level)
        level.rows.append(rows[: k + bonus])
        return n, k

    def _decide(self, level: Level, block: list[int], below: Rows) -> tuple[Verdict, Rows]:
        """A level's verdict on a block, and its distributions of the block's places and the one behind it."""
        n = len(block)
        coins = [self._coins.random() for _ in range(n + 1)]
        rows = self._distributions(level, n + 1)
        try:
            return verify(block, below, rows, coins, self._rule, self._sampler.kernels), rows
        except NoDistributionError:
            raise no_distribution(level.name) from None

    def _fill(self, at: int) -> None:
        """Level `at` emits tokens until it holds its threshold; a lookup that knows nothing stops before."""
        level, tokens = self.levels[at], self.sequence.tokens
        if at == 0 and self._stop and isinstance(level.source, Reader):
            return self._draft_by_value(level, self._stop)
        start, room = len(tokens), self._room(at)
        if isinstance(level.source, SuffixIndex):
            if self._ended():
                return None
            # Its block follows from what is fixed already, so any part of it may be left out.
            found = level.look_up(level.source, min(level.threshold, room - start), self._stop)
            ends = [at for at, token in enumerate(found, 1) if token in self._end_ids]
            block = found[: ends[0]] if ends else found
            for token in block:
                self._append(token, level)
            level.rows.append(block)
            return None
        while len(tokens) - start < level.threshold and len(tokens) < room and not self._ended():
            if at == 0:
                self._draft(level)
            else:
                self._verify(at)

    def _draft_by_value(self, level: Level, stop: StopRule) -> None:
        """The first level drafts while one more token pays; what it asks depends on tokens that it has kept."""
        tokens = self.sequence.tokens
        end, chance = min(len(tokens) + level.threshold, self._room(0)), 1.0
        while len(tokens) < end and stop.pays(chance) and not self._ended():
            chance *= stop.calibration.chance(self._draft(level, measured=True))

    def _draft(self, level: Level, measured: bool = False) -> float:
        """A level draws one token; its confidence in what it drew from, if that is to be measured."""
        assert isinstance(level.source, Reader)
        logits = self._logits(level, level.source, 1)
        first = level is self.levels[0] and level.threshold > 0
        out = level.place(self._sampler) if first and not self._sampler.params.greedy else None
        coin = self._coins.random()
        token, row, confidence = self._sampler.draw(logits, self.sequence.tokens, coin, out, measured)
        if token < 0:
            raise no_distribution(level.name)
        level.rows.append(row)
        self._append(token, level)
        return confidence

    def _distributions(self, level: Level, n: int) -> Rows:
        """The level's distributions of the tokens behind the last `n` prefixes of the sequence."""
        assert isinstance(level.source, Reader), "a lookup drafts and never verifies"
        return self._sampler.rows(self._logits(level, level.source, n), self.sequence.tokens)

    def _logits(self, level: Level, reader: Reader, n: int) -> Tensor:
        """The level's logits of the last `n` positions; a failure names the level."""
        try:
            return reader.read(self.sequence.tokens, n).to(self._sampler.device)
        except HsdError:
            raise
        except Exception as error:
            raise failed_pass(level.name, error) from error

    def _append(self, token: int, level: Level) -> None:
        self.sequence.append(token, level.name)
        for index in self._indices:
            index.push(token)

    def _cut(self, length: int) -> None:
        """Everything behind the first `length` tokens was never there, at any level."""
        self.sequence.cut(length)
        self._sampler.rewind(length)
        for level in self.levels:
            if isinstance(level.source, SuffixIndex):
                level.source.cut(length)
            else:
                level.source.rewind(length)

    def _settle(self) -> None:
        """What the target emitted becomes part of the text that a lookup searches."""
        for level in self.levels:
            if isinstance(level.source, SuffixIndex):
                pending = self.sequence.tokens[level.source.settled :]
                level.source.cut(level.source.settled)
                level.source.settle(pending)

    def _ended(self) -> bool:
        tokens = self.sequence.tokens
        return len(tokens) > self.sequence.prompt_length and tokens[-1] in self._end_ids

    def _room(self, at: int) -> int:
        """Longest sequence that level `at` may make: a draft leaves the last place to the target's own token."""
        return self._limit - (at < len(self.levels) - 1)

    def statistics(self) -> tuple[LevelStats, ...]:
        """What every level did since this chain was made, cheapest first."""
        return tuple(level.statistics(mark) for level, mark in zip(self.levels, self._marks, strict=True))
