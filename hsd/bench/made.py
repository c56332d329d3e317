"""Models of published shapes with seeded random weights, made on the device: large stacks without a download."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from hsd.config import ModelSpec, find_family
from hsd.gguf import header
from hsd.loading.hub import fetch
from hsd.runtime.llama_cpp.tokenizer import by_tokenizers


def builtin_tokenizer() -> Any:
    """The tokenizer of the built-in family, for models of 4,096 tokens or more."""
    return by_tokenizers(header(fetch(find_family("builtin").target_spec)))


def make(config: Any, spec: ModelSpec, device: str, seed: int) -> tuple[Any, float]:
    """A model with random weights, stored as the family's file says.

    Every weight is drawn on the device and, where it is quantized, packed there by bitsandbytes before the next one is
    drawn, as when weights are loaded: no more than one layer is held unpacked.

    Args:
        config: transformers configuration.
        spec: its name and quantization, "none" or "nf4"; what is not quantized is bfloat16, float32 on a processor.
        device: torch device.
        seed: of the weights.

    Returns:
        The model, and the seconds that drawing and packing took.
    """
    import transformers as tf

    begun = time.perf_counter()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    draw = torch.Generator(device).manual_seed(seed)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear) and module is not head and spec.quantization == "nf4":
                setattr(parent, name, _packed(module, device, dtype, draw))
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.device.type == "meta":
                full = torch.ones(weight.shape, device=device, dtype=dtype)
                if weight.ndim > 1:
                    full.normal_(0, weight.shape[-1] ** -0.5, generator=draw)
                elif name == "bias":
                    full.zero_()
                setattr(module, name, nn.Parameter(full, requires_grad=False))
    model.tie_weights()
    _rotary(model, config, device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return model.eval(), time.perf_counter() - begun


def _packed(module: nn.Linear, device: str, dtype: torch.dtype, draw: torch.Generator) -> nn.Module:
    import bitsandbytes as bnb

    out, wide = module.weight.shape
    linear = bnb.nn.Linear4bit(
        wide, out, module.bias is not None, dtype, compress_statistics=True, quant_type="nf4", device="meta"
    )
    full = torch.empty(out, wide, device=device, dtype=dtype).normal_(0, wide**-0.5, generator=draw)
    linear.weight = bnb.nn.Params4bit(full, requires_grad=False, compress_statistics=True, quant_type="nf4").to(device)
    return linear


def _rotary(model: Any, config: Any, device: str) -> None:
    """The rotary embedding is computed from the configuration, not stored: it is made anew where the weights are."""
    old = model.model.rotary_emb
    model.model.rotary_emb = type(old)(config).to(device)
