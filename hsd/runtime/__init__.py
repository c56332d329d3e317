"""One model with its cache: extend, rewind, logits of the last positions, measured cost."""

from typing import Any

from hsd.runtime.base import MAX_WIDTH, PREFILL_WIDTH, Drafting, KVCache, LanguageModel
from hsd.runtime.fallback import TransformersModel
from hsd.runtime.lean import LeanModel
from hsd.runtime.reader import Meter, Pass, Reader

__all__ = [
    "MAX_WIDTH",
    "PREFILL_WIDTH",
    "Drafting",
    "KVCache",
    "LanguageModel",
    "LeanModel",
    "Meter",
    "Pass",
    "Reader",
    "TransformersModel",
    "wrap",
]


def wrap(name: str, model: Any, context: int) -> LanguageModel:
    """The fastest means there is for a loaded transformers model: lean where its shape allows, else its own forward.

    Raises:
        LoadError: the model cannot go on with a text token by token.
    """
    from hsd.runtime import lean, rope

    model.eval()
    if lean.refusal(model) is None:
        return LeanModel(name, model, context)
    plain, limit = TransformersModel(name, model, context), rope.switch_length(model.config)
    if limit is not None and context > limit and rope.reads_anew(model):
        return rope.SwitchingModel(plain, rope.rotary_modules(model), limit)
    return plain
