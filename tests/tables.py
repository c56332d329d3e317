"""Models that are tables, behind the runtime seam: their distributions are known exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class TableCache:
    """Holds the tokens themselves; checks that it is never asked to hold what it was not given."""

    nbytes = 0

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def copy(self, length: int) -> TableCache:
        new = TableCache()
        new.tokens = self.tokens[:length]
        return new

    def rewind(self, length: int) -> None:
        assert 0 <= length <= len(self.tokens)
        del self.tokens[length:]


class TableModel:
    """Logits that depend on the last two tokens: `table[before_last, last]`, `(V + 1, V, V)`.

    Row `V` of the first axis stands for "there was only one token".
    """

    kind, dtype, cuttable, single = "table", "float32", True, False
    device = torch.device("cpu")

    def __init__(self, name: str, table: np.ndarray, context: int = 4096) -> None:
        self.name = name
        self.table = torch.tensor(table, dtype=torch.float32)
        self.vocab = table.shape[-1]
        self.context = context
        self.passes: list[tuple[int, int]] = []  # (width, cached before)

    def new_cache(self) -> TableCache:
        return TableCache()

    def forward(self, ids: Sequence[int], cache: TableCache, last: int) -> torch.Tensor:
        assert len(ids) >= 1 and 0 <= last <= len(ids)
        self.passes.append((len(ids), cache.length))
        cache.tokens += ids
        tokens = cache.tokens
        rows = [self.row(tokens, len(tokens) - last + i) for i in range(last)]
        return torch.stack(rows) if rows else torch.empty(0, self.vocab)

    def row(self, tokens: Sequence[int], at: int) -> torch.Tensor:
        return self.table[tokens[at - 1] if at > 0 else self.vocab, tokens[at]]


def random_table(vocab: int, seed: int, sharpness: float = 1.5) -> np.ndarray:
    """Logits of a random second-order chain."""
    return np.random.default_rng(seed).normal(0, sharpness, (vocab + 1, vocab, vocab))


def near(table: np.ndarray, seed: int, noise: float) -> np.ndarray:
    """A draft of this table: the same with noise."""
    return table + np.random.default_rng(seed).normal(0, noise, table.shape)
