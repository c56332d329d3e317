"""What of the families fits this machine: `hsd families`, and the same for programs."""

from __future__ import annotations

import os
from typing import Any

from hsd.config import Family, find_family
from hsd.loading.cache import on_disk
from hsd.loading.estimate import GB
from hsd.loading.load import free_memory as _free_memory
from hsd.loading.load import settle
from hsd.memory import MemoryFit


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
        "exact": [m.name for m in family.models if m.exact],
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
