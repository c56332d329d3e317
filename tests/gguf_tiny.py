"""Tiny random models of several kinds as GGUF files: experts, recurrent states, hybrids, sliding windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]
WIDE, HEADS, KV_HEADS, HEAD, INNER, WINDOW = 32, 4, 2, 8, 48, 16


def _attention(at: str, queries: int = HEADS * HEAD) -> Shapes:
    keys = KV_HEADS * HEAD
    return {
        f"{at}.attn_norm.weight": (WIDE,),
        f"{at}.attn_q.weight": (queries, WIDE),
        f"{at}.attn_k.weight": (keys, WIDE),
        f"{at}.attn_v.weight": (keys, WIDE),
        f"{at}.attn_output.weight": (WIDE, HEADS * HEAD),
        f"{at}.attn_q_norm.weight": (HEAD,),
        f"{at}.attn_k_norm.weight": (HEAD,),
    }


def _dense(at: str) -> Shapes:
    return {
        f"{at}.ffn_gate.weight": (INNER, WIDE),
        f"{at}.ffn_up.weight": (INNER, WIDE),
        f"{at}.ffn_down.weight": (WIDE, INNER),
    }


def _experts() -> tuple[int, Shapes]:
    """Qwen 3 with four experts, of which two compute each token."""
    shapes: Shapes = {}
    for at in ("blk.0", "blk.1"):
        shapes |= _attention(at)
        shapes |= {f"{at}.ffn_norm.weight": (WIDE,), f"{at}.ffn_gate_inp.weight": (4, WIDE)}
        shapes |= {f"{at}.ffn_{part}_exps.weight": (4, INNER, WIDE) for part in ("gate", "up")}
        shapes[f"{at}.ffn_down_exps.weight"] = (4, WIDE, INNER)
    return 2, shapes


def _recurrent() -> tuple[int, Shapes]:
    """Mamba: states alone."""
    shapes: Shapes = {}
    inner, state, rank = 2 * WIDE, 8, 2
    for at in ("blk.0", "blk.1"):
        shapes |= {
            f"{at}.attn_norm.weight": (WIDE,),
            f"{at}.ssm_in.weight": (2 * inner, WIDE),
            f"{at}.ssm_conv1d.weight": (inner, 4),
            f"{at}.ssm_conv1d.bias": (inner,),
            f"{at}.ssm_x.weight": (rank + 2 * state, inner),
            f"{at}.ssm_dt.weight": (inner, rank),
            f"{at}.ssm_dt.bias": (inner,),
            f"{at}.ssm_a": (inner, state),
            f"{at}.ssm_d": (inner,),
            f"{at}.ssm_out.weight": (WIDE, inner),
        }
    return 2, shapes


def _hybrid() -> tuple[int, Shapes]:
    """Qwen 3.5: every second layer is a gated delta net, the others are attention with a gate."""
    shapes: Shapes = {}
    key, rank = 16, 2
    value = key * rank
    for layer in range(4):
        at = f"blk.{layer}"
        if layer % 2:
            shapes |= _attention(at, queries=2 * HEADS * HEAD)
        else:
            shapes |= {
                f"{at}.attn_norm.weight": (WIDE,),
                f"{at}.attn_qkv.weight": (2 * key + value, WIDE),
                f"{at}.attn_gate.weight": (value, WIDE),
                f"{at}.ssm_conv1d.weight": (2 * key + value, 4),
                f"{at}.ssm_dt.bias": (rank,),
                f"{at}.ssm_a": (rank,),
                f"{at}.ssm_beta.weight": (rank, WIDE),
                f"{at}.ssm_alpha.weight": (rank, WIDE),
                f"{at}.ssm_norm.weight": (key,),
                f"{at}.ssm_out.weight": (WIDE, value),
            }
        shapes[f"{at}.post_attention_norm.weight"] = (WIDE,)
        shapes |= _dense(at)
    return 4, shapes


def _window() -> tuple[int, Shapes]:
    """Gemma 3: five of six layers see the last 16 tokens only."""
    shapes: Shapes = {}
    for layer in range(6):
        at = f"blk.{layer}"
        shapes |= _attention(at) | _dense(at)
        shapes |= {f"{at}.{part}.weight": (WIDE,) for part in ("post_attention_norm", "ffn_norm", "post_ffw_norm")}
    return 6, shapes


_SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 32, "ssm.state_size": 16, "ssm.time_step_rank": 2, "ssm.group_count": 1}
KINDS: dict[str, tuple[str, Any, Mapping[str, Any]]] = {
    "experts": ("qwen3moe", _experts, {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": INNER}),
    "recurrent": ("mamba", _recurrent, {**_SSM, "ssm.inner_size": 2 * WIDE, "ssm.state_size": 8}),
    "hybrid": ("qwen35", _hybrid, {**_SSM, "full_attention_interval": 2, "rope.dimension_sections": [2, 1, 1, 0]}),
    "window": ("gemma3", _window, {"attention.sliding_window": WINDOW}),
}
"""Kind -> llama.cpp's name, layers and tensors, settings beside the common ones."""


def write(kind: str, path: Path, tokenizer: Any, seed: int = 0, noise: float = 0.0, positions: int = 512) -> None:
    """Writes a model.

    Args:
        kind: one of `KINDS`.
        path: the file.
        tokenizer: a fast tokenizer, which goes into the file.
        seed: of the weights.
        noise: how far the weights are from those of the same seed, as a part of their size.
        positions: longest text that it says it was made for.
    """
    import gguf

    from hsd.bench.llama_cpp import add_tokenizer

    name, build, settings = KINDS[kind]
    layers, shapes = build()
    writer = gguf.GGUFWriter(str(path), name)
    writer.add_tokenizer_model("no_vocab")
    vocab = max(tokenizer.get_vocab().values()) + 1
    common = {"vocab_size": vocab, "context_length": positions, "embedding_length": WIDE, "block_count": layers}
    common |= {"feed_forward_length": INNER, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}
    common |= {"attention.key_length": HEAD, "attention.value_length": HEAD, "rope.dimension_count": HEAD}
    for key, value in {**common, **settings}.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{name}.{key}", value)
    writer.add_float32(f"{name}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(f"{name}.rope.freq_base", 10000.0)
    add_tokenizer(writer, tokenizer)
    shapes |= {"token_embd.weight": (vocab, WIDE), "output.weight": (vocab, WIDE), "output_norm.weight": (WIDE,)}
    weights, other = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    for tensor, shape in shapes.items():
        values = _values(tensor, shape, weights) + noise * _values(tensor, shape, other)
        writer.add_tensor(tensor, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if name.endswith(("norm.weight", "ssm_d")):
        return np.ones(shape)
    if name.endswith("ssm_a"):  # states fade
        return -random.uniform(0.2, 1.0, shape)
    if name.startswith("token_embd"):
        return random.normal(0, 1, shape)
    return random.normal(0, 1.5 / np.sqrt(shape[-1]), shape)
