"""Native steps for programs that tests start, compiled once per machine: replies take no longer than need be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from hsd.runtime import native
from hsd.runtime.building import Builder
from hsd.runtime.drawing import NativeDrawing


def prepared(home: Path) -> dict[str, str]:
    """Lays the compiled library into a data folder; the environment in which it is used, if it can be."""
    if not native.abilities().issuperset(native.NEEDED) or native.compiler() is None:
        return {}
    shared = _own_folder()
    made = NativeDrawing(shared)
    for name in made.failed():  # another run's trouble
        made.failure(name).unlink()
    if made.missing():
        builder = Builder([made])
        builder.start()
        builder.wait(300)
    if not made.found():
        return {}
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "compiled").exists():
            (home / "compiled").symlink_to(shared, target_is_directory=True)
    except OSError:
        return {}  # a folder that a test has made unusable
    return {"HSD_COMPILE": "native"}


def _own_folder() -> Path:
    """Kept between runs, and nobody else's: what lies there is loaded as code."""
    folder = Path(tempfile.gettempdir()) / f"hsd-tests-{os.getuid()}-{native.fingerprint()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp())
    return folder


def used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for an engine in this process."""
    for name, value in prepared(home).items():
        monkeypatch.setenv(name, value)
