"""Any causal language model through transformers' own forward: for every shape that has no lean one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TransformersCache:
    """transformers' cache of one sequence, or the state of a recurrent model."""

    def __init__(self, cuttable: bool) -> None:
        self._cuttable = cuttable
        self.state: Any = None
        self.length = 0

    @property
    def nbytes(self) -> int:
        layers = getattr(self.state, "layers", None) or []
        tensors = [t for layer in layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    def copy(self, length: int) -> TransformersCache:
        new = TransformersCache(self._cuttable)
        if self._cuttable and length:
            new.state, new.length = copy.deepcopy(self.state), self.length
            new.rewind(length)
        return new

    def rewind(self, length: int) -> None:
        if length == self.length:
            return
        if length == 0 or not self._cuttable:
            self.state, self.length = None, 0
            return
        # A negative argument removes that many tokens in every supported version; what a positive one does changed.
        self.state.crop(length - self.length)
        self.length = length


class TransformersModel:
    """A `LanguageModel` that calls transformers' forward.

    Args:
        name: its name in the family.
        model: a loaded causal language model.
        context: longest sequence in tokens.
    """

    kind = "transformers"

    def __init__(self, name: str, model: Any, context: int) -> None:
        self.name = name
        self.context = context
        self.device = model.get_input_embeddings().weight.device
        self.vocab = model.get_output_embeddings().weight.shape[0]
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._model = model
        arguments = inspect.signature(model.forward).parameters
        self._state_name = "cache_params" if "cache_params" in arguments else "past_key_values"
        self._keeps_logits = "logits_to_keep" in arguments
        self.cuttable = self._state_name == "past_key_values" and self._can_cut()

    def new_cache(self) -> TransformersCache:
        return TransformersCache(self.cuttable)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: TransformersCache, last: int) -> Tensor:
        """See `LanguageModel.forward`."""
        # Taken out while the pass runs: one that fails half-way has written some layers and not others.
        state, length, cache.state, cache.length = cache.state, cache.length, None, 0
        if state is None and self.cuttable:
            state = _full_cache()
        extra = {"logits_to_keep": max(last, 1)} if self._keeps_logits else {}
        output = self._model(
            torch.tensor([ids], device=self.device), use_cache=True, **{self._state_name: state}, **extra
        )
        cache.state, cache.length = output[self._state_name], length + len(ids)
        return output.logits[0, output.logits.shape[1] - last :].float()

    def _can_cut(self) -> bool:
        """Reads, cuts and reads again, and compares with reading at once.

        What the cache says of itself misleads (static layers say no, sliding windows yes, some recurrent layers
        change their mind), so it is tried: four tokens, two of them cut and replaced.
        """
        vocab = max(self.vocab, 8)
        first, second = [1, 2, 3, 4], [5 % vocab, 6 % vocab]
        self.cuttable = True
        try:
            cut, fresh = self.new_cache(), self.new_cache()
            self.forward(first, cut, 1)
            cut.rewind(2)
            after_cut = self.forward(second, cut, 1)
            at_once = self.forward(first[:2] + second, fresh, 1)
        except Exception:
            return False
        scale = at_once.abs().max().clamp(min=1e-6)
        return bool((after_cut - at_once).abs().max() <= 0.05 * scale)


def _full_cache() -> Any:
    """A cache whose layers keep every position: sliding windows are then a matter of the mask, and can be cut."""
    from transformers import DynamicCache

    return DynamicCache()
