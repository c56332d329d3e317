"""Steps on an NVIDIA GPU without a download: models of real shapes with seeded random weights, graphed against eager.

    hsd bench gpu              an NVIDIA GPU: Qwen3-like 0.6B, 1.7B and 8B in bf16 and NF4, 32B in NF4
    hsd bench gpu --quick      any machine: the same code with tiny shapes, uncaptured; its figures mean nothing

The floor of a step is the time that copying as many bytes within the GPU's memory takes, halved, since a copy reads and
writes. A reply's wall time beside the sum of its steps says what the engine itself costs; with random weights
drafts agree with the target by chance only, so no speed-up is told.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any, Literal

import torch

from hsd import loading
from hsd.bench import BenchRequest
from hsd.bench.made import builtin_tokenizer, make
from hsd.config import Family, ModelSpec
from hsd.engine import Engine
from hsd.errors import LoadError
from hsd.loading.place import device_of
from hsd.loading.shapes import published
from hsd.loading.source import held_bytes
from hsd.params import SamplingParams
from hsd.runtime import MAX_WIDTH, LeanModel, Reader
from hsd.runtime.graphs import GraphedSteps, told
from hsd.stats import Stats
from hsd.types import Plan

Stored = Literal["none", "nf4"]

MODELS: tuple[tuple[str, Stored], ...] = (
    ("Qwen/Qwen3-0.6B", "none"),
    ("Qwen/Qwen3-0.6B", "nf4"),
    ("Qwen/Qwen3-1.7B", "none"),
    ("Qwen/Qwen3-1.7B", "nf4"),
    ("Qwen/Qwen3-8B", "none"),
    ("Qwen/Qwen3-8B", "nf4"),
    ("Qwen/Qwen3-32B", "nf4"),
)
STACK: tuple[tuple[str, Stored], ...] = (
    ("Qwen/Qwen3-0.6B", "none"),
    ("Qwen/Qwen3-1.7B", "none"),
    ("Qwen/Qwen3-8B", "nf4"),
)
CONTEXT, PLACE = 2048, 256
_SHOWN = (1, 2, 5, 9, 16)
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 4096,
}


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench gpu`.

    Raises:
        LoadError: no NVIDIA GPU, and not `quick`.
    """
    device = device_of(ModelSpec("any", "any"), ask.device)
    cuda = device.startswith("cuda")
    if not cuda and not ask.quick:
        raise LoadError(
            "This benchmark measures captured steps, and torch sees no NVIDIA GPU here.",
            "With --quick the same code runs with tiny models.",
        )
    name = torch.cuda.get_device_name(device) if cuda else "a processor"
    rate = _copy_rate(device, 1 << (30 if cuda else 24))
    ask.tell(f"{name}: reads {rate / 1e9:.0f} GB/s; median ms of a pass behind {PLACE} tokens")
    ask.tell(f"{'':28}" + "".join(f"{f'w={w}':>9}" for w in _SHOWN) + "   / floor at w=1")
    out: dict[str, Any] = {"device": name, "torch": torch.__version__, "read_gb_s": rate / 1e9, "models": {}}
    for path, kind in MODELS:
        label = f"{path.rpartition('-')[2]} {'bf16' if kind == 'none' else kind}"
        out["models"][label] = _model(ask, label, path, kind, device, rate)
        loading.free_memory()
    out["reply"] = _reply(ask, device)
    return out


def _made(path: str, kind: Stored, device: str, quick: bool) -> Any:
    import transformers as tf

    config = {k: v for k, v in published()[path].items() if k != "parameters"} | (_TINY if quick else {})
    kept = tf.AutoConfig.for_model(config.pop("model_type"), **config)
    return make(kept, ModelSpec(path, path, quantization=kind), device, seed=0)[0]


def _model(ask: BenchRequest, label: str, path: str, kind: Stored, device: str, rate: float) -> dict[str, Any]:
    model = _made(path, kind, device, ask.quick)
    weights = held_bytes(model)
    lean = LeanModel(label, model, CONTEXT)
    repeats = 3 if ask.quick else 20
    eager = _widths(lean, repeats)
    begun = time.perf_counter()
    graphs = GraphedSteps(lean, capture=device.startswith("cuda"))
    graphs.install()
    seconds = time.perf_counter() - begun
    graphed = _widths(lean, repeats) if graphs.failure is None else None
    floor = 1000 * weights / rate
    ask.tell(f"{label}: {weights / 1e9:.2f} GB, floor {floor:.3f} ms, captured in {seconds:.1f} s")
    for what, times in (("eager", eager), ("graphed", graphed)):
        if times is not None:
            shown = "".join(f"{times[w - 1]:9.3f}" for w in _SHOWN)
            ask.tell(f"    {what:24}{shown}   {times[0] / floor:6.2f}")
    if graphs.failure:
        ask.tell(f"    {graphs.failure}")
    return {
        "bytes": weights,
        "floor_ms": floor,
        "capture_seconds": seconds,
        "eager_ms": eager,
        "graphed_ms": graphed,
        "failure": graphs.failure,
    }


def _widths(lean: LeanModel, repeats: int) -> list[float]:
    """Median ms at widths 1 to 16, all widths in turn."""
    reader = Reader(lean, lean.new_cache())
    text = [i % 1000 + 1 for i in range(PLACE + MAX_WIDTH)]
    reader.prefill(text[:PLACE])
    taken: list[list[float]] = [[] for _ in range(MAX_WIDTH)]
    for turn in range(repeats + 2):
        for width in range(1, MAX_WIDTH + 1):
            reader.meter.passes.clear()
            reader.read(text[: PLACE + width], width)
            if turn > 1:
                taken[width - 1].append(1000 * reader.meter.passes[0].seconds)
            reader.rewind(PLACE)
    return [statistics.median(times) for times in taken]


def _copy_rate(device: str, size: int) -> float:
    """Bytes per second that can be read while copying: half of what a copy moves."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        _wait(device)
        begun = time.perf_counter()
        target.copy_(source)
        _wait(device)
        times.append(time.perf_counter() - begun)
    return 2 * size / min(times)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _reply(ask: BenchRequest, device: str) -> dict[str, Any]:
    """Wall time of replies against the sum of their steps, which the GPU itself times."""
    models = {f"m{i}": _made(path, kind, device, ask.quick) for i, (path, kind) in enumerate(STACK)}
    specs = tuple(ModelSpec(name, path) for name, (path, _) in zip(models, STACK, strict=True))
    family = Family("bench", specs, target=specs[-1].name, context=CONTEXT)
    tokenizer = builtin_tokenizer()
    out: dict[str, Any] = {}
    with Engine(loading.assemble(family, models, tokenizer), Stats(None)) as engine:
        ask.tell(f"replies of {' + '.join(p.rpartition('-')[2] for p, _ in STACK)}: {told(engine.captured)}")
        words = list(range(1, PLACE))
        for plan in ("m2", "m0:4>m2", "m0:3>m1:4>m2"):
            for temperature in (0.0, 0.7):
                params = SamplingParams(temperature=temperature, max_tokens=16 if ask.quick else 128, seed=0)
                shares = []
                for _ in range(2 if ask.quick else 5):
                    engine.forget()
                    stats = engine.generate(words, params, plan=Plan.parse(plan)).stats
                    shares.append(1 - stats.model_seconds / stats.decode_seconds)
                out[f"{plan} T={temperature:g}"] = statistics.median(shares)
                ask.tell(f"    {plan} at T={temperature:g}: {100 * statistics.median(shares):.1f}% outside steps")
        out["info"] = [dataclasses.asdict(d) for d in engine.info.dropped]
    return out
