"""Keys and values of one sequence for the lean forward: written in place, rewound by setting a length."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_CACHE_STEP = 256  # tokens by which a cache grows at least


class LeanCache:
    """Keys and values of all layers, one tensor `(capacity, kv_heads, head_dim)` each per layer; grows as it fills.

    Positions come first, so that what is held is one contiguous piece per layer however large the capacity is: a
    compiled step depends on it.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, context: int, like: Tensor) -> None:
        self._context = context
        self.keys = [like.new_empty((0, heads, head_dim)) for _ in range(layers)]
        self.values = [like.new_empty((0, heads, head_dim)) for _ in range(layers)]
        self.length = 0
        self._addresses: Any = None

    @property
    def capacity(self) -> int:
        """Tokens that it has room for."""
        return self.keys[0].shape[0]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def rewind(self, length: int) -> None:
        self.length = length

    def copy(self, length: int) -> LeanCache:
        _, heads, head_dim = self.keys[0].shape
        new = LeanCache(len(self.keys), heads, head_dim, self._context, self.keys[0])
        new.length = length  # what `move` takes over
        new.keys, new.values = self.keys, self.values
        new.move(*_empty(self, length))
        return new

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens, doubling so that growth costs amortised constant time per token."""
        if length > self.capacity:
            capacity = max(length, 2 * self.capacity, _CACHE_STEP)
            self.move(*_empty(self, min(capacity, max(self._context, length))))

    def move(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Goes on in other tensors of at least its length, after copying what it holds."""
        for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=True):
            new[: self.length].copy_(old[: self.length])
        self.keys, self.values = list(keys), list(values)
        self._addresses = None

    def leave(self) -> None:
        """Goes on in tensors of its own, just large enough: those it lies in belong to somebody else."""
        self.move(*_empty(self, self.length))

    def addresses(self) -> Any:
        """Where they lie, as a C array of pointers: keys of every layer, then values of every layer."""
        if self._addresses is None:
            held = [t.data_ptr() for t in (*self.keys, *self.values)]
            self._addresses = (ctypes.c_void_p * len(held))(*held)
        return self._addresses

    def views(self, end: int) -> list[Tensor]:
        """The first `end` positions: keys of every layer, then values of every layer."""
        return [t[:end] for t in self.keys] + [t[:end] for t in self.values]


def _empty(cache: LeanCache, capacity: int) -> tuple[list[Tensor], list[Tensor]]:
    shape = (capacity, *cache.keys[0].shape[1:])
    keys, values = (
        [torch.empty(shape, dtype=t.dtype, device=t.device) for t in part] for part in (cache.keys, cache.values)
    )
    return keys, values
