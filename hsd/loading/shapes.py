"""How large a model is by its configuration alone: what is counted, not what is loaded.

The configuration comes from the model's folder, from the hub's cache, or, for models that are not on this disk, from
`published.yaml`. Reads no weights and imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsd import gguf
from hsd.config import ModelSpec
from hsd.errors import LoadError
from hsd.loading.cache import folder_of, gguf_of, source_of
from hsd.loading.kinds import bitsandbytes_of, config_of, stored_bytes, unpacked_without_gpu

# What transformers' configuration classes fill in where config.json is silent.
_TIED = {"qwen3": False, "qwen2": False, "llama": False, "mistral": False, "gemma3_text": True}
_HEAD_DIM = {"qwen3": 128, "gemma3_text": 256}
_VISION = {
    **{"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
    **{"num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False},
}
"""The vision part of Gemma 3's larger models, which is not loaded here but stands in their files."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Numbers of parameters, and what the caches of a model depend on.

    Args:
        embedding: rows of the input embedding times their width; the head too where both are one.
        head: a head of its own, else 0.
        linear: weights of the linear layers between them: what bitsandbytes quantizes.
        rows: output rows of those layers: int8 keeps one scale for each.
        other: norms and biases.
        vision: weights in the files that are not loaded.
        layers, heads, kv_heads, head_dim, hidden, intermediate: as in config.json.
        vocab: rows of the embedding.
        positions: longest sequence the model was made for; 0 where nothing is said.
        exact: False where `linear` was guessed from the size of the files.
        stored: bytes of a linear weight in a checkpoint that is stored quantized (AWQ, GPTQ, FP8 …), with its scales; 0
            where it is stored as it is, or by bitsandbytes.
        needs_gpu: such weights are unpacked where there is no GPU.
        cached: bytes of a number in the cache; 0 where the device decides that.
        attending: layers with keys and values, where not all have them.
        states: bytes of what recurrent layers keep, for all passes that can be cut.
    """

    embedding: int
    head: int
    linear: int
    rows: int
    other: int
    vision: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    positions: int
    exact: bool = True
    stored: float = 0.0
    needs_gpu: bool = False
    cached: int = 0
    attending: int | None = None
    states: int = 0

    @property
    def parameters(self) -> int:
        """All that is loaded."""
        return self.embedding + self.head + self.linear + self.other


def stored_by(spec: ModelSpec) -> ModelSpec:
    """The model, with the quantization that bitsandbytes stored its folder in, whatever models.yaml says."""
    folder = folder_of(spec)
    stored = None if folder is None else bitsandbytes_of(config_of(folder))
    return spec if stored is None else dataclasses.replace(spec, quantization=stored)


def shape_of(spec: ModelSpec) -> Shape | None:
    """A model's shape, from its file or folder, or from what is published; None where neither says."""
    file = gguf_of(spec)
    try:
        if file is not None:
            return of_gguf([gguf.header(part) for part in gguf.parts(file)])
        if spec.of is not None:
            return _of_copy(spec)
    except LoadError:
        return None  # loading it will say what is wrong with it
    folder = folder_of(spec)
    if folder is None:
        return _of_published(spec)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return counted(config) or _by_files(config, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # loading it will say what is wrong with it


def _of_published(spec: ModelSpec) -> Shape | None:
    """The shape of a model that is not on this disk."""
    if spec.file is not None:
        return _published_gguf(spec)
    config = published().get(spec.path)
    return None if config is None else counted(config)


def of_gguf(headers: Sequence[gguf.Header]) -> Shape:
    """Counts a GGUF model by the headers of its files, the first of which has the settings.

    Raises:
        LoadError: a setting is no number that it can be.
    """
    try:
        return _of_gguf(headers)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise LoadError(f"{headers[0].path.name} has damaged settings.", "Download it again.") from error


def _of_gguf(headers: Sequence[gguf.Header]) -> Shape:
    first, tensors = headers[0], [tensor for header in headers for tensor in header.tensors]
    weights, size = sum(t.weights for t in tensors), sum(t.size for t in tensors)
    hidden, heads = int(first.get("embedding_length", 0)), _most(first.get("attention.head_count", 1)) or 1
    tokens = first.values.get("tokenizer.ggml.tokens", 0)
    attending, states = _recurrent(first, tensors)
    return Shape(
        embedding=0,
        head=0,
        linear=weights,
        rows=0,
        other=0,
        vision=0,
        layers=int(first.get("block_count", 0)),
        heads=heads,
        kv_heads=_most(first.get("attention.head_count_kv", heads)),
        head_dim=int(first.get("attention.key_length", 0)) or hidden // heads,
        hidden=hidden,
        intermediate=_most(first.get("feed_forward_length", 0)),
        vocab=tokens if isinstance(tokens, int) else len(tokens) or int(first.get("vocab_size", 0)),
        positions=first.positions,
        stored=size / max(weights, 1),
        cached=2,
        attending=attending,
        states=states,
    )


def _of_copy(spec: ModelSpec) -> Shape | None:
    """The shape of a compressed copy that is not made yet. Raises LoadError where its source cannot be read."""
    source = gguf_of(source_of(spec))
    if source is None:
        return None
    headers = [gguf.header(part) for part in gguf.parts(source)]
    shape = of_gguf(headers)
    return dataclasses.replace(shape, stored=compressed_bytes(headers, spec.quantization) / max(shape.linear, 1))


def compressed_bytes(headers: Sequence[gguf.Header], form: str) -> int:
    """Bytes of the weights of a model that llama.cpp's quantizer writes in a format, about: it has further exceptions.

    Args:
        headers: of all files of the source.
        form: one of `quantizer.FORMATS`.
    """
    usual, finer = _KINDS[form]
    tensors = [tensor for header in headers for tensor in header.tensors]
    head = "output.weight" if any(tensor.name == "output.weight" for tensor in tensors) else "token_embd.weight"
    total = 0.0
    for tensor in tensors:
        if len(tensor.shape) < 2 or not tensor.name.endswith("weight") or "norm" in tensor.name:
            total += tensor.size
            continue
        kind = usual
        if tensor.name == head:
            kind = usual if usual == "q8_0" else "q6_k"
        elif re.search(r"attn_v|attn_qkv|ffn_down|attn_output", tensor.name):
            kind = finer
        if tensor.shape[0] % 256:
            kind = _WITHOUT_256.get(kind, kind)
        total += tensor.weights * _BITS[kind] / 8
    return int(total)


_BITS = {
    **{"q2_k": 2.625, "q3_k": 3.4375, "q4_0": 4.5, "iq4_nl": 4.5, "iq4_xs": 4.25, "q4_k": 4.5, "q4_k+": 5.53},
    **{"q5_0": 5.5, "q5_k": 5.5, "q5_1": 6.0, "q5_k+": 6.03, "q6_k": 6.5625, "q8_0": 8.5},
}
"""Bits per weight; with a + where every second layer is in q6_k."""

_KINDS = {
    **{"q2_k": ("q2_k", "q3_k"), "q3_k_s": ("q3_k", "q3_k"), "q3_k_m": ("q3_k", "q4_k"), "q3_k_l": ("q3_k", "q5_k")},
    **{"q4_0": ("q4_0", "q4_0"), "q4_k_s": ("q4_k", "q4_k"), "q4_k_m": ("q4_k", "q4_k+"), "q5_k_s": ("q5_k", "q5_k")},
    **{"q5_k_m": ("q5_k", "q5_k+"), "q6_k": ("q6_k", "q6_k"), "q8_0": ("q8_0", "q8_0")},
    **{"iq4_nl": ("iq4_nl", "iq4_nl"), "iq4_xs": ("iq4_xs", "iq4_xs")},
}
"""Format -> how most matrices are stored, and those that the quantizer keeps finer."""

_WITHOUT_256 = {
    **{"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q4_k+": "q5_0", "q5_k": "q5_1", "q5_k+": "q5_1"},
    **{"q6_k": "q8_0", "iq4_xs": "iq4_nl"},
}
"""What stands in for a format whose blocks of 256 weights do not divide a row."""
_STATES = 18  # states that are kept of every recurrent layer beside attention: `MAX_WIDTH`, and two more


def _recurrent(first: gguf.Header, tensors: Sequence[gguf.Tensor]) -> tuple[int | None, int]:
    """Layers with keys and values, and bytes of all states; None and 0 where no layer is recurrent."""
    convolutions = [tensor.shape for tensor in tensors if tensor.name.endswith("ssm_conv1d.weight")]
    if not convolutions:
        return None, 0
    attending = sum(tensor.name.endswith("attn_k.weight") for tensor in tensors)
    inner = int(first.get("ssm.inner_size", 0)) * int(first.get("ssm.state_size", 0))
    numbers = sum((shape[0] - 1) * shape[1] + inner for shape in convolutions)
    return attending, 4 * numbers * (_STATES if attending else 1)


def _most(value: Any) -> int:
    """A number of a GGUF file, the largest where every layer has its own."""
    return max(map(int, value), default=0) if isinstance(value, list) else int(value)


def _published_gguf(spec: ModelSpec) -> Shape | None:
    """The shape of a GGUF file on the hub, by its published size and the model that it was made from."""
    entry = published_files().get(spec.path)
    if entry is None or entry["file"] != spec.file:
        return None
    config = published().get(entry.get("of", ""))
    shape = _UNKNOWN if config is None else counted(config)
    if shape is None:
        return None
    weights = shape.parameters or int(entry["parameters"])
    return dataclasses.replace(
        shape, embedding=0, head=0, other=0, vision=0, linear=weights, stored=entry["bytes"] / weights, cached=2
    )


_UNKNOWN = Shape(
    embedding=0,
    head=0,
    linear=0,
    rows=0,
    other=0,
    vision=0,
    layers=0,
    heads=0,
    kv_heads=0,
    head_dim=0,
    hidden=0,
    intermediate=0,
    vocab=262_144,  # about what they have; it decides the memory of logits
    positions=0,
    exact=False,
)
"""Where only the size of a file is known: its cache counts when it is on this disk."""


@functools.cache
def published_files() -> dict[str, dict[str, Any]]:
    """GGUF repository on the hub -> `file`, its `bytes`, and `of`, the model that it was made from, or `parameters`."""
    data = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
    return dict(data["gguf"])


@functools.cache
def published() -> dict[str, dict[str, Any]]:
    """Hub name -> what its config.json says about its size, and `parameters` as published."""
    data = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    out = {}
    for name, (kind, *row) in data["models"].items():
        numbers, rest = row[: len(keys)], row[len(keys) :]
        config = {**data["kinds"][kind], **dict(zip(keys, numbers, strict=True)), "parameters": rest[0]}
        config.setdefault("tie_word_embeddings", "untied" not in rest)
        for extra in rest[1:]:
            config |= extra if isinstance(extra, dict) else {}
        if config["model_type"] == "gemma3":
            config = {
                "model_type": "gemma3",
                "parameters": config.pop("parameters"),
                "vision_config": dict(_VISION),
            } | {"text_config": {**config, "model_type": "gemma3_text"}}
        out[name] = config
    return out


def counted(config: Mapping[str, Any]) -> Shape | None:
    """Counts a configuration of a known shape; None for others."""
    text = {**config, **(config.get("text_config") or {})}
    kind = text["model_type"]
    if kind not in _TIED:
        return None
    hidden, inner, layers = (text[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, vocab = text["num_attention_heads"], text["vocab_size"]
    kv = text.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or _HEAD_DIM.get(kind) or hidden // heads
    queries, keys = heads * head_dim, kv * head_dim
    linear = layers * (hidden * (queries + 2 * keys) + queries * hidden + 3 * hidden * inner)
    norms = (4 if kind == "gemma3_text" else 2) * hidden
    if kind in ("qwen3", "gemma3_text"):
        norms += 2 * head_dim
    bias = 0
    if kind == "qwen2" or text.get("attention_bias"):
        bias += queries + 2 * keys
    if text.get("attention_bias") and kind != "qwen2":
        bias += hidden
    if text.get("mlp_bias"):
        bias += 2 * inner + hidden
    tied = text.get("tie_word_embeddings")
    return Shape(
        embedding=vocab * hidden,
        head=0 if (_TIED[kind] if tied is None else tied) else vocab * hidden,
        linear=linear,
        rows=layers * (queries + 2 * keys + 2 * hidden + 2 * inner),
        other=layers * (norms + bias) + hidden,
        vision=_vision(config.get("vision_config"), hidden),
        layers=layers,
        heads=heads,
        kv_heads=kv,
        head_dim=head_dim,
        hidden=hidden,
        intermediate=inner,
        vocab=vocab,
        positions=int(text.get("max_position_embeddings") or 0),
        stored=stored_bytes(dict(config)),
        needs_gpu=unpacked_without_gpu(dict(config)),
    )


def _vision(config: Mapping[str, Any] | None, text_hidden: int) -> int:
    """Parameters of Gemma 3's picture encoder and of what leads from it to the text: in the files, not in memory."""
    if not config:
        return 0
    given = {**_VISION, **config}
    hidden, inner, layers = given["hidden_size"], given["intermediate_size"], given["num_hidden_layers"]
    patches = (given["image_size"] // given["patch_size"]) ** 2
    attention, mlp = 4 * (hidden * hidden + hidden), 2 * hidden * inner + inner + hidden
    embeddings = 3 * given["patch_size"] ** 2 * hidden + hidden + patches * hidden
    return layers * (attention + mlp + 4 * hidden) + 2 * hidden + embeddings + hidden * text_hidden + hidden


def _by_files(config: Mapping[str, Any], folder: Path) -> Shape | None:
    """A shape of an unknown kind: what the files weigh, less the embeddings, counts as linear layers."""
    text = {**config, **(config.get("text_config") or {})}
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    wide = 4 if "32" in str(config.get("dtype") or config.get("torch_dtype") or "float32") else 2
    hidden, layers, vocab = (int(text.get(k) or 0) for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads = int(text.get("num_attention_heads") or 1)
    if not size:
        return None
    stored = stored_bytes(dict(config))
    embedding = min(vocab * hidden, size // wide)
    return Shape(
        embedding=embedding,
        head=0,
        linear=int((size - wide * embedding) / (stored or wide)),
        rows=0,
        other=0,
        vision=0,
        layers=layers,
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        hidden=hidden,
        intermediate=int(text.get("intermediate_size") or 4 * hidden),
        vocab=vocab,
        positions=int(text.get("max_position_embeddings") or 0),
        exact=False,
        stored=stored,
        needs_gpu=unpacked_without_gpu(dict(config)),
    )
