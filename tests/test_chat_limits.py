"""What one person does keeps nobody else waiting: many tabs, long messages, wide searches, and events that are none."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_fakes import ScriptedEngine
from chat_server import Scripted, scripted
from chat_tab import HttpTab, browser_of
from chat_waiting import until

import hsd
from chat import limits, prompt, request
from chat.changes import Changes
from chat.login import COOKIE
from chat.records import Message
from chat.session import Session
from chat.settings import Settings
from chat.store import Store
from chat.ui import actions, settings, text
from chat.ui.history import history
from chat.ui.page import _entered
from chat.ui.shares import BUSY, Shares
from chat.ui.tabs import Tab, Tabs

PASSWORD = "let me in"
FIELDS = settings.show(Settings())
TURNS = "SELECT m.role, m.text FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE c.title = ?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with scripted(tmp_path_factory.mktemp("data"), pause=0.01, password=PASSWORD) as server:
        yield server


def test_two_hundred_tabs_hold_no_place_and_the_next_message_is_answered(server: Scripted) -> None:
    browsers = [browser_of(server.address, PASSWORD) for _ in range(20)]
    tabs = [HttpTab(server.address, browser) for browser in browsers for _ in range(10)]
    # No event lasts, and none goes through the queue, which runs forty of all visitors at once.
    for function in tabs[0].functions():
        assert not function["queue"] and not function["types"]["generator"], function["id"]
    assert not any(target[1] in ("unload", "tick") for f in tabs[0].config["dependencies"] for target in f["targets"])
    for tab in tabs:
        tab.enter()
    for tab in tabs[::10]:
        assert "would you like to know" in tab.look("chat")["history"]
        assert tab.look("chat") == {}
    new = HttpTab(server.address, browser_of(server.address, PASSWORD))
    new.enter()
    assert new.send("the first of mine", FIELDS).startswith("stored")
    until(lambda: any(role == "assistant" and text for role, text in server.stored(TURNS, "the first of mine")))
    until(lambda: "the first of mine" in new.look("chat").get("history", ""))
    # Nobody else is told of it.
    assert "the first of mine" not in json.dumps(tabs[0].look())


def visitor(name: str, tab: str = "tab") -> Any:
    return SimpleNamespace(session_hash=tab, cookies={COOKIE: name})


def test_a_thousand_tabs_of_one_visitor_are_not_all_remembered_and_take_none_from_others() -> None:
    gone: list[Tab] = []
    tabs = Tabs(guests=True, gone=gone.append)
    bob = tabs.at(visitor("bob"))
    first = tabs.at(visitor("ann", "first"))
    for number in range(3 * limits.TABS):
        tabs.at(visitor("ann", str(number)))
        if number == limits.TABS_OF_A_VISITOR // 2:
            assert tabs.at(visitor("ann", "first")) is first
    assert len(tabs._tabs) == limits.TABS_OF_A_VISITOR + 1 and tabs.at(visitor("bob")) is bob
    # The one that was silent for longest went first.
    assert gone[0] is not first and first in gone and len(gone) == 3 * limits.TABS + 1 - limits.TABS_OF_A_VISITOR
    # All visitors together are bounded too, and one that was forgotten says what it shows.
    for number in range(limits.TABS):
        tabs.at(visitor(f"visitor {number}"))
    assert len(tabs._tabs) == limits.TABS and sum(tabs._count.values()) == limits.TABS
    assert tabs.at(visitor("bob"), "its conversation").open == "its conversation"


def test_what_one_visitor_has_done_at_once_leaves_threads_for_others() -> None:
    shares, waits, most, running = Shares(lambda request: request.who), threading.Event(), [0], [0]
    lock = threading.Lock()

    def slow() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        waits.wait(10)
        with lock:
            running[0] -= 1

    async def both() -> None:
        ann, bob = SimpleNamespace(who="ann"), SimpleNamespace(who="bob")
        many = [asyncio.create_task(shares.run(ann, slow)) for _ in range(limits.QUEUED_AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(Exception) as refused:
            await shares.run(ann, slow)
        assert getattr(refused.value, "detail", "") == BUSY
        assert await shares.run(bob, lambda: "done") == "done"
        waits.set()
        await asyncio.gather(*many)

    asyncio.run(both())
    assert most[0] == limits.AT_ONCE and not shares._shares


def test_messages_of_tabs_that_were_never_entered_hold_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "ENTER_SECONDS", 0.3)
    session, threads = Session(Store(tmp_path / "chat.db"), lambda progress: ScriptedEngine(str)), []
    tabs = Tabs()
    do, shares = actions.Actions(session, tabs), Shares(tabs.visitor)
    send = _entered(do, shares.handler(do.send), shares)

    async def many() -> list[Any]:
        sent = [send(visitor("", str(n)), "hello", "new", *FIELDS) for n in range(limits.QUEUED_AT_ONCE)]
        tasks = [asyncio.create_task(each) for each in sent]
        await asyncio.sleep(0.1)
        threads.append(threading.active_count())
        return await asyncio.gather(*tasks)

    before = threading.active_count()
    answers = asyncio.run(many())
    assert threads[0] == before and all(answer[0].startswith("refused") for answer in answers)
    assert "still being opened" in tabs.of("0").problem and not session.conversations()
    session.close()


def cpu(function: Callable[[], object]) -> float:
    """Seconds of this thread's own time: what else the machine does counts for nothing."""
    begun = time.thread_time()
    function()
    return time.thread_time() - begun


MEGABYTE = 1_000_000
PIECES = (
    "`a`:```\n",
    "`a`:\n```\n",
    "`a`:\n````\n```\n",
    "```\n",
    "`",
    "<think>",
    "</think>\n",
    " ",
    "\n",
    "](",
    "\\(",
    "$",
)


@pytest.mark.parametrize("piece", PIECES)
def test_what_is_looked_for_in_a_message_takes_time_that_grows_as_its_length(piece: str) -> None:
    whole = piece * (MEGABYTE // len(piece))
    scans = (prompt.make_title, lambda t: prompt.make_title("Hi", t), hsd.split_thinking, text.escape)
    for scan in scans:
        # A quadratic scan takes minutes to hours for this.
        assert cpu(lambda scan=scan: scan(whole)) < 5, scan  # type: ignore[misc]


@pytest.mark.parametrize(
    "piece",
    [
        "> " * 20 + "\n",
        "![[",
        "[a\n",
        "a\n\\[\n",
        "\\(",
        "**a *b ",
        "[a](",
        "$$a\n",
        "|a|\n|-|\n",
        "$" + "\\text{a}" * 100,
    ],
)
def test_a_reply_that_is_slow_to_read_is_shown_as_it_was_written(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORMAT_SECONDS", 0.05)
    whole, growing = piece * (MEGABYTE // len(piece)), text.Growing()
    html: list[str] = []
    assert cpu(lambda: html.append(text.markdown(whole))) < 5
    assert html[0].count(text.escape(piece[:2])) and len(html[0]) > MEGABYTE // 2
    # The same while it grows; and what comes after it is not read again and again.
    assert cpu(lambda: [growing.add(whole[: 30_000 * n]) for n in range(1, 33)]) < 10
    assert not text.Growing().add("**fine**").startswith('<p class="plain">')


def test_all_slow_replies_of_a_page_together_take_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORMAT_SECONDS", 0.05)
    monkeypatch.setattr(limits, "PAGE_SECONDS", 0.1)
    slow = [Message(str(n), "c", None, "assistant", f"{n} " + "![[" * 10_000, "done") for n in range(100)]
    fine = Message("last", "c", None, "assistant", "**fine**", "done")
    html: list[str] = []
    assert cpu(lambda: html.append(history([*slow, fine], {}))) < 5
    assert "<strong>fine</strong>" in html[0] and html[0].count("<article") == 100


def test_blanks_bytes_and_plans_without_end_are_read_once() -> None:
    def split() -> None:
        told = hsd.ThinkingSplit()
        told.push("<think>a")
        for _ in range(100_000):
            told.push("  ")
        told.push("b</think>c")
        assert told.thought.startswith("a ") and told.thought.endswith(" b") and told.answer == "c"

    assert cpu(split) < 5
    decoded = [0]

    def decode(ids: list[int]) -> str:
        decoded[0] += len(ids)
        return "\ufffd" * len(ids)

    assert "".join(request.pieces(decode, list(range(5000)))) == "\ufffd" * 5000
    assert decoded[0] < 40 * 5000
    for plan in ("a:" + "9" * 5000, "a>" * MEGABYTE, "a :" * MEGABYTE, "a" * MEGABYTE):
        with pytest.raises(hsd.ConfigError) as refused:
            hsd.Plan.parse(plan)
        assert len(str(refused.value)) < 300
    with pytest.raises(hsd.ConfigError, match="1000 characters"):
        hsd.SamplingParams(stop="a" * 1001)


def test_thousands_of_short_messages_are_no_more_than_the_context_has_tokens() -> None:
    messages = [{"role": role, "content": "a"} for _ in range(20_000) for role in ("user", "assistant")]
    kept, dropped = prompt.newest_turns([*messages, {"role": "user", "content": "last"}], 16 * 2048)
    assert len(kept) <= 2048 and dropped > 18_000 and kept[-1]["content"] == "last"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """One whose engine has not been started: what is sent waits."""
    session = Session(Store(tmp_path / "chat.db"), lambda progress: ScriptedEngine(str))
    yield session
    session.close()


def test_messages_and_system_prompts_have_a_longest_length(session: Session) -> None:
    long = "a" * (limits.MESSAGE_LETTERS + 1)
    for sent in (
        lambda: session.send(None, long, Settings()),
        lambda: session.send(None, "a", Settings(system=long)),
        lambda: session.edit("any", long, Settings()),
    ):
        with pytest.raises(hsd.HsdError, match=r"has 2,000,001 characters; the longest that is taken has 2,000,000"):
            sent()
    assert not session.conversations()
    session.send(None, long[1:], Settings())


def test_one_visitor_waits_for_so_many_replies_and_others_are_not_counted(session: Session) -> None:
    for number in range(limits.WAITING):
        last = session.send(None, f"number {number}", Settings(), visitor="ann")
    with pytest.raises(hsd.HsdError, match="wait for 40 replies already"):
        session.send(None, "one more", Settings(), visitor="ann")
    session.send(None, "mine", Settings(), visitor="bob")
    session.stop(last)
    session.send(None, "now", Settings(), visitor="ann")
    assert len(session.conversations("", "ann")) == limits.WAITING + 1


def test_a_search_is_bounded_and_keeps_nobody_waiting(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    store = session.store
    store.create("seals and otters")
    for words in ("a " * 400, "a" * 1000, " ".join("abcdefghijklmnopq")):
        with pytest.raises(hsd.HsdError, match="at most 16 words and 200 characters"):
            store.conversations(words)
    # Somebody else is at the database meanwhile.
    taken, free = threading.Event(), threading.Event()

    def hold() -> None:
        with store._lock:
            taken.set()
            free.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    taken.wait(10)
    assert [c.title for c in store.conversations("se ott")] == ["seals and otters"]
    free.set()
    other.join()
    monkeypatch.setattr(limits, "SEARCH_SECONDS", -1)
    with store.together():
        for number in range(3000):
            store.create(f"number {number}")
    with pytest.raises(hsd.HsdError, match="took too long"):
        store.conversations("b c d")


def test_a_large_import_lets_others_in_between_and_is_seen_when_it_is_whole(session: Session) -> None:
    store, seen = session.store, []
    messages = [
        Message(str(n), "", str(n - 1) if n else None, "assistant" if n % 2 else "user", "text", "done")
        for n in range(10 * limits.ROWS_AT_ONCE)
    ]
    stored = threading.Thread(target=store.add_conversation, args=("imported", {}, messages, messages[-1].id))
    stored.start()
    while stored.is_alive():
        seen.append((store.rows("SELECT count(*) FROM messages")[0][0], len(store.conversations())))
    assert any(0 < count < len(messages) for count, _ in seen)
    assert all(listed == 0 for count, listed in seen if count < len(messages))
    assert len(store.path_to(messages[-1].id)) == len(messages) and len(store.conversations()) == 1
    assert [m.id for m in store.path_to(messages[-1].id, 3)] == [m.id for m in messages[-3:]]


def test_topics_that_changed_long_ago_are_forgotten() -> None:
    changes = Changes()
    for number in range(limits.TOPICS + 500):
        changes.touch("list")
        changes.touch(str(number))
    assert len(changes._topics) == limits.TOPICS and changes.of("list") and changes.of(str(number)) == changes.version
    assert changes.of("0") == 0


JUNK = (None, [], {}, "", -1, 2**70, 1.5, True, "\ud800", [[]], {"action": []}, "a" * 3000, {"path": "/etc/passwd"})
BODIES = (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"data":' + b"[" * 50_000)


def test_an_event_that_no_page_sends_ends_in_one_sentence(server: Scripted) -> None:
    tab, chance = HttpTab(server.address, browser_of(server.address, PASSWORD)), random.Random(1)
    tab.enter()
    answers = [tab.post(path, body) for body in BODIES for path in ("run/predict", "component_server/")]
    for function in chance.sample(tab.functions(), 12):
        body = {"data": [None] * len(function["inputs"]), "fn_index": function["id"], "session_hash": tab.session}
        for key in ("data", "fn_index", "session_hash", "event_data", "trigger_id", "values"):
            junk = chance.choice(JUNK)
            values = {key: junk} if key != "values" else {"data": [chance.choice(JUNK) for _ in body["data"]]}
            answers.append(tab.post("run/predict", {**body, **values}))
    for name in ("watch", "leave", "growing", "exported", "where", "offered", "render", "_x", ""):
        for junk in JUNK:
            body = {
                "data": junk,
                "component_id": chance.choice([1, 5, 9]),
                "fn_name": name,
                "session_hash": tab.session,
            }
            answers.append(tab.post("component_server/", {**body, **chance.choice([{}, {"session_hash": junk}])}))
    for element, name in (("watch-chat", "watch"), ("running", "growing"), ("head", "exported"), ("history", "where")):
        for junk in (*JUNK, {"marks": junk_marks(), "open": []}, {"reply": [], "mark": 2**80}, {"id": {}, "kind": 5}):
            body = {"data": junk, "component_id": tab._ids[element], "fn_name": name, "session_hash": tab.session}
            answers.append(tab.post("component_server/", body))
    wrong = [(status, told) for status, told in answers if status != 200]
    assert len(wrong) > 60 and {status for status, _ in wrong} <= {400, 404, 413, 415, 422}
    assert all(isinstance(told["detail"], str) and "\n" not in told["detail"] for _, told in wrong)
    assert "Traceback" not in server.log.read_text("utf-8")
    # A value that a field can hold and a reply cannot be asked for with is said on the page, as ever.
    tab.send("hello", [900.0, *FIELDS[1:]])
    assert "temperature=900.0 is not possible" in tab.look("chat")["notice"]


def junk_marks() -> dict[str, Any]:
    return {"chat": [], "beside": None, "other": 5}
