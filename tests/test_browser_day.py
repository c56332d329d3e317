"""A day with the page: the built-in family, the real worker, and what is stored of it after a reload."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import models as tiny
import pytest
from axe_playwright_python.sync_playwright import Axe
from chat_bench import fill
from chat_browser import PHONE, ask, open_settings, ready, shoot, tab
from chat_server import Server, serving
from test_loading import tokenizer

import hsd
from hsd.bench.llama_cpp import write

pytestmark = pytest.mark.browser

LONG = 600
PAIR = 'families:\n  pair:\n    models: {tiny: {path: "builtin:tiny"}, small: {path: "builtin:small"}}\n'
NASTY = '<img src=x onerror="document.title=1"> \u202eabc \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f467 a\u200bb'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("data")
    fill(folder, LONG, "a long conversation", figures=False)
    with serving(folder) as server:
        yield server


def test_a_message_is_taken_back_and_brought_back_after_a_reload(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        ask(page, "What can you do?")
        ask(page, "How do I extract a tar.gz archive?")
        page.click("#history [data-action=undo]")
        page.wait_for_selector("#history .back")
        assert page.locator("#history .turn").count() == 2
        assert page.input_value("#message textarea") == "How do I extract a tar.gz archive?"
        shoot(page, "undone-light")
        page.reload()
        page.wait_for_selector("#history .back")
        assert page.locator("#history .turn").count() == 2
        page.click("#history [data-action=redo]")
        page.wait_for_function("document.querySelectorAll('#history .turn').length === 4")
        assert server.stored(
            "SELECT count(*) FROM messages m JOIN conversations c ON c.id = m.conversation_id "
            "WHERE c.title LIKE 'What can you do%'",
        ) == [(4,)]


DROP = """([name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.getElementById("chat").dispatchEvent(drop);
}"""


def test_a_dropped_text_file_becomes_part_of_the_message(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        text = f"# notes\r\n```sh\nls\n```\n{NASTY}\n"
        page.fill("#message textarea", "What is this?")
        page.evaluate(DROP, ["no<b>tes.md", list(text.encode())])
        page.wait_for_function("document.querySelector('#message textarea').value.includes('notes')")
        expected = "What is this?\n\n`no<b>tes.md`:\n````md\n" + text.replace("\r\n", "\n").rstrip("\n") + "\n````\n"
        assert page.input_value("#message textarea") == expected
        page.evaluate(DROP, ["cat.png", [0x89, 0x50, 0xFF, 0xD8]])
        page.wait_for_selector("#file-notice")
        assert "no text" in page.inner_text("#file-notice")
        page.press("#message textarea", "Enter")
        page.wait_for_selector("#history .reply .foot")
        page.reload()
        page.wait_for_selector("#history .you")
        assert page.title() == "hsd chat" and page.locator("#history .you img").count() == 0
        assert server.stored("SELECT text FROM messages WHERE role = 'user' ORDER BY created DESC LIMIT 1") == [
            (expected,)
        ]


def test_presets_set_and_keep_settings(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        open_settings(page)
        page.click("#preset input")
        page.get_by_role("option", name="Short answers").click()
        page.wait_for_function(
            "[...document.querySelectorAll('#settings textarea')].some(t => t.value.includes('plain sentences'))"
        )
        page.get_by_label("number input for Temperature").fill("0.35")
        page.keyboard.press("Tab")
        page.fill("#preset input", "my own")
        page.keyboard.press("Tab")
        page.wait_for_timeout(1000)
        shoot(page, "settings-light")
        page.click("#preset-keep")
        rows: list[Any] = []
        for _ in range(50):  # a busy machine takes its time
            rows = rows or server.stored("SELECT settings FROM presets WHERE name = 'my own'")
            page.wait_for_timeout(0 if rows else 200)
        kept = json.loads(rows[0][0])
        assert kept["temperature"] == 0.35 and "plain sentences" in kept["system"]
        ask(page, "What can you do?")
        page.reload()
        page.wait_for_selector("#history .reply")
        open_settings(page)
        assert float(page.get_by_label("number input for Temperature").input_value()) == 0.35
        page.click("#preset input")
        page.get_by_role("option", name="my own").wait_for()


def test_the_picker_says_what_fits_and_another_family_is_loaded(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, tmp_path = tmp_path_factory.mktemp("person"), tmp_path_factory.mktemp("data")
    models = home / ".lmstudio" / "models" / "A publisher" / "Modell ä"
    models.mkdir(parents=True)
    write(tiny.model(seed=1, layers=1), models / "Modell ä-0.1B-Q8_0.gguf", "F32", tokenizer())
    write(tiny.model(seed=2, layers=8), models / "Modell ä-0.4B-Q8_0.gguf", "F32", tokenizer())
    (models / "mmproj-model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "models.yaml").write_text(PAIR)
    # A server of its own: the other tests are about the family that it starts with.
    with serving(tmp_path) as server, tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        page.click(".families summary")
        page.wait_for_selector(".families .offer", timeout=60_000)
        assert "GB" in page.inner_text(".offer[data-id=builtin]") and "in use" in page.inner_text(
            ".offer[data-id=builtin]"
        )
        assert page.locator(".offer[data-id=qwen3-14b] .room").inner_text()
        assert re.fullmatch(r"· \d+\.\d of \d+ GB", page.inner_text("#head .takes"))
        shoot(page, "families-light")
        page.click(".offer[data-id=pair]")
        page.wait_for_function("document.querySelectorAll('#engine .ladder li').length === 3", timeout=60_000)
        ready(page)
        ask(page, "What can you do?")
        last = server.stored("SELECT stats FROM messages WHERE stats IS NOT NULL ORDER BY created DESC LIMIT 1")
        assert json.loads(last[0][0])["plan"].endswith("small")
        page.reload()
        page.wait_for_selector("#history .reply")
        assert "pair" in page.inner_text(".families summary")
        page.click(".families summary")
        found = page.wait_for_selector(".found .offer", timeout=60_000)
        assert "Modell ä-0.4B-Q8_0 (LM Studio)" in found.inner_text() and "Fits" in found.inner_text()
        page.click(".found > details summary")
        assert "mmproj-model.gguf" in page.inner_text(".found > details")
        shoot(page, "families-found-light")
        found.click()
        page.wait_for_function("document.querySelector('#head').innerText.includes('Modell ä')", timeout=60_000)
        ready(page)
        ask(page, "hello")
        kept = hsd.load_families(tmp_path / "models.yaml")["modell-ä-0.4b"]
        assert kept.target_spec.path == str(models / "Modell ä-0.4B-Q8_0.gguf") and len(kept.models) == 2
        page.click(".families summary")
        page.wait_for_selector('.offer[data-action=family][data-id="modell-ä-0.4b"]', timeout=60_000)
        assert page.locator(".found .offer").count() == 0, "what was chosen is offered once"


def test_scrolling_up_stops_the_page_from_following_and_earlier_messages_come(browser: Any, server: Server) -> None:
    with tab(browser, server.address) as page:
        ready(page)
        page.click(".listing .title:has-text('a long conversation')")
        page.wait_for_selector("#history .earlier")
        count = server.stored(
            "SELECT count(*) FROM messages WHERE conversation_id = "
            "(SELECT id FROM conversations WHERE title = 'a long conversation')",
        )[0][0]
        assert page.inner_text("#history .earlier") == f"Show {count - 100} earlier messages"
        assert page.locator("#history .turn").count() == 100
        page.wait_for_function("innerHeight + scrollY >= document.documentElement.scrollHeight - 90")
        open_settings(page)
        page.get_by_label("number input for Temperature").fill("2")
        page.keyboard.press("Tab")
        page.mouse.move(600, 400)
        page.mouse.wheel(0, -1500)
        page.wait_for_timeout(300)
        place = page.evaluate("scrollY")
        page.fill("#message textarea", "Tell me everything.")
        page.click("#message .submit-button")
        page.wait_for_function(
            "document.querySelector('#history .turn:last-child').innerText.includes('tok/s') || "
            "document.querySelector('#running .prose')"
        )
        page.wait_for_selector("#running .prose", state="detached")
        assert abs(page.evaluate("scrollY") - place) < 400, "the page went to its end"
        page.click("#history .earlier")
        page.wait_for_function("document.querySelectorAll('#history .turn').length > 500")


def test_a_server_that_stood_still_and_a_lost_network_are_gone_on_with(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        ask(page, "What can you do?")
        os.kill(server.process.pid, signal.SIGSTOP)
        page.wait_for_timeout(3000)
        os.kill(server.process.pid, signal.SIGCONT)
        ask(page, "How do I extract a tar.gz archive?")
        page.context.set_offline(True)
        page.wait_for_timeout(1500)
        page.context.set_offline(False)
        ask(page, "How do I find files larger than 100 MB?")
        page.reload()
        page.wait_for_function("document.querySelectorAll('#history .reply').length === 3")


def serious(page: Any) -> list[str]:
    found = Axe().run(
        page, options={"resultTypes": ["violations"], "runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]}
    )
    return [
        f"{v['impact']} {v['id']}: {[n['html'][:120] for n in v['nodes'][:4]]}"
        for v in found.response["violations"]
        if v["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chat_plan_and_settings_have_no_serious_findings_of_axe(browser: Any, server: Server, scheme: str) -> None:
    with tab(browser, f"{server.address}#c=new", color_scheme=scheme) as page:
        ready(page)
        found = {"empty": serious(page)}
        shoot(page, f"empty-{scheme}")
        ask(page, "How do I extract a tar.gz archive?")
        page.click(".meta summary")
        page.click("[data-action=provenance]")
        page.wait_for_selector(".tokens .token")
        found["chat"] = serious(page)
        open_settings(page)
        found["settings"] = serious(page)
        page.get_by_label("number input for Frequency penalty").scroll_into_view_if_needed()
        shoot(page, f"settings-{scheme}")
        page.click("#engine [data-action=plan]")
        page.wait_for_selector("#plan h1")
        found["plan"] = serious(page)
        shoot(page, f"plan-{scheme}")
        assert not any(found.values()), json.dumps(found, indent=1)


SHIFT = """() => { window.shifts = 0; new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
}).observe({ type: "layout-shift" }); }"""


def test_it_is_used_by_keyboard_alone_and_does_not_jump(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        page.keyboard.press("Control+Shift+O")
        page.wait_for_function("document.activeElement.matches('#message textarea')")
        page.evaluate(SHIFT)
        page.keyboard.type("How do I extract a tar.gz archive?")
        page.keyboard.press("Enter")
        page.wait_for_selector("#history .meta summary")
        page.wait_for_timeout(300)
        assert page.evaluate("window.shifts") < 0.1, "the layout shifted"
        page.keyboard.press("Control+k")
        page.wait_for_function("document.activeElement.closest('#search')")
        unnamed = page.evaluate("""[...document.querySelectorAll('button, input, textarea, summary, a')].filter(
          (e) => e.checkVisibility() && !(e.innerText || '').trim() && !e.getAttribute('aria-label') && !e.title
            && !e.labels?.length && !e.placeholder).map((e) => e.outerHTML.slice(0, 120))""")
        assert unnamed == []


def test_it_can_be_installed_and_brings_everything_along(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        link = page.locator("link[rel=manifest]").get_attribute("href")
        manifest = page.evaluate("(href) => fetch(href).then((r) => r.json())", link)
        assert manifest["display"] == "standalone" and manifest["name"] == "hsd chat"
        for icon in manifest["icons"]:
            assert page.evaluate("(src) => fetch(src).then((r) => r.status)", icon["src"]) == 200


VIEWS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(browser: Any, server: Server, name: str) -> None:
    with tab(browser, f"{server.address}#c=new", **VIEWS[name]) as page:
        ready(page)
        shoot(page, f"view-empty-{name}")
        ask(page, "How do I extract a tar.gz archive?")
        ask(page, "What does the speed-up under a reply mean?")
        shoot(page, f"view-chat-{name}")
        page.click(".meta summary >> nth=-1")
        page.click("[data-action=provenance] >> nth=-1")
        page.wait_for_selector(".tokens .token")
        shoot(page, f"view-details-{name}")
        page.click(".families summary")
        page.wait_for_selector(".families .offer", timeout=60_000)
        shoot(page, f"view-families-{name}")
        page.keyboard.press("Escape")
        for side in ("left", "right") if "phone" in name else ():
            page.click(f"#{side} .toggle-button")
            page.wait_for_timeout(500)
            shoot(page, f"view-{side}-{name}")
            page.click(f"#{side} .toggle-button")
            page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
