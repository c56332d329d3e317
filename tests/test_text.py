"""Streams never break a character and never show a stop string; prompts are built from generated ids."""

from __future__ import annotations

import models as tiny
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsd.errors import PromptError
from hsd.prompts import Prompts
from hsd.text import TextStream

TOKENIZER = tiny.ByteTokenizer()


def split(data, ids):
    """The ids in rounds of random sizes."""
    while ids:
        size = data.draw(st.integers(1, 5))
        yield ids[:size]
        ids = ids[size:]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.text(alphabet="aé漢🙂 \u200b\u0301", max_size=20))
def test_every_piece_of_a_stream_is_whole_characters(data, text):
    stream, shown = TextStream(TOKENIZER), ""
    for part in split(data, list(text.encode())):
        new, used = stream.push(part)
        assert "\ufffd" not in new and used == len(part)
        shown += new
        assert text.startswith(shown)
    assert shown + stream.flush() == text == stream.text


def test_an_unfinished_character_at_the_end_is_left_out():
    stream = TextStream(TOKENIZER)
    stream.push(list("ok 🙂".encode())[:-1])
    stream.flush()
    assert stream.text == "ok "


@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    st.text(alphabet="ab\n", max_size=30),
    st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_string_is_found_wherever_rounds_end_and_never_shown(data, text, stops):
    stream, shown, total = TextStream(TOKENIZER, stops), "", 0
    for part in split(data, list(text.encode())):
        new, used = stream.push(part)
        shown += new
        total += used
        if stream.stopped:
            break
    shown += stream.flush()
    # The first stop string to be complete ends the text; of those complete at once, the one that begins first.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    if ends:
        begin = min(text[: ends[0]].find(s) for s in stops if s in text[: ends[0]])
        assert stream.stopped and shown == text[:begin] and total == ends[0]
    else:
        assert not stream.stopped and shown == text


def test_the_next_prompt_holds_the_ids_that_were_generated():
    """The reply's ids are not what its text tokenizes to; they come back all the same."""

    class Merging(tiny.ByteTokenizer):
        """Also knows 'hi' as one token, which encoding never uses."""

        def decode(self, token_ids, skip_special_tokens=False):
            ids = [b for i in token_ids for b in (b"hi" if i == 280 else [i])]
            return super().decode(ids, skip_special_tokens)

    prompts = Prompts(Merging(), 300)
    first = [{"role": "user", "content": "x"}]
    head = prompts.build(first)
    prompts.note("hi!", (280, 33, tiny.END))
    both = [*first, {"role": "assistant", "content": "hi!"}, {"role": "user", "content": "y"}]
    ids = prompts.build(both)
    assert ids[: len(head) + 3] == [*head, 280, 33, tiny.END]
    given = Prompts(Merging(), 300).build(
        [*first, {"role": "assistant", "content": "hi!", "token_ids": [280, 33]}, both[2]]
    )
    assert given == ids
    assert Prompts(Merging(), 300).build(both)[len(head)] == ord("h")


def test_a_reply_at_the_end_goes_on_behind_its_last_token():
    prompts = Prompts(TOKENIZER, 300, system="s")
    first = [{"role": "user", "content": "x"}]
    head = prompts.build(first)

    def begun(text: str, ids: tuple[int, ...] = ()) -> list[int]:
        whole = [*first, {"role": "assistant", "content": text, "token_ids": ids}]
        assert prompts.fit(whole, context=300, max_tokens=9, drop=True) == (prompts.build(whole), 0)
        return prompts.build(whole)

    assert begun("hi") == [*head, *b"hi"]
    # The end token goes; ids that are another text go too; half a character stays, though no text can show it.
    assert begun("hi", (*b"hi", tiny.END)) == [*head, *b"hi"] == begun("hi", (1, 2))
    assert begun("h", (104, 0xC3)) == [*head, 104, 0xC3]
    assert begun("") == head
    # What a reply was generated as is known without being told.
    prompts.note("é!", (*"é!".encode(), tiny.END))
    assert begun("é!") == [*head, *"é!".encode()]


def test_a_reply_that_goes_on_keeps_its_question_where_old_turns_are_left_out():
    old = [{"role": role, "content": "w" * 50} for _ in range(4) for role in ("user", "assistant")]
    new = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    ids, dropped = Prompts(TOKENIZER, 300).fit([*old, *new], context=200, max_tokens=20, drop=True)
    text = TOKENIZER.decode(ids)
    assert dropped and text.endswith("<u>why?<e><a>because") and len(ids) <= 100


def test_ids_that_do_not_belong_to_the_text_are_not_used():
    message = {"role": "assistant", "content": "hi", "token_ids": [1, 2, 3]}
    ids = Prompts(TOKENIZER, 300).build([{"role": "user", "content": "x"}, message, {"role": "user", "content": "y"}])
    assert ids[ids.index(tiny.ASSISTANT) + 1 :][:2] == [104, 105]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": 3}],
        ["x"],
        [{"role": "user", "content": " "}],
        [{"role": "assistant", "content": "Yes"}],
    ],
)
def test_a_malformed_conversation_is_one_sentence(messages):
    with pytest.raises(PromptError) as caught:
        Prompts(TOKENIZER, 300).build(messages)
    assert caught.value.message.endswith(".")


def test_a_template_that_raises_is_one_sentence_too():
    class Refusing(tiny.ByteTokenizer):
        def apply_chat_template(self, *_, **__):
            raise RuntimeError("roles must alternate\nand more")

    with pytest.raises(PromptError, match="roles must alternate"):
        Prompts(Refusing(), 300).build([{"role": "user", "content": "x"}])
