"""Models on disk: `save_pretrained` folders, bfloat16 or NF4, each written whole or not at all; GGUF files are read."""

from __future__ import annotations

import importlib.util
import shutil
from copy import deepcopy
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from hsd.errors import HsdError

NF4_FROM = 5_000_000
"""Parameters from which on a model is stored in 4 bits (embeddings stay bfloat16)."""


def store(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, nf4_from: int = NF4_FROM) -> None:
    """Write a model with its tokenizer to `folder`, in NF4 if it is large; the model itself is not changed.

    bitsandbytes quantizes while it loads, so a large model is written twice.

    Args:
        nf4_from: more parameters than these are stored in 4 bits.
    Raises:
        HsdError: that would be needed, and bitsandbytes is not there.
    """
    nf4 = model.num_parameters() > nf4_from
    if nf4 and importlib.util.find_spec("bitsandbytes") is None:
        raise HsdError("Storing in 4 bits needs bitsandbytes.", "Install it, and run the same command again.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _save(model, partial)
    if nf4:
        small = AutoModelForCausalLM.from_pretrained(
            partial, quantization_config=_nf4(), device_map=_place(model.device)
        )
        shutil.rmtree(partial)
        small.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def place_of(family: Path, name: str) -> Path:
    """Where a model of a family lies: its folder, or its GGUF file.

    Raises:
        HsdError: neither is there.
    """
    for place in (family / name, family / f"{name}.gguf"):
        if place.is_file() or (place / "config.json").is_file():
            return place
    raise HsdError(f"{family} holds no model '{name}'.", "Give the folder of a family.")


def load(place: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Read a model from a folder that `store` wrote, or from a GGUF file, unpacked to `dtype`.

    What it computes is what its stored weights say.
    """
    at = _place(torch.device(device))
    if place.is_file():
        model = AutoModelForCausalLM.from_pretrained(place.parent, gguf_file=place.name, device_map=at, dtype=dtype)
        del model.config.quantization_config  # unpacked already; it would be written into folders that are stored
        return model
    model = AutoModelForCausalLM.from_pretrained(place, device_map=at, dtype=dtype)
    if getattr(model, "is_quantized", False):
        model = model.dequantize()
    return model.to(dtype)


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    half = deepcopy(model).to(torch.bfloat16)  # the file's dtype is that of the model, embeddings included
    config = half.config
    half.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    half.save_pretrained(folder)


def _nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _place(device: torch.device) -> dict[str, str]:
    return {"": str(device)}
