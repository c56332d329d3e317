"""The page over a scripted engine: what a small real model would not say on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_browser import PHONE, bring, exported, open_settings, seen, send, shoot, shooting, tab, watch_running
from chat_server import scripted

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scripted(tmp_path_factory.mktemp("data"), pause=0.04) as server:
        yield server.address


def test_markdown_renders_code_copies_and_nothing_is_executed(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new", permissions=["clipboard-read", "clipboard-write"]) as page:
        watch_running(page)
        send(page, "<img src=x onerror=\"document.title='broken'\"> ${document.title='broken'} {{this}}")
        page.wait_for_selector(".meta summary")
        # In a second that is at most ten times, and fewer where others use the processor.
        assert len(seen(page)) > 1
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
        # The usual 512 tokens are over in 7 s, which a busy machine needs to open a page or two.
        open_settings(page)
        page.locator("#settings").get_by_label("Longest reply").fill("2000")
        page.keyboard.press("Tab")
        send(page, "an endless one")
        page.wait_for_selector("#running .prose")
        opened = page.url
        page.reload()
        page.wait_for_selector("#running .prose")
        with tab(browser, opened) as second:
            second.wait_for_selector("#running .prose")
            second.click("#message .stop-button")
        page.wait_for_selector("#history .ending")
        assert page.inner_text("#history .ending") == "Stopped. Continue"
        page.click("[data-action=again]")
        page.wait_for_selector("#running .prose")
        page.press("#message textarea", "Escape")
        page.wait_for_selector("#history .ending")
        assert page.locator("#history .you").count() == 1


def test_a_stopped_reply_goes_on_and_messages_are_rewritten_as_branches(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        send(page, "a long one")
        page.wait_for_selector("#running .prose")
        page.press("#message textarea", "Escape")
        page.wait_for_selector("#history .ending")
        half = page.inner_text("#history .reply .prose")
        page.click("[data-action=resume]")
        page.wait_for_selector("#history .ending", state="detached")
        page.wait_for_selector("#history .meta summary")
        whole = page.inner_text("#history .reply .prose")
        assert len(whole) > len(half) and page.locator("#history .reply").count() == 1
        page.hover("#history .you")
        page.click("#history .you [data-action=rewrite]")
        assert page.input_value(".rewrite textarea") == "a long one"
        shoot(page, "rewrite")
        page.click("#settings button")
        page.get_by_label("Seed").fill("many")
        page.fill(".rewrite textarea", "a short one <b>")
        page.press(".rewrite textarea", "Enter")
        page.wait_for_selector("#notice .problem")
        assert page.input_value(".rewrite textarea") == "a short one <b>"
        page.get_by_label("Seed").fill("")
        page.press(".rewrite textarea", "Enter")
        page.wait_for_function("document.querySelector('#history .branches')?.innerText.includes('2/2')")
        page.wait_for_selector("#history .meta summary")
        assert page.inner_text("#history .said") == "a short one <b>"
        shoot(page, "branches")
        page.reload()
        page.wait_for_selector("#history .branches")
        page.click("#history .you [data-action=previous]")
        page.wait_for_function("document.querySelector('#history .said').innerText === 'a long one'")
        assert page.inner_text("#history .reply .prose") == whole and "1/2" in page.inner_text("#history .you")


def test_the_engine_is_unloaded_and_the_next_message_loads_it(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        page.wait_for_selector(".dot.ready")
        page.click("#engine [data-action=unload]")
        page.wait_for_selector(".dot.unloaded")
        shoot(page, "unloaded")
        send(page, "hello again")
        page.wait_for_selector("#history .meta summary")
        assert page.locator(".dot.ready").count() == 1


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
        seed = page.get_by_label("Seed")
        seed.fill("many")
        # The fields are made when the panel is first opened, and take their first value a moment after they show.
        page.wait_for_timeout(500)
        for _ in range(3):
            seed.fill("many")
            page.keyboard.press("Tab")
            page.fill("#message textarea", "keep this")
            page.press("#message textarea", "Enter")
            page.wait_for_timeout(3000)
            if page.query_selector("#notice .problem"):
                break
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


def test_a_conversation_is_pinned_exported_and_imported(browser: Any, address: str, tmp_path: Path) -> None:
    with tab(browser, f"{address}#c=new") as page:
        send(page, "a conversation about <i>otters</i>")
        page.wait_for_selector(".meta summary")
        page.click(".listing li.open [data-action=pin]")
        page.wait_for_selector(".listing h3:has-text('Pinned') + ul li.open")
        page.click(".menu summary")
        shoot(page, "menu")
        page.keyboard.press("Escape")
        assert page.locator(".menu[open]").count() == 0
        files = exported(page, tmp_path)
        assert "## You\n\na conversation about <i>otters</i>" in files["markdown"].read_text()
        opened = page.url
        bring(page, files["json"])
        page.wait_for_function(f"location.href !== '{opened}'")
        page.wait_for_selector("#history .reply .prose")
        assert "<i>otters</i>" in page.inner_text("#history .you")
        assert page.locator(".listing li", has_text="otters").count() == 2
        foreign = tmp_path / "foreign.json"
        foreign.write_text('{"mapping": {}, "title": "<img src=x>"}')
        bring(page, foreign)
        page.wait_for_selector("#notice .problem")
        assert "no conversation that was exported here" in page.inner_text("#notice")
        page.reload()
        page.wait_for_selector(".listing h3:has-text('Pinned')")


SLOW = """(() => {
  const later = window.setTimeout;
  const when = (call) => later(() => document.querySelector("#history .turn") ? call() : when(call), 20);
  window.setTimeout = (call, time, ...more) => time === 100 ? when(call) : later(call, time, ...more);
})()"""


def test_formulas_are_drawn_and_thinking_is_folded(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new", permissions=["clipboard-read", "clipboard-write"]) as page:
        send(page, "a formula")
        page.wait_for_selector(".meta summary")
        page.wait_for_function("document.querySelectorAll('#history math').length === 3")
        assert page.locator("#history .math.display math mfrac").count() == 1
        assert "costs $5 or $10" in page.inner_text("#history .prose")
        assert r"\broken{" in page.inner_text("#history .prose") and page.locator("#history .prose a").count() == 0
        assert not page.locator("#history .think > div").is_visible()
        page.click("#history .think summary")
        assert page.inner_text("#history .think > div") == "The roots <b>of</b> a quadratic."
        shoot(page, "formulas")
        # Where a page is slow, the conversation is there before our script has found what to watch.
        page.add_init_script(SLOW)
        page.reload()
        page.wait_for_function("document.querySelectorAll('#history math').length === 3")
        page.click("#history .reply [data-action=copy]")
        page.wait_for_function("document.querySelector('#history .reply [data-action=copy]').textContent === 'Copied'")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "equation $a x^2 + b x + c = 0$ has" in copied and "hm" not in copied and "roots <b>" not in copied
        assert page.locator("#history math").count() == 3
        page.reload()
        page.wait_for_selector("#history math")
        assert "tokens" in page.inner_text("#engine h3:has-text('Context') + .share")


def test_unsent_text_stays_with_its_conversation_over_a_reload(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        page.wait_for_selector(".empty")
        send(page, "a conversation about puffins")
        page.wait_for_selector(".listing li.open:has-text('puffins')")
        page.fill("#message textarea", "unsent <b>")
        page.wait_for_selector(".meta summary")
        page.reload()
        value(page, "unsent <b>")
        page.click("#new")
        value(page, "")
        page.fill("#message textarea", "for a new one")
        page.click(".listing .title:has-text('puffins')")
        value(page, "unsent <b>")
        page.click("#new")
        value(page, "for a new one")
        page.press("#message textarea", "Enter")
        page.wait_for_selector(".listing li.open:has-text('for a new one')")
        page.wait_for_selector(".meta summary")
        page.reload()
        page.wait_for_selector(".meta summary")
        page.wait_for_timeout(700)
        value(page, "")
        assert page.evaluate("Object.entries(localStorage).filter(([k]) => k.startsWith('hsd-')).length") == 1


def value(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#message textarea')?.value === text", arg=text)


def test_a_temporary_chat_is_not_listed_and_is_forgotten_when_left(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        page.click("[data-action=temporary]")
        page.wait_for_selector(".empty.temporary")
        page.fill("#message textarea", "a secret draft")
        page.wait_for_timeout(700)
        shoot(page, "temporary")
        send(page, "a secret about narwhals")
        page.wait_for_selector(".meta summary")
        assert "Temporary chat" in page.inner_text("#head h1") and "not kept" in page.inner_text("#head")
        assert page.locator(".listing li", has_text="narwhals").count() == 0
        page.fill("#message textarea", "more secrets")
        opened = page.url
        page.reload()
        page.wait_for_selector(".meta summary")
        assert "narwhals" in page.inner_text("#history .you") and page.url == opened
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
        page.click("#new")
        page.wait_for_selector(".empty:not(.temporary)")
        page.goto(f"{address}#c=new")
        page.goto(opened)
        page.reload()
        page.wait_for_selector(".listing")
        page.wait_for_timeout(500)
        assert "narwhals" not in page.inner_text("body")


def test_visitors_with_one_password_see_their_own_conversations_alone(browser: Any, tmp_path: Path) -> None:
    with (
        scripted(tmp_path, pause=0.15, password="sesame") as server,
        tab(browser, server.address, "sesame") as ann,
        tab(browser, server.address, "sesame") as bob,
    ):
        ann.wait_for_selector(".dot.ready")
        shoot(ann, "guest-light")
        assert "whoever runs it can read what you write" in ann.inner_text("#head .shared")
        assert "kept on the machine that runs this" in ann.inner_text(".empty")
        assert ann.locator("#own, #preset-buttons, [data-action=unload], .families").count() == 0
        send(ann, "an endless secret")
        ann.wait_for_selector("#running .prose")
        send(bob, "my turn")
        bob.wait_for_selector("#running .line:has-text('Waiting, 1 reply before this one')")
        assert bob.locator(".listing li").count() == 1 and "secret" not in bob.inner_text("body")
        opened = ann.url
        bob.press("#message textarea", "Escape")
        bob.wait_for_selector("#history .ending")
        # His stop was not hers.
        assert ann.locator("#running .prose").count() and ann.locator("#history .ending").count() == 0
        ann.press("#message textarea", "Escape")
        ann.wait_for_selector("#history .ending")
        bob.goto("about:blank")
        bob.goto(opened)
        bob.wait_for_selector(".listing li:has-text('my turn')")
        assert "secret" not in bob.inner_text("body")
        ann.reload()
        ann.wait_for_selector("#history .you:has-text('an endless secret')")
        ann.click(".meta summary >> nth=-1")
        ann.click("[data-action=provenance] >> nth=-1")
        ann.wait_for_selector(".tokens .token")
        owners = server.stored("SELECT title, visitor FROM conversations ORDER BY created")
        assert [title for title, _ in owners] == ["an endless secret", "my turn"]
        assert len({who for _, who in owners}) == 2
        # A session ends in another tab, or when the program is started anew: the page asks for the password at once.
        opened = ann.url
        for end in (
            lambda: ann.context.request.get(f"{server.address}logout"),
            lambda: (server.kill(), server.start()),
        ):
            ann.fill("#message textarea", "half written")
            ann.wait_for_function("Object.values(localStorage).includes('half written')")
            end()
            ann.fill("#password", "sesame")
            ann.press("#password", "Enter")
            ann.wait_for_selector("#history .you:has-text('an endless secret')")
            ann.wait_for_function("document.querySelector('#message textarea').value === 'half written'")
            assert ann.url == opened


VIEWS = {
    "phone": {"viewport": PHONE},
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark"},
}


def test_no_view_is_wider_than_its_window(browser: Any, address: str) -> None:
    with tab(browser, f"{address}#c=new") as page:
        send(page, "something to look at")
        page.wait_for_selector(".meta summary")
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
