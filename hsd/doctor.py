"""`hsd doctor`: what this machine is, what will be slow or not work on it and why, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from typing import Any

import psutil

from hsd.config import default_path
from hsd.errors import LoadError
from hsd.loading.cache import copies_folder, hub_folder
from hsd.loading.compressed import copies
from hsd.loading.place import LIMIT, fast_bf16, gpus, read_gbps
from hsd.paths import data_dir as data_folder
from hsd.runtime.llama_cpp.library import library

_PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "huggingface-hub", "gradio", "sqlite-utils")
_LOW_DISK_GB = 2.0


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU: its name, compute capability (0, 0 where there is none to tell), and memory in bytes."""

    name: str
    capability: tuple[int, int]
    free: float
    total: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What advice depends on.

    Args:
        cards: GPUs that torch can use.
        build: what torch was built for: "cuda 13.0", "rocm 7.1", "mps" or "cpu".
        supported: architectures that torch's kernels were built for ("sm_90"), empty where unknown.
        driver: version of the NVIDIA driver, "" if there is none.
        complaint: what torch says about the driver, "" if nothing.
        wsl: whether this is Windows' Linux.
        system: "Linux" or "Darwin".
        bf16: whether the processor has bf16 arithmetic.
        read_gbps: reading speed of the processor's memory; 0 where not measured.
        disk_free: bytes free where the data are.
        missing: packages that are not installed.
    """

    cards: tuple[Card, ...] = ()
    build: str = "cpu"
    supported: tuple[str, ...] = ()
    driver: str = ""
    complaint: str = ""
    wsl: bool = False
    system: str = "Linux"
    bf16: bool = True
    read_gbps: float = 0.0
    disk_free: float = 1e12
    missing: tuple[str, ...] = ()


def report(data_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Facts about the machine and advice, as plain values."""
    import torch
    from huggingface_hub import constants

    folder = data_folder(data_dir)
    machine = examine(folder)
    memory = psutil.virtual_memory()
    speed = f", reads {machine.read_gbps:.0f} GB/s" if machine.read_gbps else ""
    facts = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}{' (WSL2)' if machine.wsl else ''}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "torch built for": machine.build,
        "nvidia driver": machine.driver or "none",
        "processor": f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {'bf16' if machine.bf16 else 'no bf16'}",
        "llama.cpp": _llama_cpp(),
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free{speed}",
        "gpu": "; ".join(_line(card) for card in machine.cards) or "none",
        "data folder": str(folder),
        "disk": f"{machine.disk_free / 1e9:.1f} GB free",
        "models.yaml": str(default_path()),
        "model cache": str(hub_folder()),
        "compressed": _compressed(),
        "downloads": "off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "allowed",
    }
    if os.environ.get(LIMIT):
        facts["memory limit"] = f"{os.environ[LIMIT]} GB ({LIMIT})"
    cards = [
        {"name": c.name, "free_gb": c.free / 1e9, "total_gb": c.total / 1e9, "text": _line(c)} for c in machine.cards
    ]
    return {"facts": facts, "gpus": cards, "advice": advice(machine)}


def _llama_cpp() -> str:
    """The library that GGUF models run by, with its version and the devices it sees; or what to do to get one."""
    try:
        used = library()
    except LoadError as error:
        return str(error)
    devices = [f"{d.name}: {d.description}" if d.kind != "cpu" else used.instructions for d in used.devices]
    version = f" {used.version}" if used.version else ""
    return f"{used.found.origin}{version} ({'; '.join(devices) or 'no devices'})"


def _compressed() -> str:
    """Copies that were made as drafts, and where they lie."""
    count, size = copies()
    return f"{count} copies, {size / 1e9:.1f} GB, in {copies_folder()}: may be deleted" if count else "no copies"


def examine(folder: os.PathLike[str] | str) -> Machine:
    """This machine as advice sees it."""
    import torch

    complaint = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        works = torch.cuda.is_available()
        if not works and caught:
            complaint = str(caught[0].message).splitlines()[0]
    cards = []
    for gpu in gpus():
        cuda = gpu.device.startswith("cuda")
        capability = torch.cuda.get_device_capability(gpu.device) if cuda else (0, 0)
        cards.append(Card(gpu.name, capability, gpu.free, gpu.total))
    hip, cuda_version = getattr(torch.version, "hip", None), torch.version.cuda
    build = f"rocm {hip}" if hip else f"cuda {cuda_version}" if cuda_version else ""
    return Machine(
        cards=tuple(cards),
        build=build or ("mps" if torch.backends.mps.is_built() else "cpu"),
        supported=tuple(torch.cuda.get_arch_list()) if works and not hip else (),
        driver=_driver(),
        complaint=complaint,
        wsl="microsoft" in platform.release().lower(),
        system=platform.system(),
        bf16=fast_bf16(),
        read_gbps=0.0 if cards else read_gbps(),
        disk_free=shutil.disk_usage(folder).free,
        missing=tuple(name for name in _PACKAGES if _version(name) == "not installed"),
    )


def advice(machine: Machine) -> list[str]:
    """What will be slow or will not work, why, and what to do: a sentence or two each."""
    out = _about_drivers(machine) if not machine.cards else []
    for card in machine.cards:
        out += _about_card(card, machine)
    if machine.build.startswith("rocm"):
        out.append(
            "This torch is for AMD GPUs (ROCm): models run as on NVIDIA's, but bitsandbytes supports only some of "
            "these GPUs; where NF4 fails, use quantization: none. Nothing of it has been tested on one."
        )
    if machine.build == "mps" and machine.cards:
        out.append(
            "Apple GPUs have no fast 4- and 8-bit kernels here: such weights are unpacked when they are loaded, to "
            "bf16, and want the memory of that. Nothing of it has been tested on one."
        )
    if len(machine.cards) > 1:
        out.append(
            f"{len(machine.cards)} GPUs: a family goes to the one with most free memory; a target that is too large "
            "for it is spread over all (device: balanced) and computed in transformers' own way, not the lean."
        )
    if not machine.cards and not machine.bf16:
        out.append("This processor has no bf16 arithmetic: models compute in float32, at twice the memory and time.")
    if machine.wsl:
        out.append(
            "This is WSL2: keep models on the Linux side of the disk, reading across to Windows is slow; the GPU's "
            "driver is the one of Windows; the memory is what .wslconfig allows."
        )
    if machine.disk_free < _LOW_DISK_GB * 1e9:
        out.append(f"Less than {_LOW_DISK_GB:.0f} GB of disk are free: free some before downloading models.")
    if machine.missing:
        out.append(f"Not installed: {', '.join(machine.missing)}. Start with ./launch.sh, which installs everything.")
    return out


def _about_drivers(machine: Machine) -> list[str]:
    """Why no GPU is used, and what large models will be like."""
    out = []
    if machine.complaint:
        out.append(
            f"torch cannot use the GPU: {machine.complaint.rstrip('.')}. Update the NVIDIA driver"
            f"{f' ({machine.driver} is installed)' if machine.driver else ''}, or install a torch for an older CUDA."
        )
    elif machine.driver and machine.build == "cpu":
        out.append(
            f"There is an NVIDIA driver ({machine.driver}), but this torch was built without CUDA: delete .venv/ and "
            "start ./launch.sh again, or install the CUDA build."
        )
    elif machine.driver:
        out.append(f"There is an NVIDIA driver ({machine.driver}), but torch finds no GPU: see what `nvidia-smi` says.")
    speed = ""
    if machine.read_gbps:
        seconds = 16.4 / machine.read_gbps  # Qwen3-8B in bf16
        speed = f": an 8B takes about {seconds:.1f} s per token, at the {machine.read_gbps:.0f} GB/s that were measured"
    out.append(f"No GPU that torch can use: the built-in family is the fast one here, large ones are slow{speed}.")
    return out


def _about_card(card: Card, machine: Machine) -> list[str]:
    major, minor = card.capability
    out = []
    if major and machine.supported and not _covered(card.capability, machine.supported):
        out.append(
            f"{card.name} (compute capability {major}.{minor}) is not among what this torch was built for "
            f"({', '.join(machine.supported)}): install a torch build that names it, or use --device cpu."
        )
    elif major and major < 8:
        out.append(
            f"{card.name} (compute capability {major}.{minor}) has no bf16 arithmetic: set dtype: float16 for models "
            "that stay in range with it; bf16 is emulated and slow."
        )
    if card.total < 6e9:
        out.append(f"{card.name} has {card.total / 1e9:.1f} GB: `hsd families` says which families fit; few do.")
    elif card.free < 0.6 * card.total:
        out.append(
            f"Of {card.name}'s {card.total / 1e9:.0f} GB only {card.free / 1e9:.1f} are free: "
            "other programs hold the rest."
        )
    return out


def _covered(capability: tuple[int, int], supported: tuple[str, ...]) -> bool:
    """Whether kernels for an architecture run on it: those of the same major number that are not newer, or PTX."""
    for name in supported:
        kind, _, digits = name.rstrip("af").partition("_")
        if not digits.isdigit():
            continue
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "compute" and (major, minor) <= capability:
            return True
        if major == capability[0] and minor <= capability[1]:
            return True
    return False


def _driver() -> str:
    """Version of the NVIDIA driver; "" if there is none, or it does not answer."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "does not answer"
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else "does not answer"


def _line(card: Card) -> str:
    kind = f", compute capability {card.capability[0]}.{card.capability[1]}" if card.capability[0] else ""
    return f"{card.name}, {card.free / 1e9:.1f} of {card.total / 1e9:.1f} GB free{kind}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
