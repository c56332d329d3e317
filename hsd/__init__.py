"""Hierarchical speculative decoding: stacked draft models, and only the target's own tokens reach the reply.

`import hsd` loads no torch; the names below load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsd import planning
    from hsd.config import Family, find_family, load_families
    from hsd.engine import Engine
    from hsd.errors import ConfigError, HsdError, LoadError, ModelError, PromptError, StoreError
    from hsd.found import Found, FoundFamily, found_families
    from hsd.machine import free_memory, memory_fit
    from hsd.memory import MemoryFit, ModelMemory
    from hsd.params import SamplingParams
    from hsd.paths import data_dir, private_file
    from hsd.prompts import begun_ids
    from hsd.terminal import open_output
    from hsd.thinking import ThinkingSplit, split_thinking, with_thinking
    from hsd.types import (
        Dropped,
        Event,
        FamilyInfo,
        Finished,
        LevelStats,
        LoadProgress,
        Plan,
        Race,
        Replanned,
        Reply,
        ReplyStats,
        Stage,
        Started,
        Tokens,
    )

__version__ = "0.1.0"

_HOME = {
    "Engine": "hsd.engine",
    "Family": "hsd.config",
    "find_family": "hsd.config",
    "load_families": "hsd.config",
    "SamplingParams": "hsd.params",
    "begun_ids": "hsd.prompts",
    "data_dir": "hsd.paths",
    "open_output": "hsd.terminal",
    "private_file": "hsd.paths",
    "Found": "hsd.found",
    "FoundFamily": "hsd.found",
    "found_families": "hsd.found",
    "free_memory": "hsd.machine",
    "memory_fit": "hsd.machine",
    "MemoryFit": "hsd.memory",
    "ModelMemory": "hsd.memory",
    "ThinkingSplit": "hsd.thinking",
    "split_thinking": "hsd.thinking",
    "with_thinking": "hsd.thinking",
    **dict.fromkeys(("ConfigError", "HsdError", "LoadError", "ModelError", "PromptError", "StoreError"), "hsd.errors"),
    **dict.fromkeys(
        (
            "Dropped",
            "Event",
            "FamilyInfo",
            "Finished",
            "LevelStats",
            "LoadProgress",
            "Plan",
            "Race",
            "Replanned",
            "Reply",
            "ReplyStats",
            "Stage",
            "Started",
            "Tokens",
        ),
        "hsd.types",
    ),
}

__all__ = [
    "ConfigError",
    "Dropped",
    "Engine",
    "Event",
    "Family",
    "FamilyInfo",
    "Finished",
    "Found",
    "FoundFamily",
    "HsdError",
    "LevelStats",
    "LoadError",
    "LoadProgress",
    "MemoryFit",
    "ModelError",
    "ModelMemory",
    "Plan",
    "PromptError",
    "Race",
    "Replanned",
    "Reply",
    "ReplyStats",
    "SamplingParams",
    "Stage",
    "Started",
    "StoreError",
    "ThinkingSplit",
    "Tokens",
    "__version__",
    "begun_ids",
    "data_dir",
    "find_family",
    "found_families",
    "free_memory",
    "load_families",
    "memory_fit",
    "open_output",
    "planning",
    "private_file",
    "split_thinking",
    "with_thinking",
]


def __getattr__(name: str) -> Any:
    if name == "planning":
        return importlib.import_module("hsd.planning")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'hsd' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
