"""Keys and values of one sequence for the lean forward: written in place, rewound by setting a length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CACHE_STEP = 256  # tokens by which a cache grows at least


class LeanCache:
    """Keys and values of all layers, one tensor `(capacity, kv_heads, head_dim)` each per layer; grows as it fills.

    Positions come first, so that what is held is one contiguous piece per layer however large the capacity is. Nothing
    is allocated before there is something to hold.

    Args:
        layers, heads, head_dim: of the model; heads are those of keys and values.
        context: tokens that it grows to by itself.
        dtype, device: of what is kept.
    """

    def __init__(
        self, layers: int, heads: int, head_dim: int, context: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._kind = layers, heads, head_dim, context, dtype, device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.capacity = 0  # tokens that it has room for
        self.length = 0

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def rewind(self, length: int) -> None:
        self.length = length

    def copy(self, length: int) -> LeanCache:
        new = LeanCache(*self._kind)
        new.length = length  # what `move` takes over
        new.keys, new.values = self.keys, self.values
        new.move(*self._empty(length))
        return new

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens, doubling so that growth costs amortised constant time per token."""
        if length > self.capacity:
            capacity, context = max(length, 2 * self.capacity, _CACHE_STEP), self._kind[3]
            self.move(*self._empty(min(capacity, max(context, length))))

    def move(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Goes on in other tensors of at least its length, after copying what it holds."""
        if self.length:
            for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=True):
                new[: self.length].copy_(old[: self.length])
        self.keys, self.values, self.capacity = list(keys), list(values), keys[0].shape[0]

    def leave(self) -> None:
        """Goes on in tensors of its own, just large enough: those it lies in belong to somebody else."""
        self.move(*self._empty(self.length))

    def views(self, end: int) -> list[Tensor]:
        """The first `end` positions: keys of every layer, then values of every layer."""
        return [t[:end] for t in self.keys] + [t[:end] for t in self.values]

    def _empty(self, capacity: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Keys and values of all layers in one piece of memory: a short reply feels every allocation."""
        layers, heads, head_dim, _, dtype, device = self._kind
        parts = torch.empty((2 * layers, capacity, heads, head_dim), dtype=dtype, device=device).unbind()
        return parts[:layers], parts[layers:]
