"""Weights and tokenizers from a hub or a folder, and what can go wrong with them, in one sentence each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hsd.config import ModelSpec
from hsd.errors import HsdError, LoadError
from hsd.prompts import Tokenizer

_SMALL = 8_000_000
"""Parameters below which a model computes in float32 on a CPU: its step is overhead, and bf16 adds conversions."""


def source(spec: ModelSpec) -> str:
    """Where the weights are: a folder or a hub name.

    Raises:
        LoadError: the folder does not exist or holds no model.
    """
    if spec.path.startswith("builtin:"):
        folder = Path(__file__).parents[1] / "builtin" / "weights" / spec.path.removeprefix("builtin:")
    elif spec.path.startswith((".", "/", "~")):
        folder = Path(spec.path).expanduser()
    else:
        return spec.path
    if not (folder / "config.json").is_file():
        raise LoadError(f"The weights of '{spec.name}' are missing: {folder} holds no model.", "Check its path.")
    return str(folder)


def device_of(spec: ModelSpec, override: str) -> str:
    wanted = override if override != "auto" else spec.device
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def read_tokenizer(spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    with _readable(spec):
        tokenizer = AutoTokenizer.from_pretrained(
            source(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    # Too long a prompt is the engine's to refuse, with the numbers; transformers would only warn.
    tokenizer.model_max_length = 1 << 30
    return tokenizer


def read_model(spec: ModelSpec, device: str, dtype: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    with _readable(spec), _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            source(spec),
            revision=spec.revision,
            dtype=_dtype(spec, device, dtype),
            quantization_config=_quantization(spec, device, dtype),
            # accelerate places the weights: on one device, or spread over all of them.
            device_map=device if device == "balanced" else {"": device},
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
        )
        if device == "cpu" and spec.quantization != "none":
            # There are no fast 4- or 8-bit kernels here: stored small, computed wide.
            model = model.dequantize()
            model = model.to(_torch_dtype(dtype or "float32"))
        if device == "cpu" and dtype is None and spec.dtype == "auto" and spec.quantization == "none":
            model = model.to(cpu_dtype(model.num_parameters()))
    return model


def cpu_dtype(parameters: int) -> torch.dtype:
    """What a model of this size computes in on this CPU when nobody said."""
    fast_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast_bf16 and parameters >= _SMALL else torch.float32


def _dtype(spec: ModelSpec, device: str, override: str | None) -> Any:
    name = override or spec.dtype
    if name != "auto":
        return _torch_dtype(name)
    return "auto" if device == "cpu" else torch.bfloat16


def _torch_dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise LoadError(f"The dtype '{name}' is not known.", f"Use one of: {', '.join(known)}.")
    return known[name]


def _quantization(spec: ModelSpec, device: str, dtype: str | None) -> Any:
    if spec.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    name = dtype or (spec.dtype if spec.dtype != "auto" else "float32" if device == "cpu" else "bfloat16")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_torch_dtype(name),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own progress bar is about tensors; people are told about models."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _readable(spec: ModelSpec) -> Iterator[None]:
    """What can go wrong while a model is fetched and read becomes one sentence and a hint."""
    try:
        yield
    except HsdError:
        raise
    except Exception as error:
        raise _explained(spec, error) from error


def _explained(spec: ModelSpec, error: Exception) -> LoadError:
    from huggingface_hub import errors as hub

    name = f"'{spec.name}' ({spec.path})"
    chain: list[BaseException] = []  # transformers wraps the hub's errors into its own
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__

    def was(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if was(hub.GatedRepoError):
        return LoadError(
            f"{name} is gated: the hub gives it only to people who accepted its terms.",
            f"Ask for access at https://huggingface.co/{spec.path}, then run 'hf auth login'.",
        )
    if was(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError):
        return LoadError(
            f"{name} is not on this disk, and the hub does not answer.",
            "Check the network (the first start of a family downloads it), or give a local folder.",
        )
    if was(hub.RepositoryNotFoundError):
        return LoadError(f"There is no {name} on the hub.", "Check its path in models.yaml.")
    if was(MemoryError, torch.OutOfMemoryError):
        return LoadError(f"{name} does not fit the memory.", "Choose a smaller family or a quantization.")
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return LoadError(f"{name} cannot be loaded: {first}.", "Check its path and files.")


def check_tokenizer(spec: ModelSpec, tokenizer: Tokenizer) -> None:
    """A draft that brings a tokenizer must bring the target's: ids are handed from model to model.

    Raises:
        LoadError: it does not.
    """
    try:
        own = read_tokenizer(spec)
    except LoadError:
        return  # a folder of weights alone: its rows are compared with the target's later
    mine, theirs = own.get_vocab(), tokenizer.get_vocab()
    different = sum(1 for token, place in mine.items() if theirs.get(token, place) != place)
    missing = sum(1 for token in theirs if token not in mine)
    if different or missing > len(theirs) // 100:
        raise LoadError(
            f"Left out: its tokenizer is not the target's ({different} tokens have other ids, {missing} are missing).",
            "Models of one family must share a vocabulary.",
        )
