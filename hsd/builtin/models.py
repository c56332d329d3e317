"""Shapes of the family's models, cheapest first. Llama shape, tied embeddings, one vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hsd.builtin.tokenizer import CONTEXT, SPECIALS

VOCABULARY = 4096


@dataclass(frozen=True)
class Shape:
    """What sets a model's cost: width, layers, width of the feed-forward part; heads are 64 wide."""

    width: int
    layers: int
    inner: int
    head_width: int = 64


LADDERS: dict[str, dict[str, Shape]] = {
    "cpu": {
        "tiny": Shape(width=128, layers=1, inner=384),  # 0.74M
        "small": Shape(width=192, layers=4, inner=512),  # 2.56M
        "medium": Shape(width=320, layers=6, inner=704),  # 7.83M
        "large": Shape(width=640, layers=6, inner=1664, head_width=128),  # 31.6M, the target
    },
    "gpu": {
        "tiny": Shape(width=128, layers=1, inner=384),  # 0.74M
        "small": Shape(width=192, layers=4, inner=512),  # 2.56M
        "medium": Shape(width=320, layers=6, inner=704),  # 7.83M
        "large": Shape(width=640, layers=10, inner=1536),  # 48.5M, the target
    },
    "grown": {
        "tiny": Shape(width=128, layers=1, inner=384),  # 0.74M
        "small": Shape(width=192, layers=4, inner=512),  # 2.56M
        "medium": Shape(width=320, layers=6, inner=704),  # 7.83M
        "large": Shape(width=640, layers=6, inner=2944, head_width=128),  # 46.4M, the target of "cpu" made wider
    },
    "try": {
        "tiny": Shape(width=32, layers=1, inner=64, head_width=32),
        "small": Shape(width=64, layers=1, inner=96, head_width=32),
        "medium": Shape(width=64, layers=2, inner=128, head_width=32),
        "large": Shape(width=128, layers=2, inner=256, head_width=32),
    },
}
"""Families by the budget that trains them: two hours of two cores, a stay at a GPU, an hour more on top of the first, a
few seconds."""

SHIPPED = "grown"
"""The ladder of the weights in the repository."""


def size(shape: Shape, vocabulary: int = VOCABULARY) -> int:
    """Parameters of a shape; the embedding counts once."""
    layer = 4 * shape.width**2 + 3 * shape.width * shape.inner + 2 * shape.width
    return vocabulary * shape.width + shape.layers * layer + shape.width


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
