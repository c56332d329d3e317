"""Models of the hub onto this disk: which files, how far, and going on where a download was cut off.

Files go into the hub client's own cache, so that other programs find them too. The client begins a file anew when its
program was killed; large files are therefore fetched here, into a part file beside their place, and handed to the
client whole and checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hsd.config import ModelSpec
from hsd.errors import LoadError
from hsd.gguf import gguf_files, header, missing_parts
from hsd.loading.cache import (
    folder_of,
    gguf_of,
    hub_folder,
    is_local,
    local_folder,
    missing_files,
)
from hsd.loading.kinds import named_by_files, not_a_model, refused

Tell = Callable[[str, float, float], None]
"""Told the step in words, bytes that are here, bytes in all."""

_LARGE = 1_000_000  # bytes from which a file is fetched so that it can go on
_ROOM = 200_000_000  # bytes of disk that a download leaves free
_SMALL_FILES = (".json", ".model", ".txt", ".jinja")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a model on the hub; `sha256` is known of large ones."""

    name: str
    size: int
    sha256: str | None


def fetch(spec: ModelSpec, tell: Tell = lambda *_: None) -> Path:
    """The folder with a model's files, or its GGUF file, downloaded if it is not on this disk.

    What is complete is used unasked.

    Raises:
        LoadError: a folder without a model, no safetensors, no room on the disk, or a file that arrived damaged.
        Exception: whatever the hub's client raises; `explain` makes a sentence of it.
    """
    file = gguf_of(spec)
    if file is not None and not missing_parts(file):
        header(file)
        return file
    if is_local(spec):
        folder = local_folder(spec)
        if spec.gguf:
            raise refused(spec.name, spec.path, _no_gguf(spec, folder, file))
        if found := not_a_model(folder):
            raise refused(spec.name, spec.path, found)
        if lacks := missing_files(folder):
            raise refused(spec.name, spec.path, (f"of its files {', '.join(lacks[:3])} are missing", "Restore them."))
        return folder
    here = folder_of(spec)
    weights = here if here is not None and not missing_files(here) else None
    if weights and any((weights / name).is_file() for name in _TOKENIZER):
        return weights
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise not_here(spec, "HF_HUB_OFFLINE is set: nothing is downloaded", "Unset it once to download the family")
        return _download(spec, tell)
    except Exception:
        if weights:  # a draft may bring no tokenizer; a target without one is told when it is read
            return weights
        raise


def _no_gguf(spec: ModelSpec, place: Path, file: Path | None) -> tuple[str, str]:
    """Why there is no GGUF model at a path, and a hint."""
    if file is not None:
        return f"{missing_parts(file)[0]} is missing, a part of {file.name}", "Download it too."
    if not place.exists():
        return f"there is no {place}", "Check its path."
    names = gguf_files([entry.name for entry in place.iterdir()]) if place.is_dir() else []
    found = gguf_files(names, spec.file)
    if found:
        return f"'{spec.file}' names {len(found)} files, like {found[0]}", "Name one of them."
    return f"'{spec.file}' names no GGUF file there", f"There are: {', '.join(names[:5]) or 'none'}."


def not_here(spec: ModelSpec, why: str, hint: str) -> LoadError:
    """The sentence for a model that is not, or not wholly, on this disk."""
    here = folder_of(spec)
    lacks = missing_files(here) if here is not None else []
    some = f"; of its files {', '.join(lacks[:3])}{' and others' * (len(lacks) > 3)} are missing" if lacks else ""
    return LoadError(
        f"'{spec.name}' ({spec.path}) is not on this disk{some}, and {why}.", f"{hint}, or give a local folder."
    )


def _download(spec: ModelSpec, tell: Tell) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    tell("asking the hub", 0, 0)
    files, commit = _listing(HfApi(), spec)
    store = hub_folder() / f"models--{spec.path.replace('/', '--')}"
    wanted = sum(f.size for f in files)
    held = sum(_held(store, commit, f) for f in files)
    _room_for(spec, wanted - held)
    progress = _Progress(tell, held, wanted)
    with _quiet():
        for file in files:
            if file.sha256 and file.size >= _LARGE and not (store / "snapshots" / commit / file.name).exists():
                _fetch_large(spec, commit, file, store / "blobs", progress)
        names = [f.name for f in files]
        folder = snapshot_download(
            spec.path,
            revision=spec.revision,
            allow_patterns=names,
            cache_dir=hub_folder(),
            tqdm_class=progress.bar(f"downloading {spec.path}"),
            max_workers=4,
        )
    return Path(folder) if spec.file is None else (gguf_of(spec) or Path(folder))


def _listing(api: Any, spec: ModelSpec) -> tuple[list[_File], str]:
    """What is wanted of a model's files, small ones first, and the commit they belong to."""
    from huggingface_hub.hf_api import RepoFile

    commit = api.repo_info(spec.path, revision=spec.revision).sha
    found = []
    for entry in api.list_repo_tree(spec.path, revision=commit):
        if isinstance(entry, RepoFile):
            size = entry.size if entry.lfs is None else entry.lfs.size
            found.append(_File(entry.path, int(size), None if entry.lfs is None else entry.lfs.sha256))
    names = {f.name for f in found}
    if spec.file is not None:
        return _gguf_listing(spec, found), commit
    endings = (*_SMALL_FILES, ".py") if spec.trust_remote_code else _SMALL_FILES
    if other := named_by_files(names):
        raise refused(spec.name, spec.path, other)
    weights = [
        f for f in found if f.name.endswith(".safetensors") and not f.name.startswith(("consolidated", "adapter"))
    ]
    if not weights:
        raise refused(spec.name, spec.path, ("it has no safetensors", "Choose a model with safetensors."))
    small = [f for f in found if f.name.endswith(endings)]
    return [*small, *weights], commit


def _gguf_listing(spec: ModelSpec, found: list[_File]) -> list[_File]:
    """The files of the GGUF model that is wanted: one, or all parts of a split one."""
    names = gguf_files([f.name for f in found], spec.file)
    if len(names) != 1:
        there = ", ".join(names[:5] or gguf_files([f.name for f in found])[:5]) or "none"
        what = f"{len(names)} GGUF files" if names else "no GGUF file"
        raise refused(spec.name, spec.path, (f"'{spec.file}' names {what} there", f"There are: {there}."))
    stem = names[0].partition("-00001-of-")
    return [f for f in found if f.name == names[0] or (stem[1] and f.name.startswith(f"{stem[0]}-"))]


def _held(store: Path, commit: str, file: _File) -> int:
    """Bytes of a file that are on this disk already."""
    if (store / "snapshots" / commit / file.name).exists():
        return file.size
    for place in (store / "blobs" / (file.sha256 or "-"), _part(store / "blobs", file)):
        with contextlib.suppress(OSError):
            return min(place.stat().st_size, file.size)
    return 0


def _part(blobs: Path, file: _File) -> Path:
    return blobs / f"{file.sha256}.part"


def _room_for(spec: ModelSpec, more: int) -> None:
    place = hub_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if more + _ROOM > free:
        raise LoadError(
            f"'{spec.name}' ({spec.path}) needs {more / 1e9:.1f} GB more on the disk, and {free / 1e9:.1f} GB are free "
            f"at {hub_folder()}.",
            "Free some, or set HF_HUB_CACHE to a folder on a larger disk.",
        )


def _fetch_large(spec: ModelSpec, commit: str, file: _File, blobs: Path, progress: _Progress) -> None:
    """One large file into the client's cache, from where it was cut off."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import HfHubHTTPError, build_hf_headers

    whole = blobs / str(file.sha256)
    blobs.mkdir(parents=True, exist_ok=True)
    if whole.exists():
        return
    url = hf_hub_url(spec.path, file.name, revision=commit)
    with locked(_part(blobs, file), lambda: progress.say(f"waiting: another program downloads {file.name}")) as part:
        if whole.exists():
            return
        if part.tell() > file.size:
            part.truncate(0)
        part.seek(0, os.SEEK_END)
        options: dict[str, Any] = {"expected_size": file.size, "tqdm_class": progress.bar(f"downloading {file.name}")}
        try:
            http_get(url, part, resume_size=part.tell(), headers=build_hf_headers(), **options)
        except HfHubHTTPError as error:
            if getattr(error.response, "status_code", 0) != 416:  # the server has less than it said
                raise
            part.truncate(0)
            raise _damaged(spec, file, "the hub holds less of it than it says") from error
        except OSError as error:
            if error.errno is not None or "Consistency" not in str(error):
                raise  # the disk's, or the network's: what has arrived stays
            short = part.tell()
            part.truncate(0)
            raise _damaged(spec, file, f"{short:,} of {file.size:,} bytes arrived") from error
        part.flush()
        if part.tell() != file.size:
            part.truncate(0)
            raise _damaged(spec, file, f"{part.tell():,} of {file.size:,} bytes arrived")
        progress.say(f"checking {file.name}")
        part.seek(0)
        if hashlib.file_digest(part, "sha256").hexdigest() != file.sha256:
            part.truncate(0)
            raise _damaged(spec, file, "its checksum is not the one that the hub names")
        os.replace(_part(blobs, file), whole)


def _damaged(spec: ModelSpec, file: _File, why: str) -> LoadError:
    return LoadError(
        f"'{spec.name}' ({spec.path}) cannot be loaded: {file.name} arrived damaged, {why}.",
        "It was thrown away: start again to fetch it anew.",
    )


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[Any]:
    """A file to append to, held by one program at a time."""
    with path.open("a+b") as stream:
        said = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    waiting()
                said = True
                time.sleep(0.5)
        yield stream


class _Progress:
    """Bytes of one model, told at most ten times a second, one call after the other: the client works in threads."""

    def __init__(self, tell: Tell, held: int, total: int) -> None:
        self._tell, self._held, self._total = tell, held, total
        self._last = 0.0
        self._turn = threading.Lock()
        self.say("downloading")

    def say(self, step: str) -> None:
        with self._turn:
            self._tell(step, self._held, self._total)

    def add(self, step: str, count: float) -> None:
        with self._turn:
            self._held = min(self._held + int(count), self._total)
            now = time.monotonic()
            if now - self._last > 0.1 or self._held == self._total:
                self._last = now
                self._tell(step, self._held, self._total)

    def bar(self, step: str) -> Any:
        """A progress bar as the client wants one, which counts here and shows nothing."""
        progress = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                options.pop("name", None)
                self._bytes = options.get("unit") == "B"
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                if self._bytes:
                    progress.add(step, n or 0)

        return Bar


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The client's warnings about retries are not for people: what matters ends as a sentence."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
