"""Scoring without the target: unbiased for every pair, a piece at a time, and within its allowance."""

from __future__ import annotations

import math

import models as tiny
import numpy as np
import pytest

import hsd
from hsd import SamplingParams, scoring
from hsd.conversations import Conversation
from hsd.learning import Allowance
from hsd.planning import sketch, weights
from hsd.sampling import Sampler
from hsd.types import LOOKUP

FOREVER = SamplingParams(temperature=1.0, max_tokens=60, banned_ids=(tiny.END,))


def engine(**options) -> hsd.Engine:
    return hsd.Engine.from_models(tiny.related(count=3, noise=0.05), tiny.ByteTokenizer(), **options)


def made(one: hsd.Engine, temperature: float, prompt: str):
    """A reply's tokens, length of its prompt, sampler and the target's probabilities of its tokens."""
    params = SamplingParams(temperature=temperature, max_tokens=60, banned_ids=(tiny.END,))
    one.generate(prompt, params, plan="medium:3>big")
    waiting = one.learner._waiting[-1]
    return list(waiting.tokens), len(waiting.request.prompt), waiting.request.params, waiting.chances


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_targets_own_tokens_price_drafts_as_its_distributions_do(temperature):
    one, own, full = engine(), [], []
    names = list(one.info.models)
    for n in range(12 if temperature else 3):
        tokens, prompt, params, chances = made(one, temperature, f"hello {n}")
        assert chances is not None and len(chances) == len(tokens) - prompt
        for found, given in ((own, chances), (full, None)):
            conversation = Conversation(one._conversations._models)
            conversation.begin(tokens)
            sampler = Sampler(params, tokens[:prompt], one._loaded.vocab, "cpu")
            found.append(scoring.score(conversation, names, tokens, prompt, sampler, given))
            assert found[-1] is not None
            assert ("big" in conversation.readers) == (given is None), (
                "the target is not run where its chances are known"
            )
    assert set(own[0].overlaps) == set(full[0].overlaps)
    for pair in full[0].overlaps:
        a, b = (np.nan_to_num(np.concatenate([scores.overlaps[pair] for scores in found])) for found in (own, full))
        assert a.shape == b.shape
        if temperature == 0 or pair[1] != "big":
            np.testing.assert_allclose(a, b, atol=1e-5)
        else:
            error = np.sqrt((a.var() + b.var()) / len(a))
            assert abs(a.mean() - b.mean()) < 5 * error
    for name in (LOOKUP, "small", "medium"):
        a, b = (np.concatenate([scores.confidences[name] for scores in found]) for found in (own, full))
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_lookup_is_scored_on_every_reply_and_no_model_is_run():
    one = engine()
    one.generate("hello hello hello", FOREVER, plan="big")
    passes = {name: len(reader.meter.passes) for name, reader in one._conversations._held[-1].readers.items()}
    found = one.planner.evidence.positions(1.0)
    assert [set(reply.overlaps) for reply in found] == [{(LOOKUP, "big")}] and set(found[0].confidences) == {LOOKUP}
    assert found[0].sketch is not None and passes.keys() == {"big"}


def test_a_lookups_scores_are_those_of_its_proposals():
    tokens = [1, 2, 3, 4, 1, 2, 3, 4, 1, 9, 2]
    scores = scoring.lookup_scores(tokens, 5, "big")
    # Behind 1 2 3 4 1 it knows what follows; 9 was never seen, and behind it nothing is proposed.
    assert scores.overlaps[LOOKUP, "big"].tolist()[:5] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert math.isnan(scores.overlaps[LOOKUP, "big"][5])
    sure = scores.confidences[LOOKUP]
    assert ((sure[:5] > 0) & (sure[:5] < 1)).all() and math.isnan(sure[5]) and sure[0] < sure[3]


def test_idle_work_keeps_to_its_allowance():
    one = engine()
    one.learner.allowance.share = 0.0
    one.learner.allowance.spent = 1.0  # the least that it may take is spent
    one.generate("hello", FOREVER, plan="medium:2>big")
    assert not one.learn() and one.stats.scored == 1, "the lookup alone, which costs nothing"
    tiny.learn(one)
    assert one.stats.scored == 2 and ("small", "big") in one.planner.evidence.positions(1.0)[0].overlaps


def test_an_allowance_is_a_share_of_the_replies():
    allowance = Allowance(0.1)
    assert 0 < allowance.left <= 1 and allowance.earned == 0
    allowance.replies = 100.0
    assert allowance.left == allowance.earned == pytest.approx(10.0)
    with allowance.spending():
        pass
    assert allowance.spent > 0


def test_a_reply_whose_conversation_went_on_is_not_scored():
    """Its caches would be cut back for it."""
    one = engine()
    first = one.generate([1, 2, 3, 4], FOREVER, plan="big")
    one.generate([1, 2, 3, 4, *first.token_ids, 5, 6], FOREVER, plan="big")
    tiny.learn(one)
    assert [("small", "big") in reply.overlaps for reply in one.planner.evidence.positions(1.0)] == [True, False]


def test_a_reply_is_scored_in_short_passes():
    one = engine()
    tokens, prompt, params, chances = made(one, 1.0, "a prompt that is longer than one of the passes that read it " * 2)
    conversation = Conversation(one._conversations._models)
    conversation.begin(tokens)
    work = scoring.passes(
        conversation,
        ["small", "medium", "big"],
        tokens,
        prompt,
        Sampler(params, tokens[:prompt], one._loaded.vocab, "cpu"),
        chances,
        lambda name: 16,
    )
    for _ in work:
        pass
    widths = [entry.width for reader in conversation.readers.values() for entry in reader.meter.passes]
    assert max(widths) <= 17 and sum(widths) >= 2 * (len(tokens) - 2)


def test_replies_to_prompts_like_this_one_count_for_more():
    kinds = [list(range(100 * kind, 100 * kind + 40)) for kind in range(3)]
    sketches = [sketch(kinds[n % 3]) for n in range(24)]
    found = weights(sketches, kinds[1][5:])
    assert found.mean() == pytest.approx(1) and found[1::3].sum() > 0.9 * found.sum()
    assert (weights([], kinds[0]) == np.ones(0)).all() and (weights(sketches[:3], kinds[0]) == 1).all()
    assert (weights(sketches, []) == 1).all()


def test_one_reply_to_the_same_prompt_does_not_decide_alone():
    other = [sketch(list(range(1000 + 30 * n, 1030 + 30 * n))) for n in range(12)]
    found = weights([*other, sketch(list(range(30)))], list(range(30)))
    assert found[-1] == found.max() and found.sum() ** 2 / (found**2).sum() >= 2
