"""Where other programs keep GGUF models on this computer, and the files that lie there. Folders are only read.

Sources: LM Studio's documentation (`~/.lmstudio/models`; its home is named by `~/.lmstudio-home-pointer`, and was
`~/.cache/lm-studio` before), Ollama's FAQ and `manifest` package (`OLLAMA_MODELS`; manifests name blobs by their
digest), llama.cpp's `common/common.cpp` and `common/hf-cache.cpp` (`LLAMA_CACHE`), the hub client's constants.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hsd.loading.cache import hub_folder

LM_STUDIO, OLLAMA, LLAMA_CPP, HUB = "LM Studio", "Ollama", "llama.cpp", "Hugging Face"

MOST_ENTRIES = 50_000
"""Files and folders that are looked at in one place; a person may keep models in a folder with everything else."""

MOST_FILES = 300
"""GGUF files that are read in one place: the header of a large vocabulary takes a tenth of a second."""

_DEEPEST = 8
_MANIFEST_BYTES = 1_000_000
_MODEL = "application/vnd.ollama.image.model"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in which a program keeps models."""

    program: str
    path: Path


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file of a program. `name`: what the program calls the model; `broken`: why it cannot be used, or ""."""

    path: Path
    program: str
    name: str
    broken: str = ""


def model_folders(
    environment: Mapping[str, str] | None = None, home: Path | None = None, system: str = sys.platform
) -> list[ModelFolder]:
    """Where the four programs look for models, whether the folders are there or not.

    Args:
        environment: variables in the place of the process's own.
        home: home folder in the place of the person's.
        system: "linux", "darwin" or "win32".
    """
    variables = os.environ if environment is None else environment
    home = Path(os.path.expanduser("~")) if home is None else home
    found = [ModelFolder(LM_STUDIO, folder) for folder in _lm_studio(home)]
    found += [ModelFolder(OLLAMA, folder) for folder in _ollama(variables, home, system)]
    found.append(ModelFolder(LLAMA_CPP, _llama_cpp(variables, home, system)))
    hub = hub_folder() if environment is None else _hub(variables, home)
    return list(dict.fromkeys((*found, ModelFolder(HUB, hub))))


def _lm_studio(home: Path) -> Iterator[Path]:
    named = _first_line(home / ".lmstudio-home-pointer")
    for folder in (*([Path(named)] if named else []), home / ".lmstudio", home / ".cache" / "lm-studio"):
        chosen = _json(folder / "settings.json").get("downloadsFolder")
        if isinstance(chosen, str) and chosen:
            yield Path(os.path.expanduser(chosen))
        yield folder / "models"


def _ollama(variables: Mapping[str, str], home: Path, system: str) -> Iterator[Path]:
    if variables.get("OLLAMA_MODELS"):
        yield Path(os.path.expanduser(variables["OLLAMA_MODELS"]))
    yield home / ".ollama" / "models"
    if system.startswith("linux"):
        yield Path("/usr/share/ollama/.ollama/models")  # where it runs as a service


def _llama_cpp(variables: Mapping[str, str], home: Path, system: str) -> Path:
    if variables.get("LLAMA_CACHE"):
        return Path(os.path.expanduser(variables["LLAMA_CACHE"]))
    if system == "win32":
        cache = Path(variables.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif system == "darwin":
        cache = home / "Library" / "Caches"
    else:
        cache = Path(variables.get("XDG_CACHE_HOME") or home / ".cache")
    return cache / "llama.cpp"


def _hub(variables: Mapping[str, str], home: Path) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if variables.get(name):
            return Path(os.path.expanduser(variables[name]))
    if variables.get("HF_HOME"):
        return Path(os.path.expanduser(variables["HF_HOME"])) / "hub"
    return Path(variables.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface" / "hub"


def model_files(folder: ModelFolder, notes: list[str]) -> Iterator[ModelFile]:
    """The GGUF files of a folder, in the order of their names.

    Args:
        folder: where to look.
        notes: gets a sentence where a part of the folder was left out.
    """
    files = _ollama_files(folder, notes) if folder.program == OLLAMA else _suffixed_files(folder, notes)
    for count, file in enumerate(files):
        if count == MOST_FILES:
            notes.append(f"{folder.path} holds more than {MOST_FILES} GGUF files; the others are left out.")
            return
        yield file


def _suffixed_files(folder: ModelFolder, notes: list[str]) -> Iterator[ModelFile]:
    for path in _walk(folder.path, notes):
        if path.suffix.lower() == ".gguf":
            yield ModelFile(path, folder.program, path.stem)


def _ollama_files(folder: ModelFolder, notes: list[str]) -> Iterator[ModelFile]:
    """Models that manifests name, `manifests/<host>/<owner>/<model>/<tag>`; blobs without one are not used any more."""
    manifests = folder.path / "manifests"
    for path in _walk(manifests, notes):
        parts = path.relative_to(manifests).parts
        if len(parts) != 4 or path.name.startswith("."):
            continue
        host, owner, model, tag = parts
        owned = [part for part, usual in ((host, "registry.ollama.ai"), (owner, "library")) if part != usual]
        name = f"{'/'.join((*owned, model))}:{tag}"
        layers = _json(path).get("layers")
        if not isinstance(layers, list):
            yield ModelFile(path, OLLAMA, name, "its manifest cannot be read")
            continue
        digests = [
            str(layer.get("digest")) for layer in layers if isinstance(layer, dict) and layer.get("mediaType") == _MODEL
        ]
        if len(digests) != 1:
            said = "its manifest names no GGUF file" if not digests else "it lies in several blobs"
            yield ModelFile(path, OLLAMA, name, said)
            continue
        blobs = [folder.path / "blobs" / digests[0].replace(":", mark) for mark in ("-", ":")]
        blob = next((b for b in blobs if b.name.startswith("sha256") and _is_file(b)), None)
        yield ModelFile(blob or path, OLLAMA, name, "" if blob else "its blob is missing")


def _walk(top: Path, notes: list[str]) -> Iterator[Path]:
    """Files below a folder, links followed, every folder once; at most `MOST_ENTRIES` entries are looked at."""
    seen: set[tuple[int, int]] = set()
    waiting, looked = [(top, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scanned:
                entries = []
                for entry in scanned:
                    looked += 1
                    if looked > MOST_ENTRIES:
                        notes.append(f"{top} holds more than {MOST_ENTRIES:,} files; the others are left out.")
                        waiting.clear()
                        break
                    entries.append(entry)
        except FileNotFoundError:
            continue
        except OSError as error:
            if folder != top or not isinstance(error, NotADirectoryError):
                notes.append(f"{folder} cannot be read: {error.strerror or error}.")
            continue
        inside = []
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)
            if _is_folder(entry):
                inside.append((path, depth + 1))
            else:
                yield path
        if depth < _DEEPEST:
            waiting += reversed(inside)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be entered
        return False


def _first_line(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.readline(4096).strip()
    except (OSError, ValueError):
        return ""


def _json(file: Path) -> dict[str, object]:
    """A small JSON object; empty where there is none."""
    try:
        with file.open("rb") as opened:
            value = json.loads(opened.read(_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
