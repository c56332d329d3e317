"""Where models come from: a hub or a folder, through transformers, bitsandbytes and accelerate.

The same path loads every family, the built-in one too. A draft that cannot be used is left out with its reason; only
the target is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hsd.config import Family
from hsd.errors import LoadError
from hsd.loading.family import Loaded, assemble, in_memory
from hsd.loading.source import check_tokenizer, device_of, read_model, read_tokenizer
from hsd.types import Dropped, LoadProgress

__all__ = ["Loaded", "Progress", "assemble", "in_memory", "load"]

Progress = Callable[[LoadProgress], None]


def load(family: Family, device: str = "auto", dtype: str | None = None, progress: Progress | None = None) -> Loaded:
    """Loads a family: the target first, then its drafts.

    Args:
        family: what to load.
        device: "auto", or a torch device that overrides the file's.
        dtype: overrides the file's dtypes.
        progress: told what is being loaded.

    Raises:
        LoadError: the target or its tokenizer cannot be loaded.
    """
    tell = progress or (lambda _: None)
    total = float(len(family.models))
    target = family.target_spec
    tell(LoadProgress(target.name, "loading the tokenizer", 0, total))
    tokenizer = read_tokenizer(target)
    ordered = [target, *(m for m in family.models if m is not target)]
    loaded: dict[str, Any] = {}
    dropped: list[Dropped] = []
    for done, spec in enumerate(ordered):
        tell(LoadProgress(spec.name, f"loading {spec.path}", done, total))
        try:
            if spec is not target:
                check_tokenizer(spec, tokenizer)
            loaded[spec.name] = read_model(spec, device_of(spec, device), dtype)
        except LoadError as error:
            if spec is target:
                raise
            dropped.append(Dropped(spec.name, str(error)))
    stored = {s.name: s.quantization for s in family.models if s.quantization != "none"}
    tell(LoadProgress("", "checking the models", total, total))
    models = {spec.name: loaded[spec.name] for spec in family.models if spec.name in loaded and spec is not target}
    return assemble(family, {**models, target.name: loaded[target.name]}, tokenizer, stored, dropped)
