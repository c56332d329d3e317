"""One model with its cache: extend, rewind, logits of the last positions, measured cost."""

from typing import Any

from hsd.errors import LoadError
from hsd.runtime.base import MAX_WIDTH, PREFILL_WIDTH, KVCache, LanguageModel
from hsd.runtime.fallback import DAMAGED, NO_NUMBERS, TransformersModel
from hsd.runtime.lean import LeanModel
from hsd.runtime.llama_cpp.model import LlamaCppModel
from hsd.runtime.reader import Meter, Pass, Reader

__all__ = [
    "MAX_WIDTH",
    "PREFILL_WIDTH",
    "KVCache",
    "LanguageModel",
    "LeanModel",
    "LlamaCppModel",
    "Meter",
    "Pass",
    "Reader",
    "TransformersModel",
    "wrap",
]


def wrap(name: str, model: Any, context: int) -> LanguageModel:
    """What computes a loaded transformers model: on an NVIDIA GPU lean where its shape allows, else its own forward.

    A model of llama.cpp is one already.

    Raises:
        LoadError: the model cannot go on with a text token by token.
    """
    from hsd.runtime import lean, rope

    if isinstance(model, LlamaCppModel):
        return model
    model.eval()
    if next(model.parameters()).device.type == "cuda" and lean.refusal(model) is None:
        return _tried(LeanModel(name, model, context))
    plain, limit = TransformersModel(name, model, context), rope.switch_length(model.config)
    if limit is not None and context > limit and rope.reads_anew(model):
        return rope.SwitchingModel(plain, rope.rotary_modules(model), limit)
    return plain


def _tried(model: LeanModel) -> LeanModel:
    """The model, if it computes numbers. One that is in memory was not looked at while it was read."""
    if not model.forward([0], model.new_cache(), 1).isfinite().all():
        raise LoadError(f"'{model.name}' {NO_NUMBERS}.", DAMAGED)
    return model
