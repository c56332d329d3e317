"""Tiny real models with seeded weights and a byte tokenizer with a chat template: what most tests decode with."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

VOCAB = 288
USER, ASSISTANT, END = 256, 257, 258


class ByteTokenizer:
    """A token is a byte; three special ones make chats. Enough of a tokenizer for the engine, and prefix-stable."""

    chat_template = "bytes"
    eos_token_id = END

    def __init__(self) -> None:
        self.all_special_ids = [USER, ASSISTANT, END]
        self._special = {"<u>": USER, "<a>": ASSISTANT, "<e>": END}

    def get_vocab(self) -> dict[str, int]:
        return {**{f"<{i:02x}>": i for i in range(256)}, **self._special}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = []
        while text:
            special = next((s for s in self._special if text.startswith(s)), None)
            if special:
                ids.append(self._special[special])
                text = text[len(special) :]
            else:
                ids += text[0].encode()
                text = text[1:]
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        names = {v: k for k, v in self._special.items()}
        parts = [
            bytes([i]) if i < 256 else b"" if skip_special_tokens else names.get(i, "").encode() for i in token_ids
        ]
        return b"".join(parts).decode(errors="replace")

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool = True, add_generation_prompt: bool = False
    ) -> Any:
        marks = {"user": "<u>", "assistant": "<a>", "system": "<u>"}
        text = "".join(f"{marks[m['role']]}{m['content']}<e>" for m in conversation)
        text += "<a>" if add_generation_prompt else ""
        return self.encode(text) if tokenize else text


def config(shape: str = "llama", width: int = 32, layers: int = 2, vocab: int = VOCAB, context: int = 512) -> Any:
    """Configuration of a tiny model of a known shape."""
    common = dict(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=END,
        bos_token_id=USER,
        pad_token_id=None,
        initializer_range=0.4,  # large, so that random models have opinions
    )
    match shape:
        case "llama" | "smollm2":
            return tf.LlamaConfig(**common)
        case "llama-biases":
            return tf.LlamaConfig(**common, head_dim=96, attention_bias=True, mlp_bias=True)
        case "mistral":
            return tf.MistralConfig(**common, sliding_window=None)
        case "mistral-window":
            return tf.MistralConfig(**common, sliding_window=16)
        case "qwen2":
            return tf.Qwen2Config(**common)
        case "qwen3":
            return tf.Qwen3Config(**common, head_dim=16)
        case "gemma3":
            kinds = ["sliding_attention", "full_attention"] * layers
            return tf.Gemma3TextConfig(**common, head_dim=16, sliding_window=16, layer_types=kinds[:layers])
        case "smollm3":
            return tf.SmolLM3Config(**common)
        case "gpt-neox":
            return tf.GPTNeoXConfig(**{k: v for k, v in common.items() if k != "num_key_value_heads"})
        case "mixtral":
            return tf.MixtralConfig(**common, num_local_experts=4)
        case "mamba":
            return tf.MambaConfig(vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, state_size=8)
        case "mamba-2" | "falcon-mamba":
            kind = tf.Mamba2Config if shape == "mamba-2" else tf.FalconMambaConfig
            heads = dict(num_heads=8, head_dim=width // 4, n_groups=1, chunk_size=8) if shape == "mamba-2" else {}
            sizes = dict(vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, state_size=8)
            return kind(**sizes, **heads, initializer_range=0.4)
        case "jamba":
            mamba = dict(mamba_d_state=8, use_mamba_kernels=False, num_experts=2)
            places = dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1)
            return tf.JambaConfig(**common, **mamba, **places)
        case "bamba":
            mamba = dict(
                mamba_n_heads=8, mamba_d_head=width // 4, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8
            )
            return tf.BambaConfig(**common, **mamba, attn_layer_indices=[1])
        case "phi3" | "phimoe":
            rope = dict(rope_type="longrope", rope_theta=1e4, original_max_position_embeddings=64)
            rope |= dict(short_factor=[1.0] * (width // 8), long_factor=[4.0] * (width // 8))
            more = dict(original_max_position_embeddings=64, rope_parameters=rope)
            if shape == "phi3":
                return tf.Phi3Config(**{**common, "pad_token_id": 0}, **more)
            rope |= dict(short_mscale=1.0, long_mscale=1.3)
            return tf.PhimoeConfig(**common, **more, num_local_experts=2, num_experts_per_tok=1)
        case "llama-longrope":
            rope = dict(rope_type="longrope", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64)
            rope |= dict(short_factor=[1.0] * (width // 8), long_factor=[4.0] * (width // 8))
            return tf.LlamaConfig(**common, rope_parameters=rope)
        case "recurrent-gemma":
            return tf.RecurrentGemmaConfig(**{**common, "num_hidden_layers": 3}, head_dim=width // 4, lru_width=width)
        case "gpt-1" | "gpt-2":
            kind = tf.OpenAIGPTConfig if shape == "gpt-1" else tf.GPT2Config
            return kind(vocab_size=vocab, n_embd=width, n_layer=layers, n_head=4, n_positions=context, eos_token_id=END)
        case "bert":
            bert = {k: v for k, v in common.items() if k != "num_key_value_heads"}
            return tf.BertConfig(**{**bert, "pad_token_id": 0})
        case "qwen3-next":
            return tf.Qwen3NextConfig(
                **{**common, "num_hidden_layers": 4},
                head_dim=16,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
                linear_num_key_heads=2,
                linear_num_value_heads=2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
            )
    raise ValueError(shape)


def model(shape: str = "llama", seed: int = 0, **sizes: int) -> Any:
    """A tiny model with seeded random weights, float32, ready to read."""
    torch.manual_seed(seed)
    return tf.AutoModelForCausalLM.from_config(config(shape, **sizes)).float().eval()


def related(shape: str = "llama", seed: int = 0, count: int = 3, noise: float = 0.25, **sizes: int) -> dict[str, Any]:
    """A family whose drafts are the target with ever more noise in the weights: they agree often, not always."""
    names = ("tiny", "small", "medium", "big")[-count:]
    out = {}
    for i, name in enumerate(names):
        one = model(shape, seed, **sizes)
        far = noise * (len(names) - 1 - i)
        if far:
            torch.manual_seed(seed + 100 + i)
            with torch.no_grad():
                for weight in one.parameters():
                    if weight.ndim > 1:
                        weight.add_(torch.randn_like(weight) * weight.std() * far)
        out[name] = one
    return out


def learn(one: Any) -> None:
    """All idle work that waits, however long it takes beside replies of such small models."""
    one.learner.allowance.share = 1e9
    while one.learn():
        pass
