"""The peer of the step benchmark: llama.cpp on the same weights, where `llama-cpp-python` and `gguf` are installed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FORMATS = ("BF16", "Q8_0", "Q4_0")
"""Formats of the weights that are written: plain, and the two that people use most."""


def missing() -> str | None:
    """What would have to be installed, in words; None if everything is there."""
    try:
        import gguf  # noqa: F401  (only whether it is there)
        import llama_cpp  # noqa: F401  (likewise)
    except ImportError as error:
        return f"llama.cpp is left out: {error.name} is not installed (pip install llama-cpp-python gguf)"
    return None


def write(model: Any, path: Path, form: str, tokenizer: Any = None) -> None:
    """Writes a Llama-shaped model of transformers as a GGUF file.

    Args:
        model: the model.
        path: the file to write.
        form: one of `FORMATS`, or "F32"; what is not a matrix stays float32.
        tokenizer: a fast tokenizer, which goes into the file as it is, with its chat template; None leaves it out.
    """
    import gguf

    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer)
    for name, tensor in _tensors(model.state_dict(), heads, kv_heads):
        kind = gguf.GGMLQuantizationType[form if tensor.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, tokenizer: Any) -> None:
    """In the form of the `tokenizers` library: llama.cpp knows rules of splitting by name, and has none for ours."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in tokens])
    writer.add_string("tokenizer.huggingface.json", tokenizer.backend_tokenizer.to_str())
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    for name in ("bos", "eos", "pad", "unk"):
        identifier = getattr(tokenizer, f"{name}_token_id")
        if identifier is not None:
            getattr(writer, f"add_{name}_token_id")(identifier)


def _tensors(state: dict[str, torch.Tensor], heads: int, kv_heads: int) -> list[tuple[str, NDArray[np.float32]]]:
    """llama.cpp's names and float32 values."""
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    out = []
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if name == "model.embed_tokens.weight":
            out.append(("token_embd.weight", values))
        elif name == "lm_head.weight" and "model.embed_tokens.weight" in state and not _tied(state):
            out.append(("output.weight", values))
        elif name == "model.norm.weight":
            out.append(("output_norm.weight", values))
        elif name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = names[rest.removesuffix(".weight")]
            if part in ("attn_q", "attn_k"):
                # transformers rotates halves, llama.cpp neighbours.
                rows = heads if part == "attn_q" else kv_heads
                values = values.reshape(rows, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            out.append((f"blk.{layer}.{part}.weight", np.ascontiguousarray(values)))
    return out


def _tied(state: dict[str, torch.Tensor]) -> bool:
    return state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def survives(path: Path, threads: int) -> bool:
    """Whether llama.cpp can run this file here at all: tried in a process of its own, which a crash may end."""
    command = [sys.executable, "-m", "hsd.bench.llama_cpp", str(path), str(threads)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Peer:
    """A GGUF model in llama.cpp with some text in its cache.

    Args:
        path: the file.
        text: token ids that are cached; every pass starts behind them.
        threads: processor threads.
    """

    def __init__(self, path: Path, text: Sequence[int], threads: int) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._llm = llama_cpp.Llama(
            model_path=str(path),
            n_ctx=len(text) + 64,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )
        self._place = len(text)
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self._decode(text, 0)
        remove: Callable[..., Any]
        if hasattr(llama_cpp, "llama_get_memory"):
            memory = llama_cpp.llama_get_memory(self._llm.ctx)
            remove = llama_cpp.llama_memory_seq_rm
        else:
            memory, remove = self._llm.ctx, llama_cpp.llama_kv_self_seq_rm
        self._rewind = lambda: remove(memory, 0, self._place, -1)

    def step(self, ids: Sequence[int]) -> None:
        """One pass over `ids` behind the text, with logits for each."""
        self._decode(ids, self._place)

    def rewind(self) -> None:
        """Forgets what passes have read."""
        self._rewind()

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """`(w, vocab)` of a pass."""
        self.step(ids)
        vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._llm.model))
        rows = [
            np.ctypeslib.as_array(
                ctypes.cast(self._lib.llama_get_logits_ith(self._llm.ctx, i), ctypes.POINTER(ctypes.c_float)), (vocab,)
            ).copy()
            for i in range(len(ids))
        ]
        self.rewind()
        return np.stack(rows)

    def close(self) -> None:
        """Gives the memory back."""
        self._lib.llama_batch_free(self._batch)
        self._llm.close()

    def _decode(self, ids: Sequence[int], start: int) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = True
        if self._lib.llama_decode(self._llm.ctx, batch):
            raise RuntimeError("llama.cpp could not run a pass")


if __name__ == "__main__":
    tried = Peer(Path(sys.argv[1]), list(range(1, 257)), int(sys.argv[2]))
    for width in (1, 2, 5, 9):
        tried.logits(range(width))
    tried.close()
