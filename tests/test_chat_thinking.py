"""Thinking switched on and off: a real tokenizer whose template has the switch, real models, the session, the CLI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import chat_thinking
import pytest
from chat_waiting import until
from click.testing import CliRunner

import hsd
from chat.session import Session
from chat.settings import Settings
from chat.store import Store
from hsd.builtin import tokenizer, weights_file
from hsd.builtin.tokenizer import CHAT_TEMPLATE
from hsd.cli import cli
from hsd.prompts import Prompts

GREEDY = {"temperature": 0.0, "max_tokens": 12}
QUESTION = [{"role": "user", "content": "How do I extract a tar.gz archive?"}]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chat_thinking.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hsd.Engine]:
    with hsd.Engine.load(family, device="cpu", data_dir=tmp_path_factory.mktemp("data")) as engine:
        yield engine


def prompts(engine: hsd.Engine) -> Prompts:
    return Prompts(engine.tokenizer, len(engine.tokenizer))


def test_the_template_hears_the_switch_and_a_family_says_that_it_has_one(engine: hsd.Engine) -> None:
    ends = {way: engine.tokenizer.decode(prompts(engine).build(QUESTION, way)) for way in (None, True, False)}
    assert ends[None] == ends[True] and ends[False] == ends[None] + chat_thinking.EMPTY
    assert engine.info.thinking


def test_a_template_without_the_switch_ignores_it(engine: hsd.Engine) -> None:
    told: list[dict] = []

    class Plain(type(engine.tokenizer)):
        def apply_chat_template(self, conversation, **options):
            told.append(options)
            return super().apply_chat_template(conversation, **options)

    plain = Plain(tokenizer_object=engine.tokenizer.backend_tokenizer)
    plain.chat_template = CHAT_TEMPLATE
    built = [Prompts(plain, 4096).build(QUESTION, way) for way in (None, True, False)]
    assert built[0] == built[1] == built[2] and not any("enable_thinking" in options for options in told)


@pytest.mark.parametrize("now", [None, True, False])
def test_old_turns_keep_the_ids_they_were_generated_as(engine: hsd.Engine, now: bool | None) -> None:
    """Whatever the switch says now: earlier replies stand without the empty thinking, as their own ids."""
    own = prompts(engine)
    spelt = [engine.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "tar"]
    assert spelt != engine.tokenizer.encode("tar", add_special_tokens=False)
    own.note("tar", spelt)
    head = own.build(QUESTION)
    talk = [*QUESTION, {"role": "assistant", "content": "tar"}, {"role": "user", "content": "Thanks!"}]
    ids = own.build(talk, now)
    assert ids[: len(head) + len(spelt)] == [*head, *spelt]
    end = chat_thinking.EMPTY if now is False else ""
    assert engine.tokenizer.decode(ids).endswith(f"Thanks!<|end|><|assistant|>{end}")


def test_the_next_turn_reads_from_where_the_prompts_differ(engine: hsd.Engine) -> None:
    for way in (None, False):
        engine.forget()
        params = hsd.SamplingParams(**GREEDY, thinking=way)
        first = engine.generate(QUESTION, params, plan="small")
        talk = [*QUESTION, {"role": "assistant", "content": first.text}, {"role": "user", "content": "Thanks!"}]
        again = engine.generate(talk, params, plan="small")
        thought = len(engine.tokenizer.encode(chat_thinking.EMPTY, add_special_tokens=False)) if way is False else 0
        head = first.stats.prompt_tokens - thought
        # The empty thinking is not in the next prompt, so what stood behind it is read again; nothing else is.
        read = head if thought else head + first.stats.tokens - 1
        assert again.stats.reused_tokens == read, (way, again.stats)


@pytest.fixture(scope="module")
def session(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("chat")
    session = Session(Store(folder / "chat.db"), lambda tell: hsd.Engine.load(family, device="cpu", data_dir=folder))
    session.start()
    until(lambda: session.engine.state == "ready")
    yield session
    session.close()


def test_the_switch_is_stored_and_a_reply_goes_on_as_it_was_begun(session: Session) -> None:
    def ask(**more: object) -> Settings:
        return Settings(temperature=0.0, plan="small", **more)

    whole = session.send(None, QUESTION[0]["content"], ask(thinking=False, max_tokens=12))
    until(lambda: session.live(whole) is None)
    half = session.send(None, QUESTION[0]["content"], ask(thinking=False, max_tokens=5))
    until(lambda: session.live(half) is None)
    begun = session.snapshot(half).messages[-1]
    assert begun.params["thinking"] is False and session.conversation(half).settings["thinking"] is False
    session.resume(begun.id, ask(thinking=True, max_tokens=7))
    until(lambda: session.live(half) is None)
    expected, got = (session.snapshot(c).messages[-1] for c in (whole, half))
    assert got.token_ids == expected.token_ids
    # The prompt that it went on from holds the empty thinking, as the one of the whole reply does.
    written = len(tokenizer.load(weights_file("small"))(begun.text, add_special_tokens=False).input_ids)
    assert got.stats["prompt_tokens"] == expected.stats["prompt_tokens"] + written


@pytest.mark.parametrize("value", ["off", 1, 0])
def test_what_is_no_choice_is_refused(value: object) -> None:
    with pytest.raises(hsd.ConfigError, match="thinking"):
        hsd.SamplingParams(thinking=value)


def test_the_command_line_switches_it_and_says_where_there_is_no_switch(family: str, tmp_path: Path) -> None:
    def generate(*options: str):
        done = CliRunner().invoke(
            cli, ["generate", "Hello!", "--max-tokens", "2", "--data-dir", str(tmp_path), "--json", *options]
        )
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])["stats"]["prompt_tokens"], done.stderr

    (on, said), (off, _) = (generate("--family", family, way) for way in ("--thinking", "--no-thinking"))
    assert off > on and "no switch" not in said
    assert "no switch for thinking" in generate("--no-thinking")[1]
