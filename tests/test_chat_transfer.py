"""Conversations as files: what was exported comes back, and nothing else is let in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hsd
from chat import transfer
from chat.library import Library
from chat.store import Store


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(Store(tmp_path / "chat.db"))


def talk(library: Library) -> str:
    store = library.store
    conversation = store.create("A <b>title</b>")
    first, reply = store.add_turn(conversation, None, "one <script>", {"seed": 1})
    store.update(reply, text="Answer `x`", state="done", stats={"speedup": 2.0}, token_ids=[1, 2])
    store.add_turn(conversation, reply, "two", {})
    other = store.add_reply(conversation, first, {})
    store.update(other, text="Another answer \u05e9\u200f 👩", state="cancelled")
    store.keep_settings(conversation, {"temperature": 0.3, "system": "Be kind."})
    return conversation


def test_what_is_exported_as_json_comes_back_with_all_branches(library: Library) -> None:
    conversation = talk(library)
    name, text = library.exported(conversation, "json")
    assert name == "A-b-title-b.json"
    again = library.imported(text)
    old, new = (library.store.messages(c) for c in (conversation, again))
    assert [(m.role, m.text) for m in new] == [(m.role, m.text) for m in old] and len(new) == 5
    assert not {m.id for m in old} & {m.id for m in new}
    place = {m.id: i for i, m in enumerate(old)}, {m.id: i for i, m in enumerate(new)}
    assert [place[1].get(m.parent_id) for m in new] == [place[0].get(m.parent_id) for m in old]
    leaf = library.store.path_to(library.conversation(again).leaf_id)
    assert [m.text for m in leaf] == ["one <script>", "Another answer \u05e9\u200f 👩"]
    assert library.conversation(again).settings["system"] == "Be kind."
    # What was not measured here is not shown as if it had been.
    assert all(m.stats is None and m.token_ids == () for m in new)
    assert new[3].state == "interrupted" and new[4].state == "cancelled"
    assert library.conversations("answer kind") == [] and len(library.conversations("another answer")) == 2


def test_markdown_holds_the_visible_branch(library: Library) -> None:
    name, text = library.exported(talk(library), "markdown")
    assert name.endswith(".md") and "## You\n\none <script>\n\n## Reply\n\nAnother answer" in text
    assert "Answer `x`" not in text and "*(cancelled)*" in text


def export(library: Library, **changes: Any) -> str:
    data = json.loads(library.exported(talk(library), "json")[1])
    return json.dumps({**data, **changes})


ROW = {"id": "a", "parent_id": None, "role": "user", "text": "x"}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "chatgpt"},
        {"version": 2},
        {"messages": []},
        {"messages": {}},
        {"messages": [[]]},
        {"messages": [{}]},
        {"messages": [{**ROW, "text": None}]},
        {"messages": [{**ROW, "text": "x" * (transfer.MAX_TEXT + 1)}]},
        {"messages": [{**ROW, "role": "system"}]},
        {"messages": [{**ROW, "role": "assistant"}]},
        {"messages": [{**ROW, "id": ["a"]}]},
        {"messages": [ROW, ROW]},
        {"messages": [ROW, {**ROW, "id": "b", "parent_id": "a"}]},
        {"messages": [{**ROW, "parent_id": "a"}]},
        {"messages": [{**ROW, "parent_id": {}}]},
        {"messages": [{**ROW, "id": str(i)} for i in range(transfer.MAX_MESSAGES + 1)]},
    ],
)
def test_a_foreign_file_is_refused_in_one_sentence_and_nothing_is_stored(library: Library, changes: dict) -> None:
    text = export(library, **changes)
    with pytest.raises(hsd.HsdError) as caught:
        library.imported(text)
    assert "\n" not in caught.value.message and caught.value.hint and len(library.conversations()) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "PK\x03\x04", "[" * 100_000, '"' + "x" * (transfer.MAX_BYTES) + '"']
)
def test_a_file_that_is_none_of_ours_is_refused(library: Library, text: str) -> None:
    with pytest.raises(hsd.HsdError):
        library.imported(text)
    assert library.conversations() == []


@pytest.mark.parametrize(
    "settings", [None, [], {"temperature": "<b>"}, {"seed": {}}, {"system": 3}, {"max_tokens": -2}]
)
def test_impossible_settings_are_left_out(library: Library, settings: Any) -> None:
    again = library.imported(export(library, settings=settings, leaf_id="nobody", title=["<i>"] * 100))
    conversation = library.conversation(again)
    assert conversation.settings == {} and len(conversation.title) <= 200
    assert library.store.path_to(conversation.leaf_id)[-1].text.startswith("Another answer")
