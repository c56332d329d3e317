"""Smaller copies of GGUF models as drafts: made once by llama.cpp's quantizer, kept in the data folder."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from hsd import gguf
from hsd.config import ModelSpec
from hsd.errors import LoadError
from hsd.loading.cache import copies_folder, copy_file, source_of
from hsd.loading.hub import fetch, locked
from hsd.loading.shapes import compressed_bytes
from hsd.paths import private_folder
from hsd.runtime.llama_cpp import quantizer
from hsd.runtime.llama_cpp.library import INSTALL, Found, candidates, library

STALLED = 600.0
"""Seconds without a further tensor after which a copy is given up; the largest tensors take less than a minute."""

_ROOM = 200_000_000  # bytes of disk that a copy leaves free

Tell = Callable[[str, float, float], None]
"""Told the step in words, bytes that are done, bytes in all; both about."""


def compressed(spec: ModelSpec, tell: Tell = lambda *_: None) -> Path:
    """The copy of a model that a spec with `of` describes; made where it is not there, or its source has changed.

    Raises:
        LoadError: the source is no GGUF model, the copy would be no smaller, the disk is full, or the library fails.
            Nothing half-made stays.
    """
    source = fetch(source_of(spec), tell)
    if not source.is_file():
        raise LoadError(
            f"The copy '{spec.name}' cannot be made: '{spec.of}' ({spec.path}) is no GGUF model.",
            "Only GGUF models can be compressed: take a GGUF file of it, or leave the copy out.",
        )
    copy = copy_file(spec)
    if copy is None:
        raise LoadError(f"{source} vanished while it was read.", "Restore it.")
    if copy.is_file():
        return copy
    headers = [gguf.header(part) for part in gguf.parts(source)]
    size, whole = compressed_bytes(headers, spec.quantization), sum(t.size for h in headers for t in h.tensors)
    if size >= whole:
        raise LoadError(
            f"'{spec.name}' would be no smaller than '{spec.of}': {size / 1e9:.2f} GB as {spec.quantization}, "
            f"{whole / 1e9:.2f} GB as it is.",
            "Choose a format of fewer bits.",
        )
    try:
        private_folder(copies_folder())
        part = copy.with_name(f"{copy.name}.part")
        with locked(part, lambda: tell("waiting: another program makes this copy", 0, 0)):
            if copy.is_file():
                part.unlink(missing_ok=True)
                return copy
            _make(spec, source, part, size, tell)
            os.replace(part, copy)
    except OSError as error:
        raise LoadError(
            f"The copy '{spec.name}' cannot be written to {copies_folder()}: {error.strerror or error}.", _HINT
        ) from error
    _remove_older(copy)
    return copy


_HINT = "Free some disk, or set HSD_HOME to a folder on a larger one."


def _make(spec: ModelSpec, source: Path, part: Path, size: int, tell: Tell) -> None:
    """Runs the quantizer in a process of its own. Raises LoadError; `part` is gone then."""
    free = shutil.disk_usage(part.parent).free
    step = f"compressing '{spec.of}' to {spec.quantization}"
    done = False
    try:
        if size + _ROOM > free:
            raise LoadError(
                f"The copy '{spec.name}' needs {size / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free at "
                f"{part.parent}.",
                _HINT,
            )
        tell(step, 0, size)
        wrong, able = "", False
        for found in dict.fromkeys((library().found, *candidates())):  # some builds come without a quantizer
            if not able:
                wrong, able = _run(found, source, part, spec, lambda share: tell(step, share * size, size))
        if not able:
            raise LoadError(f"The copy '{spec.name}' cannot be made: {wrong}.", f"Try: {INSTALL}")
        if wrong:
            full = shutil.disk_usage(part.parent).free < _ROOM
            raise LoadError(
                f"llama.cpp cannot make the copy '{spec.name}' of {source.name}: "
                f"{'the disk is full' if full else wrong}.",
                _HINT if full or "iostream" in wrong else "Leave the copy out, or choose another format.",
            )
        gguf.Header(part)
        done = True
    finally:
        if not done:
            part.unlink(missing_ok=True)


def _run(found: Found, source: Path, part: Path, spec: ModelSpec, share: Callable[[float], None]) -> tuple[str, bool]:
    """Why there is no copy, in words, "" where there is one; and whether this build of the library can make any.

    Whatever interrupts it, the process ends.
    """
    asked = {
        "origin": found.origin,
        "before": [str(file) for file in found.before],
        "library": str(found.library),
        "backends": str(found.backends),
        "source": str(source),
        "copy": str(part),
        "form": quantizer.FORMATS[spec.quantization],
        "threads": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
    }
    command = [sys.executable, str(Path(quantizer.__file__)), json.dumps(asked)]
    # Unbuffered: what has been read ahead would not be seen by select.
    child = subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None and child.stdout is not None
    said = ""
    try:
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while True:
                if not ready.select(STALLED):
                    return f"nothing happened for {STALLED:.0f} s", True
                line = child.stdout.readline().decode("utf-8", "replace").strip()
                if not line:
                    break
                done, _, count = line.partition(" of ")
                if line.startswith("!"):
                    said = line[1:].rstrip(".")
                elif done.isdigit() and count.isdigit():
                    share(int(done) / max(int(count), 1))
        status = child.wait()
    finally:
        child.kill()
        child.wait()
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.stdout.close()
    if status < 0:
        return f"it crashed ({signal.Signals(-status).name})", True
    return said or ("" if status == 0 else f"it ended with status {status}"), status != quantizer.UNABLE


def _remove_older(copy: Path) -> None:
    """Takes away copies of the same file as it was before; they would never be used again."""
    stem = copy.name.rpartition("-")[0]
    for other in copy.parent.glob("*.gguf"):
        if other != copy and other.name.rpartition("-")[0] == stem:
            with contextlib.suppress(OSError):
                other.unlink()


def copies() -> tuple[int, int]:
    """How many copies there are, and their bytes."""
    sizes = []
    for file in copies_folder().glob("*.gguf"):
        with contextlib.suppress(OSError):
            sizes.append(file.stat().st_size)
    return len(sizes), sum(sizes)
