"""Chromium for the browser tests, Debian's; skipped or failed where it is missing. What people do with the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 800}


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser."""
    path = shutil.which("chromium")
    if path is None:
        message = "chromium is not installed"
        if os.environ.get("HSD_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Any, address: str, password: str | None = None, **options: Any) -> Iterator[Any]:
    """A fresh tab at the address; afterwards it must not have asked anybody else for anything, nor failed."""
    options.setdefault("viewport", DESKTOP)
    context = browser.new_context(**options)
    if password:
        # The same name for everybody: it tells nobody apart.
        context.request.post(f"{address.partition('#')[0]}login", form={"username": "me", "password": password})
    page = context.new_page()
    page.set_default_timeout(20_000)
    foreign: list[str] = []
    errors: list[str] = []
    own = ("data:", "blob:", "http://127.0.0.1:")
    page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(address)
        page.wait_for_selector("#message textarea")
        yield page
    finally:
        # Also where a test failed: a tab that stays open would go on with what it does beside the next test.
        context.close()
    assert not foreign, f"the page asked {foreign}"
    assert not errors, f"the page failed: {errors}"


def send(page: Any, text: str) -> None:
    """Type a message and press Enter."""
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")


def ready(page: Any) -> None:
    """Wait until the family is loaded."""
    page.wait_for_selector(".dot.ready, .dot.failed", timeout=90_000)
    assert page.locator(".dot.failed").count() == 0, page.inner_text("#engine")


def ask(page: Any, *texts: str) -> None:
    """Send messages, each after the reply to the one before it is over."""
    for text in texts:
        before = page.locator("#history .reply").count()
        send(page, text)
        page.wait_for_function(f"document.querySelectorAll('#history .reply .foot .tools').length > {before}")


def open_settings(page: Any) -> None:
    """Open them; the fields are made when the panel is first opened, and take their value a moment later."""
    page.click("#settings > button")
    page.wait_for_selector("#preset input")
    page.wait_for_timeout(500)


def unfold_menu(page: Any) -> None:
    """What is seldom done with a conversation."""
    page.locator("#head .menu:not(.families)").evaluate("menu => { menu.open = true; }")


def exported(page: Any, folder: Path) -> dict[str, Path]:
    """The open conversation as files that the menu gives: "markdown" and "json"."""
    files = {}
    for kind in ("markdown", "json"):
        unfold_menu(page)
        with page.expect_download() as download:
            page.click(f"[data-action=export-{kind}]")
        files[kind] = folder / download.value.suggested_filename
        download.value.save_as(files[kind])
    return files


def bring(page: Any, file: Path) -> None:
    """Import a file by the menu."""
    unfold_menu(page)
    with page.expect_file_chooser() as chooser:
        page.click("[data-action=import]")
    chooser.value.set_files(str(file))


def shoot(page: Any, name: str) -> None:
    """A screenshot in the folder of HSD_SCREENSHOTS, if that is set."""
    folder = os.environ.get("HSD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(400)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


WATCH = """() => {
  window.seen = [];
  const look = () => {
    const text = [...document.querySelectorAll("#running .prose")].map((part) => part.innerText).join("\\n\\n");
    if (text && text !== window.seen.at(-1)) window.seen.push(text);
  };
  new MutationObserver(look).observe(document.getElementById("running"),
    { childList: true, subtree: true, characterData: true });
}"""


STOP = """() => new MutationObserver((_, observer) => {
  const button = document.querySelector("#message .stop-button");
  if (button && document.querySelector("#running .prose")) { observer.disconnect(); button.click(); }
}).observe(document.body, { childList: true, subtree: true })"""


def stop_when_it_begins(page: Any) -> None:
    """Click Stop as soon as the next reply shows its first words: a small model is done in a fraction of a second."""
    page.evaluate(STOP)


def shooting() -> bool:
    """Whether screenshots are wanted."""
    return bool(os.environ.get("HSD_SCREENSHOTS"))


def watch_running(page: Any) -> None:
    """Keep every text that the running reply shows from now on, for `seen`; polling would miss a quick model's."""
    page.evaluate(WATCH)


def seen(page: Any) -> list[str]:
    """What the running reply has shown since `watch_running`, each change once."""
    return page.evaluate("window.seen")
