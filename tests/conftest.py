"""What every test starts from: no network, no telemetry, one thread per tiny model, data in a folder of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Tiny tensors on several threads wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not os.environ.get("HSD_REAL_MODELS"):
    # llama.cpp asks for its own number; its threads wait in a loop, which takes minutes where the machine is busy.
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that no other test and no person uses."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HSD_HOME", str(home))
    monkeypatch.delenv("HSD_MODELS", raising=False)
    return home


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running browser, see `chat_browser.chromium`."""
    from chat_browser import chromium

    with chromium() as running:
        yield running


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that failed shows what its server has printed: an error there is what the page did not say."""
    outcome: Any = yield
    report, server = outcome.get_result(), getattr(item, "funcargs", {}).get("server")
    log = getattr(server, "log", None)
    if report.failed and log and log.exists():
        report.sections.append(("what the server printed", log.read_text(errors="replace")[-6000:]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser test may have a second try: shared machines stand still for seconds, and pages wait for no more.

    What is tried again is named in the closing line.
    """
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))
