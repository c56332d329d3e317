"""Where a model lies on this disk, and what of it is missing there. No network, no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path

from hsd.builtin import WEIGHTS
from hsd.config import ModelSpec
from hsd.errors import LoadError
from hsd.gguf import gguf_files, is_gguf, missing_parts, parts
from hsd.paths import data_dir


def hub_folder() -> Path:
    """The hub client's cache: whatever folder the client itself uses."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_local(spec: ModelSpec) -> bool:
    """Whether the path names a folder, not a model of the hub."""
    return spec.path.startswith(("builtin:", ".", "/", "~"))


def gguf_of(spec: ModelSpec) -> Path | None:
    """The GGUF file of a model, the first one where it is split; None if it has none on this disk.

    A folder that holds one GGUF model and nothing else that is read here need not name it.
    """
    if spec.of is not None:
        copy = copy_file(spec)
        return copy if copy is not None and copy.is_file() else None
    if is_gguf(Path(spec.path).name) or spec.path.startswith("builtin:"):
        file = local_folder(spec)
        return file if file.is_file() else None
    folder = local_folder(spec) if is_local(spec) else snapshot(spec)
    if folder is None or not folder.is_dir():
        return None
    names = [entry.name for entry in folder.iterdir()]
    if spec.file is None and any(name.endswith(".safetensors") for name in names):
        return None
    found = gguf_files(names, spec.file)
    return folder / found[0] if len(found) == 1 else None


def source_of(spec: ModelSpec) -> ModelSpec:
    """The model that a compressed copy is made of."""
    return dataclasses.replace(spec, of=None, quantization="none")


def copies_folder() -> Path:
    """Where compressed copies lie; what is in it may be deleted, and is made again when it is wanted."""
    return data_dir() / "copies"


def copy_file(spec: ModelSpec) -> Path | None:
    """Where the compressed copy of a model lies, or will lie; None where its source is not on this disk.

    Its name says of which file it was made, by path, size and time: a source that has changed has another copy.
    """
    source = gguf_of(source_of(spec))
    if source is None:
        return None
    try:
        files = parts(source)
        states = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except (LoadError, OSError):
        return None
    marks = (hashlib.sha256(str(said).encode("utf-8", "replace")).hexdigest()[:8] for said in (source, states))
    return copies_folder() / f"{source.stem[:100]}-{spec.quantization}-{'-'.join(marks)}.gguf"


def folder_of(spec: ModelSpec) -> Path | None:
    """The folder with a model's config.json, if there is one on this disk."""
    if spec.of is not None:
        return None
    folder = local_folder(spec) if is_local(spec) else snapshot(spec)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def local_folder(spec: ModelSpec) -> Path:
    """Where a model that is no hub name should lie."""
    if spec.path.startswith("builtin:"):
        return WEIGHTS / f"{spec.path.removeprefix('builtin:')}.gguf"
    return Path(spec.path).expanduser()


def snapshot(spec: ModelSpec) -> Path | None:
    """The hub's snapshot of the wanted revision, as far as it was downloaded."""
    store = hub_folder() / f"models--{spec.path.replace('/', '--')}"
    revision = spec.revision or "main"
    try:
        commit = (store / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision  # a commit is its own name
    folder = store / "snapshots" / commit
    return folder if folder.is_dir() else None


def missing_files(folder: Path) -> list[str]:
    """Files without which the model in this folder cannot be loaded."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return [index.name]
        return [name for name in wanted if not (folder / name).is_file()]
    return [] if any(folder.glob("*.safetensors")) else ["model.safetensors"]


def on_disk(spec: ModelSpec) -> bool:
    """Whether a model can be loaded without a network."""
    file = gguf_of(spec)
    if file is not None:
        return not missing_parts(file)
    if spec.of is not None:
        return on_disk(source_of(spec))
    folder = folder_of(spec)
    return folder is not None and not missing_files(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with the weights of a folder, in words with the numbers, by their headers; None if nothing is.

    A safetensors file begins with the length of its header, which says where every tensor ends.
    """
    names = set[str]()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 0 < length <= min(size, 100_000_000):
                    return f"{file.name} is no safetensors file, or was cut off ({size:,} bytes)"
                header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for k, entry in header.items() if k != "__metadata__"), default=0)
        except (OSError, ValueError, KeyError, TypeError):
            return f"{file.name} cannot be read: its header is damaged"
        if size != 8 + length + end:
            return f"{file.name} has {size:,} bytes where its header wants {8 + length + end:,}"
        names |= header.keys()
    return _lost_part(names) or _lost_of_an_expert(names)


def _lost_of_an_expert(names: Collection[str]) -> str | None:
    """A tensor that the other experts of a layer have: transformers makes one of them all, and cannot say which."""
    layers: dict[str, dict[str, set[str]]] = {}
    for name in names:
        found = re.fullmatch(r"(.+\.experts)\.(\d+)\.(.+)", name)
        if found:
            layers.setdefault(found[1], {}).setdefault(found[2], set()).add(found[3])
    for layer, experts in sorted(layers.items()):
        wanted = set[str]().union(*experts.values())
        for number, held in experts.items():
            if wanted - held:
                return f"{layer}.{number}.{min(wanted - held)} is missing in its files"
    return None


def _lost_part(names: Collection[str]) -> str | None:
    """A tensor that bitsandbytes stores beside other weights, and that is missing beside one."""
    parts: dict[str, set[str]] = {}
    for name in names:
        found = _PART.fullmatch(name)
        if found:
            parts.setdefault(found[1], set()).add(found[2])
    wanted = {"weight"}.union(*parts.values())
    for layer, held in sorted(parts.items()):
        lost = sorted(part for part in wanted - held if f"{layer}.{part}" not in names)
        if lost:
            return f"{layer}.{lost[0]} is missing in its files"
    return None


_PART = re.compile(
    r"(.+)\.(weight\.(?:nested_)?(?:absmax|quant_map)|weight\.quant_state\.bitsandbytes__\w+|SCB|weight_format)"
)
