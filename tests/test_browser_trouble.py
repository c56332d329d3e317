"""What goes wrong on a machine, as a person at the page sees it: a killed program, a full disk, a read-only one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

import pytest
from chat_browser import ask, open_settings, ready, send, shoot, tab
from chat_server import Scripted, Server, scripted, serving

pytestmark = pytest.mark.browser

QUESTION = "Tell me everything."
LAST = "SELECT * FROM messages WHERE role = 'assistant' ORDER BY created DESC LIMIT 1"
RUNNING = f"SELECT id, text FROM ({LAST}) WHERE state = 'running' AND length(text) > 150"
REPLY = "SELECT state, text, finish_reason, json_extract(stats, '$.continued_after') FROM messages WHERE id = ?"
TEXTS = "SELECT text FROM messages WHERE conversation_id = (SELECT id FROM conversations ORDER BY created DESC LIMIT 1)"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture(autouse=True)
def alive(request: pytest.FixtureRequest) -> None:
    """A test that is tried again may find that its first try killed the server and came no further."""
    if "slow" in request.fixturenames:
        server: Server = request.getfixturevalue("slow")
        if server.process.poll() is not None:
            server.start()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with scripted(tmp_path_factory.mktemp("data"), pause=0.04) as server:
        yield server


def alike(shown: str, stored: str) -> bool:
    """Whether it is the same text, but for white space and the few marks that Markdown takes for its own."""
    one, other = ("".join(filter(str.isalpha, text))[:400] for text in (shown, stored))
    return SequenceMatcher(None, one, other, autojunk=False).ratio() > 0.9


def without_end(page: Any) -> None:
    """What a person can set so that most replies do not end: what was said once is the likelier to be said again."""
    open_settings(page)
    for name, value in {"Temperature": "2", "Presence penalty": "-2", "Frequency penalty": "-2"}.items():
        page.get_by_label(f"number input for {name}").fill(value)
        page.keyboard.press("Tab")
    for name, value in {"Longest reply": "1800", "Plan": "large"}.items():
        page.locator("#settings").get_by_label(name).fill(value)
        page.keyboard.press("Tab")


def going_round(text: str) -> bool:
    """Whether a reply says the same few letters again and again: with these penalties it never finds an end."""
    return any(len(text) > 60 + size and text[-60:] == text[-60 - size : -size] for size in range(1, 31))


def checkpoint(page: Any, server: Server) -> tuple[str, str]:
    """Id and text of a reply that is being written: some of it is on the disk, and it will not end by itself."""
    for tries in range(1, 25):
        send(page, QUESTION)
        end = time.monotonic() + 90
        while page.locator("#history .reply .foot").count() < tries and time.monotonic() < end:
            if (rows := server.stored(RUNNING)) and going_round(rows[0][1]):
                return rows[0]
            page.wait_for_timeout(20)
    raise AssertionError(f"all of them ended: {server.stored('SELECT text FROM messages')}")


def test_a_reply_that_was_cut_off_by_kill_9_is_marked_and_goes_on(browser: Any, slow: Server) -> None:
    with tab(browser, f"{slow.address}#c=new") as page:
        ready(page)
        without_end(page)
        reply, text = checkpoint(page, slow)
        slow.kill()
        state, half, *_ = slow.stored(REPLY, reply)[0]
        assert state == "running" and half.startswith(text)
        slow.start()
        # Nobody reloads the page: it finds the new server by itself.
        page.wait_for_selector("#history .ending:has-text('Interrupted')", timeout=60_000)
        assert slow.stored(REPLY, reply)[0][:2] == ("interrupted", half)
        assert alike(page.inner_text("#history .reply:last-child .prose"), half)
        turns = page.locator("#history .turn").count()
        shoot(page, "interrupted-light")
        ready(page)
        open_settings(page)
        # The settings have come back too.
        page.wait_for_function("() => [...document.querySelectorAll('#settings input')].some(i => i.value === '1800')")
        page.locator("#settings").get_by_label("Longest reply").fill("12")
        page.keyboard.press("Tab")
        page.click("#history [data-action=resume]")
        page.wait_for_selector("#history .ending:has-text('Cut off at the longest reply')", timeout=60_000)
        page.reload()
        page.wait_for_selector("#history .reply .meta")
        state, whole, reason, before = slow.stored(REPLY, reply)[0]
        assert (state, reason) == ("done", "length") and before > 0
        assert whole.startswith(half) and len(whole) > len(half)
        assert page.locator("#history .turn").count() == turns
        assert alike(page.inner_text("#history .reply:last-child .prose"), whole)


def test_a_running_reply_is_there_after_a_reload_and_in_a_second_tab_which_stops_it(browser: Any, slow: Server) -> None:
    with tab(browser, f"{slow.address}#c=new") as page:
        ready(page)
        without_end(page)
        reply, text = checkpoint(page, slow)
        # On a busy machine the disk has it before the page: only what a page has shown is in its address.
        page.wait_for_selector("#running .prose")
        page.reload()
        page.wait_for_selector("#running .prose")
        with tab(browser, page.url) as second:
            second.wait_for_selector("#running .prose")
            second.click("#message .stop-button")
            second.wait_for_selector("#history .ending:has-text('Stopped')")
        page.wait_for_selector("#history .ending:has-text('Stopped')")
        page.reload()
        page.wait_for_selector("#history .ending:has-text('Stopped') [data-action=resume]")
        state, stored, reason, _ = slow.stored(REPLY, reply)[0]
        assert (state, reason) == ("cancelled", "cancelled") and stored.startswith(text)
        assert alike(page.inner_text("#history .reply:last-child .prose"), stored)


TROUBLE = {
    "full": ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000", "is full. Free some space"),
    "read-only": ("PRAGMA query_only = ON", "PRAGMA query_only = OFF", "are read-only. Make the file"),
}
"""SQLite's own limits stand in for a disk: its errors are the same ones, and it can be ended without being root."""


@pytest.mark.parametrize("kind", TROUBLE)
def test_a_disk_that_takes_no_more_is_said_and_nothing_is_lost(browser: Any, server: Scripted, kind: str) -> None:
    begin, end, sentence = TROUBLE[kind]
    with tab(browser, f"{server.address}#c=new") as page:
        page.wait_for_selector(".dot.ready")
        send(page, "a medium one")
        page.wait_for_selector("#running .prose")
        server.run(begin)
        # The reply goes on, and is whole on the page although the disk has but its beginning.
        page.wait_for_selector(f"#notice .problem:has-text('{sentence}'):has-text('kept in memory')")
        page.wait_for_selector("#history .meta summary")
        whole = page.inner_text("#history .reply .prose")
        assert whole.count("That is all there is to it") == 3
        said = "and another: " + "x" * 20_000
        send(page, said)
        page.wait_for_function("document.querySelectorAll('#notice .problem').length === 2")
        assert page.locator("#notice .problem", has_text=sentence).count() == 2
        assert page.input_value("#message textarea") == said and page.locator("#history .turn").count() == 2
        shoot(page, f"disk-{kind}-light")
        # What touches no disk is not stopped by it: the engine answers.
        with tab(browser, f"{server.address}#c=new") as second:
            second.click("[data-action=temporary]")
            second.wait_for_selector(".empty.temporary")
            ask(second, "hello")
        server.run(end)
        page.wait_for_function("document.querySelectorAll('#notice .problem').length === 1")
        page.press("#message textarea", "Enter")
        page.wait_for_function("document.querySelectorAll('#history .meta').length === 2")
        assert page.inner_text("#notice") == "" and page.input_value("#message textarea") == ""
        page.reload()
        page.wait_for_function("document.querySelectorAll('#history .meta').length === 2")
        assert page.locator("#history .reply .prose").first.inner_text() == whole
        texts = [text for (text,) in server.stored(TEXTS + " ORDER BY created")]
        assert texts[0] == "a medium one" and texts[2] == said and len(texts) == 4
        assert texts[1].count("That is all there is to it") == 3
