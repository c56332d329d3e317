"""Any causal language model through transformers' own forward: for every shape that has no lean one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hsd.errors import LoadError
from hsd.runtime.base import check_room

_STATES = ("past_key_values", "cache_params", "state")
"""What transformers' models call their cache, as an argument and in their output."""

_NOTICED = 0.1
"""Part of what the tokens before change of the logits that an error may be: a state that is not used is all of it."""

_ROUNDED, _ROUNDED_16 = 1e-5, 0.004
"""Part of the spread of the logits that rounding may change: in float32, and in 16 bits or quantized."""

_BEFORE = 16
"""Tokens before those that a recurrent state is tried with: behind one token it hardly matters yet."""


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

    Raises:
        LoadError: it keeps no cache, reads in both directions, or gives other logits for three tokens than for one
            after the other; or it computes no numbers.
    """

    kind = "transformers"

    def __init__(self, name: str, model: Any, context: int) -> None:
        self.name, self.context = name, context
        self.device = model.get_input_embeddings().weight.device
        self.vocab = model.get_output_embeddings().weight.shape[0]
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._model = model
        arguments = inspect.signature(model.forward).parameters
        state = next((s for s in _STATES if s in arguments), None)
        if state is None:
            raise LoadError(f"'{name}' ({type(model).__name__}) keeps no cache: it cannot go on with a text.", _OTHER)
        self._state_name = state
        self._keeps_logits = "logits_to_keep" in arguments
        self._takes_positions = "position_ids" in arguments
        self._exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
        self.cuttable, self.single = False, False
        self._try_out()

    def new_cache(self) -> TransformersCache:
        return TransformersCache(self.cuttable)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: TransformersCache, last: int) -> Tensor:
        """See `LanguageModel.forward`.

        Raises:
            ModelError: there are no ids, or more than the context has room for.
        """
        check_room(self.name, len(ids), cache.length, self.context)
        return self._read(ids, cache, last)

    def _read(self, ids: Sequence[int], cache: TransformersCache, last: int) -> Tensor:
        if not (self.single and cache.length):
            return self._pass(ids, cache, last)
        rows = [self._pass([token], cache, 1) for token in ids]
        return torch.cat(rows[len(rows) - last :]) if last else rows[-1][:0]

    def _pass(self, ids: Sequence[int], cache: TransformersCache, last: int) -> Tensor:
        # Taken out while the pass runs: one that fails half-way has written some layers and not others.
        state, length, cache.state, cache.length = cache.state, cache.length, None, 0
        if state is None and self.cuttable:
            state = _full_cache()
        extra: dict[str, Any] = {self._state_name: state}
        if self._keeps_logits:
            extra["logits_to_keep"] = max(last, 1)
        if self._takes_positions:  # as `generate` does: some hybrid models count them wrongly
            extra["position_ids"] = torch.arange(length, length + len(ids), device=self.device).unsqueeze(0)
        output = self._model(torch.tensor([ids], device=self.device), use_cache=True, **extra)
        kept = output.get(self._state_name)
        if kept is None:
            raise RuntimeError("it keeps no cache")
        cache.state, cache.length = kept, length + len(ids)
        return output.logits[0, output.logits.shape[1] - last :].float()

    def _try_out(self) -> None:
        """Finds out how the model may be read, by reading a few tokens in several ways.

        What a cache says of itself misleads (static layers say no, sliding windows yes, some recurrent layers change
        their mind, some use their state only in passes over one token), so it is tried.
        """
        if self._state_name == "past_key_values":
            self.cuttable = True  # with a cache that keeps every position
            try:
                if self._difference() is None:
                    return
            except Exception:  # a model that wants a cache of its own kind
                pass
            self.cuttable = False
        try:
            wrong = self._difference()
            if wrong == _PIECES:
                self.single = True
                wrong = self._difference()
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            hint = "Try 'quantization: none'." if getattr(self._model, "is_quantized", False) else _OTHER
            raise LoadError(
                f"'{self.name}' ({type(self._model).__name__}) cannot go on with a text token by token: {said}.", hint
            ) from error
        if wrong:
            hint = DAMAGED if wrong == NO_NUMBERS else _OTHER
            raise LoadError(f"'{self.name}' ({type(self._model).__name__}) {wrong}.", hint)

    @torch.inference_mode()
    def _difference(self) -> str | None:
        """What is wrong with reading in pieces, in words; None if it gives what reading at once gives.

        Where the cache can be cut, two further tokens are read and cut away between the pieces. The last token is the
        first again: how much its logits change behind the others says how much an error matters.
        """
        ids = _some_ids(self._model.config, self.vocab)
        before = ids[:1] if self.cuttable else ids[:_BEFORE]
        rest, others = [ids[-1], ids[0]], ids[-3:-1]
        at_once = self._read(before + rest, self.new_cache(), len(before) + 2)
        cache = self.new_cache()
        first = self._read(before, cache, 1)
        if self.cuttable:
            self._read(others, cache, 1)
            cache.rewind(1)
        second = self._read(rest, cache, 2)
        if not (at_once.isfinite().all() and first.isfinite().all()):
            return NO_NUMBERS
        most = (_ROUNDED if self._exact else _ROUNDED_16) * (at_once - at_once.mean(-1, keepdim=True)).abs().max()
        if self.cuttable or not self._exact:
            most = torch.maximum(most, _NOTICED * (at_once[-1] - at_once[0]).abs().max())
        if (first - at_once[-3:-2]).abs().max() > most:
            return _BOTH_WAYS
        return None if (second - at_once[-2:]).abs().max() <= most else _PIECES


NO_NUMBERS = "computes no finite numbers"
_BOTH_WAYS = "reads in both directions, so it cannot go on with a text"
_PIECES = "gives other logits for tokens that it reads one after the other than for the same tokens at once"
_OTHER = "Choose a model that is made for writing text (a causal language model)."
DAMAGED = "Its weights are damaged, or its dtype is too small for them: fetch it anew, or try 'dtype: float32'."


def _some_ids(config: Any, vocab: int) -> list[int]:
    """Ids from all over the vocabulary, no padding: some models leave it out of their positions."""
    known = [i for i in range(vocab) if i != getattr(config, "pad_token_id", None)]
    count = _BEFORE + 3
    return [known[len(known) * (7 * i % count + 1) // (count + 2)] for i in range(count)]


def _full_cache() -> Any:
    """A cache whose layers keep every position: sliding windows are then a matter of the mask, and can be cut."""
    from transformers import DynamicCache

    return DynamicCache()
