"""Greedy ids on the built-in family equal those of transformers, plain and assisted, over fifty prompts."""

from __future__ import annotations

import pytest

import hsd
from hsd.bench.prompts import PROMPTS
from hsd.builtin import stored, weights_file
from hsd.builtin.tokenizer import load as read_tokenizer

SUBJECTS = ("files", "a folder", "a git branch", "a process", "disk space", "an archive", "a remote host")
WISHES = ("How do I list {}?", "How can I remove {}?", "Tell me about {}.", "What is {}?", "I need help with {}.")
ALL = [*(p for texts in PROMPTS.values() for p in texts), *(w.format(s) for w in WISHES for s in SUBJECTS)][:50]


def load(name: str):
    return stored.load(weights_file(name)).eval()


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.full)])
def test_two_levels_equal_generate_with_and_without_an_assistant(count):
    tokenizer, target, draft = read_tokenizer(weights_file("large")), load("large"), load("tiny")
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        for text in ALL[:count]
    ]
    options = dict(max_new_tokens=40, do_sample=False)
    plain = [target.generate(p, **options)[0, p.shape[1] :].tolist() for p in prompts]
    assisted = [target.generate(p, assistant_model=draft, **options)[0, p.shape[1] :].tolist() for p in prompts]
    assert plain == assisted, "transformers disagrees with itself"
    # The engine re-points the modules' weights, so it comes last.
    params = hsd.SamplingParams(temperature=0, max_tokens=40)
    with hsd.Engine.from_models({"tiny": draft, "large": target}, tokenizer) as engine:
        for prompt, text, want in zip(prompts, ALL, plain, strict=False):
            assert list(engine.generate(prompt[0].tolist(), params, plan="tiny:4>large").token_ids) == want
            assert list(engine.generate(text, params, plan="lookup:3>tiny:2>large").token_ids) == want
    print(f"{len(prompts)} prompts: plain generate, assisted generate and two plans give the same ids")


def test_there_are_fifty_different_prompts():
    assert len(set(ALL)) == 50
