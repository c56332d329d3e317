"""What this machine is, and what fits it: `hsd doctor` and `hsd families`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import psutil

from hsd.config import Family, ModelSpec, default_path
from hsd.paths import data_dir as data_folder

_PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "gradio", "sqlite-utils")
_LOW_DISK_GB = 2.0


def report(data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Facts about the machine and advice, as plain values."""
    import torch

    folder = data_folder(data_dir)
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(folder)
    gpus = _gpus()
    bf16 = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    facts = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "processor": f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {'bf16' if bf16 else 'no bf16'}",
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "gpu": "; ".join(g["text"] for g in gpus) or "none",
        "data folder": str(folder),
        "disk": f"{disk.free / 1e9:.1f} GB free",
        "models.yaml": str(default_path()),
        "model cache": str(_hub_folder()),
    }
    advice = []
    if not gpus:
        advice.append("No GPU that torch can use: the built-in family is the fast one here; large models will be slow.")
        if shutil.which("nvidia-smi"):
            advice.append("There is an NVIDIA driver, but this torch was built without CUDA: install the CUDA build.")
    if not gpus and not bf16:
        advice.append("This processor has no bf16 arithmetic: models compute in float32, at twice the memory.")
    if "microsoft" in platform.release().lower():
        advice.append("This is WSL2: keep models on the Linux side of the disk, reading across is slow.")
    if disk.free < _LOW_DISK_GB * 1e9:
        advice.append(f"Less than {_LOW_DISK_GB:.0f} GB of disk are free: free some before downloading models.")
    return {"facts": facts, "gpus": gpus, "advice": advice}


def fit(family: Family) -> dict[str, Any]:
    """A family's line in `hsd families`, as plain values."""
    missing = [m.name for m in family.models if not on_disk(m)]
    free = free_memory_gb()
    wanted = family.memory_gb
    if not wanted:
        fits = "memory not stated"
    else:
        fits = f"wants {wanted:g} GB, {free:.1f} free: {'fits' if wanted <= free else 'does not fit'}"
    return {
        "name": family.name,
        "title": family.title,
        "target": family.target,
        "models": [m.name for m in family.models],
        "context": family.context,
        "license": family.license,
        "missing": missing,
        "on_disk": "on disk" if not missing else f"to download: {', '.join(missing)}",
        "memory_gb": wanted,
        "free_gb": round(free, 1),
        "fits": fits,
    }


def free_memory_gb() -> float:
    """Free memory where models would be loaded: the largest GPU's, else the machine's."""
    gpus = _gpus()
    return max(g["free_gb"] for g in gpus) if gpus else psutil.virtual_memory().available / 1e9


def on_disk(spec: ModelSpec) -> bool:
    """Whether a model can be loaded without a network."""
    if spec.path.startswith("builtin:"):
        name = spec.path.removeprefix("builtin:")
        return (Path(__file__).parent / "builtin" / "weights" / name / "config.json").is_file()
    if spec.path.startswith((".", "/", "~")):
        return (Path(spec.path).expanduser() / "config.json").is_file()
    snapshots = _hub_folder() / f"models--{spec.path.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/config.json")) and any(snapshots.glob("*/*.safetensors"))


def _hub_folder() -> Path:
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"])
    return Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"


def _gpus() -> list[dict[str, Any]]:
    import torch

    out: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            major, minor = torch.cuda.get_device_capability(i)
            name = torch.cuda.get_device_name(i)
            text = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, compute capability {major}.{minor}"
            out.append({"name": name, "free_gb": free / 1e9, "total_gb": total / 1e9, "text": text})
    elif torch.backends.mps.is_available():
        free_gb = psutil.virtual_memory().available / 1e9
        out.append({"name": "Apple GPU", "free_gb": free_gb, "total_gb": free_gb, "text": "Apple GPU, shared memory"})
    return out


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
