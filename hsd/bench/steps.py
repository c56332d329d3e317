"""One pass of every model at widths 1, 2, 5 and 9: ours, transformers, llama.cpp, and what the machine allows at best.

Families of GGUF models are measured by `gguf_steps`.

All means of a model take turns, so that a slow moment of the machine hits all of them. The floor is the larger of two
times: reading the weights once at the speed at which this machine reads as many bytes again and again, and computing
at the speed of its matrix products.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from hsd.bench import BenchRequest, gguf_steps, llama_cpp
from hsd.errors import ConfigError
from hsd.runtime import LeanModel, Reader, TransformersModel

WIDTHS = (1, 2, 5, 9)
PLACE = 256
"""Cached tokens before every pass."""

RANDOM = {"random 25M": (512, 8), "random 47M": (640, 10)}
"""Models with seeded random weights: what a step costs does not depend on what was learnt. Width and layers."""

Means = Callable[[int], None]
"""Runs one pass of the given width, and makes it undone."""


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench steps`."""
    if gguf_steps.is_gguf(ask):
        return gguf_steps.run(ask)
    if ask.device not in ("auto", "cpu") or (ask.device == "auto" and torch.cuda.is_available()):
        raise ConfigError("`hsd bench steps` compares means on a CPU.", "On a GPU use `hsd bench gpu`.")
    repeats = 20 if ask.quick else 100
    models = _models()
    why = llama_cpp.missing()
    if why:
        ask.tell(why)
    ask.tell(f"{torch.get_num_threads()} threads, {PLACE} tokens in the cache, median ms of {repeats} passes each")
    ask.tell(f"{'':36}" + "".join(f"{f'w={w}':>9}" for w in WIDTHS) + "   / floor at w=1")
    out: dict[str, Any] = {"threads": torch.get_num_threads(), "place": PLACE, "repeats": repeats, "models": {}}
    for name, model in models.items():
        out["models"][name] = _measure(ask, name, model, repeats)
    out["reached"] = _reached(ask, out["models"])
    return out


def _models() -> dict[str, Any]:
    """The random models, in bf16."""
    models = {}
    for name, (width, layers) in RANDOM.items():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=4096,
            hidden_size=width,
            intermediate_size=int(width * 8 / 3) // 64 * 64,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        models[name] = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    return models


def _measure(ask: BenchRequest, name: str, model: Any, repeats: int) -> dict[str, Any]:
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    text = [(7 * i) % 4000 for i in range(PLACE)]
    with ExitStack() as stack:
        means: dict[str, Means] = {"transformers, eager": _reader(TransformersModel(name, model, 1024), text)}
        peers: dict[str, llama_cpp.Peer] = {}
        if not llama_cpp.missing():
            peers = stack.enter_context(_peers(ask, model, text))
            means |= {f"llama.cpp {form}": _peer(peer) for form, peer in peers.items()}
        # Last, because the lean model re-points the module's weights.
        lean = LeanModel(name, model, 1024)
        _same(lean, peers.get("BF16"), text)
        means["ours, eager"] = _reader(lean, text)
        ask.tell(f"{name}: {parameters / 1e6:.2f}M parameters, {weights / 1e6:.1f} MB")
        times = _interleaved(means, repeats)
    rate, flops = _read_rate(weights), _product_rate()
    floors = [max(weights / rate, 2 * parameters * w / flops) * 1000 for w in WIDTHS]
    rows = {**times, "floor": floors}
    for label, values in rows.items():
        shown = "".join(f"{ms:9.3f}" for ms in values)
        ask.tell(f"    {label:32}{shown}   {values[0] / floors[0]:6.1f}")
    return {"parameters": parameters, "bytes": weights, "read_gb_s": rate / 1e9, "gflop_s": flops / 1e9, "ms": rows}


def _reader(model: Any, text: Sequence[int]) -> Means:
    reader = Reader(model, model.new_cache())
    reader.prefill(text)

    def one(width: int) -> None:
        reader.read([*text, *range(5, 5 + width)], width)
        reader.rewind(len(text))
        reader.meter.passes.clear()

    return one


def _peer(peer: llama_cpp.Peer) -> Means:
    def one(width: int) -> None:
        peer.step(range(5, 5 + width))
        peer.rewind()

    return one


@contextmanager
def _peers(ask: BenchRequest, model: Any, text: Sequence[int]) -> Iterator[dict[str, llama_cpp.Peer]]:
    """llama.cpp with the same weights in every format."""
    peers = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in llama_cpp.FORMATS:
            path = Path(folder) / f"{form}.gguf"
            llama_cpp.write(model, path, form)
            if not llama_cpp.survives(path, torch.get_num_threads()):
                ask.tell(f"llama.cpp crashes on this machine with {form} weights: left out")
                continue
            peers[form] = llama_cpp.Peer(path, text, torch.get_num_threads())
        try:
            yield peers
        finally:
            for peer in peers.values():
                peer.close()


def _same(lean: LeanModel, peer: llama_cpp.Peer | None, text: Sequence[int]) -> None:
    """The peer must compute the same function, or its times say nothing."""
    if peer is None:
        return
    ids = list(range(5, 10))
    cache = lean.new_cache()
    lean.forward(text, cache, 0)
    ours = lean.forward(ids, cache, len(ids))
    theirs = torch.from_numpy(peer.logits(ids))
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if not difference < 0.1:  # bf16 on both sides, summed in other orders
        raise RuntimeError(f"llama.cpp's logits differ from ours by {difference:.0%} of the largest")


def _interleaved(means: dict[str, Means], repeats: int) -> dict[str, list[float]]:
    """Median ms of every means at every width."""
    taken: dict[str, list[list[float]]] = {label: [[] for _ in WIDTHS] for label in means}
    with torch.inference_mode():
        for turn in range(repeats + 2):
            for at, width in enumerate(WIDTHS):
                for label, one in means.items():
                    one(width)  # brings these weights back into the caches: a reply runs a model many times in a row
                    begun = time.perf_counter()
                    one(width)
                    if turn > 1:
                        taken[label][at].append(1000 * (time.perf_counter() - begun))
    return {label: [statistics.median(times) for times in by_width] for label, by_width in taken.items()}


def _read_rate(size: int) -> float:
    """Bytes per second at which a buffer of this size is read again and again, by all threads."""
    buffer = torch.ones(max(size, 1 << 20) // 4)
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        buffer.sum()
        times.append(time.perf_counter() - begun)
    return buffer.nbytes / min(times)


def _product_rate() -> float:
    """Floating point operations per second of a large bf16 matrix product."""
    a, b = torch.randn(1024, 1024).bfloat16(), torch.randn(1024, 1024).bfloat16()
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begun)
    return float(2 * 1024**3 / min(times))


def _reached(ask: BenchRequest, models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What people ask first: how much faster than transformers, how near to llama.cpp, what width costs."""
    out = {}
    for name, found in models.items():
        ms = found["ms"]
        best = [min(ms[k][i] for k in ms if k.startswith("ours")) for i in range(len(WIDTHS))]
        ratios = {
            "faster than transformers at w=1": ms["transformers, eager"][0] / best[0],
            "w=5 over w=1": best[WIDTHS.index(5)] / best[0],
        }
        if "llama.cpp BF16" in ms:
            ratios["time over llama.cpp bf16 at w=1"] = best[0] / ms["llama.cpp BF16"][0]
        ask.tell(f"{name:12}" + ", ".join(f"{label}: {value:.2f}" for label, value in ratios.items()))
        out[name] = ratios
    return out
