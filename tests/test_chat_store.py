"""Conversations on disk: what is written is there again, and what cannot be used is said in one sentence."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

import hsd
from chat import presets
from chat import store as store_module
from chat.records import MIGRATIONS
from chat.settings import Settings
from chat.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "chat.db")


def turn(store: Store, text: str = "hello", parent: str | None = None, conversation: str | None = None) -> tuple:
    conversation = conversation or store.create(text)
    prompt, reply = store.add_turn(conversation, parent, text, {"temperature": 0})
    return conversation, prompt, reply


def test_the_file_is_in_wal_mode_with_foreign_keys(store: Store) -> None:
    assert store.db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store.db.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    assert store.db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)


def test_a_prompt_is_stored_before_its_reply(store: Store) -> None:
    _, _, reply = turn(store, "What is tar?")
    path = store.path_to(reply)
    assert [(m.role, m.text, m.state) for m in path] == [
        ("user", "What is tar?", "done"),
        ("assistant", "", "running"),
    ]


def test_a_finished_reply_is_there_again_after_reopening(tmp_path: Path, store: Store) -> None:
    conversation, _, reply = turn(store)
    store.update(
        reply,
        text="An archiver.",
        token_ids=[1, 2],
        state="done",
        finish_reason="stop",
        stats={"speedup": 2.4},
        provenance=["tiny", "big"],
        pieces=["An", " archiver."],
    )
    store.close()
    again = Store(tmp_path / "chat.db")
    message = again.path_to(again.conversation(conversation).leaf_id)[-1]
    assert message.text == "An archiver." and message.token_ids == (1, 2) and message.stats == {"speedup": 2.4}
    assert message.provenance == ("tiny", "big") and message.pieces == ("An", " archiver.")
    assert message.state == "done" and message.params == {"temperature": 0}


def test_a_branch_shares_the_messages_before_it(store: Store) -> None:
    conversation, prompt, first = turn(store)
    second = store.add_reply(conversation, prompt, {})
    assert [m.id for m in store.path_to(first)] == [prompt, first]
    assert [m.id for m in store.path_to(second)] == [prompt, second]
    assert store.conversation(conversation).leaf_id == second


def test_what_a_dead_process_was_writing_is_interrupted(tmp_path: Path, store: Store) -> None:
    _, _, reply = turn(store)
    store.db.execute("UPDATE messages SET owner = '999999999:1.0', text = 'half a'")
    store.db.conn.commit()
    store.close()
    message = Store(tmp_path / "chat.db").message(reply)
    assert message.state == "interrupted" and message.text == "half a"


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path, store: Store) -> None:
    _, _, reply = turn(store)
    assert Store(tmp_path / "chat.db").message(reply).state == "running"


def test_search_looks_into_titles_and_messages_and_takes_wildcards_literally(store: Store) -> None:
    first, *_ = turn(store, "about tar archives")
    turn(store, "about 100% of ssh_keys")
    assert [c.id for c in store.conversations("ARCHIVES")] == [first]
    assert len(store.conversations("100%")) == 1 and len(store.conversations("%")) == 1
    assert len(store.conversations("h_k")) == 1 and store.conversations("_x_") == []


def test_all_words_are_looked_for_in_any_script_and_any_part_of_a_word(store: Store) -> None:
    first, _, reply = turn(store, "Über die Berge")
    store.update(reply, text='Grüße: 山の上 "quoted" NEAR(x) *')
    for words in ("über", "BERG grüß", "山", "山の上", '"quoted"', "NEAR(x)", "ü b", "*", "die ßE:"):
        assert [c.id for c in store.conversations(words)] == [first], words
    for words in ("berge täler", "山下", "OR", "' OR 1=1 --", "\x00\x00\x00", "\u200b", "\u00ad\u0301"):
        assert store.conversations(words) == [], words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("ÄPFEL und Öl", ("äp", "ÄP", "äpfel", "ÖL", "ap", "a\u0308pfel")),
        ("Die Straße", ("straße", "STRASSE", "strasse", "ß")),
        ("Łódź, smørrebrød, Œuvre", ("lodz", "ŁÓDŹ", "smorrebrod", "SMØRRE", "oe", "œuvre", "ł")),
        ("I don’t – “ever” – re‑read", ("don't", "don’t", '"ever"', "re-read", "'")),
        ("a\0beyond", ("beyond", "a")),
        ("ΟΔΥΣΣΕΥΣ", ("οδυσσευς", "Οδυσσεύς", "υσ", "ευς")),
        ("İstanbul, ISPARTA", ("istanbul", "İS", "is", "ısparta", "IS")),
        ("cafe\u0301 ЁЛКА", ("café", "CAFÉ", "fé", "ёл", "елка")),
        ("ＡＢＣ ｶﾞｽ", ("abc", "ab", "ガス", "ｶﾞ", "ｂｃ")),
        ("한국어 문서", ("한국", "\u1112\u1161\u11ab국어", "어")),
        ("ﬁnal co\u00adoperation", ("final", "fi", "cooperation")),
    ],
)
def test_search_looks_past_case_accents_and_width(store: Store, said: str, words: tuple[str, ...]) -> None:
    first, *_ = turn(store, said)
    turn(store, "nothing of it")
    for word in words:
        assert [c.id for c in store.conversations(word)] == [first], word
    assert store.conversations("äz") == [] and store.conversations("ñandú") == []


HALF = "\ud83d"


def test_half_an_emoji_breaks_nothing_wherever_it_comes_from(store: Store) -> None:
    conversation, _, reply = turn(store, f"half {HALF} of one")
    store.update(reply, text=f"{HALF} too", error=HALF)
    store.rename(conversation, f"title {HALF}")
    assert [c.id for c in store.conversations(f"half {HALF}")] == [conversation]
    assert store.conversations(f"walrus {HALF}{HALF}{HALF}") == []
    assert store.conversation(HALF) is None and store.message(HALF) is None and store.path_to(HALF) == []
    assert store.visitor_of(HALF) is None and store.conversations("", visitor=HALF) == []
    store.keep_settings(conversation, {"system": HALF})
    presets.keep(store, f"mine {HALF}", Settings(system=f"be {HALF}"))
    assert "mine ?" in presets.names(store)
    kept = presets.apply(store, f"mine {HALF}", Settings())
    told = [kept.system, Settings.from_dict(store.conversation(conversation).settings).system]
    told += [c.title for c in store.conversations()] + [m.text for m in store.path_to(reply)]
    assert all(text.encode() for text in told)


def test_the_index_follows_every_change(store: Store) -> None:
    conversation, _, reply = turn(store, "walrus")
    store.update(reply, text="tusks")
    store.update(reply, text="flippers", state="done")
    store.rename(conversation, "seals")
    assert not store.conversations("tusks") and store.conversations("flippers") and store.conversations("seals")
    assert store.conversations("walrus"), "the message still says it"
    store.db.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")
    store.db.execute("DELETE FROM conversations")
    assert store.db.execute("SELECT count(*) FROM search_rows").fetchone()[0] == 0
    store.db.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")
    assert store.rows("SELECT count(*) FROM search WHERE search MATCH 'flippers'") == [(0,)]


def test_a_database_from_before_the_index_is_taken_over(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "chat.db")
    for statement in MIGRATIONS[0]:
        old.execute(statement)
    old.execute("INSERT INTO conversations (id, title, created, updated) VALUES ('c', 'about seals', 1, 1)")
    old.execute(
        "INSERT INTO messages (id, conversation_id, role, text, state, created, updated)"
        " VALUES ('m', 'c', 'user', 'and walruses', 'done', 1, 1)"
    )
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    store = Store(tmp_path / "chat.db")
    assert [c.id for c in store.conversations("seal walrus")] == ["c"]
    store.update("m", text="and penguins")
    assert store.conversations("penguin") and not store.conversations("walrus")


def test_the_list_is_read_in_its_order_and_never_sorted(store: Store) -> None:
    sql = (
        "SELECT id FROM conversations c WHERE deleted IS NULL AND visitor = ? AND 1 ORDER BY pinned DESC, updated DESC"
    )
    steps = [row[3] for row in store.rows(f"EXPLAIN QUERY PLAN {sql} LIMIT ?", "", 200)]
    assert len(steps) == 1 and "conversations_list" in steps[0], steps


def test_pinned_conversations_come_first(store: Store) -> None:
    first, *_ = turn(store, "first")
    second, *_ = turn(store, "second")
    assert [c.id for c in store.conversations()] == [second, first] and store.latest() == second
    store.pin(first, True)
    assert [c.id for c in store.conversations()] == [first, second] and store.latest() == second
    store.pin(first, False)
    assert [c.id for c in store.conversations()] == [second, first]


def test_deleting_hides_and_restoring_brings_back(store: Store) -> None:
    conversation, *_ = turn(store)
    store.delete(conversation)
    assert store.conversations() == [] and store.conversation(conversation) is None
    store.restore(conversation)
    assert [c.id for c in store.conversations()] == [conversation]


def test_a_deleted_conversation_leaves_the_disk_a_day_later(tmp_path: Path, store: Store, monkeypatch) -> None:
    conversation, *_ = turn(store)
    store.delete(conversation)
    store.close()
    monkeypatch.setattr(store_module, "KEEP_DELETED_SECONDS", -1)
    again = Store(tmp_path / "chat.db")
    assert again.db.execute("SELECT count(*) FROM messages").fetchone()[0] == 0


@pytest.mark.parametrize(
    "text", ["<script>", "a\x00b", "\u05e9\u05dc\u200f", "\U0001f469\u200d\U0001f467", "\ud800 lone", "x" * 2_000_000]
)
def test_any_text_is_kept(store: Store, text: str) -> None:
    _, prompt, _ = turn(store, text)
    assert store.message(prompt).text == text.encode("utf-8", "replace").decode()


def test_threads_may_write_together(store: Store) -> None:
    conversation = store.create("many")
    threads = [threading.Thread(target=lambda: turn(store, "x", conversation=conversation)) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert store.db.execute("SELECT count(*) FROM messages").fetchone()[0] == 16


def test_a_newer_database_is_refused_and_left_as_it_is(tmp_path: Path, store: Store) -> None:
    store.db.execute("PRAGMA user_version = 99")
    store.close()
    before = (tmp_path / "chat.db").read_bytes()
    with pytest.raises(hsd.StoreError, match="newer version") as caught:
        Store(tmp_path / "chat.db")
    assert caught.value.hint and (tmp_path / "chat.db").read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_bytes(b"this is a letter to my aunt, not a database" * 100)
    with pytest.raises(hsd.StoreError, match="damaged") as caught:
        Store(tmp_path / "chat.db")
    assert "\n" not in caught.value.message and caught.value.hint


def test_a_locked_database_is_said_and_works_again_afterwards(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    store = Store(tmp_path / "chat.db")
    other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(hsd.StoreError, match="locked"):
        store.create("x")
    other.execute("COMMIT")
    assert store.create("x")


def test_a_moment_of_another_programs_writing_is_waited_for(tmp_path: Path, store: Store) -> None:
    conversation = store.create("a")
    _, reply = store.add_turn(conversation, None, "b", {})
    writes = [
        lambda: store.create("c"),
        lambda: store.add_turn(conversation, reply, "d", {}),
        lambda: store.rename(conversation, "e"),
        lambda: Store(tmp_path / "chat.db").close(),
    ]
    for write in writes:
        other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, other.execute, ["ROLLBACK"])
        release.start()
        write()
        release.join()
        other.close()
    assert [c.title for c in store.conversations()] == ["e", "c"] and len(store.messages(conversation)) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_database_is_said(tmp_path: Path, store: Store) -> None:
    store.close()
    (tmp_path / "chat.db").chmod(stat.S_IREAD)
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    try:
        with pytest.raises(hsd.StoreError, match="are read-only"):
            Store(tmp_path / "chat.db").create("x")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_full_disk_is_said(store: Store) -> None:
    # SQLite's own limit stands in for a disk: the error is the same.
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    store.db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(hsd.StoreError, match="full"):
        turn(store, "x" * 100_000)
    store.db.execute("PRAGMA max_page_count = 1000000")
    assert turn(store, "x" * 100_000)


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(hsd.StoreError):
        Store(tmp_path / "no" / "chat.db")
