"""A real browser on a real server with the real engine and the built-in family."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from chat_browser import PHONE, ready, seen, send, shoot, shooting, stop_when_it_begins, tab, watch_running
from chat_server import Server, serving

pytestmark = pytest.mark.browser

LINE = re.compile(r"(\d+\.\d× estimated · |slower than plain decoding, .* · )?\d+ tok/s · first token [\d.]+ m?s · \S+")
QUESTION = "How do I extract a tar.gz archive?"
LAST = "SELECT id, text, state FROM messages WHERE role = 'assistant' ORDER BY created DESC LIMIT 1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as server:
        yield server


def test_a_message_gets_its_reply_and_line_and_is_there_after_a_reload(browser: Any, server: Server) -> None:
    with tab(browser, server.address) as page:
        shoot(page, "loading")
        ready(page)
        shoot(page, "empty-light")
        send(page, QUESTION)
        page.wait_for_selector(".meta summary")
        line = page.inner_text(".meta summary")
        assert LINE.match(line), line
        assert "slower than plain" not in line, f"the first reply after a first start: {line}"
        shoot(page, "chat-light")
        reply = page.inner_text("#history .reply .prose")
        page.click(".meta summary")
        assert "Tokens per target pass" in page.inner_text(".facts") and "of" in page.inner_text("table.levels")
        page.click("[data-action=provenance]")
        page.wait_for_selector(".tokens .token")
        assert page.locator(".legend li").count() >= 1
        page.locator(".tokens").scroll_into_view_if_needed()
        shoot(page, "details-light")
        page.reload()
        page.wait_for_selector(".meta summary")
        assert page.inner_text("#history .reply .prose") == reply and QUESTION in page.inner_text("#history .you")
        assert page.inner_text(".meta summary") == line
        page.click(".meta summary")
        page.click("[data-action=provenance]")
        page.wait_for_selector(".tokens .token")
        assert page.text_content(".tokens").strip() == server.stored(LAST)[0][1].strip()


def test_a_reply_is_seen_growing(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        hot(page)
        watch_running(page)
        for tries in range(1, 26):
            send(page, "Tell me everything.")
            page.wait_for_function(f"document.querySelectorAll('#history .reply').length === {tries}")
            texts = seen(page)
            if len(texts) >= 2 and len(texts[-1]) > len(texts[0]):
                break
            watch_running(page)
        assert len(texts) >= 2 and len(texts[-1]) > len(texts[0]), f"the text was not seen growing: {texts}"


def hot(page: Any) -> None:
    """So hot that the model rarely comes to an end by itself; as it is, it is done in a fraction of a second."""
    page.click("#settings button")
    for name, value in (("Temperature", "2"), ("Presence penalty", "-2"), ("Frequency penalty", "-2")):
        page.get_by_label(f"number input for {name}").fill(value)


def test_a_page_that_nobody_touches_draws_nothing(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        page.evaluate("document.activeElement.blur()")
        # Gradio's first screen moves for some seconds after it is gone; its count of the seconds would go on for ever.
        drawn = [frames(browser, page)]
        while drawn[-1] >= 10 and len(drawn) < 10:
            drawn.append(frames(browser, page))
        assert drawn[-1] < 10, drawn


def frames(browser: Any, page: Any) -> int:
    """How many frames scripts ask for in a second."""
    browser.start_tracing(page=page, categories=["-*", "devtools.timeline"])
    page.wait_for_timeout(1000)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    return sum(event["name"] == "FireAnimationFrame" for event in events)


def test_stop_ends_the_reply_and_a_new_chat_begins_empty(browser: Any, server: Server) -> None:
    with tab(browser, server.address) as page:
        ready(page)
        page.click("#new")
        page.wait_for_selector(".empty")
        before = page.locator(".listing li").count()
        hot(page)
        for tries in range(1, 26):
            stop_when_it_begins(page)
            send(page, "Tell me everything.")
            page.wait_for_function(f"document.querySelectorAll('#history .reply').length === {tries}")
            if "Stopped." in page.inner_text("#history"):
                break
        assert "Stopped." in page.inner_text("#history")
        page.reload()
        page.wait_for_selector("#history .ending:has-text('Stopped.')")
        assert server.stored(LAST)[0][2] == "cancelled"
        page.click("#new")
        page.wait_for_selector(".empty")
        assert page.locator("#history .turn").count() == 0
        assert page.locator(".listing li").count() == before + 1


def test_after_a_restart_the_conversation_is_there_dark_and_on_a_phone(browser: Any, server: Server) -> None:
    with tab(browser, server.address, color_scheme="dark") as page:
        page.locator(".listing .title", has_text="extract").click()
        page.wait_for_selector(".meta summary")
        if shooting():
            ready(page)
            shoot(page, "chat-dark")
    with tab(browser, server.address, viewport=PHONE) as page:
        page.wait_for_selector("#history .turn")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        shoot(page, "chat-phone")
        page.click("#left .toggle-button")
        page.wait_for_timeout(400)
        shoot(page, "list-phone")
