"""Plain decoding of safetensors models by this engine against transformers' own `generate`, interleaved in one run.

The models have the shape of SmolLM2-135M and random weights: what a step costs does not depend on what was learnt.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import transformers

from hsd.bench import BenchRequest
from hsd.bench.made import builtin_tokenizer
from hsd.engine import Engine
from hsd.errors import ConfigError
from hsd.params import SamplingParams

PROMPT = 64
"""Tokens that are read before the first one is written."""

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench generate`."""
    if ask.device not in ("auto", "cpu"):
        raise ConfigError("`hsd bench generate` runs on a processor.", "On a GPU use `hsd bench gpu`.")
    tokens, repeats = (8, 3) if ask.quick else (32, 7)
    ask.tell(f"{torch.get_num_threads()} threads, {PROMPT} tokens of prompt, {tokens} written, {repeats} runs each")
    out: dict[str, Any] = {"threads": torch.get_num_threads(), "tokens": tokens, "repeats": repeats}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found = out[name] = _compare(_model(dtype), tokens, repeats)
        ask.tell(
            f"{name}: generate {found['generate']:.1f}, this engine {found['engine']:.1f} tokens/s; "
            f"median of the ratios {found['ratio']:.3f}"
        )
    return out


def _model(dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE))
    model.generation_config.eos_token_id = None
    return model.to(dtype).eval()


def _compare(model: Any, tokens: int, repeats: int) -> dict[str, float]:
    """Tokens/s of both, and the median of the ratios of runs that follow each other."""
    taken: dict[str, list[float]] = {"generate": [], "engine": []}
    # The first reply of a model measures its plain step, so the first run counts for neither.
    params = SamplingParams(temperature=0, max_tokens=tokens)
    with Engine.from_models({"big": model}, builtin_tokenizer(), context=1024) as engine:
        for turn in range(repeats + 1):
            text = [(37 * i + 101 * turn) % 4000 + 6 for i in range(PROMPT)]
            begun = time.perf_counter()
            written = model.generate(
                torch.tensor([text]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
            between = time.perf_counter()
            reply = engine.generate(text, params, plan="big")
            ended = time.perf_counter()
            if turn and len(reply.token_ids) == tokens == written.shape[1] - PROMPT:
                taken["generate"].append(between - begun)
                taken["engine"].append(ended - between)
    ratios = [theirs / ours for theirs, ours in zip(taken["generate"], taken["engine"], strict=True)]
    speeds = {name: tokens / statistics.median(seconds) for name, seconds in taken.items()}
    return {**speeds, "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
