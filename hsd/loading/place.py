"""Which devices there are, what is free on them, and how fast a processor reads its memory."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
import warnings
from dataclasses import dataclass

import psutil
import torch

from hsd.config import Family, ModelSpec
from hsd.errors import ConfigError
from hsd.loading.cache import gguf_of
from hsd.loading.estimate import GB, Place

LIMIT = "HSD_MEMORY_GB"
"""Environment variable: the memory that a family may take at most, in GB, however much more is free."""

_KEEP = 0.05  # part of the whole memory that is left to the system and to other programs


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: torch's name of it, its own, bytes free and in all."""

    device: str
    name: str
    free: float
    total: float


def gpus() -> list[Gpu]:
    """GPUs that this torch can use. ROCm's appear as CUDA's, as torch does it."""
    if cuda_works():
        out = []
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            # What this process has reserved and does not use is free for a family too.
            free += torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i)
            out.append(Gpu(f"cuda:{i}", torch.cuda.get_device_name(i), free, total))
        return out
    if torch.backends.mps.is_available():
        memory = psutil.virtual_memory()
        return [Gpu("mps", "Apple GPU (shared memory)", memory.available, memory.total)]
    return []


def cuda_works() -> bool:
    """Whether torch can use CUDA; the warning that an old driver gives is `hsd doctor`'s to tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def device_of(spec: ModelSpec, override: str = "auto") -> str:
    """The torch device of a model: what was asked for, else the GPU with most free memory, else the processor.

    Raises:
        ConfigError: a device that this machine or this torch does not have.
    """
    if spec.gguf or gguf_of(spec) is not None:
        return "cpu"  # its logits are there, and llama.cpp places the layers
    wanted = override if override != "auto" else spec.device
    if wanted == "auto":
        here = gpus()
        return max(here, key=lambda g: g.free).device if here else "cpu"
    kind = wanted.partition(":")[0]
    if kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()):
        return wanted
    if kind in ("cuda", "balanced"):
        here = [g for g in gpus() if g.device.startswith("cuda")]
        if here and (":" not in wanted or wanted in {g.device for g in here}):
            return wanted
        said = f"{len(here)} GPUs: {', '.join(g.device for g in here)}" if here else "no GPU that torch can use"
        raise ConfigError(
            f"device: '{wanted}' is not there; this machine has {said}.", "See `hsd doctor`, or use auto."
        )
    hint = "Use auto, cpu, cuda, cuda:1, mps or balanced."
    if kind == "mps":
        raise ConfigError("device: 'mps' is not there; this torch or this machine has no Apple GPU.", hint)
    raise ConfigError(f"device: '{wanted}' is not known.", hint)


def place_of(device: str, timed: bool = False) -> Place:
    """A device with its free memory; `$HSD_MEMORY_GB` bounds what counts as free.

    Args:
        device: torch device, or "balanced" for all GPUs together.
        timed: also measure how fast a processor reads its memory.

    Raises:
        ConfigError: the variable is no number.
    """
    kind = device.partition(":")[0]
    if kind in ("cuda", "balanced"):
        here = [g for g in gpus() if g.device.startswith("cuda")]
        if kind == "cuda":
            at = int(device.partition(":")[2] or torch.cuda.current_device())
            here = [g for g in here if g.device == f"cuda:{at}"]
        name = " and ".join(g.name for g in here)
        free, total = sum(g.free for g in here), sum(g.total for g in here)
        return Place(name, "cuda", _allowed(free - _KEEP * total), total)
    memory = psutil.virtual_memory()
    free = _allowed(memory.available - _KEEP * memory.total)
    if kind == "mps":
        return Place("the Apple GPU, which shares the memory", "mps", free, memory.total)
    return Place(
        "this computer's memory", "cpu", free, memory.total, bf16=fast_bf16(), read_gbps=read_gbps() if timed else 0.0
    )


def sharing(family: Family, device: str) -> tuple[str, Family]:
    """The target's device, and the family with only those models that are loaded there."""
    at = device_of(family.target_spec, device)
    beside = tuple(m for m in family.models if m is family.target_spec or device_of(m, device) == at)
    return at, dataclasses.replace(family, models=beside)


def fast_bf16() -> bool:
    """Whether this processor has bf16 arithmetic that torch uses."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def read_gbps() -> float:
    """How fast this processor reads memory, GB/s: the best of eight sums over 256 MB, more than caches hold."""
    data = torch.ones(64_000_000, dtype=torch.float32)
    best = float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - begun)
    return data.numel() * 4 / GB / best


def _allowed(free: float) -> float:
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return max(free, 0.0)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise ConfigError(f"{LIMIT} is '{text}'.", "Give a number of GB above 0, like 8.")
    return max(min(free, limit * GB), 0.0)
