"""The API over a real engine of tiny models: the very tokens of plain decoding, and what is learned from a reply."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import models as tiny
import pytest
import spoken
from api_client import Client, joined, problem, said, served
from chat_waiting import until
from hypothesis import given
from hypothesis import strategies as st

import hsd
from chat.api_request import ApiRequest
from chat.session import Session

PROMPTS = ("hello there", "count: one two three one two three one two", "ä€🙂 and more")


@pytest.fixture(scope="module")
def engine() -> hsd.Engine:
    # One that leaves old turns out on the page.
    return hsd.Engine.from_models(tiny.related(count=3, noise=0.03), tiny.ByteTokenizer(), overflow="drop")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, engine: hsd.Engine) -> Iterator[tuple[Session, Client]]:
    with served(tmp_path_factory.mktemp("data"), lambda progress: engine) as running:
        until(lambda: running[0].engine.state == "ready")
        yield running


@pytest.fixture
def client(server: tuple[Session, Client]) -> Client:
    return server[1]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("plan", ["auto", "lookup:2>medium:3>big", "small:4>medium:2>big", "big"])
def test_greedy_replies_are_those_of_plain_decoding(client: Client, engine: hsd.Engine, prompt: str, plan: str) -> None:
    plain = engine.generate(said(prompt), hsd.SamplingParams(temperature=0, max_tokens=40), plan="big")
    status, whole = client.chat(said(prompt), temperature=0, max_tokens=40, plan=plan)
    assert status == 200, whole
    message, usage = whole["choices"][0]["message"], whole["usage"]
    assert message["content"] == plain.text and whole["choices"][0]["finish_reason"] == plain.finish_reason
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (plain.stats.prompt_tokens, len(plain.token_ids))
    rows = whole["speculative"]["levels"]
    assert sum(row["tokens"] for row in rows) == len(plain.token_ids)
    assert plan == "auto" or (whole["speculative"]["plan"] == plan and [r["name"] for r in rows][-1] == "big")
    assert all(row["acceptance"] is None or 0 <= row["acceptance"] <= 1 for row in rows)
    parts = list(client.stream(said(prompt), temperature=0, max_tokens=40, plan=plan))
    assert joined(parts) == plain.text
    assert parts[-1]["timings"]["cache_n"] + parts[-1]["timings"]["prompt_n"] == plain.stats.prompt_tokens


def test_a_seed_gives_the_same_reply_and_a_stop_string_ends_it(client: Client) -> None:
    options = {"temperature": 1.0, "seed": 11, "max_tokens": 30, "plan": "medium:3>big"}
    first, again = (client.chat(said("hello"), **options)[1]["choices"][0] for _ in range(2))
    assert first == again and first["finish_reason"] == "length"
    other = client.chat(said("hello"), **{**options, "seed": 12})[1]["choices"][0]
    assert other["message"]["content"] != first["message"]["content"]
    text = first["message"]["content"]
    end = next(c for c in text[3:] if c.isascii() and c.isprintable())
    cut = client.chat(said("hello"), **options, stop=[end])[1]["choices"][0]
    assert cut["message"]["content"] == text[: text.index(end)] and cut["finish_reason"] == "stop"


def test_a_reply_goes_on_behind_an_assistants_message(client: Client) -> None:
    letters = {str(ord(letter)): 60 for letter in "abcdefgh"}
    options: dict[str, Any] = {"temperature": 0, "plan": "medium:3>big", "logit_bias": letters}
    text = client.chat(said("hello"), max_tokens=12, **options)[1]["choices"][0]["message"]["content"]
    assert len(text) == 12
    rest = client.chat([*said("hello"), {"role": "assistant", "content": text[:5]}], max_tokens=7, **options)[1]
    assert rest["choices"][0]["message"]["content"] == text[5:]


@pytest.mark.parametrize("begun", ["<", "<t", " <think", "<thing>"])
def test_what_was_begun_is_not_told_again(client: Client, begun: str) -> None:
    messages = [*said("hello"), {"role": "assistant", "content": begun}]
    options: dict[str, Any] = {"temperature": 0, "plan": "big", "logit_bias": {"120": 100}, "max_tokens": 3}
    assert client.chat(messages, **options)[1]["choices"][0]["message"]["content"] == "xxx"
    assert joined(list(client.stream(messages, **options))) == "xxx"


def test_two_clients_at_once_are_both_served(server: tuple[Session, Client], client: Client) -> None:
    def one(prompt: str) -> str:
        return joined(list(client.stream(said(prompt), temperature=0, max_tokens=60)))

    alone = [one(prompt) for prompt in PROMPTS[:2]]
    with ThreadPoolExecutor(2) as clients:
        assert list(clients.map(one, PROMPTS[:2])) == alone


def test_what_does_not_fit_is_refused_and_nothing_is_left_out(client: Client, engine: hsd.Engine) -> None:
    long = [*said("a" * 200), {"role": "assistant", "content": "b" * 200}, *said("c" * 200)]
    status, value = client.chat(long)
    assert status == 400 and problem(value)["code"] == "context_length_exceeded"
    assert "607 tokens" in problem(value)["message"] and "512" in problem(value)["message"]
    # The page would leave the oldest turn out.
    events = engine.stream(long, hsd.SamplingParams(max_tokens=4))
    assert next(events).dropped_turns == 1
    events.close()
    # What fits is not cut, however much of the context it takes, and ends where the context does.
    status, value = client.chat(said("d" * 500), temperature=0)
    assert status == 200 and value["usage"]["total_tokens"] <= 512
    assert value["choices"][0]["finish_reason"] in ("stop", "length")


def test_what_only_the_engine_knows_is_refused_by_name_too(client: Client) -> None:
    status, value = client.chat(said("hi"), logit_bias={str(tiny.VOCAB): 1})
    assert status == 400 and problem(value)["param"] == "logit_bias" and "258" in problem(value)["message"]
    stream = client.stream(said("hi"), logit_bias={str(tiny.VOCAB): 1})
    assert stream.answer.status == 400 and problem(json.loads(stream.answer.read()))["param"] == "logit_bias"
    status, value = client.chat(said(" "))
    assert status == 400 and problem(value)["param"] == "messages" and "empty" in problem(value)["message"]
    forced = client.chat(said("hi"), temperature=0, logit_bias={"120": 100}, max_tokens=5)[1]
    assert forced["choices"][0]["message"]["content"] == "xxxxx"


def test_the_planner_learns_from_it_as_from_any_reply(client: Client, engine: hsd.Engine) -> None:
    def replies() -> int:
        return engine.stats.summary()["families"][0]["replies"]

    before = replies()
    assert client.chat(said("hello"), max_tokens=8)[0] == 200
    assert replies() == before + 1


# ------------------------------------------------------------------------------------------------- thinking, told apart


def cut(text: str, sizes: list[int]) -> Iterator[str]:
    at = 0
    for size in sizes:
        yield text[at : at + size]
        at += size
    yield text[at:]


@given(
    thought=st.text("ab <>/think\n", max_size=20),
    answer=st.text("ab <>/think\n", max_size=20),
    before=st.sampled_from(["", " ", "\n\n"]),
    sizes=st.lists(st.integers(0, 6), max_size=20),
)
def test_thinking_is_cut_at_its_marks_however_it_arrives(
    thought: str, answer: str, before: str, sizes: list[int]
) -> None:
    if "</think>" in thought or (thought + "</think>").index("</think>") != len(thought):
        return
    text = f"{before}<think>{thought}</think>{answer}"
    split, seen = hsd.ThinkingSplit(), [("", "")]
    for piece in cut(text, sizes):
        split.push(piece)
        assert split.thought.startswith(seen[-1][0]) and split.answer.startswith(seen[-1][1])
        seen.append((split.thought, split.answer))
    split.flush()
    assert (split.thought, split.answer) == (thought.strip(), answer.lstrip())


@given(text=st.text("a <think>/\n", max_size=20), sizes=st.lists(st.integers(0, 4), max_size=20))
def test_an_answer_without_thinking_is_given_as_it_is(text: str, sizes: list[int]) -> None:
    if text.lstrip().startswith("<think>"):
        return
    split = hsd.ThinkingSplit()
    for piece in cut(text, sizes):
        split.push(piece)
    split.flush()
    assert (split.thought, split.answer) == ("", text)


def asked(engine: hsd.Engine, messages: list[dict[str, Any]], script: str, **options: Any) -> tuple[str, str]:
    """(thinking, answer) that a client gets where the model writes `script`."""
    ids = tuple(spoken.ids(engine.tokenizer, script))
    params = hsd.SamplingParams(temperature=0, forced_ids=ids, max_tokens=len(ids), **options)
    request = ApiRequest("a", "a", messages, params, "big")
    request.run(engine, lambda _: None)
    request.ending({})
    return request.thought, request.answer


@pytest.mark.parametrize("added", [("<think>", "</think>"), ()])
def test_a_client_gets_what_is_new_of_a_reply_that_thinks(added: tuple[str, ...]) -> None:
    begun = {"role": "assistant", "content": "<think>\nso"}
    over = {"role": "assistant", "content": "Ye", "reasoning_content": "so"}
    bare = {"role": "assistant", "content": "Ye"}
    with spoken.engine(spoken.byte_level(spoken.OPENS, added=added)) as engine:
        assert asked(engine, said("hi"), "so\n</think>\n\nYes.\nNo", stop="\n") == ("so", "Yes.")
        assert asked(engine, [*said("hi"), begun], " it\n</think>\n\nYes.") == (" it", "Yes.")
        assert asked(engine, [*said("hi"), over], "s.") == asked(engine, [*said("hi"), bare], "s.") == ("", "s.")
        assert asked(engine, [*said("hi"), {**begun, "content": "", "reasoning_content": "so"}], " it</think>Yes.") == (
            " it",
            "Yes.",
        )
    code = "Close it:\n\n```xml\n</think>\n```\n\nThat is all."
    with spoken.engine(spoken.byte_level(spoken.CHATML, added=added)) as engine:
        assert asked(engine, said("hi"), code) == ("", code)
        assert asked(engine, said("hi"), f"<think>{code}") == ("Close it:\n\n```xml", code.partition("</think>\n")[2])


def test_a_history_that_was_trimmed_to_begin_with_a_reply_is_answered(client: Client) -> None:
    reply = client.chat(said("hello"), temperature=0, max_tokens=8)[1]["choices"][0]["message"]
    for messages in (
        [{"role": "assistant", "content": reply["content"]}, *said("and?")],
        [*said("a"), *said("b")],
        [*said("a"), {"role": "assistant", "content": "b", "reasoning_content": "c"}, *said("d")],
    ):
        assert client.chat(messages, max_tokens=4)[0] == 200
    status, value = client.chat([*said("a"), {"role": "assistant", "content": "b", "reasoning_content": 1}])
    assert status == 400 and problem(value)["param"] == "messages[1].reasoning_content"
