"""The page over a scripted engine: what a small real model would not say on demand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_browser import PHONE, chromium, seen, send, shoot, shooting, tab, watch_running
from test_chat_cli import free_port

pytestmark = pytest.mark.browser

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, str(HERE / "chat_fakes.py"), str(port), str(tmp_path_factory.mktemp("data")), "0.04"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)}
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    yield f"http://127.0.0.1:{port}/"
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def test_markdown_renders_code_copies_and_nothing_is_executed(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new", permissions=["clipboard-read", "clipboard-write"]) as page:
        watch_running(page)
        send(page, "<img src=x onerror=\"document.title='broken'\"> ${document.title='broken'} {{this}}")
        page.wait_for_selector(".meta summary")
        assert len(seen(page)) > 5
        assert page.title() == "hsd chat" and page.locator("#history img, #history script").count() == 0
        assert "${document.title='broken'} {{this}}" in page.inner_text("#history .you")
        assert page.locator("#history strong").inner_text() == "x"
        assert "<b>not bold</b>" in page.inner_text("#history pre")
        assert page.locator("#history .prose a").all_inner_texts() == ["more", "pic"]
        page.click("[data-action=copy-code]")
        assert page.evaluate("navigator.clipboard.readText()").startswith("tar -xzf")
        assert page.inner_text(".meta summary").startswith("2.4× estimated · ")
        page.click(".meta summary")
        page.click("[data-action=provenance]")
        page.wait_for_selector(".tokens .token")
        assert "<script>" in page.inner_text(".tokens") and page.locator(".tokens script").count() == 0
        assert page.inner_text("#engine").count("accepted") == 2 and "middle is left out" in page.inner_text("#engine")


def test_a_reply_goes_on_without_its_tab_and_a_second_tab_stops_it(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        send(page, "a long one")
        page.wait_for_selector("#running .prose")
        opened = page.url
        page.reload()
        page.wait_for_selector("#running .prose")
        with tab(browser, opened) as second:
            second.wait_for_selector("#running .prose")
            second.click("#message .stop-button")
        page.wait_for_selector("#history .ending")
        assert page.inner_text("#history .ending") == "Stopped."
        page.click("[data-action=again]")
        page.wait_for_selector("#running .prose")
        page.press("#message textarea", "Escape")
        page.wait_for_selector("#history .ending")
        assert page.locator("#history .you").count() == 1


def test_what_cannot_be_sent_is_said_and_the_text_is_not_lost(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        send(page, "   ")
        page.wait_for_selector("#notice .problem")
        assert "empty" in page.inner_text("#notice")
        many = "word " * 300
        send(page, many)
        page.wait_for_selector("#history .problem")
        assert "Shorten" in page.inner_text("#history .problem") and page.inner_text("#notice") == ""
        page.click("[data-action=edit]")
        page.wait_for_function("document.querySelector('#message textarea').value.length > 1000")
        assert page.input_value("#message textarea") == many
        page.click("#settings button")
        page.get_by_label("Seed").fill("many")
        page.fill("#message textarea", "keep this")
        page.press("#message textarea", "Enter")
        page.wait_for_selector("#notice .problem")
        assert "seed" in page.inner_text("#notice") and page.input_value("#message textarea") == "keep this"


def test_the_list_renames_deletes_restores_and_searches(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        send(page, "a conversation about walruses")
        page.wait_for_selector(".meta summary")
        page.click(".listing li.open [data-action=rename]")
        page.keyboard.type("<i>Seals</i>")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('#head h1').textContent === '<i>Seals</i>'")
        page.fill("#search input, #search textarea", "walrus")
        page.wait_for_function("document.querySelectorAll('.listing li').length === 1")
        page.click(".listing li.open [data-action=delete]")
        page.wait_for_selector(".undo")
        page.wait_for_selector(".empty")
        page.click("[data-action=restore]")
        page.wait_for_selector(".listing li.open")
        page.wait_for_selector("#history .you")


VIEWS = {
    "phone": {"viewport": PHONE},
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
}


def test_no_view_is_wider_than_its_window(browser: Any, address: str) -> None:
    for name, options in VIEWS.items() if shooting() else [("phone", VIEWS["phone"])]:
        with tab(browser, address, **options) as page:
            page.wait_for_selector("#history .turn")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            shoot(page, f"scripted-{name}")
            if name.startswith("phone"):
                page.click("#right .toggle-button")
                page.wait_for_timeout(400)
                shoot(page, f"scripted-engine-{name}")
            else:
                page.click(".meta summary >> nth=-1")
                page.click("#settings button")
                shoot(page, f"scripted-details-{name}")
