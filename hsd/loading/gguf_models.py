"""GGUF models into memory by llama.cpp: how many layers go to the GPU, and whether a draft has the target's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsd import gguf
from hsd.config import ModelSpec
from hsd.errors import LoadError
from hsd.loading.shapes import of_gguf
from hsd.paths import data_dir
from hsd.runtime.llama_cpp.library import Library, library
from hsd.runtime.llama_cpp.model import LlamaCppModel
from hsd.runtime.llama_cpp.tokenizer import tokenizer_of
from hsd.runtime.llama_cpp.trial import passed

_ROOM = 0.9
"""Part of a GPU's free memory that layers and their cache may take; the rest is the library's work."""


TRIED = "gguf-tried.json"
"""In the data folder: GGUF files that llama.cpp has loaded once, so that they are not tried again."""


def read_gguf(
    spec: ModelSpec, file: Path, context: int, share: Callable[[float], None], folder: str = ""
) -> LlamaCppModel:
    """A GGUF model in memory. A file that was never loaded is tried in a process of its own first.

    Args:
        spec: which, and how many layers go to the GPU.
        file: the first of its files.
        context: longest sequence in tokens.
        share: told how far the reading is, 0 to 1.
        folder: where `models.yaml` says that llama.cpp is; empty where it says nothing.

    Raises:
        LoadError: the library is missing or refuses it, or a part of it is missing.
    """
    headers = [gguf.header(part) for part in gguf.parts(file)]
    used = library(folder or None)
    layers = spec.gpu_layers if spec.gpu_layers != "auto" else _layers_that_fit(used, headers, context)
    if not spec.path.startswith("builtin:"):
        why = passed(file, layers, used, data_dir() / TRIED)
        if why:
            hint = "Download the file again, or install a newer llama.cpp."
            if layers and any(word in why.lower() for word in ("memory", "alloc")):
                hint = "Set a smaller number of 'gpu_layers', or 0."
            raise LoadError(f"llama.cpp cannot load {file.name}: {why}.", hint)
    model = LlamaCppModel(spec.name, file, context, used, layers, share, spec.exact)
    if spec.path.startswith("builtin:"):
        model.exact = True  # its files are stored in formats whose rows are equal, and a test holds them to it
    return model


def gguf_tokenizer(model: LlamaCppModel) -> Any:
    """The tokenizer of a GGUF model. Raises LoadError where its file has none."""
    return tokenizer_of(model, gguf.header(model.path))


def check_gguf(file: Path, tokenizer: Any) -> None:
    """A GGUF draft must have the target's tokens at their ids; what is behind them, and names of padding, may differ.

    Raises:
        LoadError: it has not.
    """
    mine = [str(token) for token in gguf.header(file).array("tokenizer.ggml.tokens")]
    if not mine:
        return  # a file of weights alone: its rows are compared with the target's later
    theirs = tokenizer.get_vocab()
    missing = sum(1 for place in theirs.values() if place >= len(mine))
    held = [(token, mine[place]) for token, place in theirs.items() if place < len(mine)]
    different = sum(1 for token, own in held if own != token and not gguf.is_padding(own))
    if different or missing > len(theirs) // 100:
        raise LoadError(
            f"Left out: its tokens are not the target's ({different} ids are of other tokens, {missing} are missing).",
            "Models of one family must share a vocabulary.",
        )


def _layers_that_fit(used: Library, headers: list[gguf.Header], context: int) -> int:
    """Layers for the GPU: all of them (-1), as many as its free memory holds with their cache, or none."""
    room = _ROOM * max((device.free for device in used.devices if device.kind == "gpu"), default=0)
    if not room:
        return 0
    shape = of_gguf(headers)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * context * shape.cached
    whole = shape.linear * shape.stored + cache
    if whole <= room:
        return -1
    return int(shape.layers * room / whole)
