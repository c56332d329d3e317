"""What a person does with conversations, with the real engine: each is looked up in the database after a reload."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import chat_thinking
import pytest
from chat_browser import ask, bring, exported, open_settings, ready, send, shoot, tab
from chat_server import Server, serving

import hsd

pytestmark = pytest.mark.browser

QUESTION = "How do I extract a tar.gz archive?"
OTHER = "How do I find files larger than 100 MB?"
TITLES = "SELECT title, pinned, deleted IS NULL FROM conversations WHERE id = ?"
TREE = "SELECT id, parent_id, role, text FROM messages WHERE conversation_id = ? ORDER BY created, rowid"
LEAF = "SELECT leaf_id FROM conversations WHERE id = ?"
SETTINGS = "SELECT settings FROM conversations WHERE id = ?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("data")
    chat_thinking.write(folder)
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def page(browser: Any, server: Server) -> Iterator[Any]:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        yield page


def fresh(page: Any, server: Server) -> None:
    """A new chat on a page that was just opened, whatever the test before left."""
    page.goto("about:blank")
    page.goto(f"{server.address}#c=new")
    page.wait_for_selector(".empty")
    ready(page)


def reload(page: Any) -> None:
    page.reload()
    page.wait_for_selector("#history .turn")
    ready(page)


def opened(page: Any) -> str:
    """Id of the conversation on show."""
    page.wait_for_function("/#c=(?!new)[\\w-]+/.test(location.hash)")
    return page.evaluate("location.hash.match(/#c=([\\w-]+)/)[1]")


def shown(page: Any) -> list[str]:
    """What was asked and answered, as the page shows it."""
    return page.locator("#history .said, #history .prose").all_inner_texts()


def turns(page: Any, number: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#history .turn').length === {number}")


def test_an_example_is_sent_and_another_reply_is_a_branch(page: Any, server: Server) -> None:
    fresh(page, server)
    page.click(".empty [data-action=example] >> nth=0")
    page.wait_for_function("document.querySelector('#message textarea').value.length > 5")
    example = page.input_value("#message textarea")
    assert example == hsd.load_families()["builtin"].examples[0]
    page.press("#message textarea", "Enter")
    page.wait_for_selector("#history .reply .foot")
    page.click("#history [data-action=again]")
    page.wait_for_selector("#history .reply .branches:has-text('2/2')")
    conversation = opened(page)
    page.click("#history .reply [data-action=previous]")
    page.wait_for_selector("#history .reply .branches:has-text('1/2')")
    reload(page)
    assert "1/2" in page.inner_text("#history .reply .branches")
    rows = server.stored(TREE, conversation)
    assert [row[2] for row in rows] == ["user", "assistant", "assistant"] and rows[0][3] == example
    assert rows[1][1] == rows[2][1] == rows[0][0] and server.stored(LEAF, conversation) == [(rows[1][0],)]


def test_a_message_sent_again_with_another_text_is_a_branch_that_copies_nothing(page: Any, server: Server) -> None:
    fresh(page, server)
    ask(page, QUESTION, "Thanks!")
    before = shown(page)
    page.locator("#history .you").first.hover()
    page.click("#history .you [data-action=rewrite] >> nth=0")
    page.fill(".rewrite textarea", OTHER)
    page.press(".rewrite textarea", "Enter")
    page.wait_for_selector("#history .you .branches:has-text('2/2')")
    page.wait_for_selector("#history .reply .foot")
    conversation = opened(page)
    reload(page)
    assert shown(page)[0] == OTHER and page.locator("#history .turn").count() == 2
    rows = server.stored(TREE, conversation)
    assert [row[3] for row in rows if row[2] == "user"] == [QUESTION, "Thanks!", OTHER]
    assert rows[4][1] is None and server.stored(LEAF, conversation) == [(rows[5][0],)]
    page.click("#history .you [data-action=previous]")
    turns(page, 4)
    reload(page)
    assert shown(page) == before and server.stored(LEAF, conversation) == [(rows[3][0],)]


FORMULA = """<think>
The roots <b>of</b> it.
</think>

The roots of $a x^2 + b x + c$ are

$$
x = \\frac{-b \\pm \\sqrt{b^2 - 4 a c}}{2 a}
$$

<img src=x onerror="document.title=1">"""


def test_a_conversation_is_exported_and_imported_with_branches_formulas_and_thinking(
    page: Any, server: Server, tmp_path: Path
) -> None:
    fresh(page, server)
    ask(page, QUESTION)
    page.click("#history [data-action=again]")
    page.wait_for_selector("#history .reply .branches:has-text('2/2')")
    conversation, said = opened(page), shown(page)
    files = exported(page, tmp_path)
    assert f"## You\n\n{QUESTION}\n\n## Reply\n\n" in files["markdown"].read_text()
    data = json.loads(files["json"].read_text())
    assert [m["text"] for m in data["messages"]] == [row[3] for row in server.stored(TREE, conversation)]
    # A reply that this small model would not give.
    data["messages"][1]["text"], data["leaf_id"], data["title"] = FORMULA, data["messages"][1]["id"], "<i>brought</i>"
    files["json"].write_text(json.dumps(data))
    bring(page, files["json"])
    page.wait_for_function("document.querySelector('#head h1').textContent === '<i>brought</i>'")
    # The heading and the address come by different events; a reload opens what the address says.
    page.wait_for_function("id => !location.hash.includes(id)", arg=conversation)
    brought = opened(page)
    reload(page)
    page.wait_for_selector("#history math mfrac")
    assert page.locator("#history math").count() == 2 and page.title() == "hsd chat"
    assert page.locator("#history img, #history i, #head i, .listing i").count() == 0
    assert not page.locator("#history .think > div").is_visible()
    page.click("#history .think summary")
    assert page.inner_text("#history .think > div") == "The roots <b>of</b> it."
    shoot(page, "imported-light")
    assert brought != conversation and "1/2" in page.inner_text("#history .reply .branches")
    expected = [QUESTION, FORMULA, data["messages"][2]["text"]]
    assert [row[3] for row in server.stored(TREE, brought)] == expected
    # Figures that were not measured here are not taken.
    assert server.stored("SELECT count(stats) FROM messages WHERE conversation_id = ?", brought) == [(0,)]
    page.click(f".listing li[data-id='{conversation}'] .title")
    page.wait_for_selector("#history .reply .meta")
    assert shown(page) == said


def test_a_temporary_chat_leaves_no_trace(page: Any, server: Server) -> None:
    fresh(page, server)
    before = server.stored("SELECT count(*) FROM messages")
    page.click("[data-action=temporary]")
    page.wait_for_selector(".empty.temporary")
    ask(page, "Narwhals are a secret.")
    reload(page)
    assert "Narwhals" in page.inner_text("#history .you") and "not kept" in page.inner_text("#head")
    ask(page, QUESTION)
    address = page.url
    assert page.locator(".listing li", has_text="Narwhals").count() == 0
    assert server.stored("SELECT count(*) FROM messages") == before
    page.click("#new")
    page.wait_for_selector(".empty:not(.temporary)")
    page.goto("about:blank")
    page.goto(address)
    ready(page)
    page.wait_for_timeout(500)
    assert "Narwhals" not in page.inner_text("body")
    assert "Narwhals" not in page.evaluate("JSON.stringify(localStorage)")
    # Journals included: what was never written cannot be found by looking at the bytes.
    assert not [f.name for f in server.folder.glob("*.db*") if b"Narwhals" in f.read_bytes()]


SET = {"Temperature": "0.35", "Top-p": "0.9", "Min-p": "0.05", "Repetition penalty": "1.1"}
SET |= {"Presence penalty": "0.5", "Frequency penalty": "-0.5"}
TYPED = {"Top-k": "40", "Longest reply": "24", "Seed": "7", "System prompt": "Be <b>brief</b>."}


def values(page: Any) -> dict[str, str]:
    sliders = {name: page.get_by_label(f"number input for {name}").input_value() for name in SET}
    return sliders | {name: page.get_by_label(name).input_value() for name in TYPED}


def test_every_setting_stays_with_its_conversation(page: Any, server: Server) -> None:
    fresh(page, server)
    open_settings(page)
    default = values(page)
    for name, value in SET.items():
        page.get_by_label(f"number input for {name}").fill(value)
        page.keyboard.press("Tab")
    for name, value in TYPED.items():
        page.get_by_label(name).fill(value)
        page.keyboard.press("Tab")
    ask(page, QUESTION)
    conversation = opened(page)
    stats = json.loads(server.stored("SELECT stats FROM messages WHERE stats IS NOT NULL ORDER BY created DESC")[0][0])
    used = f"{stats['prompt_tokens'] + stats['tokens']:,} of 2,048 tokens"
    reload(page)
    open_settings(page)
    assert values(page) == SET | TYPED
    assert used in page.inner_text("#engine h3:has-text('Context') + .share")
    kept = json.loads(server.stored(SETTINGS, conversation)[0][0])
    wanted = {"temperature": 0.35, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    wanted |= {"presence_penalty": 0.5, "frequency_penalty": -0.5, "max_tokens": 24, "seed": 7}
    assert {name: kept[name] for name in wanted} == wanted and kept["system"] == TYPED["System prompt"]
    # Whoever is quicker than the page sends with what is stored, and changes nothing of it.
    page.reload()
    page.wait_for_selector("#message textarea")
    send(page, "Thanks!")
    page.wait_for_function("document.querySelectorAll('#history .reply .foot .tools').length === 2")
    assert json.loads(server.stored(SETTINGS, conversation)[0][0]) == kept
    params = "SELECT params FROM messages WHERE conversation_id = ? AND role = 'assistant' ORDER BY created DESC"
    assert json.loads(server.stored(params, conversation)[0][0]) == kept
    open_settings(page)
    assert values(page) == SET | TYPED
    assert stats["seed"] == 7 and stats["tokens"] <= 24
    page.click("#new")
    page.wait_for_selector(".empty")
    page.wait_for_function("document.querySelector('#settings input[type=number]').value === '0.7'")
    assert values(page) == default


def test_the_list_keeps_what_is_done_to_it(page: Any, server: Server) -> None:
    fresh(page, server)
    ask(page, "Hi!")
    conversation = opened(page)
    entry = f".listing li[data-id='{conversation}']"
    # A greeting says little, so the reply's beginning stands beside it.
    page.wait_for_selector(f"{entry}:has-text('Hi! · ')")
    page.hover(entry)
    page.click(f"{entry} [data-action=rename]")
    page.keyboard.type('<img src=x onerror="document.title=1"> walrus')
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{entry}:has-text('walrus')")
    page.hover(entry)
    page.click(f"{entry} [data-action=pin]")
    page.wait_for_selector(f".listing h3:has-text('Pinned') + ul {entry.removeprefix('.listing ')}")
    reload(page)
    page.wait_for_selector(f".listing h3:has-text('Pinned') + ul {entry.removeprefix('.listing ')}:has-text('walrus')")
    assert page.title() == "hsd chat" and page.locator(".listing img, #head img").count() == 0
    title = '<img src=x onerror="document.title=1"> walrus'
    assert server.stored(TITLES, conversation) == [(title, 1, 1)]
    page.fill("#search input, #search textarea", "Hi! alrus")
    page.wait_for_function("document.querySelectorAll('.listing li').length === 1")
    page.hover(entry)
    page.click(f"{entry} [data-action=delete]")
    page.wait_for_selector(".listing .undo")
    assert server.stored(TITLES, conversation) == [(title, 1, 0)]
    page.click(".listing [data-action=restore]")
    page.wait_for_selector("#history .reply .foot")
    page.hover(entry)
    page.click(f"{entry} [data-action=delete]")
    page.wait_for_selector(".empty")
    page.reload()
    page.wait_for_selector(".listing li")
    assert page.locator(entry).count() == 0 and server.stored(TITLES, conversation) == [(title, 1, 0)]


def test_a_locked_database_is_said_and_no_text_is_lost(page: Any, server: Server) -> None:
    fresh(page, server)
    before = server.stored("SELECT count(*) FROM messages")
    with closing(sqlite3.connect(server.folder / "chat.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        send(page, QUESTION)
        page.wait_for_selector("#notice .problem:has-text('locked')")
        assert page.input_value("#message textarea") == QUESTION
        other.execute("ROLLBACK")
    assert server.stored("SELECT count(*) FROM messages") == before
    page.press("#message textarea", "Enter")
    page.wait_for_selector("#history .reply .foot")
    assert page.inner_text("#notice") == ""
    reload(page)
    assert shown(page)[0] == QUESTION


def test_a_message_of_a_megabyte_is_refused_plainly_and_stays(page: Any, server: Server) -> None:
    fresh(page, server)
    page.evaluate(
        """() => { const box = document.querySelector("#message textarea");
            box.value = "word ".repeat(200_000); box.dispatchEvent(new Event("input", { bubbles: true })); }"""
    )
    page.press("#message textarea", "Enter")
    page.wait_for_selector("#history .reply .problem")
    assert "context holds" in page.inner_text("#history .reply .problem")
    conversation = opened(page)
    send(page, QUESTION)
    page.wait_for_selector("#history .you .branches:has-text('2/2')")
    page.wait_for_selector("#history .reply .meta")
    reload(page)
    # The message that could not be answered gave way to the next, as a branch.
    assert shown(page)[0] == QUESTION and "2/2" in page.inner_text("#history .you .branches")
    assert [len(row[3]) for row in server.stored(TREE, conversation) if row[2] == "user"] == [1_000_000, len(QUESTION)]


def test_memory_is_freed_and_the_next_message_loads_it_again(page: Any, server: Server) -> None:
    fresh(page, server)
    page.click("#engine [data-action=unload]")
    page.wait_for_selector(".dot.unloaded")
    ask(page, QUESTION)
    # What stands beside a reply may wait while it is written.
    page.wait_for_selector(".dot.ready")
    reload(page)
    assert shown(page)[0] == QUESTION


def test_two_tabs_that_write_to_one_conversation_see_each_others_messages(
    browser: Any, page: Any, server: Server
) -> None:
    fresh(page, server)
    ask(page, QUESTION)
    conversation = opened(page)
    with tab(browser, page.url) as second:
        second.wait_for_selector("#history .reply .foot")
        ask(second, "Thanks!")
        turns(page, 4)
        ask(page, OTHER)
        turns(second, 6)
        assert shown(second) == shown(page)
    reload(page)
    rows = server.stored(TREE, conversation)
    assert [row[3] for row in rows if row[2] == "user"] == [QUESTION, "Thanks!", OTHER]
    # One after the other, no branch: each message answers the one before it.
    assert [row[1] for row in rows] == [None, *(row[0] for row in rows[:-1])]
    assert page.locator("#history .turn").count() == 6 and page.locator("#history .branches").count() == 0


def family(page: Any, name: str, levels: int) -> None:
    page.click(".families summary")
    page.click(f".offer[data-id={name}]", timeout=60_000)
    page.wait_for_function(f"document.querySelectorAll('#engine .ladder li').length === {levels}", timeout=60_000)
    ready(page)


def test_thinking_is_switched_where_the_family_has_the_switch(page: Any, server: Server) -> None:
    fresh(page, server)
    open_settings(page)
    assert page.locator("#thinking").count() == 0
    family(page, "switch", 3)
    # A draft that is not there is left out, which is said; the family answers without it.
    assert "ghost is left out" in page.inner_text("#engine .notes")
    page.wait_for_selector("#thinking")
    page.get_by_role("radio", name="Off").check()
    ask(page, QUESTION)
    conversation = opened(page)
    reload(page)
    open_settings(page)
    assert page.get_by_role("radio", name="Off").is_checked()
    shoot(page, "thinking-light")
    assert json.loads(server.stored(SETTINGS, conversation)[0][0])["thinking"] is False
    page.click("#new")
    page.wait_for_selector(".empty")
    page.wait_for_function("document.querySelector('#thinking input:checked').value === 'model'")
    ask(page, QUESTION)
    lengths = "SELECT json_extract(stats, '$.prompt_tokens') FROM messages WHERE conversation_id = ? AND stats NOT NULL"
    off, usual = (server.stored(lengths, one)[0][0] for one in (conversation, opened(page)))
    # The empty thinking that the template writes before a reply without it.
    assert off > usual
    family(page, "builtin", 5)
    page.wait_for_selector("#thinking", state="detached")
