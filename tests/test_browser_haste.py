"""A person who is quicker than the page, brings the unexpected, or means it no good: over a scripted engine."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_browser import PHONE, ask, bring, open_settings, send, shoot, shooting, tab
from chat_fakes import POEM
from chat_server import Scripted, scripted

pytestmark = pytest.mark.browser

BOX = "#message textarea"
TURNS = """SELECT role, text, state FROM messages WHERE conversation_id =
    (SELECT id FROM conversations WHERE title = ?) ORDER BY created, rowid"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with scripted(tmp_path_factory.mktemp("data"), pause=0.02) as server:
        yield server


@pytest.fixture(scope="module")
def page(browser: Any, server: Scripted) -> Iterator[Any]:
    with tab(browser, f"{server.address}#c=new") as page:
        page.wait_for_selector(".dot.ready")
        yield page


def fresh(page: Any) -> None:
    page.click("#new")
    page.wait_for_selector(".empty")


def titled(page: Any, title: str) -> None:
    page.wait_for_function("title => document.querySelector('#head h1')?.textContent === title", arg=title)


NAMED = """() => new MutationObserver((_, observer) => {
  if (!document.querySelector("#history .reply .foot")) return;
  observer.disconnect();
  window.named = location.hash;
}).observe(document.body, { childList: true, subtree: true })"""


def test_the_address_names_a_new_conversation_as_soon_as_its_reply_is_there(page: Any, server: Scripted) -> None:
    fresh(page)
    assert page.evaluate("location.hash") == "#c=new"
    page.evaluate(NAMED)
    send(page, "come back to it")
    page.wait_for_function("window.named")
    assert re.fullmatch(r"#c=[\w-]{5,}", page.evaluate("window.named"))
    page.reload()
    page.wait_for_selector("#history .you:has-text('come back to it')")


ASK = """(data) => {
  const part = window.gradio_config.components.find((one) => one.props.elem_id === "running");
  const body = JSON.stringify({ data, component_id: part.id, fn_name: "growing", session_hash: "nobody" });
  const headers = { "Content-Type": "application/json" };
  return fetch("gradio_api/component_server/", { method: "POST", headers, body }).then((r) => r.json());
}"""


def test_a_question_for_a_reply_that_makes_no_sense_is_answered(page: Any) -> None:
    for data in ({}, {"reply": None}, {"reply": ["x"], "mark": "first"}):
        assert page.evaluate(ASK, data) == {"over": True}


def test_a_setting_that_was_typed_is_not_replaced_by_an_older_one(page: Any, server: Scripted) -> None:
    fresh(page)
    open_settings(page)
    temperature = page.get_by_label("number input for Temperature")
    page.click("#preset input")
    os.kill(server.process.pid, signal.SIGSTOP)
    page.get_by_role("option", name="Short answers").click()
    page.wait_for_timeout(100)
    temperature.fill("0.35")
    page.keyboard.press("Tab")
    page.wait_for_timeout(100)
    os.kill(server.process.pid, signal.SIGCONT)
    page.wait_for_function(
        "[...document.querySelectorAll('#settings textarea')].some(t => t.value.includes('plain sentences'))"
    )
    page.wait_for_timeout(300)
    assert temperature.input_value() == "0.35"
    send(page, "as it was typed")
    page.wait_for_selector("#history .meta")
    kept = server.stored("SELECT settings FROM conversations WHERE title = 'as it was typed'")
    assert json.loads(kept[0][0])["temperature"] == 0.35 and json.loads(kept[0][0])["max_tokens"] == 256
    # What sets the fields on purpose does so.
    page.click("#preset input")
    page.get_by_role("option", name="Inventive").click()
    page.wait_for_function("document.querySelector('#settings input[type=number]').value === '1'")
    page.click("#new")
    page.click("#settings > button")


def test_the_keyboard_stays_where_it_was_put_a_reply_is_said_and_its_end_is_a_click_away(
    page: Any, server: Scripted
) -> None:
    fresh(page)
    assert page.evaluate("document.activeElement.matches('#message textarea')")
    send(page, "a medium long reply")
    page.wait_for_selector("#running .prose")
    page.focus("#search input, #search textarea")
    page.wait_for_selector("#history .meta")
    page.wait_for_function("document.getElementById('spoken')?.textContent.startsWith('Reply: Use tar')")
    assert "Copy" not in page.inner_text("#spoken")
    assert page.evaluate("!!document.activeElement.closest('#search')")
    page.evaluate("scrollTo(0, 0)")
    page.click("#to-end")
    page.wait_for_function("innerHeight + scrollY >= document.documentElement.scrollHeight - 80")
    page.wait_for_selector("#to-end", state="hidden")


def test_enter_twice_and_two_clicks_send_once(page: Any, server: Scripted) -> None:
    fresh(page)
    page.fill("#message textarea", "send this only once")
    for _ in range(3):
        page.keyboard.press("Enter")
    page.wait_for_selector("#history .meta")
    page.keyboard.press("Enter")
    page.dblclick("[data-action=again]")
    page.wait_for_selector("#history .reply .branches:has-text('2/2')")
    page.wait_for_selector("#history .meta")
    assert [role for role, *_ in server.stored(TURNS, "send this only once")] == ["user", "assistant", "assistant"]
    assert "empty" not in page.inner_text("#notice")


def test_what_is_typed_while_a_message_is_on_its_way_stays(page: Any, server: Scripted) -> None:
    fresh(page)
    os.kill(server.process.pid, signal.SIGSTOP)
    page.fill("#message textarea", "typed in a hurry")
    page.keyboard.press("Enter")
    page.wait_for_timeout(50)
    page.keyboard.type(" and then")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    os.kill(server.process.pid, signal.SIGCONT)
    page.wait_for_selector("#history .meta")
    page.wait_for_function("document.querySelector('#message textarea').value === ' and then'")
    page.wait_for_timeout(700)
    page.reload()
    page.wait_for_selector("#history .meta")
    page.wait_for_function("document.querySelector('#message textarea').value === ' and then'")
    page.fill("#message textarea", "")
    assert [text for role, text, _ in server.stored(TURNS, "typed in a hurry") if role == "user"] == [
        "typed in a hurry"
    ]


def test_a_reply_that_ends_takes_the_focus_from_nobody(page: Any, server: Scripted) -> None:
    fresh(page)
    send(page, "a medium one, unwatched")
    page.wait_for_selector("#running .prose")
    page.click("#search input, #search textarea")
    page.keyboard.type("unwat")
    page.wait_for_selector("#history .meta")
    page.keyboard.type("ched")
    page.wait_for_timeout(300)
    assert page.input_value("#search input, #search textarea") == "unwatched"
    assert page.evaluate("!!document.activeElement.closest('#search')")
    page.fill("#search input, #search textarea", "")


def test_back_and_forward_open_what_was_open(page: Any, server: Scripted) -> None:
    for title in ("first of two", "second of two"):
        fresh(page)
        ask(page, title)
        titled(page, title)
    page.click("#engine [data-action=plan]")
    page.wait_for_selector("#plan h1")
    for title in ("second of two", "first of two"):
        page.go_back()
        page.wait_for_selector("#history .turn")
        if page.inner_text("#head h1") == "New chat":
            page.go_back()
        titled(page, title)
    for _ in range(4):
        page.go_forward()
    page.wait_for_selector("#plan h1")
    page.go_back()
    titled(page, "second of two")
    # Quick clicks on one after the other: the last one counts.
    for title in ("first of two", "second of two", "send this only once", "first of two"):
        page.click(f".listing .title:text-is('{title}')")
    titled(page, "first of two")
    page.wait_for_function("document.querySelector('#history .said')?.innerText === 'first of two'")
    page.wait_for_function("document.querySelector('.listing li.open .title').textContent === 'first of two'")
    # An address of what is not there says so and changes nothing.
    page.evaluate("location.hash = '#c=nothing'")
    page.wait_for_selector("#notice .problem:has-text('not there any more')")


def test_a_running_conversation_is_deleted_and_brought_back(page: Any, server: Scripted) -> None:
    fresh(page)
    send(page, "endless, then deleted")
    page.wait_for_selector("#running .prose")
    page.click(".listing li.open [data-action=delete]")
    page.wait_for_selector(".empty")
    ask(page, "is anybody there?")
    assert server.stored(TURNS, "endless, then deleted")[1][2] == "cancelled"
    fresh(page)
    page.click(".listing li:has-text('is anybody') .title")
    page.wait_for_selector("#history .meta")
    assert "endless" not in page.inner_text(".listing")


def test_a_message_is_edited_while_its_reply_is_written(page: Any, server: Scripted) -> None:
    fresh(page)
    send(page, "endless, then edited")
    page.wait_for_selector("#running .prose")
    page.hover("#history .you")
    page.click("#history .you [data-action=rewrite]")
    page.fill(".rewrite textarea", "a short one, later")
    page.press(".rewrite textarea", "Enter")
    page.wait_for_selector("#notice .problem:has-text('still being written')")
    page.click("#message .stop-button")
    page.wait_for_selector("#history .ending")
    assert page.input_value(".rewrite textarea") == "a short one, later"
    page.press(".rewrite textarea", "Enter")
    page.wait_for_selector("#history .you .branches:has-text('2/2')")
    page.wait_for_selector("#history .meta")
    texts = [text for role, text, _ in server.stored(TURNS, "endless, then edited") if role == "user"]
    assert texts == ["endless, then edited", "a short one, later"] and page.inner_text("#notice") == ""


def test_a_page_that_is_reloaded_again_and_again_loses_nothing(page: Any, server: Scripted) -> None:
    fresh(page)
    send(page, "a long one, reloaded")
    page.wait_for_selector("#running .prose")
    for wait in (0, 60, 300):
        page.wait_for_timeout(wait)
        page.reload()
    page.wait_for_selector("#history .meta", timeout=60_000)
    (asked, (_, text, state)) = server.stored(TURNS, "a long one, reloaded")
    assert asked[1] == "a long one, reloaded" and state == "done" and text.count("That is all there is to it") == 7
    assert page.locator("#history .turn").count() == 2 and page.input_value("#message textarea") == ""


def test_what_was_unfolded_stays_so_when_more_is_said(page: Any, server: Scripted) -> None:
    fresh(page)
    ask(page, "details, please")
    page.click(".meta > summary")
    page.click("[data-action=provenance]")
    page.wait_for_selector(".tokens .token")
    ask(page, "and more")
    assert page.locator(".meta[open]").count() == 1 and page.locator(".tokens").count() == 1
    assert page.inner_text("[data-action=provenance] >> nth=0").startswith("Hide")
    page.click("[data-action=provenance] >> nth=0")
    page.click(".meta[open] > summary")
    ask(page, "and more still")
    assert page.locator(".meta[open]").count() == 0 == page.locator(".tokens").count()


LONG = "W" * 300 + "\u202e\u200b" + "\U0001f469\u200d\U0001f467" * 40


def test_long_words_and_small_windows_widen_nothing(browser: Any, server: Scripted) -> None:
    with tab(browser, f"{server.address}#c=new", viewport={"width": 320, "height": 400}) as page:
        page.wait_for_selector(".dot.ready")
        ask(page, LONG)
        page.click(".meta > summary")
        page.click("[data-action=provenance]")
        page.wait_for_selector(".tokens .token")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # The box can be typed into and Send be pressed, however small the window is.
        page.fill("#message textarea", "line\n" * 40)
        assert page.evaluate(
            "(() => { const b = document.querySelector('#message .submit-button').getBoundingClientRect();"
            " return b.bottom <= innerHeight && b.right <= innerWidth && b.top >= 0; })()"
        )
        page.click("#left .toggle-button")
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


KEY = """([where, key, how]) => {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...how });
  document.querySelector(where).dispatchEvent(event);
}"""
IN_A_WORD = ({"isComposing": True}, {"keyCode": 229})


def test_keys_of_an_input_method_are_no_keys_of_the_page(page: Any, server: Scripted) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    fresh(page)
    page.fill(BOX, "")
    page.focus(BOX)
    method = page.context.new_cdp_session(page)
    method.send("Input.imeSetComposition", {"text": "にほ", "selectionStart": 2, "selectionEnd": 2})
    method.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": "Enter", "windowsVirtualKeyCode": 229})
    for how in IN_A_WORD:
        page.evaluate(KEY, [BOX, "Enter", how])
    method.send("Input.insertText", {"text": "日本 slowly"})
    page.press(BOX, "Enter")
    page.wait_for_selector("#running .prose")
    page.wait_for_function("document.querySelector('#message textarea').value === ''")
    assert page.inner_text("#history .said") == "日本 slowly"
    assert POEM.startswith(copied(page, "#running [data-action=copy]").removesuffix(" "))
    for how in IN_A_WORD:
        page.evaluate(KEY, [BOX, "Escape", how])
    page.wait_for_timeout(200)
    assert page.locator("#running [data-reply]").count() == 1 and "Stopping" not in page.inner_text("#running")
    page.keyboard.press("Escape")
    page.wait_for_selector("#history .ending")
    # A title, and a message that is written anew.
    page.hover(".listing li.open")
    page.click(".listing li.open [data-action=rename]")
    page.fill(".listing .rename", "題")
    page.hover("#history .you")
    page.evaluate("document.querySelector('#history .you [data-action=rewrite]').click()")
    for how in IN_A_WORD:
        for place, key in (
            (".listing .rename", "Enter"),
            (".rewrite textarea", "Enter"),
            (".rewrite textarea", "Escape"),
        ):
            if page.locator(place).count():
                page.evaluate(KEY, [place, key, how])
    page.wait_for_timeout(200)
    assert page.locator(".rewrite textarea").count() == 1 and page.locator("#history .branches").count() == 0
    page.press(".rewrite textarea", "Escape")
    assert [text for role, text, _ in server.stored(TURNS, "題") if role == "user"] == ["日本 slowly"]


def test_a_title_that_is_being_typed_outlives_news(page: Any, server: Scripted) -> None:
    fresh(page)
    page.fill(BOX, "")
    ask(page, "a title to be typed")
    page.hover(".listing li.open")
    page.click(".listing li.open [data-action=rename]")
    page.keyboard.type("half a ti")
    other = page.context.new_page()
    other.goto(f"{server.address}#c=new")
    other.wait_for_selector(".dot.ready")
    ask(other, "news from another tab")
    # By now this tab would have fetched its list.
    other.wait_for_timeout(1200)
    other.close()
    page.keyboard.type("tle")
    page.keyboard.press("Enter")
    page.wait_for_selector(".listing li.open .title:text-is('half a title')")
    page.wait_for_selector(".listing li:has-text('news from another tab')")


COPY = """async (kinds) => {
  const blobs = Object.entries(kinds).map(([kind, text]) => [kind, new Blob([text], { type: kind })]);
  if (!("image/png" in kinds)) return navigator.clipboard.write([new ClipboardItem(Object.fromEntries(blobs))]);
  const canvas = new OffscreenCanvas(2, 2);
  canvas.getContext("2d").fillRect(0, 0, 2, 2);
  const picture = await canvas.convertToBlob({ type: "image/png" });
  const rest = blobs.filter(([kind]) => kind !== "image/png");
  await navigator.clipboard.write([new ClipboardItem({ ...Object.fromEntries(rest), "image/png": picture })]);
}"""
PICTURE = {"image/png": ""}
CELLS = "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>"


def test_text_on_the_clipboard_is_pasted_though_a_picture_lies_beside_it(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for kinds, expected in (
        ({"text/plain": "a\tb\n1\t2"} | PICTURE, "see a\tb\n1\t2"),
        ({"text/plain": "a\tb", "text/html": CELLS} | PICTURE, "see a\tb"),
        ({"text/html": CELLS} | PICTURE, "see a\tb\n1\t2"),
    ):
        fresh(page)
        page.fill(BOX, "see ")
        page.evaluate(COPY, kinds)
        page.press(BOX, "Control+v")
        page.wait_for_function("document.querySelector('#message textarea').value.length > 4")
        assert page.input_value(BOX) == expected and page.locator("#file-notice").count() == 0
    page.evaluate(COPY, PICTURE)
    page.press(BOX, "Control+v")
    page.wait_for_selector("#file-notice:has-text('a picture')")
    assert page.input_value(BOX) == "see a\tb\n1\t2"


GIVE = """([kind, where, texts, files]) => {
  const data = new DataTransfer();
  const type = (name) => ({ type: name.endsWith(".png") ? "image/png" : "" });
  for (const [name, text] of files) data.items.add(new File([text], name, type(name)));
  for (const [type, text] of Object.entries(texts)) data.setData(type, text);
  const options = { bubbles: true, cancelable: true };
  const event = kind === "drop" ? new DragEvent("drop", { ...options, dataTransfer: data })
    : new ClipboardEvent("paste", { ...options, clipboardData: data });
  document.querySelector(where).dispatchEvent(event);
}"""


def test_files_are_meant_where_the_text_beside_them_is_their_names(page: Any) -> None:
    page.evaluate("document.getElementById('file-notice')?.remove()")
    notes = [["my notes.md", "be kind"]]
    for kind, texts, files, expected in (
        ("paste", {"text/plain": "/home/me/my notes.md"}, notes, "be kind"),
        ("paste", {"text/plain": "my notes.md"}, notes, "be kind"),
        (
            "drop",
            {"text/uri-list": "file:///home/me/my%20notes.md", "text/plain": "file:///home/me/my%20notes.md"},
            notes,
            "be kind",
        ),
        ("drop", {"text/plain": "two words", "text/html": "<b>two</b> words"}, [["a.png", "\0"]], "two words"),
        ("drop", {"text/html": "<p>two</p><p>words</p><script>x</script>"}, [["a.png", "\0"]], "two\nwords"),
    ):
        fresh(page)
        page.fill(BOX, "")
        page.evaluate(GIVE, [kind, BOX if kind == "paste" else "#chat", texts, files])
        page.wait_for_function("text => document.querySelector('#message textarea').value.includes(text)", arg=expected)
        assert ("`my notes.md`:\n```md" in page.input_value(BOX)) is (files is notes)
        assert page.locator("#file-notice").count() == 0


def copied(page: Any, where: str) -> str:
    page.evaluate("navigator.clipboard.writeText('nothing')")
    page.hover(where)
    page.click(where)
    page.wait_for_function("where => document.querySelector(where).textContent === 'Copied'", arg=where)
    return page.evaluate("navigator.clipboard.readText()")


def test_copy_gives_the_markdown_as_it_is_stored(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    fresh(page)
    page.fill(BOX, "")
    ask(page, "**mine** <b>")
    assert copied(page, "#history .reply [data-action=copy]") == POEM
    assert copied(page, "#history .you [data-action=copy-own]") == "**mine** <b>"
    assert copied(page, "[data-action=copy-code]") == "tar -xzf archive.tar.gz   # <b>not bold</b>\n"
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#history .reply .prose'))")
    page.keyboard.press("Control+c")
    text = page.evaluate("navigator.clipboard.readText()")
    assert "tar -xzf" in text and "Copy" not in text and "Copied" not in text
    ask(page, "a formula")
    formula = copied(page, "#history .reply:last-of-type [data-action=copy]")
    assert formula.startswith("The equation $a x^2") and "\n$$\nx_{1,2} = \\frac" in formula and "think" not in formula
    page.evaluate("getSelection().removeAllRanges()")


def test_on_a_phone_enter_is_a_new_line_and_the_button_sends(browser: Any, page: Any, server: Scripted) -> None:
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    with tab(browser, f"{server.address}#c=new", **phone) as small:
        small.wait_for_selector(".dot.ready")
        small.focus(BOX)
        small.keyboard.type("one")
        small.keyboard.press("Enter")
        small.keyboard.type("two")
        assert small.input_value(BOX) == "one\ntwo"
        assert small.evaluate("document.querySelector('#message textarea').enterKeyHint") == "enter"
        small.tap("#message .submit-button")
        small.wait_for_selector("#history .meta")
        assert small.inner_text("#history .said") == "one\ntwo"
        small.tap("#history .you [data-action=rewrite]")
        small.press(".rewrite textarea", "Enter")
        small.keyboard.type("three")
        assert small.input_value(".rewrite textarea") == "one\ntwo\nthree"
        small.keyboard.press("Control+Enter")
        small.wait_for_selector("#history .branches:has-text('2/2')")
    fresh(page)
    page.fill(BOX, "")
    page.focus(BOX)
    for key in ("a", "Shift+Enter", "b", "Control+Enter"):
        page.keyboard.press(key)
    page.wait_for_function("document.querySelector('#history .said')?.textContent === 'a\\nb'")


def test_a_message_that_is_sent_while_a_reply_is_written_waits_its_turn(page: Any, server: Scripted) -> None:
    fresh(page)
    page.fill(BOX, "")
    send(page, "slowly and endless")
    page.wait_for_selector("#running .prose")
    for text in ("the second", "taken back", "the third"):
        send(page, text)
        page.wait_for_selector(f"#waiting .said:text-is('{text}')")
        page.wait_for_function("document.querySelector('#message textarea').value === ''")
    assert page.locator("#history .reply").count() == 0 and page.inner_text("#notice") == ""
    assert page.is_visible("#message .submit-button") and page.is_visible("#message .stop-button")
    pictures(page)
    page.reload()
    page.wait_for_selector("#waiting .you >> nth=2")
    page.click("#waiting .you:has-text('taken back') [data-action=take-back]")
    page.wait_for_function("document.querySelectorAll('#waiting .you').length === 2")
    page.wait_for_function("document.querySelector('#message textarea').value === 'taken back'")
    page.fill(BOX, "")
    page.hover("#history .you")
    page.click("#history .you [data-action=rewrite]")
    page.press(".rewrite textarea", "Enter")
    page.wait_for_selector("#notice .problem:has-text('still being written')")
    page.press(".rewrite textarea", "Escape")
    page.click("#message .stop-button")
    page.wait_for_function("document.querySelectorAll('#history .reply .meta').length === 3")
    page.wait_for_selector("#notice .problem", state="detached")
    assert page.locator("#waiting .you").count() == 0 == page.locator("#message .stop-button").count()
    assert page.locator("#history .said").all_inner_texts() == ["slowly and endless", "the second", "the third"]
    states = {text: state for _, text, state in server.stored(TURNS, "slowly and endless")}
    assert states.keys() >= {"slowly and endless", "the second", "taken back", "the third"} and POEM in states


def pictures(page: Any) -> None:
    """How messages that wait look, if that is wanted."""
    if not shooting():
        return
    shoot(page, "waiting-light")
    size = page.viewport_size
    page.evaluate("document.body.classList.add('dark')")
    shoot(page, "waiting-dark")
    page.set_viewport_size(PHONE)
    page.evaluate("document.querySelectorAll('.sidebar.open .toggle-button').forEach(button => button.click())")
    shoot(page, "waiting-phone-dark")
    page.evaluate("document.body.classList.remove('dark')")
    shoot(page, "waiting-phone")
    page.set_viewport_size(size)
    page.evaluate("document.querySelectorAll('.sidebar:not(.open) .toggle-button').forEach(button => button.click())")


WIDE = [
    r"$\rule{99999em}{99999em}$",
    r"$\rule[-99999em]{1em}{199999em}$",
    r"$\raisebox{-99999em}{x}$ $a\kern99999em b\hspace{99999em}c$",
    r"$\overbrace{" + "x" * 400 + "}$ $" + "x+" * 450 + "x$",
    r"$$\begin{matrix}" + r"a\\" * 300 + r"\end{matrix}$$",
    "|" + "a|" * 200 + "\n|" + "-|" * 200 + "\n|" + "W" * 3000 + "|" + "b|" * 199,
    "\u0e47" * 500 + " Z" + "\u0301" * 5000,
    ">" * 500 + " quoted",
    "".join(" " * 2 * depth + "- a\n" for depth in range(100)),
    "# " + "W" * 2000 + "\n\n![x](data:image/png;base64," + "A" * 2000 + ")",
]
SIZES = """() => [document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight,
  Math.max(...[...document.querySelectorAll(".math")].map((formula) => formula.offsetHeight)) / innerHeight]"""


def test_nothing_in_a_reply_makes_the_page_wider_or_a_million_high(page: Any, tmp_path: Path) -> None:
    fresh(page)
    text = "\n\n".join(WIDE)
    messages = [
        {"id": "a", "parent_id": None, "role": "user", "text": text, "state": "done"},
        {"id": "b", "parent_id": "a", "role": "assistant", "text": text, "state": "done"},
    ]
    file = tmp_path / "wide.json"
    title = "\u202e" + "T" * 150
    file.write_text(json.dumps({"format": "hsd-chat", "version": 1, "title": title, "messages": messages}))
    bring(page, file)
    page.wait_for_function("document.querySelectorAll('#history .reply .math[data-drawn]').length >= 7")
    wider, height, formula = page.evaluate(SIZES)
    assert wider <= 0 and height < 20_000 and formula < 0.9
    fresh(page)


def test_an_open_page_holds_no_connection(page: Any) -> None:
    fresh(page)
    waiting: dict[Any, float] = {}
    page.on("request", lambda request: waiting.update({request: time.monotonic()}))
    for ended in ("requestfinished", "requestfailed"):
        page.on(ended, lambda request: waiting.pop(request, None))
    page.wait_for_timeout(1500)
    # What asks is answered at once: a browser has six connections for all tabs of a server.
    assert not [request.url for request, since in waiting.items() if time.monotonic() - since > 1]
    assert page.evaluate("performance.getEntriesByType('resource').every(e => !e.name.includes('heartbeat'))")
