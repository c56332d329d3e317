"""Speculative decoding at temperature 0 gives the ids of plain decoding, token by token, for every plan shape."""

from __future__ import annotations

import functools

import models as tiny
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hsd

SHAPES = ("llama", "mistral", "mistral-window", "qwen2", "qwen3", "gemma3", "smollm3", "gpt-neox", "mixtral")
NAMES = ("lookup", "tiny", "small", "medium")


@functools.cache
def engine(shape: str, seed: int, noise: float) -> hsd.Engine:
    family = tiny.related(shape, seed, count=4, noise=noise)
    return hsd.Engine.from_models(family, tiny.ByteTokenizer())


@functools.cache
def by_transformers(shape: str, seed: int, noise: float, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Plain greedy ids by transformers' own forward without a cache: shares no code with the engine."""
    target = tiny.related(shape, seed, count=4, noise=noise)["big"]
    ids = list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            logits = target(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits[: tiny.END + 1].argmax()))  # ids that the tokenizer does not know are no tokens
        if ids[-1] == tiny.END:
            break
    return tuple(ids[len(prompt) :])


@st.composite
def plans(draw) -> str:
    drafts = [name for name in NAMES if draw(st.booleans())]
    return ">".join([*(f"{name}:{draw(st.integers(1, 9))}" for name in drafts), "big"])


@st.composite
def cases(draw):
    prompt = draw(st.lists(st.integers(0, tiny.END), min_size=1, max_size=40))
    return (
        draw(st.sampled_from(SHAPES)),
        draw(st.integers(0, 1)),
        draw(st.sampled_from([0.02, 0.1])),
        draw(plans()),
        prompt * draw(st.integers(1, 2)),  # repetition gives a lookup something to find
        draw(st.integers(1, 24)),
    )


def check(case) -> None:
    shape, seed, noise, plan, prompt, length = case
    reply = engine(shape, seed, noise).generate(prompt, hsd.SamplingParams(temperature=0, max_tokens=length), plan=plan)
    assert reply.token_ids == by_transformers(shape, seed, noise, tuple(prompt), length)
    assert reply.finish_reason == ("stop" if reply.token_ids[-1] == tiny.END else "length")
    assert len(reply.stats.provenance) == len(reply.token_ids) == reply.stats.tokens
    assert set(reply.stats.provenance) <= set(hsd.Plan.parse(plan).names)


quiet = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@settings(max_examples=40, derandomize=True, **quiet)
@given(cases())
def test_any_chain_gives_the_ids_of_plain_decoding(case):
    check(case)


@pytest.mark.full
@settings(max_examples=600, derandomize=True, print_blob=True, **quiet)
@given(cases())
def test_any_chain_gives_the_ids_of_plain_decoding_at_large_counts(case):
    check(case)


@pytest.mark.parametrize("plan", ["big", "tiny:4>big", "lookup:3>tiny:2>big", "lookup:2>tiny:2>small:3>medium:4>big"])
def test_one_to_five_levels_share_one_path(plan):
    check(("llama", 0, 0.02, plan, [1, 2, 3, 4] * 5, 40))


def test_an_end_token_inside_a_block_ends_the_reply_there():
    """Biased so that the end token comes soon: every plan must stop at the same place, with nothing behind it."""
    params = hsd.SamplingParams(temperature=0, max_tokens=60, logit_bias={tiny.END: 6.0}, forced_ids=(9, 8, 7, 6, 5))
    one = engine("llama", 0, 0.02)
    plain = one.generate([1, 2, 3], params, plan="big")
    assert plain.finish_reason == "stop" and 1 < len(plain.token_ids) < 60
    for plan in ("tiny:8>big", "lookup:4>tiny:6>big", "tiny:3>small:7>big"):
        reply = one.generate([1, 2, 3], params, plan=plan)
        assert reply.token_ids == plain.token_ids and reply.token_ids.count(tiny.END) == 1


@pytest.mark.parametrize("length", [1, 2, 3, 5, 9])
def test_the_length_limit_holds_inside_a_block(length):
    params = hsd.SamplingParams(temperature=0, max_tokens=length)
    plain = engine("llama", 0, 0.02).generate([5, 6, 7], params, plan="big")
    for plan in ("tiny:8>big", "lookup:8>tiny:4>medium:8>big"):
        reply = engine("llama", 0, 0.02).generate([5, 6, 7], params, plan=plan)
        assert reply.token_ids == plain.token_ids and len(reply.token_ids) == length


def test_penalties_and_filters_change_greedy_decoding_alike_at_every_depth():
    params = hsd.SamplingParams(
        temperature=0,
        max_tokens=40,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        presence_penalty=0.2,
        banned_ids=(3, 4, 5),
        forced_ids=(9, 8, 7),
        logit_bias={10: 1.5},
    )
    one = engine("qwen3", 1, 0.02)
    plain = one.generate([1, 2, 3], params, plan="big")
    assert plain.token_ids[:3] == (9, 8, 7) and not {3, 4, 5} & set(plain.token_ids)
    for plan in ("tiny:4>big", "lookup:2>tiny:2>small:3>medium:4>big"):
        assert one.generate([1, 2, 3], params, plan=plan).token_ids == plain.token_ids
