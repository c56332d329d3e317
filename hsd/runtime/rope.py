"""Rotary embeddings that change with the length of a text: up to which length a model has one, and reading beyond it.

LongRoPE turns positions by one set of factors while the text is at most its original length, and by another, all
positions anew, once it is longer. Keys that were cached under the first set do not fit the second. transformers'
`generate` reads the text anew at that point for some models (Phi-3), and mixes both kinds of keys for all others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hsd.runtime.base import PREFILL_WIDTH
from hsd.runtime.fallback import TransformersCache, TransformersModel
from hsd.types import MAX_THRESHOLD

_READ_ANEW = ("Phi3ForCausalLM", "PhimoeForCausalLM")
"""Models whose `prepare_inputs_for_generation` drops the cache where the factors change."""


def switch_length(config: Any) -> int | None:
    """The longest text, in tokens, for which a model's rotary embedding is one and the same; None if it always is."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]  # some have one for each layer type
    lengths = []
    for kind in kinds:
        name = str(kind.get("rope_type", ""))
        longest = int(getattr(config, "max_position_embeddings", None) or 0)
        if name == "longrope":
            lengths.append(int(kind.get("original_max_position_embeddings") or longest))
        elif "dynamic" in name and longest:
            lengths.append(longest)
    return min(lengths, default=None)


def reads_anew(model: Any) -> bool:
    """Whether `generate` reads a text anew where it grows beyond `switch_length`, as `SwitchingModel` does."""
    config = model.config
    known = type(model).__name__ in _READ_ANEW and type(model).__module__.startswith("transformers.")
    return known and getattr(config, "original_max_position_embeddings", None) == switch_length(config)


def rotary_modules(model: Any) -> list[torch.nn.Module]:
    """The modules that turn positions into cosines and sines."""
    return [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]


class SwitchingCache:
    """The ids that were read, and caches of a prefix of them for either set of factors."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        self.ids: list[int] = []
        self.short, self.long = model.new_cache(), model.new_cache()

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return self.short.nbytes + self.long.nbytes

    def copy(self, length: int) -> SwitchingCache:
        new = SwitchingCache(self._model)
        new.ids = self.ids[:length]
        new.short, new.long = (part.copy(min(length, part.length)) for part in (self.short, self.long))
        return new

    def rewind(self, length: int) -> None:
        del self.ids[length:]
        for part in (self.short, self.long):
            part.rewind(min(length, part.length))


class SwitchingModel:
    """A `LanguageModel` that reads a text anew where it grows beyond a length; no pass straddles it.

    Args:
        inner: the model.
        rotary: its rotary embeddings.
        limit: tokens up to which the first set of factors holds.
    """

    kind = "transformers"

    def __init__(self, inner: TransformersModel, rotary: Sequence[torch.nn.Module], limit: int) -> None:
        self._inner, self._rotary, self._limit = inner, rotary, limit
        self.name, self.vocab, self.context = inner.name, inner.vocab, inner.context
        self.device, self.dtype = inner.device, inner.dtype
        self.cuttable, self.single = inner.cuttable, inner.single

    def new_cache(self) -> SwitchingCache:
        return SwitchingCache(self._inner)

    def forward(self, ids: Sequence[int], cache: SwitchingCache, last: int) -> Tensor:
        """See `LanguageModel.forward`."""
        text = [*cache.ids, *ids]
        beyond = max(0, min(len(ids), len(text) - self._limit))  # of the new tokens
        rows = []
        try:
            if beyond < len(ids) and (last > beyond or not beyond):
                rows.append(self._read(text[: len(text) - beyond], cache.short, max(last - beyond, 0)))
            if beyond:
                with _as_long(self._rotary, self._limit):
                    rows.append(self._read(text, cache.long, min(last, beyond)))
        except BaseException:
            cache.rewind(cache.length)  # what was read of the new tokens is not kept
            raise
        cache.ids = text
        if len(text) > self._limit + MAX_THRESHOLD:  # no rejection leads back from here
            cache.short = self._inner.new_cache()
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _read(self, text: Sequence[int], cache: TransformersCache, last: int) -> Tensor:
        """Extends one of the caches to the end of a text."""
        cache.rewind(min(cache.length, len(text) - max(last, 1)))
        while len(text) - cache.length > max(PREFILL_WIDTH, last):
            end = min(cache.length + PREFILL_WIDTH, len(text) - max(last, 1))
            self._inner.forward(text[cache.length : end], cache, 0)
        return self._inner.forward(text[cache.length :], cache, last)


@contextlib.contextmanager
def _as_long(modules: Sequence[torch.nn.Module], limit: int) -> Iterator[None]:
    """Every rotary embedding turns as in a text that is longer than the limit, however early the positions are."""

    def before(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        places = named["position_ids"] if "position_ids" in named else args[1]
        longer = torch.cat((places, places.new_full((*places.shape[:-1], 1), limit)), dim=-1)
        if "position_ids" in named:
            return args, {**named, "position_ids": longer}
        return (args[0], longer, *args[2:]), named

    def after(_: Any, __: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part[:, :-1] for part in output)

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(after))
        yield
