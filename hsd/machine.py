"""What this machine is, and what fits it: `hsd doctor` and `hsd families`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

import psutil

from hsd.config import Family, default_path, find_family
from hsd.loading.cache import hub_folder, on_disk
from hsd.loading.estimate import GB
from hsd.loading.load import free_memory as _free_memory
from hsd.loading.load import settle
from hsd.memory import MemoryFit
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
        "model cache": str(hub_folder()),
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


def memory_fit(
    family: Family | str,
    device: str = "auto",
    *,
    dtype: str | None = None,
    config: str | os.PathLike[str] | None = None,
    also_free_gb: float = 0.0,
) -> MemoryFit:
    """Whether a family fits the memory of its device, and what would be left out to make it fit. Loads nothing.

    Imports torch when it is first called (seconds), and on a machine without a GPU measures once how fast memory is
    read (about 0.2 s): call it outside of a page's own thread.

    Args:
        family: a family, or its name in `models.yaml`.
        device: "auto" or a torch device that overrides the file's.
        dtype: overrides the file's dtypes.
        config: path of another models.yaml, for a name.
        also_free_gb: memory of the device that will have been given back by then: `engine.info.memory.needed_gb` of
            an engine that is closed first.

    Raises:
        ConfigError: no such family, or no such device.
    """
    if isinstance(family, str):
        family = find_family(family, config)
    return settle(family, device, dtype, also_free_gb * GB, timed=True)[1]


def free_memory() -> None:
    """Gives the memory of engines that were closed and dropped back to the device, and to the system."""
    _free_memory()


def fit(family: Family) -> dict[str, Any]:
    """A family's line in `hsd families`, as plain values."""
    missing = [m.name for m in family.models if not on_disk(m)]
    memory = memory_fit(family)
    download = f", about {memory.download_gb:.1f} GB" if memory.download_gb else ""
    return {
        "name": family.name,
        "title": family.title,
        "target": family.target,
        "models": [m.name for m in family.models],
        "context": family.context,
        "license": family.license,
        "missing": missing,
        "on_disk": "on disk" if not missing else f"to download: {', '.join(missing)}{download}",
        "download_gb": round(memory.download_gb, 1),
        "memory_gb": family.memory_gb or round(memory.needed_gb, 1),
        "needed_gb": round(memory.needed_gb, 2),
        "free_gb": round(memory.free_gb, 1),
        "total_gb": round(memory.total_gb, 1),
        "device": memory.device,
        "fits": memory.verdict,
        "dropped": dict(memory.dropped),
        "fit_context": memory.context,
        "seconds_per_token": memory.seconds_per_token,
    }


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
