"""Chromium for the browser tests: Debian's, started once per module; skipped or failed where it is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
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
def tab(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A fresh tab at the address; afterwards it must not have asked anybody else for anything, nor failed."""
    options.setdefault("viewport", DESKTOP)
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    foreign: list[str] = []
    errors: list[str] = []
    own = ("data:", "blob:", "http://127.0.0.1:")
    page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#message textarea")
    yield page
    context.close()
    assert not foreign, f"the page asked {foreign}"
    assert not errors, f"the page failed: {errors}"


def send(page: Any, text: str) -> None:
    """Type a message and press Enter."""
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")


def shoot(page: Any, name: str) -> None:
    """A screenshot in the folder of HSD_SCREENSHOTS, if that is set."""
    folder = os.environ.get("HSD_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(400)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def observe(look: Callable[[], str], done: Callable[[], bool], page: Any, seconds: float = 60) -> list[str]:
    """What was to be seen, each change once, until it is done."""
    seen: list[str] = []
    for _ in range(int(seconds / 0.03)):
        now = look()
        if now and (not seen or now != seen[-1]):
            seen.append(now)
        if done():
            return seen
        page.wait_for_timeout(30)
    raise AssertionError(f"not done after {seconds} s; saw {seen[-3:]}")
