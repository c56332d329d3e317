"""What is stored is readable by its owner alone: the data folder, the databases, and the files beside them."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import hsd
from chat.store import Store
from hsd.stats import Stats


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_what_is_stored_is_readable_by_its_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = hsd.data_dir(tmp_path / "new" / "data")
        store, stats = Store(folder / "chat.db"), Stats(folder / "stats.db")
        store.write("CREATE TABLE more (x)")
        files = {path.name: mode(path) for path in folder.iterdir()}
        assert mode(folder) == 0o700 and set(files.values()) == {0o600} and "chat.db-wal" in files, files
        copy = stats.reset()
        assert copy is not None and mode(copy) == 0o600
        store.close()
        stats.close()
    finally:
        os.umask(before)


def test_what_older_versions_left_open_is_closed_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    for name in ("chat.db", "stats.db"):
        with closing(sqlite3.connect(folder / name)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA user_version = 0")
            (folder / f"{name}-wal").touch()
            for path in folder.glob(f"{name}*"):
                path.chmod(0o644)
    hsd.data_dir(folder)
    Store(folder / "chat.db").close()
    Stats(folder / "stats.db").close()
    assert mode(folder) == 0o700 and {mode(path) for path in folder.iterdir()} == {0o600}
    # What was made read-only stays so, and a folder that all use is not taken from them.
    (folder / "chat.db").chmod(0o444)
    hsd.private_file(folder / "chat.db")
    assert mode(folder / "chat.db") == 0o400
    common = tmp_path / "common"
    common.mkdir()
    common.chmod(0o1777)
    assert mode(hsd.data_dir(common)) == 0o1777


def test_rights_that_cannot_be_changed_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a file system without rights, or in a folder of somebody else.
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("Operation not permitted")

    (tmp_path / "chat.db").touch(0o644)
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    with closing(Store(hsd.data_dir(tmp_path) / "chat.db")) as store:
        assert store.conversations() == []


def test_the_home_folder_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    for path in (tmp_path, home, home / "data"):
        path.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    for path, expected in ((home, 0o755), (tmp_path, 0o755), (home / "data", 0o700)):
        assert mode(hsd.data_dir(path)) == expected


@pytest.mark.parametrize("name", ["file", "link", "file/below", "~nobody-of-this-name/data", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_sentence_and_names_the_option(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    with pytest.raises(hsd.StoreError) as caught:
        hsd.data_dir(name if name.startswith("~") else tmp_path / name)
    assert "--data-dir" in str(caught.value) and "File exists" not in str(caught.value)
