"""The chat over the real engine and the built-in family, without a page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chat_waiting import until

import hsd
from chat.session import Session
from chat.settings import Settings
from chat.store import Store

GREEDY = {"temperature": 0.0, "plan": "large"}
QUESTION = "How do I find files larger than 100 MB?"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("data")
    family = hsd.load_families()["builtin"]
    session = Session(
        Store(folder / "chat.db"),
        lambda progress: hsd.Engine.load("builtin", device="cpu", data_dir=folder, progress=progress),
        may_drop=family.overflow == "drop",
    )
    session.start()
    until(lambda: session.engine.state == "ready")
    yield session
    session.close()


def ask(session: Session, conversation: str | None, text: str, **settings: object) -> str:
    conversation = session.send(conversation, text, Settings(**{**GREEDY, **settings}))
    until(lambda: session.live(conversation) is None)
    return conversation


def test_a_reply_that_goes_on_says_what_it_would_have_said_uninterrupted(session: Session) -> None:
    whole = session.snapshot(ask(session, None, QUESTION)).messages[-1]
    assert whole.stats["tokens"] > 12, whole.text
    conversation = ask(session, None, QUESTION, max_tokens=7)
    half = session.snapshot(conversation).messages[-1]
    assert half.finish_reason == "length" and whole.text.startswith(half.text)
    session.resume(half.id, Settings(**GREEDY))
    until(lambda: session.live(conversation) is None)
    joined = session.snapshot(conversation).messages[-1]
    assert joined.text == whole.text and joined.token_ids == whole.token_ids
    assert joined.stats["continued_after"] == 7 and len(joined.provenance) == len(joined.token_ids)
    # All but the last token of the beginning was still in memory: nothing was read twice.
    assert joined.stats["reused_tokens"] >= half.stats["prompt_tokens"]


def test_a_reply_goes_on_in_a_conversation_that_outgrew_the_context(session: Session) -> None:
    conversation = None
    for _ in range(3):
        conversation = ask(session, conversation, "word " * 800, max_tokens=2)
    half = session.snapshot(conversation).messages[-1]
    assert half.stats["dropped_turns"] > 0, half
    session.resume(half.id, Settings(**GREEDY, max_tokens=4))
    until(lambda: session.live(conversation) is None)
    more = session.snapshot(conversation).messages[-1]
    assert more.state == "done" and more.text.startswith(half.text) and more.stats["dropped_turns"] > 0


def test_unloading_gives_memory_back_and_the_next_message_is_answered(session: Session) -> None:
    import psutil

    before = psutil.Process().memory_info().rss / 2**20
    session.unload()
    until(lambda: session.engine.state == "unloaded")
    after = psutil.Process().memory_info().rss / 2**20
    print(f"{before:.0f} MB before, {after:.0f} MB after")
    assert after < before
    conversation = ask(session, None, "Hello!", max_tokens=4)
    assert session.snapshot(conversation).messages[-1].state == "done"
