"""Tiny random models of several kinds as GGUF files: experts, recurrent states, hybrids, sliding windows."""

from __future__ import annotations

import json
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


def _plain() -> tuple[int, Shapes]:
    """Qwen 3 as it is."""
    shapes: Shapes = {}
    for at in ("blk.0", "blk.1"):
        shapes |= _attention(at) | _dense(at) | {f"{at}.ffn_norm.weight": (WIDE,)}
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
_DENSE = ("qwen3", _plain, dict[str, Any]())
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
        kind: one of `KINDS`, or "dense".
        path: the file.
        tokenizer: a fast tokenizer, which goes into the file.
        seed: of the weights.
        noise: how far the weights are from those of the same seed, as a part of their size.
        positions: longest text that it says it was made for.
    """
    import gguf

    from hsd.bench.llama_cpp import add_tokenizer

    name, build, settings = _DENSE if kind == "dense" else KINDS[kind]
    layers, shapes = build()
    writer = gguf.GGUFWriter(str(path), name)
    writer.add_tokenizer_model("gpt2" if kind == "dense" else "no_vocab")
    vocab = max(tokenizer.get_vocab().values()) + 1
    common = {"vocab_size": vocab, "context_length": positions, "embedding_length": WIDE, "block_count": layers}
    common |= {"feed_forward_length": INNER, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}
    common |= {"attention.key_length": HEAD, "attention.value_length": HEAD, "rope.dimension_count": HEAD}
    for key, value in {**common, **settings}.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{name}.{key}", value)
    writer.add_float32(f"{name}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(f"{name}.rope.freq_base", 10000.0)
    if kind == "dense":
        _byte_level(writer, tokenizer)
    else:
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


def byte_level() -> Any:
    """A tokenizer like Qwen's: bytes, merges, splitting by its rule, control tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rule = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(rule), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(
        [Path(__file__).read_text(encoding="utf-8"), "die schönen Wörter über Bäume 你好 你好"], trainer
    )
    used = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", bos_token="<|endoftext|>")
    used.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    used.chat_template = (
        "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return used


def _byte_level(writer: Any, tokenizer: Any) -> None:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if at in special else 1 for at in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if name.endswith(("norm.weight", "ssm_d")):
        return np.ones(shape)
    if name.endswith("ssm_a"):  # states fade
        return -random.uniform(0.2, 1.0, shape)
    if name.startswith("token_embd"):
        return random.normal(0, 1, shape)
    return random.normal(0, 1.5 / np.sqrt(shape[-1]), shape)
