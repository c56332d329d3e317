"""The seam between the engine and a model's arithmetic: extend a cache, rewind it, logits of the last positions.

Above this package nothing knows how a step is computed. `lean.LeanModel`, `fallback.TransformersModel`,
`rope.SwitchingModel` and the tables of the tests implement `LanguageModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hsd.errors import ModelError

MAX_WIDTH = 16
"""Widest pass that verification runs in one piece, in tokens; costs are measured and planned up to here."""

PREFILL_WIDTH = 256
"""Widest pass of reading a prompt: wide enough for the matrix units, small enough to stop soon when asked to."""


class KVCache(Protocol):
    """Keys and values of the first `length` tokens of one sequence, for one model."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def copy(self, length: int) -> KVCache:
        """A cache of its own that holds the first `length` tokens; none where this one cannot be cut."""
        ...

    def rewind(self, length: int) -> None:
        """Keeps the first `length` tokens, `0 <= length <= self.length`.

        A cache that cannot be cut keeps none: whoever reads next reads again from the start, and rightly.
        """
        ...


class LanguageModel(Protocol):
    """A causal language model for one sequence at a time.

    Attributes:
        name: its name in the family.
        vocab: number of logits per position.
        context: longest sequence in tokens.
        device: where its logits are.
        cuttable: whether a cache can be rewound without reading again.
        single: whether tokens behind a cache are read one by one, because wider passes would give other logits.
        kind: how a step is computed ("lean-2", "transformers"), part of what a measured cost is valid for.
        dtype: weights and arithmetic, in words, likewise.
    """

    name: str
    vocab: int
    context: int
    device: torch.device
    cuttable: bool
    single: bool
    dtype: str

    @property
    def kind(self) -> str: ...

    def new_cache(self) -> KVCache: ...

    def forward(self, ids: Sequence[int], cache: Any, last: int) -> Tensor:
        """Reads `ids` behind what the cache holds and extends the cache by them.

        Args:
            ids: at least one token id.
            cache: one of this model's own, from `new_cache`.
            last: for how many of the last positions logits are wanted, `0 <= last <= len(ids)`.

        Returns:
            float logits `(last, vocab)`, valid until the next call.
        """
        ...


@runtime_checkable
class Interruptible(Protocol):
    """A model that can be stopped inside a wide pass."""

    def prefill(self, ids: Sequence[int], cache: Any, stop: Callable[[], bool]) -> bool:
        """Reads a piece of a prompt; False if `stop` said so meanwhile. Then only whole passes of it are cached."""
        ...


def check_room(name: str, width: int, length: int, context: int) -> None:
    """Raises ModelError unless a model can read `width` tokens, at least one, behind `length` cached ones."""
    if width < 1 or length + width > context:
        raise ModelError(
            name,
            f"it cannot read {width} tokens behind {length} of at most {context}.",
            "Shorten the conversation, or choose a larger context for this family.",
        )
