"""A family from its description to models in memory: what fits, what has to be fetched, what was measured."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hsd.config import Family, ModelSpec
from hsd.errors import LoadError
from hsd.gguf import is_gguf
from hsd.loading.cache import damage
from hsd.loading.compressed import compressed
from hsd.loading.estimate import GB, LEAST_CONTEXT, fit, measured
from hsd.loading.explain import readable
from hsd.loading.family import Loaded, assemble
from hsd.loading.gguf_models import check_gguf, gguf_tokenizer, read_gguf
from hsd.loading.hub import fetch
from hsd.loading.kinds import cannot_run, config_of, not_a_model, refused
from hsd.loading.place import device_of, gpus, place_of, sharing
from hsd.loading.source import check_tokenizer, held_bytes, read_model, read_tokenizer
from hsd.memory import MemoryFit
from hsd.types import Dropped, LoadProgress

Progress = Callable[[LoadProgress], None]


def load(family: Family, device: str = "auto", dtype: str | None = None, progress: Progress | None = None) -> Loaded:
    """Loads a family: what is to be fetched first, then the target, then its drafts.

    Args:
        family: what to load.
        device: "auto", or a torch device that overrides the file's.
        dtype: overrides the file's dtypes.
        progress: told what is being fetched and read, in models of which each is fetched and read.

    Raises:
        ConfigError: a device that is not there.
        LoadError: the target cannot be loaded, or the memory does not suffice for it. Nothing stays in memory then.
    """
    try:
        return _load(family, device, dtype, progress or (lambda _: None))
    except BaseException:
        free_memory()
        raise


def settle(
    family: Family, device: str = "auto", dtype: str | None = None, also_free: float = 0.0, timed: bool = False
) -> tuple[str, MemoryFit]:
    """Where the target goes, and what of the family fits there.

    A target that no single GPU holds is spread over all of them.

    Args:
        family: what is wanted.
        device: "auto" or a torch device.
        dtype: overrides the file's dtypes.
        also_free: bytes that will have been given back by then.
        timed: also say how slow plain decoding would be on a processor.
    """
    at, beside = sharing(family, device)
    place = place_of(at, timed)
    place = dataclasses.replace(place, free=min(place.free + also_free, place.total))
    found = fit(beside, place, dtype)
    several = sum(g.device.startswith("cuda") for g in gpus()) > 1
    if not found.fits and several and "auto" in (device, family.target_spec.device) and at.startswith("cuda"):
        spread = fit(beside, place_of("balanced"), dtype)
        if spread.fits:
            return "balanced", spread
    return at, found


def free_memory() -> None:
    """Gives back to the device, and to the system, what models that nobody uses any more had taken.

    An engine's models are given up when the engine is closed and the program drops it.
    """
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return


def _load(family: Family, device: str, dtype: str | None, tell: Progress) -> Loaded:
    target = family.target_spec
    at, found = settle(family, device, dtype)
    _refuse(family, found)
    dropped = _left_out(found)
    wanted = [target, *(m for m in family.models if m is not target and m.name not in found.dropped)]
    total = 2.0 * len(wanted)
    folders: dict[str, Path] = {}
    for done, spec in enumerate(wanted):
        try:
            folders[spec.name] = _fetched(spec, done, total, tell)
        except LoadError as error:
            if spec is target:
                raise
            dropped.append(Dropped(spec.name, str(error)))
    if any(not m.known for m in found.models):  # now their configurations are here
        rest = dataclasses.replace(family, models=tuple(m for m in family.models if m.name in folders))
        at, found = settle(rest, device, dtype)
        _refuse(family, found)
        dropped += _left_out(found)
    wanted = [m for m in wanted if m.name in folders and m.name not in found.dropped]
    # llama.cpp reads a tokenizer with the weights.
    tokenizer: Any = None if _is_gguf(folders[target.name]) else read_tokenizer(target, folders[target.name])
    if found.context < found.wanted_context:  # what the target was not made for is told where it is assembled
        family = dataclasses.replace(family, context=found.context)
    models, weights = dict[str, Any](), dict[str, float]()
    for done, spec in enumerate(wanted):
        step = f"reading {spec.path}"
        tell(LoadProgress(spec.name, step, total / 2 + done, total))
        share = _share(tell, spec, step, total / 2 + done, total)
        place = _place(spec, at, device, spec is target)
        try:
            file = folders[spec.name]
            if _is_gguf(file):
                model, tokenizer = _read_gguf(spec, file, family, tokenizer, share)
            else:
                if spec is not target:
                    check_tokenizer(spec, tokenizer, file)
                model = read_model(spec, place, dtype, file, packed=found.packed, share=share)
            models[spec.name], weights[spec.name] = model, float(held_bytes(model))
            del model
        except LoadError as error:
            if spec is target:
                raise
            free_memory()
            dropped.append(Dropped(spec.name, str(error)))
    tell(LoadProgress("", "checking the models", total, total))
    stored = {s.name: s.quantization for s in family.models if s.quantization != "none"}
    order = [m.name for m in family.models if m.name in models and m is not target]
    loaded = assemble(
        family, {**{n: models[n] for n in order}, target.name: models[target.name]}, tokenizer, stored, dropped
    )
    del models
    return _with_memory(loaded, at, found, weights)


def _fetched(spec: ModelSpec, done: int, total: float, tell: Progress) -> Path:
    def told(step: str, held: float, size: float) -> None:
        numbers = f", {held / GB:.2f} of {size / GB:.2f} GB" if size else ""
        tell(LoadProgress(spec.name, f"{step}{numbers}", done + (held / size if size else 0.0), total))

    tell(LoadProgress(spec.name, f"looking for {spec.path}", done, total))
    with readable(spec):
        folder = fetch(spec, told) if spec.of is None else compressed(spec, told)
        if _is_gguf(folder):
            return folder
        if spec.exact:
            raise LoadError(
                f"'{spec.name}' is no GGUF model, and 'exact: true' goes with those alone.",
                "Leave it out; with 'dtype: float32' rows differ least.",
            )
        if found := not_a_model(folder) or cannot_run(config_of(folder)):
            raise refused(spec.name, spec.path, found)
        wrong = damage(folder)
    if wrong:
        raise LoadError(
            f"'{spec.name}' ({spec.path}) cannot be loaded: {wrong}.",
            f"Delete {folder} and fetch it anew." if spec.path != str(folder) else "Restore the file.",
        )
    return folder


def _read_gguf(
    spec: ModelSpec, file: Path, family: Family, tokenizer: Any, share: Callable[[float], None]
) -> tuple[Any, Any]:
    """A GGUF model and the family's tokenizer: the given one, which a draft is held to, or the target's own."""
    if tokenizer is not None:
        check_gguf(file, tokenizer)
    model = read_gguf(spec, file, family.context, share, family.llama_cpp)
    return model, tokenizer or gguf_tokenizer(model)


def _is_gguf(file: Path) -> bool:
    return file.is_file() and is_gguf(file.name)


def _place(spec: ModelSpec, at: str, device: str, is_target: bool) -> str:
    """Where a model goes: a draft that may go anywhere goes to its target's GPU, not to one that is emptier by then."""
    free = device == "auto" and spec.device == "auto"
    return at if is_target or (free and at.startswith("cuda")) else device_of(spec, device)


def _share(tell: Progress, spec: ModelSpec, step: str, done: float, total: float) -> Callable[[float], None]:
    return lambda part: tell(LoadProgress(spec.name, step, done + part, total))


def _refuse(family: Family, found: MemoryFit) -> None:
    if found.fits:
        return
    hint = "Close other programs, choose a smaller family (`hsd families` says which fit)"
    if family.target_spec.quantization != "nf4":
        hint += f", or set 'quantization: nf4' for '{family.target}'"
    raise LoadError(f"The family '{family.name}' {found.verdict}.", f"{hint}.")


def _left_out(found: MemoryFit) -> list[Dropped]:
    return [Dropped(name, f"Left out: {reason}.") for name, reason in found.dropped.items()]


def _with_memory(loaded: Loaded, at: str, found: MemoryFit, weights: dict[str, float]) -> Loaded:
    """The loaded family with what was measured, and what its caches may take."""
    notes = list(loaded.notes)
    if found.context < found.wanted_context:
        notes.append(
            f"The context is {found.context:,} tokens instead of {found.wanted_context:,}: no more fits the "
            f"{found.free_gb:.1f} GB that were free on {found.device}."
        )
    if found.packed:
        notes.append("The weights stay packed, because unpacked they do not fit: every token takes longer.")
    place = place_of(at)
    memory = measured(found, {n: w for n, w in weights.items() if n in loaded.models}, place.free)
    least = max(sum(m.cache_gb for m in memory.models), LEAST_CONTEXT / 1e6)
    room = place.free / GB - memory.shared_gb - sum(m.work_gb for m in memory.models)
    return dataclasses.replace(loaded, notes=tuple(notes), memory=memory, cache_bytes=int(max(least, room) * GB))
