"""The filters against their definitions, each row on its own prefix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsd import ConfigError, SamplingParams
from hsd.sampling import Sampler

VOCAB = 7


def logits(seed: int, n: int = 1, width: int = VOCAB) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 2, (n, width)), dtype=torch.float32)


def sampler(prompt=(1, 2), **settings) -> Sampler:
    return Sampler(SamplingParams(**{"temperature": 1.0, **settings}), prompt, VOCAB, "cpu")


def test_greedy_is_one_hot_and_never_a_softmax():
    rows = sampler(temperature=0).rows(logits(0, 3), [1, 2, 3, 4])
    assert rows == logits(0, 3).argmax(-1).tolist()


def test_rows_beyond_the_tokenizer_are_cut_off():
    wide = torch.cat((logits(1), torch.full((1, 5), 50.0)), 1)
    assert sampler().rows(wide, [1, 2]).shape == (1, VOCAB)
    assert sampler(temperature=0).rows(wide, [1, 2])[0] < VOCAB


def test_temperature_one_without_filters_makes_no_copy_but_the_softmax():
    values = logits(2)
    assert sampler()._adjusted(values, [1, 2]) is values


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_it(seed, top_p):
    row = sampler(top_p=top_p).rows(logits(seed), [1, 2])[0].double().numpy()
    full = torch.softmax(logits(seed)[0].double(), -1).numpy()
    order = np.argsort(-full)
    size = int(np.searchsorted(np.cumsum(full[order]), top_p) + 1)
    assert set(np.flatnonzero(row)) == set(order[:size])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.floats(0.01, 0.9))
def test_top_k_and_min_p(seed, k, share):
    assert (sampler(top_k=k).rows(logits(seed), [1, 2])[0] > 0).sum() == min(k, VOCAB)
    row, full = sampler(min_p=share).rows(logits(seed), [1, 2])[0], torch.softmax(logits(seed)[0], -1)
    assert ((row > 0) == (full >= share * full.max())).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([7, 300, 5000]),
    st.floats(0.3, 2),
    st.sampled_from([0, 1, 3, 40, 6000]),
    st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    st.sampled_from([0.0, 0.05, 0.7]),
    st.sampled_from([0.3, 2.0, 8.0]),
)
def test_filters_keep_what_transformers_keeps(seed, vocab, temperature, top_k, top_p, min_p, spread):
    from transformers.generation import logits_process

    from hsd.filters import probabilities

    row = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    row[0, seed % vocab] = -torch.inf
    want = row / temperature
    if top_k:
        want = logits_process.TopKLogitsWarper(top_k)(None, want)
    if top_p < 1:
        want = logits_process.TopPLogitsWarper(top_p)(None, want)
    if min_p:
        want = logits_process.MinPLogitsWarper(min_p)(None, want)
    found = probabilities(row[0].numpy(), temperature, top_k, top_p, min_p)
    # A weight at the edge may fall on either side of it by rounding: one of all is allowed to.
    different = np.flatnonzero((found > 0) != np.isfinite(want[0].numpy()))
    assert len(different) <= 1
    if not len(different):
        np.testing.assert_allclose(found, torch.softmax(want, -1)[0].numpy(), atol=2e-6)
    assert found.sum() == pytest.approx(1, abs=1e-4)


def test_no_filter_makes_a_distribution_of_what_is_none():
    from hsd.filters import probabilities

    for wrong in (np.nan, np.inf):
        row = np.zeros(500, dtype=np.float32)
        row[3] = wrong
        assert np.isnan(probabilities(row, 1.0, 3, 0.9, 0.1)).all()
    assert np.isnan(probabilities(np.full(500, -np.inf, dtype=np.float32), 0.5)).all()


def test_penalties_count_each_rows_own_prefix_also_after_a_cut():
    """Rows of one pass and rows of single passes agree, and a rewind forgets what was counted."""
    one = sampler(repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.25)
    sequence = [1, 2, 3, 3, 4, 3]
    values = logits(3, 5)
    together = one.rows(values, sequence)
    for i in range(5):
        fresh = sampler(repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.25)
        alone = fresh.rows(values[i : i + 1], sequence[: 2 + i])
        assert torch.allclose(together[i], alone[0])
    one.rewind(4)
    other = [1, 2, 3, 3, 5]
    fresh = sampler(repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.25)
    assert torch.allclose(one.rows(values[:1], other), fresh.rows(values[:1], other))


def test_penalties_by_their_definition():
    values = logits(4)
    row = sampler(prompt=(1, 2), repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25).rows(
        values, [1, 2, 3, 3]
    )
    want = values[0].clone()
    for token in (1, 2, 3):
        want[token] = want[token] / 2 if want[token] > 0 else want[token] * 2
    want[3] -= 0.25 + 0.5 * 2  # presence and frequency look at the reply alone
    assert torch.allclose(row[0], torch.softmax(want, -1))


def test_forced_ids_come_first_and_banned_ones_never():
    one = sampler(forced_ids=(5, 6), banned_ids=(0,))
    rows = one.rows(logits(5, 3), [1, 2, 5, 6])
    assert rows[0].argmax() == 5 and rows[0].max() == 1 and rows[1].argmax() == 6 and rows[1].max() == 1
    assert rows[2, 0] == 0 and (rows[2] > 0).sum() == VOCAB - 1


@pytest.mark.parametrize("settings", [{"banned_ids": (VOCAB,)}, {"forced_ids": (99,)}, {"logit_bias": {12: 1.0}}])
def test_an_id_outside_the_vocabulary_is_one_sentence(settings):
    with pytest.raises(ConfigError, match="token id"):
        sampler(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"min_p": 1},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"banned_ids": (-1,)},
        {"logit_bias": {1: float("nan")}},
        {"seed": "x"},
        {"time_limit": -1},
    ],
)
def test_impossible_settings_name_themselves(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SamplingParams(**settings)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.6}, {"temperature": 0}, {"top_p": 0.8}, {"banned_ids": (2,)}]
)
def test_drawing_in_one_go_is_rows_and_then_a_draw(settings):
    from hsd.verify import draw

    for seed, coin in enumerate(np.linspace(0, 0.999, 25)):
        one, values = sampler(**settings), logits(seed)
        token, row, confidence = one.draw(values, [1, 2], float(coin))
        want = one.rows(values, [1, 2])
        if isinstance(want, list):
            assert row == want == [token]
            assert confidence == pytest.approx(float(torch.softmax(values[0], -1).max()), abs=1e-5)
        else:
            torch.testing.assert_close(row, want)
            assert token == draw(want[0], float(coin)) and confidence == pytest.approx(float(want.max()), abs=1e-5)
    assert sampler(**settings).draw(torch.full((1, VOCAB), torch.nan), [1, 2], 0.5)[0] == -1
