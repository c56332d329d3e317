"""The API over HTTP, beside the real page, with a scripted engine: shapes, errors, turns, and who may ask."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api_client import CHAT, Client, joined, problem, said, served
from chat_fakes import INFO, ScriptedEngine, poem
from chat_waiting import until
from click.testing import CliRunner

import hsd
from chat import api_http, api_replies
from chat.__main__ import chat
from chat.api import MOST_OPEN
from chat.api_fields import MOST_MESSAGES
from chat.api_http import MOST_BYTES
from chat.session import Session
from chat.settings import Settings

KEY = "a-key-for-tests"


class Recording(ScriptedEngine):
    """Keeps what it was asked for, and how many words of a reply it said."""

    def __init__(self) -> None:
        super().__init__(poem, pause=0.01)
        self.asked: list[tuple[hsd.SamplingParams, str]] = []
        self.words: list[int] = []

    def stream(self, messages: Sequence[Mapping[str, Any]], params: hsd.SamplingParams, **options: Any) -> Any:
        self.asked.append((params, options["plan"]))
        self.words.append(0)
        if "LARGE" in str(messages[-1]["content"]):
            raise hsd.PromptError("It is too long.", "Shorten it.", tokens=5000)
        if "BREAK" in str(messages[-1]["content"]):
            raise RuntimeError("a device was lost")
        for event in super().stream(messages, params, **options):
            if isinstance(event, hsd.Tokens):
                self.words[-1] += len(event.ids)
            yield event


def words(count: int) -> str:
    """What it says if it may say so many words."""
    return " ".join(poem(said("hello")).split(" ")[:count])


@pytest.fixture(scope="module")
def engine() -> Recording:
    return Recording()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, engine: Recording) -> Iterator[tuple[Session, Client]]:
    with served(tmp_path_factory.mktemp("data"), lambda progress: engine) as running:
        until(lambda: running[0].engine.state == "ready")
        yield running


@pytest.fixture
def session(server: tuple[Session, Client], engine: Recording) -> Iterator[Session]:
    yield server[0]
    until(lambda: not server[0].worker.busy)
    engine.pause = 0.01


@pytest.fixture
def client(server: tuple[Session, Client]) -> Client:
    return server[1]


# ----------------------------------------------------------------------------------------------------- what it says


def test_it_says_what_is_served(session: Session, client: Client) -> None:
    status, _, health = client.ask("GET", "/health")
    assert status == 200 and health["status"] == "ok" and health["model"] == "scripted" and health["waiting"] == 0
    listed = client.ask("GET", "/v1/models")[2]
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["scripted"]
    one = client.ask("GET", "/v1/models/scripted")[2]
    assert one == listed["data"][0] and one["object"] == "model" and one["max_model_len"] == INFO.context
    assert one["meta"]["levels"] == list(INFO.models) and one["meta"]["target"] == INFO.target


def test_what_is_not_there_is_said_in_the_shape_of_an_error(client: Client) -> None:
    status, _, value = client.ask("POST", "/v1/embeddings", b"{}")
    assert status == 404 and "POST /v1/chat/completions" in problem(value)["message"]
    status, headers, value = client.ask("GET", CHAT)
    assert status == 405 and headers["allow"] == "POST" and "POST" in problem(value)["message"]
    for name in ("gpt-4o", "half \ud800"):
        status, value = client.chat(said("hi"), model=name)
        assert status == 404 and problem(value)["code"] == "model_not_found" and "'scripted'" in str(value)
    assert client.ask("GET", "/v1/models/gpt-4o")[0] == 404
    assert client.chat(said("hi"), model=["scripted"])[0] == 400
    # All other addresses are the page's.
    assert client.ask("GET", "/healthy")[2] == {"detail": "Not Found"}


def test_a_reply_in_one_piece_has_the_shape_that_clients_know(session: Session, client: Client) -> None:
    status, value = client.chat(said("hello"), model="scripted", max_tokens=9)
    assert status == 200 and value["object"] == "chat.completion" and value["model"] == "scripted"
    assert value["id"].startswith("chatcmpl-") and abs(value["created"] - time.time()) < 60
    [choice] = value["choices"]
    assert choice["index"] == 0 and choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert choice["message"]["role"] == "assistant" and "reasoning_content" not in choice["message"]
    assert choice["message"]["content"] == words(9)
    usage = value["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (12, 9, 21)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 4
    timings = value["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (4, 8, 9)
    assert timings["predicted_per_second"] == pytest.approx(9000 / timings["predicted_ms"])
    # The level below the target is the draft that llama.cpp means.
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (6, 3)
    did = value["speculative"]
    assert did["plan"] == "lookup:2>tiny:3>big" and did["speedup"] == 2.4 and did["baseline"] == "estimated"
    assert [row["name"] for row in did["levels"]] == ["lookup", "tiny", "big"]
    assert [row["acceptance"] for row in did["levels"]] == [1.0, 0.5, None]
    assert [row["tokens"] for row in did["levels"]] == [3, 3, 3]
    assert did["tokens_per_target_pass"] == 3.0 and did["seed"] == 1


def test_a_stream_begins_with_the_role_and_ends_with_what_it_cost(session: Session, client: Client) -> None:
    whole = client.chat(said("hello"))[1]["choices"][0]["message"]["content"]
    for counted in (True, False):
        stream = client.stream(said("hello"), stream_options={"include_usage": counted})
        parts = list(stream)
        assert stream.done and len({part["id"] for part in parts}) == 1
        assert {part["object"] for part in parts} == {"chat.completion.chunk"}
        assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        texts, last = parts[1 : -2 if counted else -1], parts[-2 if counted else -1]
        assert len(texts) > 3 and all(part["choices"][0]["delta"]["content"] for part in texts)
        assert all(part["choices"][0]["finish_reason"] is None for part in parts[: len(texts) + 1])
        assert joined(parts) == whole
        assert last["choices"][0]["finish_reason"] == "stop" and last["choices"][0]["delta"] == {}
        assert [part for part in parts if "timings" in part] == [parts[-1]] and parts[-1]["speculative"]["levels"]
        if counted:
            assert parts[-1]["choices"] == [] and parts[-1]["usage"]["completion_tokens"] == 70
        else:
            assert not any("usage" in part for part in parts)


def test_thinking_is_told_apart_from_the_answer(session: Session, client: Client) -> None:
    thought, answer = "The roots <b>of</b> a quadratic.", poem(said("formula")).split("</think>")[1].lstrip()
    message = client.chat(said("a formula"))[1]["choices"][0]["message"]
    assert message["reasoning_content"] == thought and message["content"] == answer
    parts = list(client.stream(said("a formula")))
    assert joined(parts, "reasoning_content") == thought and joined(parts) == answer
    kinds = [next(iter(c["delta"]), "") for part in parts for c in part["choices"]]
    assert kinds.index("content") > kinds.index("reasoning_content")
    # One that was cut off while it thought has no answer.
    cut = client.chat(said("a formula"), max_tokens=3)[1]["choices"][0]["message"]
    assert cut["content"] == "" and thought.startswith(cut["reasoning_content"])


def test_nothing_of_it_is_stored_as_a_conversation(session: Session, client: Client, engine: Recording) -> None:
    before, learned = session.store.rows("SELECT * FROM messages"), engine.learned
    assert client.chat(said("hello"))[0] == 200
    assert len(list(client.stream(said("hello")))) > 3
    assert session.store.rows("SELECT * FROM messages") == before and not session.conversations()
    until(lambda: engine.learned > learned)


# ------------------------------------------------------------------------------------------------------------ turns


def test_who_goes_away_stops_their_own_reply_and_no_other(session: Session, client: Client, engine: Recording) -> None:
    engine.pause = 0.05
    first = client.stream(said("endless"))
    parts = iter(first)
    next(parts), next(parts)
    with ThreadPoolExecutor(1) as others:
        second = others.submit(client.chat, said("hello"))
        until(lambda: session.engine.waiting == 1)
        third = client.stream(said("endless"))
        until(lambda: session.engine.waiting == 2)
        # One that waits goes without a word to the engine, and the one that is being written goes on.
        third.leave()
        until(lambda: session.engine.waiting == 1)
        next(parts), next(parts)
        asked, heard = len(engine.asked), engine.words[-1]
        first.leave()
        until(lambda: len(engine.asked) > asked)
        status, value = second.result(30)
    rounds = (engine.words[-2] - heard) / 3
    print(f"{rounds:.0f} more rounds after the client had gone")
    assert rounds <= 4 and len(engine.asked) == asked + 1
    assert status == 200 and value["choices"][0]["message"]["content"] == poem(said("hello"))


def test_a_reply_in_one_piece_stops_too_when_nobody_waits_for_it(
    session: Session, client: Client, engine: Recording
) -> None:
    body = json.dumps({"messages": said("endless")}).encode()
    line = client.send("POST", CHAT, body)
    until(lambda: session.worker.writing)
    line.close()
    until(lambda: not session.worker.busy, 5)
    assert engine.words[-1] < 1000


def test_page_and_clients_take_turns(session: Session, client: Client, engine: Recording) -> None:
    first = client.stream(said("endless"))
    until(lambda: session.worker.writing)
    with ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(client.chat, said(f"hello {n}")) for n in range(2)]
        until(lambda: session.engine.waiting == 2)
        conversation = session.send(None, "from the page", Settings(), temporary=True)
        # The clients of one address are one visitor, and that one has just been served.
        assert session.live(conversation).ahead == 1
        first.leave()
        answers = [answer.result(30) for answer in waiting]
    until(lambda: session.live(conversation) is None)
    assert session.snapshot(conversation).messages[-1].text == poem(said("from the page"))
    assert [status for status, _ in answers] == [200] * 2
    assert {value["choices"][0]["message"]["content"] for _, value in answers} == {poem(said("hello"))}
    assert str(engine.prompts[-3][-1]["content"]) == "from the page"
    session.forget(conversation)


def test_more_than_can_wait_are_asked_to_come_again(session: Session, client: Client, engine: Recording) -> None:
    engine.pause = 0.05
    waiting = [client.stream(said("endless")) for _ in range(MOST_OPEN)]
    until(lambda: session.engine.waiting == MOST_OPEN - 1)
    status, headers, value = client.ask("POST", CHAT, json.dumps({"messages": said("one more")}).encode())
    assert status == 429 and int(headers["retry-after"]) > 0 and problem(value)["code"] == "rate_limit_exceeded"
    for stream in waiting:
        stream.leave()
    until(lambda: not session.worker.busy, 10)
    assert client.chat(said("hello"), max_tokens=3)[0] == 200


def test_a_stream_that_waits_long_begins_and_says_so(
    session: Session, client: Client, engine: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_replies, "PATIENCE_SECONDS", 0.05)
    engine.pause = 0.02
    first = client.stream(said("endless"))
    until(lambda: session.worker.writing)
    second, third = client.stream(said("hello"), max_tokens=6), client.stream(said("word " * 300))
    answers = [iter(second), iter(third)]
    for answer in answers:
        assert next(answer)["choices"][0]["delta"]["role"] == "assistant"
    time.sleep(0.2)
    first.leave()
    assert joined(list(answers[0])) == words(6) and "waiting" in second.comments
    # Too late for an error of HTTP.
    assert "Shorten the message" in problem(next(answers[1]))["message"]
    assert not list(answers[1]) and third.done


def test_a_failure_is_an_error_or_the_last_event(session: Session, client: Client) -> None:
    status, value = client.chat(said("FAIL please"))
    assert status == 500 and "gave no distribution" in problem(value)["message"]
    stream = client.stream(said("FAIL please"))
    parts = list(stream)
    assert "gave no distribution" in problem(parts[-1])["message"] and stream.done
    assert joined(parts[:-1]).startswith("Use `tar`")
    # What is refused before it began is an error of HTTP, in a stream as well.
    refused = client.stream(said("word " * 300))
    assert refused.answer.status == 400 and "Shorten the message" in refused.answer.read().decode()
    assert client.chat(said("hello"))[0] == 200


def test_an_engine_that_breaks_is_loaded_anew_for_the_next_request(session: Session, client: Client) -> None:
    status, value = client.chat(said("BREAK"))
    assert status == 500 and "a device was lost" in problem(value)["message"]
    assert client.chat(said("hello"), max_tokens=3)[0] == 200 and session.engine.state == "ready"


# ------------------------------------------------------------------------------------------------------- what is asked

IMPOSSIBLE: list[tuple[str, Any]] = [
    ("temperature", -1),
    ("temperature", "hot"),
    ("temperature", True),
    ("temperature", 10**400),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -2),
    ("top_k", 2.5),
    ("min_p", 1),
    ("repeat_penalty", 0),
    ("repetition_penalty", [1]),
    ("presence_penalty", 1000),
    ("frequency_penalty", {}),
    ("max_tokens", 0),
    ("max_completion_tokens", -5),
    ("seed", 1.5),
    ("seed", 1 << 63),
    ("max_tokens", -2),
    ("max_tokens", 12.5),
    ("max_tokens", "512"),
    ("n_predict", 0),
    ("stop", ""),
    ("stop", [""]),
    ("stop", [1]),
    ("stop", ["a"] * 17),
    ("stop", {"a": 1}),
    ("n", 2),
    ("n", True),
    ("n", 0),
    ("stream", "yes"),
    ("logprobs", True),
    ("logit_bias", [1]),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {str(token): 1 for token in range(5000)}),
    ("response_format", {"type": "json_object"}),
    ("tool_choice", "required"),
    ("modalities", ["text", "audio"]),
    ("chat_template_kwargs", 1),
    ("plan", "tiny:0>big"),
    ("plan", "nobody:3>big"),
    ("plan", 5),
    ("plan", "half \ud800"),
]


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE, ids=[f"{f}={str(v)[:16]}" for f, v in IMPOSSIBLE])
def test_an_impossible_value_names_its_field(client: Client, engine: Recording, field: str, value: Any) -> None:
    asked = len(engine.asked)
    status, answer = client.chat(said("hi"), **{field: value})
    assert status == 400 and problem(answer)["param"] == field and problem(answer)["type"] == "invalid_request_error"
    assert field == "plan" or field in problem(answer)["message"]
    assert len(engine.asked) == asked


def test_options_of_streams_are_checked_with_the_stream(client: Client) -> None:
    for stream, options, param in (
        (True, 5, "stream_options"),
        (True, {"include_usage": "yes"}, "stream_options.include_usage"),
        (False, {"include_usage": True}, "stream_options"),
    ):
        status, value = client.chat(said("hi"), stream=stream, stream_options=options)
        assert status == 400 and problem(value)["param"] == param


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@pytest.mark.parametrize(
    ("messages", "param", "word"),
    [
        (None, "messages", "at least one"),
        ([], "messages", "at least one"),
        ("hi", "messages", "at least one"),
        (["hi"], "messages[0]", "role"),
        ([{"content": "hi"}], "messages[0].role", "user"),
        ([{"role": "wizard", "content": "hi"}], "messages[0].role", "user"),
        ([{"role": "tool", "content": "hi"}], "messages[0].role", "tools"),
        ([*said("hi"), {"role": "user"}], "messages[1].content", "text"),
        ([{"role": "user", "content": []}], "messages[0].content", "text"),
        ([{"role": "system", "content": None}, *said("hi")], "messages[0].content", "text"),
        ([*said("hi"), {"role": "assistant", "content": 5}], "messages[1].content", "text"),
        ([*said("hi"), {"role": "assistant", "content": [{"type": "refusal"}]}], "messages[1].content[0].refusal", ""),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content[0]", "part"),
        ([{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]}], "messages[0].content[1]", "image"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type", "text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "text"),
        (said("half \ud800 of it"), "messages[0].content", "half"),
    ],
)
def test_messages_that_cannot_be_read_are_named(client: Client, messages: Any, param: str, word: str) -> None:
    status, value = client.chat(messages)
    assert status == 400 and problem(value)["param"] == param and word in problem(value)["message"]


CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": ""}, ""),
        ({"content": []}, ""),
        ({"content": None, "tool_calls": [CALL]}, ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": [{"type": "refusal", "refusal": "I cannot."}]}, "I cannot."),
    ],
)
def test_a_turn_of_the_assistant_without_words_is_an_empty_one(
    session: Session, client: Client, engine: Recording, turn: dict[str, Any], text: str
) -> None:
    status, value = client.chat([*said("hi"), {"role": "assistant", **turn}, *said("hello")], max_tokens=3)
    assert status == 200, value
    assert engine.prompts[-1][1] == {"role": "assistant", "content": text}


TOO_LONG = re.compile(r"This model's maximum context length is (\d+) tokens\. However, your messages .*(\d+)")


def test_what_cannot_fit_is_refused_before_it_waits_in_words_that_clients_know(
    client: Client, engine: Recording
) -> None:
    asked = len(engine.asked)
    for messages in (said("x" * (16 * INFO.context + 1)), said("hi") * (MOST_MESSAGES + 1)):
        status, value = client.chat(messages)
        assert status == 400 and problem(value)["code"] == "context_length_exceeded", value
        assert TOO_LONG.match(problem(value)["message"])[1] == str(INFO.context)
    assert len(engine.asked) == asked


def test_what_the_engine_finds_too_long_is_said_in_the_same_words(session: Session, client: Client) -> None:
    too_many = [*said("LARGE"), {"role": "assistant", "content": None}, *said("LARGE")]
    status, value = client.chat(too_many)
    assert status == 400 and problem(value)["code"] == "context_length_exceeded"
    assert "maximum context length is 2048 tokens" in problem(value)["message"]
    assert "resulted in 5000 tokens" in problem(value)["message"]
    streamed = client.stream(too_many)
    assert streamed.answer.status == 400 and json.loads(streamed.answer.read()) == value


@pytest.mark.parametrize(
    ("field", "given", "name", "meant"),
    [
        ("seed", -1, "seed", None),
        ("seed", -1.0, "seed", None),
        ("seed", -2, "seed", -2),
        ("seed", 0, "seed", 0),
        ("seed", (1 << 63) - 1, "seed", (1 << 63) - 1),
        ("top_k", -1, "top_k", 0),
        ("top_k", 40.0, "top_k", 40),
        ("max_tokens", -1, "max_tokens", INFO.context),
        ("max_completion_tokens", -1, "max_tokens", INFO.context),
        ("n_predict", -1, "max_tokens", INFO.context),
        ("n_predict", 7, "max_tokens", 7),
        ("max_tokens", 1e1, "max_tokens", 10),
    ],
)
def test_values_mean_what_they_mean_to_other_servers(
    session: Session, client: Client, engine: Recording, field: str, given: Any, name: str, meant: Any
) -> None:
    status, value = client.chat(said("hello"), **{field: given})
    assert status == 200, value
    assert getattr(engine.asked[-1][0], name) == meant


def test_a_fingerprint_tells_plans_and_backends_apart(
    session: Session, client: Client, engine: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(plan: str = "auto") -> str:
        return client.chat(said("hello"), plan=plan, max_tokens=3)[1]["system_fingerprint"]

    first = whole()
    assert re.fullmatch(r"fp_[0-9a-f]{12}", first)
    assert whole() == first == whole("lookup:2>tiny:3>big")
    assert {part["system_fingerprint"] for part in client.stream(said("hello"))} == {first}
    seen = {first, whole("big"), whole("tiny:4>big"), whole("tiny:3>big")}
    assert {part["system_fingerprint"] for part in client.stream(said("hello"), plan="big")} == {whole("big")} < seen
    for change in ({"backend": "native"}, {"device": "cuda"}, {"parameters": {**INFO.parameters, "big": 1}}):
        monkeypatch.setattr(engine, "info", dataclasses.replace(INFO, **change))
        seen.add(whole())
    assert len(seen) == 7


def test_values_reach_the_engine_and_unknown_fields_do_no_harm(
    session: Session, client: Client, engine: Recording
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be short."}, {"role": "user", "name": "ann", "content": parts}]
    given = {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "max_tokens": 100,
        "max_completion_tokens": 6,
        "seed": -3,
        "stop": "end",
        "logit_bias": {"3": -100, "4": 2},
        "plan": " tiny:4 > big",
    }
    ignored = {"user": "ann", "tools": [{"type": "function"}], "tool_choice": "auto", "n": 1, "wobble": {"a": [1]}}
    usual = {"response_format": {"type": "text"}, "logprobs": False, "modalities": ["text"], "store": True}
    status, value = client.chat(messages, **given, **ignored, **usual, reasoning_effort="none")
    assert status == 200, value
    params, plan = engine.asked[-1]
    for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed"):
        assert getattr(params, name) == given[name]
    assert params.repetition_penalty == 1.5 and params.max_tokens == 6 and params.stop == ("end",)
    assert params.logit_bias == {3: -100.0, 4: 2.0} and params.thinking is False and plan == "tiny:4>big"
    assert engine.prompts[-1] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "one\ntwo"},
    ]
    # Null is as good as nothing, and without a limit the reply may fill the context.
    nulls = dict.fromkeys([*given, "stream", "stream_options", "n", "model", "response_format"])
    assert client.chat(said("hello"), **nulls)[0] == 200
    params, plan = engine.asked[-1]
    assert params == hsd.SamplingParams(max_tokens=INFO.context) and plan == "auto"
    assert client.chat(said("hello"), max_tokens=10**9, chat_template_kwargs={"enable_thinking": True})[0] == 200
    assert engine.asked[-1][0].max_tokens == INFO.context and engine.asked[-1][0].thinking is True


def test_a_body_that_is_no_json_object_is_refused(client: Client) -> None:
    for body in (b"", b"{", b"[1]", b'{"messages": NaN}', b'"\xff"', b"[" * 100_000, b"1" * 10_000):
        status, _, value = client.ask("POST", CHAT, body)
        assert status == 400 and "JSON" in problem(value)["message"], body[:20]


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(client: Client) -> None:
    large = b" " * (MOST_BYTES + 1)
    assert client.ask("POST", CHAT, large)[0] == 413
    chunks = (large[at : at + 65536] for at in range(0, len(large), 65536))
    status, _, value = client.ask("POST", CHAT, chunks)
    assert status == 413 and problem(value)["code"] == "request_too_large"
    assert client.chat(said("hello"), max_tokens=3)[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_http, "BODY_SECONDS", 0.2)
    lines = [http.client.HTTPConnection("127.0.0.1", client.port, timeout=30) for _ in range(2)]
    for line in lines:
        line.putrequest("POST", CHAT)
        line.putheader("content-type", "application/json")
        line.putheader("content-length", "100")
        line.endheaders(b'{"messages":')
    lines[0].close()
    answer = lines[1].getresponse()
    assert answer.status == 408 and problem(json.loads(answer.read()))["code"] == "timeout"
    lines[1].close()
    assert client.chat(said("hello"), max_tokens=3)[0] == 200


def test_a_client_that_takes_nothing_is_as_good_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_http, "SEND_SECONDS", 0.05)

    async def send(_: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(api_http.Gone):
        asyncio.run(api_http.Exchange({}, None, send).events())


# ------------------------------------------------------------------------------------------------------- who may ask


def test_web_pages_from_elsewhere_cannot_use_it(client: Client, engine: Recording) -> None:
    body, asked = json.dumps({"messages": said("hi"), "max_tokens": 3}).encode(), len(engine.asked)
    for origin in ("https://evil.example", "null", "http://localhost:1", f"http://127.0.0.1:{client.port}0"):
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/health")):
            status, headers, value = client.ask(method, path, body if method == "POST" else None, origin=origin)
            assert status == 403 and problem(value)["code"] == "foreign_origin", (origin, path)
            assert "access-control-allow-origin" not in headers or "//localhost:" in origin or "//127." in origin
    # A form, or a script that does not ask first, can send these.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert client.ask("POST", CHAT, body, content_type=kind)[0] == 415
    # A name of somebody else's that points here.
    line = client.send("POST", CHAT, body, host="evil.example")
    assert line.getresponse().status == 421
    line.close()
    assert len(engine.asked) == asked
    own = client.ask("POST", CHAT, body, origin=f"http://127.0.0.1:{client.port}", content_type="Application/JSON; a=b")
    assert own[0] == 200


@pytest.fixture
def second(tmp_path: Any) -> Callable[..., Any]:
    """Another server, with an engine of its own."""
    return lambda **arguments: served(tmp_path, lambda progress: ScriptedEngine(poem, 0.001), **arguments)


def test_with_a_key_whoever_has_it_may_ask_and_nobody_else(second: Callable[..., Any]) -> None:
    # As on a public link: guests with a password, and a name that is not this machine's.
    with second(password="guests", host="0.0.0.0", api_key=KEY) as (session, client):
        until(lambda: session.engine.state == "ready")
        body = json.dumps({"messages": said("hi"), "max_tokens": 3}).encode()
        for wrong in ("", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer \xff"):
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/nothing")):
                status, headers, value = client.ask(
                    method, path, body if method == "POST" else None, authorization=wrong
                )
                assert status == 401 and problem(value)["code"] == "invalid_api_key" and KEY not in str(value)
                assert headers["www-authenticate"] == "Bearer"
        assert client.ask("GET", "/health")[2] == {"status": "ok"}
        client.headers["authorization"] = f"bearer {KEY}"
        assert client.chat(said("hi"))[0] == 200 and client.ask("GET", "/health")[2]["model"] == "scripted"
        assert client.ask("GET", "/v1/models", origin="http://localhost:3000", host="box.example")[0] == 200


def test_where_others_can_come_there_is_no_api_without_a_key(second: Callable[..., Any]) -> None:
    for arguments in ({"host": "0.0.0.0"}, {}):
        with second(password="guests", start=False, **arguments) as (_, client):
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/v1")):
                status, _, value = client.ask(method, path, b"{}" if method == "POST" else None)
                assert status == 403 and "--api-key" in problem(value)["message"], (arguments, path)


def test_a_key_that_is_none_is_refused_at_the_start() -> None:
    for arguments, environment in ((["--api-key", "short"], {}), ([], {"HSD_API_KEY": "with blanks in it"})):
        result = CliRunner().invoke(chat, [*arguments, "--no-browser"], env=environment)
        assert result.exit_code == 1 and "API key" in result.output and "Hint:" in result.output, result.output


# ------------------------------------------------------------------------------------------------------ before it is up


def test_until_the_family_is_loaded_clients_are_asked_to_come_again(tmp_path: Any) -> None:
    loaded, engines = threading.Event(), []

    def load(progress: Callable[[hsd.LoadProgress], None]) -> ScriptedEngine:
        progress(hsd.LoadProgress("tiny", "reading weights", 1, 3))
        loaded.wait(30)
        if not engines:
            engines.append(None)
            raise hsd.LoadError("The file is broken.", "Download it again.")
        return ScriptedEngine(poem, 0.001)

    with served(tmp_path, load) as (session, client):
        until(lambda: session.engine.progress)
        status, headers, value = client.ask("POST", CHAT, json.dumps({"messages": said("hi")}).encode())
        assert status == 503 and int(headers["retry-after"]) > 0 and "being loaded" in problem(value)["message"]
        assert "tiny reading weights" in problem(value)["message"]
        status, headers, health = client.ask("GET", "/health")
        assert status == 503 and headers["retry-after"] and health["status"] == "loading"
        assert health["progress"] == {"model": "tiny", "step": "reading weights", "done": 1, "total": 3}
        assert client.ask("GET", "/v1/models")[2]["data"][0]["id"] == "scripted"
        loaded.set()
        until(lambda: session.engine.state == "failed")
        status, value = client.chat(said("hi"))
        assert status == 503 and "The file is broken." in problem(value)["message"]
        assert client.ask("GET", "/health")[2]["status"] == "error"
        session.load()
        until(lambda: session.engine.state == "ready")
        # A family that gave its memory back comes again for whoever asks.
        session.unload()
        until(lambda: session.engine.state == "unloaded")
        assert client.ask("GET", "/health")[0] == 200
        assert client.chat(said("hi"))[0] == 200 and session.engine.state == "ready"
        waiting = client.stream(said("endless"))
        parts = iter(waiting)
        next(parts)
        session.close()
        last = list(parts)[-1]
        assert problem(last)["message"] == "The server is ending." and waiting.done
        status, value = client.chat(said("hi"))
        assert status == 503 and problem(value)["message"] == "The server is ending."
