"""A disk that is really full or really read-only: a small file system of its own, where one may be mounted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_fakes import ScriptedEngine
from chat_server import ROOT, free_port
from chat_waiting import until
from test_chat_session import LONG, idle, reply

import hsd
from chat import worker as worker_module
from chat.session import Session
from chat.settings import Settings
from chat.store import Store


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, but: int = 0) -> Path:
    """Leaves no room on the disk, but for so many bytes; the file that took it."""
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    os.truncate(ballast, ballast.stat().st_size - but)
    return ballast


def test_a_reply_outlives_a_full_disk(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "CHECKPOINT_SECONDS", 0.05)
    monkeypatch.setattr(worker_module, "RETRY_SAVE_SECONDS", 0.05)
    engine = ScriptedEngine(lambda _: " ".join([LONG] * 4), 0.005)
    session = Session(Store(disk / "chat.db"), lambda progress: engine)
    session.start()
    conversation = session.send(None, "go", Settings(max_tokens=5000))
    until(lambda: session.live(conversation) and session.live(conversation).tokens)
    ballast = fill(disk)
    until(lambda: session.notice)
    assert "is full" in session.notice and "Free some space" in session.notice
    idle(session, conversation)
    assert reply(session, conversation).text == " ".join([LONG] * 4)
    with pytest.raises(hsd.StoreError, match="is full"):
        session.send(conversation, "x" * 100_000, Settings())
    ballast.unlink()
    until(lambda: session.notice is None)
    assert session.store.message(reply(session, conversation).id).text == " ".join([LONG] * 4)
    session.send(conversation, "x" * 100_000, Settings())
    session.close()
    kept = Store(disk / "chat.db").messages(conversation)
    assert [len(m.text) for m in kept[:3]] == [2, 4 * len(LONG) + 3, 100_000] and kept[1].state == "done"


def test_a_message_that_found_no_room_leaves_no_empty_conversation(disk: Path) -> None:
    session = Session(Store(disk / "chat.db"), lambda progress: ScriptedEngine(lambda _: "short"))
    ballast = fill(disk, but=60_000)
    with pytest.raises(hsd.StoreError, match="is full"):
        session.send(None, "x" * 100_000, Settings(temperature=0.25))
    assert session.conversations() == []
    ballast.unlink()
    session.start()
    conversation = session.send(None, "x" * 100_000, Settings())
    idle(session, conversation)
    ballast = fill(disk, but=60_000)
    prompt = session.snapshot(conversation).messages[0]
    with pytest.raises(hsd.StoreError, match="is full"):
        session.edit(prompt.id, "y" * 100_000, Settings(temperature=0.25))
    # Nothing of it, its settings included.
    assert session.conversation(conversation).settings["temperature"] == 0.7
    assert len(session.store.messages(conversation)) == 2
    session.close()


def test_a_read_only_disk_is_said(disk: Path) -> None:
    store = Store(disk / "chat.db")
    conversation = store.create("what is kept")
    store.close()
    assert mount("-o", "remount,ro", str(disk)).returncode == 0
    with pytest.raises(hsd.StoreError, match="are read-only") as caught:
        Store(disk / "chat.db").create("x")
    assert "writable" in caught.value.hint
    refused = subprocess.run(
        [sys.executable, "-m", "chat", "--no-browser", "--port", str(free_port()), "--data-dir", str(disk)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = refused.stderr.splitlines()
    assert refused.returncode == 1 and [line[:6] for line in said] == ["Error:", "Hint: "], refused.stderr
    assert "read-only" in said[0] and "Traceback" not in refused.stderr
    assert mount("-o", "remount,rw", str(disk)).returncode == 0
    assert Store(disk / "chat.db").conversation(conversation).title == "what is kept"


def test_a_full_disk_refuses_the_start_in_one_sentence(disk: Path) -> None:
    fill(disk)
    with pytest.raises(hsd.StoreError, match="is full") as caught:
        Store(disk / "chat.db")
    assert "Free some space" in caught.value.hint
