"""GGUF models: replies are the target's own, drawn and greedy, through rewinding, edits, switches and stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models as tiny
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_distribution import PROMPT, VOCAB, Case, law, p_value, sample
from test_loading import tokenizer

import hsd
from hsd.bench.llama_cpp import write
from hsd.bench.peer_prompts import KINDS
from hsd.runtime import LlamaCppModel, Reader
from hsd.runtime.llama_cpp.library import library
from hsd.types import Started, Tokens

pytest.importorskip("gguf", reason="writes the files of these tests")
REAL = os.environ.get("HSD_REAL_MODELS", "")
"""A folder with real GGUF models."""

# ------------------------------------------------------------------------------------------------- distributions

P = hsd.SamplingParams
CASES = [
    Case("lookup:3>big", "block", P(temperature=1.0)),
    Case("small:3>big", "block", P(temperature=0.8, top_p=0.8)),
    Case("small:2>big", "token", P(temperature=1.2, top_k=3)),
    Case("lookup:2>small:3>big", "block", P(temperature=1.0, min_p=0.1)),
    Case("lookup:2>small:3>big", "token", P(temperature=1.0)),
]
EVERY = [
    Case(plan, rule, P(**setting))
    for plan in ("lookup:3>big", "small:3>big", "lookup:2>small:3>big")
    for rule in ("block", "token")
    for setting in (
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.3, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.05},
    )
]


@pytest.fixture(scope="module")
def four_tokens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LlamaCppModel]:
    """Two models as GGUF files in float32. They have eight rows, of which the last four are no tokens."""
    folder, out = tmp_path_factory.mktemp("four"), {}
    for name, model in tiny.related(count=2, noise=0.6, vocab=2 * VOCAB).items():
        with torch.no_grad():
            model.lm_head.weight.mul_(0.3)  # random models are sure of themselves: every outcome shall occur
        write(model.float(), folder / f"{name}.gguf", "F32")
        out["small" if name != "big" else name] = LlamaCppModel(name, folder / f"{name}.gguf", 64, library())
    return out


def exact(case: Case, target: LlamaCppModel) -> dict[tuple[int, ...], float]:
    """The law of the first tokens, by the target's logits of single steps."""
    reader, known = Reader(target, target.new_cache()), {}

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        if prefix not in known:
            reader.rewind(len(PROMPT) - 1)
            for end in range(len(PROMPT), len(prefix) + 1):
                known[prefix[:end]] = reader.read(prefix[:end], 1)[0, :VOCAB].double().numpy()
        return known[prefix]

    return law(case, row)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_joint_law_of_the_first_tokens_is_the_targets(case: Case, four_tokens: dict[str, LlamaCppModel]) -> None:
    expected = exact(case, four_tokens["big"])
    likeliest = max(expected.values())
    assert likeliest < 0.5 and sum(expected.values()) == pytest.approx(1)
    assert p_value(case, sample(case, 400, seed=5, family=four_tokens), expected) > 1e-4


def test_the_test_notices_another_target(four_tokens: dict[str, LlamaCppModel]) -> None:
    case = CASES[0]
    turned = {"big": four_tokens["small"], "small": four_tokens["big"]}
    assert p_value(case, sample(case, 400, seed=5, family=turned), exact(case, four_tokens["big"])) < 1e-4


@pytest.mark.full
def test_the_joint_laws_at_large_counts(four_tokens: dict[str, LlamaCppModel]) -> None:
    values = {}
    for case in EVERY:
        expected = exact(case, four_tokens["big"])
        values[str(case)] = p_value(case, sample(case, 20_000, seed=11, family=four_tokens), expected)
        print(f"chi-square p = {values[str(case)]:.4f}  20000 samples  {case}", flush=True)
    assert min(values.values()) > 1e-4


# -------------------------------------------------------------------------------------------------- schedules

CONTEXT = 96
TEXT = [(37 * i) % 250 for i in range(3 * CONTEXT)]


def write_family(root: Path, context: int = 256) -> str:
    """A family of two tiny models as GGUF, with a tokenizer of bytes; its address."""
    for name, model in tiny.related(count=2, noise=0.05, context=2 * context).items():
        write(model.float(), root / f"{name if name == 'big' else 'small'}.gguf", "F32", tokenizer())
    (root / "models.yaml").write_text(
        f"families: {{tiny: {{context: {context}, models: {{small: ./small.gguf, big: ./big.gguf}}}}}}"
    )
    return f"{root}/models.yaml#tiny"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gguf")
    write_family(root)
    return root


@pytest.fixture(scope="module")
def one(family: Path) -> LlamaCppModel:
    return LlamaCppModel("big", family / "big.gguf", CONTEXT, library())


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.integers(1, 20), st.integers(1, 4)),
        st.tuples(st.just("prompt"), st.integers(1, 40), st.just(0)),
        st.tuples(st.just("rewind"), st.integers(0, 99), st.just(0)),
        st.tuples(st.just("copy"), st.integers(0, 99), st.just(0)),
        st.tuples(st.just("switch"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("abort"), st.integers(1, 40), st.integers(0, 6)),
    ),
    min_size=3,
    max_size=10,
)


class Schedule:
    """Conversations of one model, and the tokens that each of them should hold."""

    def __init__(self, model: LlamaCppModel) -> None:
        self.model = model
        self.readers = [Reader(model, model.new_cache()) for _ in range(2)]
        self.texts: list[list[int]] = [[], []]
        self.at = 0

    def run(self, operation: str, size: int, more: int) -> None:
        reader, text = self.readers[self.at], self.texts[self.at]
        start = 7 * self.at + len(text)
        longer = [*text, *TEXT[start : start + min(size, CONTEXT - len(text))]]
        if operation == "switch":
            self.at = size % len(self.readers)
        elif operation == "rewind":
            self.texts[self.at] = text[: len(text) * size // 100]
            reader.rewind(len(self.texts[self.at]))
        elif operation == "copy":
            self.texts.append(text[: len(text) * size // 100])
            self.readers.append(reader.copy(len(self.texts[-1])))
        elif len(longer) == len(text):
            return
        elif operation == "abort":
            asked = iter(range(1_000_000))
            if reader.prefill(longer, lambda: next(asked) >= more):
                self.texts[self.at] = longer
        elif operation == "prompt":
            assert reader.prefill(longer)
            self.texts[self.at] = longer
        else:
            last = min(more, len(longer) - len(text))
            self.same(reader.read(longer, last), longer, last)
            self.texts[self.at] = longer

    def same(self, rows: torch.Tensor, text: list[int], last: int) -> None:
        """The rows are those of a cache that has read the text at once."""
        rows = rows.clone()
        fresh = Reader(self.model, self.model.new_cache()).read(text, last, widest=CONTEXT)
        assert (rows - fresh).abs().max() <= 1e-3 * fresh.abs().max()

    def end(self) -> None:
        for reader, text in zip(self.readers, self.texts, strict=True):
            assert len(reader) == len(text)
            if text:
                self.same(reader.read(text, 1), text, 1)


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS)
def test_any_schedule_leaves_what_a_fresh_cache_holds(operations: list[Any], one: LlamaCppModel) -> None:
    schedule = Schedule(one)
    for operation in operations:
        schedule.run(*operation)
    schedule.end()


# ------------------------------------------------------------------------------------------------ conversations

GREEDY = P(temperature=0, max_tokens=16)
PLANS = ("lookup:2>big", "small:3>big", "lookup:2>small:3>big")


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def engine(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hsd.Engine]:
    with hsd.Engine.load(f"{family}/models.yaml#tiny", data_dir=tmp_path_factory.mktemp("data")) as loaded:
        yield loaded


@pytest.mark.parametrize("plan", PLANS)
def test_edits_turns_and_stops_leave_the_reply_of_plain_decoding(plan: str, engine: hsd.Engine) -> None:
    first = [said("user", "hello hello hello"), said("assistant", "hi"), said("user", "tell me more of it")]
    edited = [*first[:2], said("user", "tell me less of it")]
    other = [said("user", "what is the time, the time, the time?")]
    engine.forget()
    expected = [engine.generate(messages, GREEDY, plan="big").token_ids for messages in (first, edited, other)]
    engine.forget()
    # Two conversations in turn, the first one edited and taken back, each time with what the caches still hold.
    for at, messages in [(0, first), (2, other), (1, edited), (2, other), (0, first)]:
        reply = engine.generate(messages, GREEDY, plan=plan)
        assert reply.token_ids == expected[at] and reply.finish_reason in ("length", "stop")
    assert reply.stats.reused_tokens > 0
    # A reply that is stopped at its first tokens, and one that is stopped before its prompt was read.
    for kind in (Tokens, Started):
        stream = engine.stream([*first, said("assistant", "so"), said("user", "x" * 100)], GREEDY, plan=plan)
        next(event for event in stream if isinstance(event, kind))
        stream.close()
        assert engine.generate(first, GREEDY, plan=plan).token_ids == expected[0]
        assert engine.generate(other, GREEDY, plan=plan).token_ids == expected[2]


# -------------------------------------------------------------------------------------------------- real models

SMOL, PAIR = "SmolLM2-135M-*.gguf", ("Qwen2.5-Coder-0.5B-*.gguf", "Qwen2.5-Coder-1.5B-*.gguf")
REAL_PLANS = ("lookup:4>big", "small:3>big", "lookup:2>small:3>big")
SHORT = 256
"""Cached tokens up to which rows of Q4_1 are the same at every width."""


def real(pattern: str) -> Path:
    found = sorted(Path(REAL).glob(pattern)) if REAL else []
    if not found:
        pytest.skip(f"HSD_REAL_MODELS names no folder with {pattern}")
    return found[0]


def prompts(count: int) -> list[tuple[str, str]]:
    """Kind and prompt, of all kinds in turn."""
    each = [[(kind, text) for text in texts] for kind, texts in KINDS.items()]
    return [pair for group in zip(*each, strict=True) for pair in group][:count]


def differing(engine: hsd.Engine, count: int, tokens: int) -> tuple[dict[str, int], int, list[str]]:
    """Greedy replies by `REAL_PLANS` that differ from plain decoding's: how many by plan, replies, and the short ones.

    Short are those of at most `SHORT` tokens, the prompt included.
    """
    params = P(temperature=0, max_tokens=tokens)
    out, short = dict.fromkeys(REAL_PLANS, 0), []
    for kind, text in prompts(count):
        engine.forget()
        plain = engine.generate(text, params, plan="big")
        assert plain.token_ids and not plain.error
        for plan in REAL_PLANS:
            engine.forget()
            reply = engine.generate(text, params, plan=plan)
            if reply.token_ids == plain.token_ids:
                continue
            out[plan] += 1
            pairs = enumerate(zip(reply.token_ids, plain.token_ids, strict=False))
            same = next((at for at, (ours, theirs) in pairs if ours != theirs), len(plain.token_ids))
            print(f"    {plan}, {kind}: other from token {same} on, {plain.stats.prompt_tokens} before", flush=True)
            if plain.stats.prompt_tokens + same < SHORT:
                short.append(f"{plan}: {text}")
    print(f"greedy replies that differ from plain decoding's, of {count} of {tokens} tokens each: {out}", flush=True)
    return out, count, short


def smol(folder: Path, small: str) -> str:
    """SmolLM2 with a draft."""
    (folder / "own.yaml").write_text(
        f"families: {{f: {{context: 1024, models: {{small: {small}, big: {real(SMOL)}}}}}}}"
    )
    return f"{folder}/own.yaml#f"


def guessing(folder: Path) -> Path:
    """A model of random weights with the vocabulary of SmolLM2: what it drafts is hardly ever right."""
    write(tiny.model(vocab=49152, context=1024).float(), folder / "guessing.gguf", "F32")
    return folder / "guessing.gguf"


@pytest.mark.parametrize("draft", ["itself", "guessing"])
@pytest.mark.parametrize(("count", "tokens"), [(2, 24), pytest.param(50, 64, marks=pytest.mark.full)])
def test_greedy_replies_of_smollm2_are_those_of_plain_decoding(
    draft: str, count: int, tokens: int, tmp_path: Path
) -> None:
    small = real(SMOL) if draft == "itself" else guessing(tmp_path)
    with hsd.Engine.load(smol(tmp_path, str(small)), data_dir=tmp_path) as loaded:
        assert loaded.info.models == ("small", "big")
        _, _, short = differing(loaded, count, tokens)
        assert not short


@pytest.mark.full
def test_greedy_replies_of_the_pair_are_counted_that_differ_from_plain_decoding(tmp_path: Path) -> None:
    small, big = (real(pattern) for pattern in PAIR)
    (tmp_path / "own.yaml").write_text(f"families: {{f: {{context: 1024, models: {{small: {small}, big: {big}}}}}}}")
    with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=tmp_path) as loaded:
        found, count, _ = differing(loaded, 50, 40)
    # Rows of Q4_K depend on the width of a pass, so near-ties may fall another way; a broken cache spoils all replies.
    assert max(found.values()) <= count // 2
