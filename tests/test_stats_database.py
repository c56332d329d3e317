"""The file: migrations, newer versions, damage, two processes. A bad file costs the statistics, never the chat."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from hsd.errors import StoreError
from hsd.stats import MIGRATIONS, ReplyRecord, Stats
from hsd.stats.database import migrate

PAIR = ("tiny", "big")


def reply() -> ReplyRecord:
    return ReplyRecord("f", "cpu", "tiny:3>big", 0.7, "block", 12, 5, 40, 2.0, 0.25, 10, "stop")


def works(stats: Stats) -> None:
    """The statistics can be used, wherever they live."""
    reply_id = stats.record_reply(reply())
    assert stats.record_scores(reply_id, {PAIR: np.array([0.5, 0.5])})
    assert stats.acceptances("f", "mid")[PAIR].rate == pytest.approx(0.5)


def schema(path: Path) -> set[tuple[str, ...]]:
    db = sqlite3.connect(path)
    found = {tuple(row) for row in db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")}
    db.close()
    return found


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_older_version_is_brought_up_to_date_with_its_rows(tmp_path: Path, version: int):
    path, fresh = tmp_path / "stats.db", tmp_path / "fresh.db"
    old = sqlite3.connect(path, isolation_level=None)
    migrate(old, version)
    assert old.execute("PRAGMA user_version").fetchone()[0] == version
    if version:
        old.execute(
            """INSERT INTO replies (at_unix_s, family, device, plan, temperature, bucket, verification, prompt_tokens,
            reused_tokens, reply_tokens, total_s, first_token_s, baseline, target_passes, finish_reason, planner_json)
            VALUES (1, 'f', 'cpu', 'big', 0.7, 'mid', 'block', 1, 0, 9, 1.0, 0.1, 'estimated', 9, 'stop', '')"""
        )
    old.close()
    with Stats(path) as stats:
        assert stats.warning is None
        assert stats.path == path
        assert stats.summary()["rows"]["replies"] == (1 if version else 0)
        assert stats.summary()["version"] == len(MIGRATIONS)
        works(stats)
    Stats(fresh).close()
    assert schema(path) == schema(fresh)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path):
    path = tmp_path / "stats.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE switches (mine TEXT)")  # in the way of the last table of the first migration
    db.commit()
    db.close()
    before = schema(path)
    with Stats(path) as stats:
        assert "switches already exists" in (stats.warning or "")
        assert stats.path is None
        works(stats)
    assert schema(path) == before


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "stats.db"
    Stats(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 3}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        Stats(path)
    assert f"version {len(MIGRATIONS) + 3}" in caught.value.message
    assert f"up to {len(MIGRATIONS)}" in caught.value.message
    assert "newer version" in caught.value.hint
    assert path.read_bytes() == before


def damaged(path: Path, kind: str) -> None:
    with Stats(path) as stats:
        for _ in range(50):
            works(stats)
    if kind == "no database":
        path.write_bytes(b"these are not the bytes of a database" * 200)
    elif kind == "pages overwritten":
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xa5" * (len(data) - 4096)
        path.write_bytes(data)
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("kind", ["no database", "pages overwritten", "cut short"])
def test_a_corrupt_file_costs_the_statistics_only(tmp_path: Path, kind: str):
    path = tmp_path / "stats.db"
    damaged(path, kind)
    before = path.read_bytes()
    with Stats(path) as stats:
        works(stats)
        assert stats.path is None
        assert stats.warning is not None
        assert str(path) in stats.warning
        assert stats.warning.count(". ") == 0
        assert stats.reset() is None
    assert path.read_bytes() == before  # whatever can still be saved from it is still there


def test_a_file_that_goes_bad_while_in_use_costs_the_statistics_only(tmp_path: Path):
    path = tmp_path / "stats.db"
    with Stats(path) as stats:
        works(stats)
        other = sqlite3.connect(path)
        other.execute("PRAGMA writable_schema = ON")
        other.execute("UPDATE sqlite_master SET sql = 'garbage' WHERE name = 'replies'")
        other.execute("PRAGMA schema_version = 999")
        other.commit()
        other.close()
        works(stats)
        assert "malformed" in (stats.warning or "")
        assert stats.path is None


def test_a_folder_that_cannot_be_made_costs_the_statistics_only(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "stats.db", tmp_path):
        with Stats(path) as stats:
            assert stats.warning is not None
            works(stats)


def lives_on(path: Path) -> None:
    with Stats(path) as stats:
        works(stats)
        assert stats.path is None
        assert "cannot be used" in (stats.warning or "")


def test_a_read_only_file_costs_the_statistics_only():
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "stats.db"
        with Stats(path) as stats:
            works(stats)
        path.chmod(0o444)
        folder.chmod(0o555)
        if os.geteuid() != 0:
            lives_on(path)
            return
        child = os.fork()  # root may write anything: let somebody else try
        if child == 0:
            try:
                os.setuid(65534)
                lives_on(path)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_that_another_process_keeps_busy_costs_one_call(tmp_path: Path):
    path = tmp_path / "stats.db"
    with Stats(path, busy_seconds=0.05) as stats:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert stats.record_reply(reply()) == 0
        assert "busy" in (stats.warning or "")
        assert stats.acceptances("f", "mid") == {}  # reading goes on
        other.execute("ROLLBACK")
        other.close()
        works(stats)
        assert stats.path == path


WRITER = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_stats_database import PAIR, Stats, reply
with Stats(Path({path!r}), busy_seconds=60) as stats:
    for _ in range({count}):
        reply_id = stats.record_reply(reply())
        assert stats.record_scores(reply_id, {{PAIR: np.full(3, 0.5)}})
    assert stats.warning is None, stats.warning
"""


def test_two_processes_may_write_from_the_first_moment(tmp_path: Path):
    path, count = tmp_path / "stats.db", 60
    code = WRITER.format(tests=str(Path(__file__).parent), path=str(path), count=count)
    writers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        _, errors = writer.communicate(timeout=90)
        assert writer.returncode == 0, errors
    with Stats(path) as stats:
        assert stats.warning is None
        assert stats.summary()["rows"]["replies"] == 2 * count
        assert stats.acceptances("f", "mid")[PAIR].positions == 2 * count * 3


def test_foreign_keys_and_the_write_ahead_log_are_on(tmp_path: Path):
    path = tmp_path / "stats.db"
    with Stats(path) as stats:
        works(stats)
        assert path.with_name("stats.db-wal").exists()
        other = sqlite3.connect(path)
        assert other.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert other.execute("PRAGMA foreign_key_check").fetchall() == []
        plan = other.execute(
            "EXPLAIN QUERY PLAN SELECT id FROM replies WHERE family = 'f' AND bucket = 'mid' ORDER BY id DESC LIMIT 9"
        ).fetchall()
        assert "USING COVERING INDEX replies_by_family" in str(plan)
        other.close()
