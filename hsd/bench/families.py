"""Families of real size on a GPU, without a download: memory estimated against measured, and what differs from plain.

    hsd bench families              an NVIDIA GPU: Qwen3-like 0.6B + 1.7B + 8B, and 0.6B + 1.7B + 32B, targets in NF4
    hsd bench families --quick      any machine: the same code with tiny models; its figures mean nothing

Weights are random and seeded, so drafts agree with the target by chance only: these stacks are measured for memory,
load time and step times. How often speculative decoding gives other tokens than plain decoding (passes of different
widths round differently) is measured on the built-in family, whose drafts do agree.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from hsd import loading
from hsd.bench import BenchRequest
from hsd.bench.made import builtin_tokenizer, make
from hsd.config import Family, ModelSpec, find_family
from hsd.engine import Engine
from hsd.errors import HsdError, LoadError
from hsd.loading.estimate import GB, Place, fit
from hsd.loading.place import device_of, place_of
from hsd.loading.shapes import published
from hsd.loading.source import held_bytes, read_model
from hsd.memory import MemoryFit
from hsd.params import SamplingParams
from hsd.stats import Stats
from hsd.types import Plan, Stage

STACKS = {
    "0.6B + 1.7B + 8B": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B"),
    "0.6B + 1.7B + 32B": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-32B"),
}
CAPS_GB = (8.0, 12.0, 24.0)
PROMPTS = 50
_TINY = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench families`.

    Raises:
        LoadError: no NVIDIA GPU, and not `quick`.
    """
    device = device_of(ModelSpec("any", "any"), ask.device)
    if not device.startswith("cuda") and not ask.quick:
        raise LoadError(
            "This benchmark is about families of 8 and 32 billion parameters, and torch sees no NVIDIA GPU here.",
            "With --quick the same code runs with tiny models.",
        )
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "a processor"
    out: dict[str, Any] = {"device": name, "torch": torch.__version__, "quick": ask.quick, "stacks": {}}
    for stack, models in STACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            family = _family(models, Path(folder), ask.quick)
            out["stacks"][stack] = _stack(stack, family, device, ask)
    out["files"] = _from_files(device, ask)
    out["divergence"] = _divergence(device, ask)
    return out


def _family(models: tuple[str, ...], folder: Path, quick: bool) -> Family:
    """The stack as a family of folders that hold a configuration and no weights: enough for the estimate."""
    specs = []
    for depth, model in enumerate(models, 1):
        config = {k: v for k, v in published()[model].items() if k != "parameters"}
        if quick:
            config |= _TINY | {"num_hidden_layers": depth, "head_dim": 32, "vocab_size": 4096}
        name = model.rpartition("-")[2].lower()
        place = folder / name
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        specs.append(ModelSpec(name, str(place), quantization="nf4" if depth == len(models) else "none"))
    return Family("bench", tuple(specs), target=specs[-1].name, context=512 if quick else 8192)


def _stack(stack: str, family: Family, device: str, ask: BenchRequest) -> dict[str, Any]:
    """One stack: the estimate, what it is with all memory, and what is left of it under every cap."""
    ask.tell(f"{stack}, target in NF4, context {family.context:,}:")
    dtype = None if device.startswith("cuda") else "float32"
    whole = fit(family, Place("", "cuda", 1e15, 1e15), dtype)
    caps = [0.7 * whole.needed_gb] if ask.quick else list(CAPS_GB)
    total = place_of(device).free / GB
    rows = {}
    for cap in [*caps, None]:
        limit = total if cap is None else min(cap, total)
        found = fit(family, Place("the capped GPU", "cuda", limit * GB, limit * GB), dtype)
        label = "all memory" if cap is None else f"{cap:.3g} GB"
        row: dict[str, Any] = {"verdict": found.verdict, "estimated_gb": _rounded(found.needed_gb)}
        if found.fits:
            with _capped(device, cap):
                try:
                    row |= _measured(family, found, device)
                except (HsdError, torch.OutOfMemoryError) as error:  # the estimate was too small: that is a result too
                    row["error"] = str(error).splitlines()[0]
                    ask.tell(f"{'':14}failed: {row['error']}")
        rows[label] = row
        ask.tell(f"  {label:>10}: {found.verdict}")
        if "weights_gb" in row:
            peak = row["measured_gb"]
            ask.tell(
                f"{'':14}made in {row['made_seconds']:.1f} s; weights {row['weights_gb']:.3f} GB (estimated "
                f"{row['estimated_weights_gb']:.3f})"
                + (f"; peak {peak:.3f} GB (estimated {found.needed_gb:.3f})" if peak else "")
            )
    return rows


def _measured(family: Family, found: MemoryFit, device: str) -> dict[str, Any]:
    """Makes what fits, reads a prompt as long as the context with every model, and looks at the memory.

    Raises:
        HsdError, torch.OutOfMemoryError: the memory did not suffice.
    """
    import transformers as tf

    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    names = [m.name for m in found.models]
    specs = [m for m in family.models if m.name in names]
    models, seconds = {}, 0.0
    for seed, spec in enumerate(specs):
        config = tf.AutoConfig.from_pretrained(spec.path)
        models[spec.name], took = make(config, spec, device, seed)
        seconds += took
    weights = {n: float(held_bytes(m)) for n, m in models.items()}
    kept = dataclasses.replace(family, models=tuple(specs), context=found.context)
    tokenizer = builtin_tokenizer()
    with Engine(loading.assemble(kept, models, tokenizer), Stats(None)) as engine:
        held = engine.info.models
        plan = Plan(held[-1], tuple(Stage(n, 4) for n in held[:-1]))
        words = [i % 1000 + 1 for i in range(engine.info.context - 40)]
        reply = engine.generate(words, SamplingParams(temperature=0, max_tokens=32), plan=plan)
        if reply.error:
            raise HsdError(reply.error)
        peak = torch.cuda.max_memory_allocated(device) - before if cuda else 0
        costs = engine.explain(0.0)["costs_ms"]
    estimated = sum(m.weights_gb for m in found.models)
    return {
        "models": list(held),
        "context": found.context,
        "made_seconds": round(seconds, 2),
        "weights_gb": _rounded(sum(weights.values()) / GB),
        "estimated_weights_gb": _rounded(estimated),
        "measured_gb": _rounded(peak / GB) if cuda else None,
        "measured_over_estimated": round(peak / GB / found.needed_gb, 3) if cuda else None,
        "ms_at_width": {n: {w: round(t[min(w, len(t)) - 1], 3) for w in (1, 2, 5, 9)} for n, t in costs.items()},
    }


@contextmanager
def _capped(device: str, gb: float | None) -> Iterator[None]:
    """A GPU that refuses what goes beyond the cap; memory is given back afterwards."""
    cuda = device.startswith("cuda")
    if cuda and gb is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(gb * GB / whole, 1.0), device)
    try:
        yield
    finally:
        loading.free_memory()
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _from_files(device: str, ask: BenchRequest) -> dict[str, Any]:
    """The smallest model of a stack as all families are loaded: from safetensors on a disk, quantized on the way."""
    import transformers as tf

    with tempfile.TemporaryDirectory() as folder:
        family = _family(STACKS["0.6B + 1.7B + 8B"], Path(folder), ask.quick)
        spec = family.models[0]
        model, _ = make(tf.AutoConfig.from_pretrained(spec.path), spec, device, seed=1)
        model.save_pretrained(spec.path)
        del model
        loading.free_memory()
        size = sum(f.stat().st_size for f in Path(spec.path).glob("*.safetensors"))
        out: dict[str, Any] = {"gb": _rounded(size / GB)}
        for kind in ("none", "nf4"):
            begun = time.perf_counter()
            wanted = dataclasses.replace(spec, quantization=kind)
            model = read_model(wanted, device, None, packed=True)
            out[kind] = {
                "seconds": round(time.perf_counter() - begun, 2),
                "held_gb": _rounded(held_bytes(model) / GB),
            }
            ask.tell(f"{size / GB:.3f} GB of files, {kind}: {out[kind]['seconds']} s, {out[kind]['held_gb']} GB held")
            del model
            loading.free_memory()
    return out


def questions(count: int = PROMPTS) -> list[str]:
    """Prompts for the built-in family that are in no training text."""
    lines = (
        (files("hsd.builtin") / "data" / "held_out_howto.jsonl")
        .read_text(encoding="utf-8")
        .removesuffix("\n")
        .split("\n")
    )
    return [json.loads(line)["asked"] for line in lines[:count]]


def _divergence(device: str, ask: BenchRequest) -> dict[str, Any]:
    """Greedy replies by plans of two and three levels against plain ones, weights in bf16 and in NF4."""
    prompts = questions(4 if ask.quick else PROMPTS)
    params = SamplingParams(temperature=0, max_tokens=32 if ask.quick else 96)
    out = {}
    for kind in ("bf16", "nf4"):
        engine = _built_in(device, kind)
        small, *_, middle, target = engine.info.models
        plans = [f"{small}:4>{target}", f"{small}:3>{middle}:4>{target}"]
        with engine:
            rows = [_compared(engine, prompt, target, plan, params) for prompt in prompts for plan in plans]
        loading.free_memory()
        differ = [r for r in rows if r["at"] is not None]
        tokens = sum(r["tokens"] for r in rows)
        out[kind] = {
            "replies": len(rows),
            "different": len(differ),
            "tokens": tokens,
            "different_per_1000_tokens": round(1000 * len(differ) / max(tokens, 1), 3),
            "first_at": sorted(r["at"] for r in differ),
            "accepted": round(sum(r["accepted"] for r in rows) / max(sum(r["proposed"] for r in rows), 1), 3),
        }
        ask.tell(
            f"built-in family, {kind}: {len(differ)} of {len(rows)} greedy replies differ from plain decoding "
            f"({tokens} tokens, up to the first difference)"
        )
    return out


def _built_in(device: str, kind: str) -> Engine:
    family = find_family("builtin")
    packed = {family.target} if kind == "nf4" else set()
    models = tuple(
        dataclasses.replace(m, dtype="bfloat16", quantization="nf4" if m.name in packed else "none")
        for m in family.models
    )
    return Engine(loading.load(dataclasses.replace(family, models=models), device), Stats(None))


def _compared(engine: Engine, prompt: str, target: str, plan: str, params: SamplingParams) -> dict[str, Any]:
    """Where a reply first differs from the plain one; both read the prompt anew."""
    engine.forget()
    plain = engine.generate(prompt, params, plan=target)
    engine.forget()
    reply = engine.generate(prompt, params, plan=plan)
    for got in (plain, reply):
        if got.error:
            raise HsdError(got.error)
    pairs = list(zip(plain.token_ids, reply.token_ids, strict=False))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None and len(plain.token_ids) != len(reply.token_ids):
        at = len(pairs)
    return {
        "at": at,
        "tokens": len(pairs) if at is None else at,
        "proposed": sum(level.proposed for level in reply.stats.levels),
        "accepted": sum(level.accepted for level in reply.stats.levels),
    }


def _rounded(gb: float) -> float:
    return round(gb, 4)
