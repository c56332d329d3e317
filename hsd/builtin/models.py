"""Shapes of the family's models, cheapest first. Llama shape, tied embeddings, one vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hsd.builtin.tokenizer import CONTEXT, SPECIALS


@dataclass(frozen=True)
class Shape:
    """What sets a model's cost: width, layers, width of the feed-forward part; heads are 64 wide."""

    width: int
    layers: int
    inner: int
    head_width: int = 64


SHAPES: dict[str, Shape] = {
    "tiny": Shape(width=128, layers=1, inner=384),  # 0.74M parameters
    "small": Shape(width=192, layers=2, inner=512),  # 1.67M
    "medium": Shape(width=256, layers=4, inner=640),  # 4.06M
    "large": Shape(width=384, layers=6, inner=896),  # 11.3M, the target
}


def build(shape: Shape, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A model with random float32 weights; the same seed gives the same weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.width // shape.head_width,
        num_key_value_heads=shape.width // shape.head_width,
        head_dim=shape.head_width,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=SPECIALS.index("<|pad|>"),
        bos_token_id=SPECIALS.index("<|bos|>"),
        eos_token_id=SPECIALS.index("<|end|>"),
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def parameters(model: torch.nn.Module) -> int:
    """How many numbers are learnt; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
