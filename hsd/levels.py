"""The one token sequence of a reply, and the levels of a chain that read it and write its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hsd.lookup import SuffixIndex
from hsd.planning import StopRule
from hsd.runtime import Reader
from hsd.sampling import Sampler
from hsd.types import LOOKUP, LevelStats
from hsd.verify import Rows, chances_of


@dataclass(slots=True)
class TokenSequence:
    """Prompt, committed reply and pending tokens, and which level drew each token behind the prompt."""

    tokens: list[int]
    prompt_length: int
    origins: list[str] = field(default_factory=list)

    def append(self, token: int, origin: str) -> None:
        self.tokens.append(token)
        self.origins.append(origin)

    def extend(self, tokens: Sequence[int], origin: str) -> None:
        self.tokens += tokens
        self.origins += [origin] * len(tokens)

    def cut(self, length: int) -> None:
        del self.tokens[length:]
        del self.origins[length - self.prompt_length :]


class Round(NamedTuple):
    """One round of the target: the tokens that it emitted, who had proposed each, and how long the block was.

    `chances` has the target's probability of every token, 1 where decoding is greedy; empty where they are not known.
    """

    tokens: list[int]
    origins: list[str]
    proposed: int
    accepted: int
    seconds: float
    chances: tuple[float, ...] = ()


@dataclass(slots=True)
class Level:
    """One level of a chain.

    Args:
        name: the model's name, or `lookup`.
        threshold: it hands its block up once it holds this many tokens; unused for the target.
        source: a model reading the sequence, or the suffix index of a lookup.
    """

    name: str
    threshold: int
    source: Reader | SuffixIndex
    rows: list[Rows] = field(default_factory=list)  # distributions of its tokens that the next level has not seen
    proposed: int = 0
    accepted: int = 0
    lookups: int = 0
    lookup_seconds: float = 0.0
    _block: Tensor | None = None  # rows that the first level drew from, threshold x vocabulary

    def block(self, sampler: Sampler) -> Tensor:
        """`(threshold, vocab)` for the rows that this level draws from: they lie side by side and are never copied."""
        if self._block is None:
            # Said, because loading a model elsewhere in this process changes what torch takes by default.
            shape = self.threshold, sampler.vocab
            self._block = torch.empty(shape, device=sampler.device, dtype=torch.float32)
        return self._block

    def place(self, sampler: Sampler) -> Tensor:
        """`(1, vocab)` for the next of them."""
        at = len(self.rows)
        return self.block(sampler)[at : at + 1]

    def take_rows(self) -> Rows:
        """The distributions of the block that is handed up, valid until this level drafts again; forgets them."""
        rows, self.rows = self.rows, []
        dense = [part for part in rows if isinstance(part, Tensor)]
        if self._block is not None and dense and dense[0].data_ptr() == self._block.data_ptr():
            return self._block[: sum(part.shape[0] for part in dense)]
        if dense:
            return dense[0] if len(dense) == 1 else torch.cat(dense)
        return [token for part in rows for token in part]

    def chances(self, tokens: Sequence[int]) -> tuple[float, ...]:
        """The level's probability of every token that it has rows of, in their order."""
        out: list[float] = []
        for part in self.rows:
            ids = tokens[len(out) : len(out) + len(part)]
            out += [1.0] * len(part) if isinstance(part, list) else chances_of(part, ids)
        return tuple(out)

    def look_up(self, index: SuffixIndex, most: int, stop: StopRule | None) -> list[int]:
        """What followed the same words before: as many tokens as are worth verifying, at most `most`."""
        begun = time.perf_counter()
        tokens, sure = index.ahead(most)
        if stop:
            del tokens[stop.length(sure) :]
        self.lookups += len(tokens)
        self.lookup_seconds += time.perf_counter() - begun
        return tokens

    def mark(self) -> int:
        """Passes that it has made so far."""
        return len(self.source.meter.passes) if isinstance(self.source, Reader) else 0

    def statistics(self, mark: int) -> LevelStats:
        """What it did, with its passes since there were `mark`."""
        count, tokens, seconds = self.lookups, 0, self.lookup_seconds
        if isinstance(self.source, Reader):
            count, tokens, seconds = self.source.meter.since(mark)
        return LevelStats(self.name, self.proposed, self.accepted, count, seconds, tokens / max(count, 1))


def make_levels(
    names: Sequence[str], thresholds: Sequence[int], readers: Callable[[str], Reader], index: Callable[[], SuffixIndex]
) -> list[Level]:
    """The levels of a plan, cheapest first; the index is asked for only where the plan has a lookup."""
    padded = [*thresholds, 0]
    return [
        Level(name, threshold, index() if name == LOOKUP else readers(name))
        for name, threshold in zip(names, padded, strict=True)
    ]
