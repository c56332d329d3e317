"""The program is killed at random moments during replies: what was stored stays, and what was cut off can go on."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from chat_fakes import ScriptedEngine
from chat_waiting import until

from chat.session import Session
from chat.settings import Settings
from chat.store import Store

KILLS = 50
HERE = Path(__file__).resolve().parent
PROGRAM = """
import sys
sys.path[:0] = {paths!r}
from chat_fakes import ScriptedEngine
from chat import worker
from chat.session import Session
from chat.settings import Settings
from chat.store import Store
worker.CHECKPOINT_SECONDS = 0.02
engine = ScriptedEngine(lambda m: " ".join(f"word{{i}}" for i in range(5000)), {pause})
session = Session(Store({db!r}), lambda progress: engine)
session.start()
"""
MANY = """
conversation = session.latest()
for number in range(10**6):
    text = f"prompt {sys.argv[1]}.{number}"
    print("sending", text, flush=True)
    conversation = session.send(conversation, text, Settings(max_tokens=int(sys.argv[2])))
    print("sent", text, flush=True)
    while session.live(conversation):
        session.wait(session.version, 1)
    print("done", text, flush=True)
"""
ONE = """
session.send(None, "the prompt", Settings(max_tokens=5000))
session.worker._thread.join()
"""


def program(db: Path, pause: float) -> str:
    """The beginning of a program that stores what a scripted engine says, three words every `pause` seconds."""
    return PROGRAM.format(paths=[str(HERE), str(HERE.parent)], db=str(db), pause=pause)


def run_and_kill(code: str, number: int, chance: random.Random) -> list[str]:
    """Let a child write replies and kill it; what it said before."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(number), str(chance.choice([3, 30, 300, 3000]))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    assert first.startswith("sending"), first
    time.sleep(chance.uniform(0, 1.2))
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate()
    return [first.strip(), *rest.splitlines()]


def test_after_kill_9_the_prompt_is_there_and_the_reply_is_marked(tmp_path: Path) -> None:
    db = tmp_path / "chat.db"
    child = subprocess.Popen([sys.executable, "-c", program(db, 0.01) + ONE])
    try:
        until(db.exists, 30)

        def partial() -> str:
            try:
                with closing(sqlite3.connect(db)) as raw:
                    row = raw.execute("SELECT text FROM messages WHERE role = 'assistant'").fetchone()
            except sqlite3.OperationalError:
                return ""
            return row[0] if row else ""

        until(partial, 30)
        before = partial()
    finally:
        child.kill()
        child.wait()
    store = Store(db)
    prompt, answer = store.path_to(store.conversations()[0].leaf_id)
    assert prompt.text == "the prompt"
    assert answer.state == "interrupted" and answer.text.startswith(before) and answer.token_ids


@pytest.mark.full
def test_fifty_kills_lose_nothing_that_was_stored(tmp_path: Path) -> None:
    db = tmp_path / "chat.db"
    code = program(db, 0.002) + MANY
    chance = random.Random(8)
    sent: list[str] = []
    finished: dict[str, str] = {}
    interrupted = 0
    for number in range(KILLS):
        said = run_and_kill(code, number, chance)
        assert not [line for line in said if not line.startswith(("sending", "sent", "done"))], said
        sent += [line.removeprefix("sent ") for line in said if line.startswith("sent ")]
        with sqlite3.connect(db) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            half = raw.execute("SELECT text FROM messages WHERE state = 'running'").fetchall()
        raw.close()
        store = Store(db)
        path = store.path_to(store.conversation(store.latest()).leaf_id)
        texts = [m.text for m in path if m.role == "user"]
        assert [t for t in sent if t not in texts] == [], "a prompt that was accepted is gone"
        assert len(half) <= 1 and all(m.state in ("done", "interrupted") for m in path)
        if half:
            interrupted += 1
            assert path[-1].state == "interrupted" and path[-1].text == half[0][0]
        replies = {prompt.text: answer for prompt, answer in zip(path[::2], path[1::2], strict=True)}
        for line in said:
            if line.startswith("done "):
                finished[line.removeprefix("done ")] = replies[line.removeprefix("done ")].text
        for prompt, text in finished.items():
            assert replies[prompt].text == text and replies[prompt].state == "done"
        store.db.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")
        store.close()
    print(f"{KILLS} kills, {len(sent)} prompts, {len(finished)} finished replies, {interrupted} interrupted")
    assert interrupted
    goes_on(db)


def goes_on(db: Path) -> None:
    """The last interrupted reply that has text can be continued."""
    script = " ".join(f"word{i}" for i in range(5000))
    engine = ScriptedEngine(lambda _: script, 0)
    # As a real one does, it knows the ids that were stored by the program that was killed.
    engine.tokenizer.ids(script.split(" "))
    session = Session(Store(db), lambda progress: engine)
    session.start()
    rows = session.store.rows(
        "SELECT id, conversation_id FROM messages WHERE state = 'interrupted' AND text != '' ORDER BY updated DESC"
    )
    half = session.message(rows[0][0])
    session.store.show(rows[0][1], half.id)
    session.resume(half.id, Settings(max_tokens=100))
    until(lambda: session.live(rows[0][1]) is None)
    whole = session.message(half.id)
    assert whole.state == "done" and whole.text.startswith(half.text + " ") and len(whole.text) > len(half.text)
    session.close()
