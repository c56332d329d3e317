"""The acceptance rules as functions: exact by integration over coins, not by luck."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsd.verify import NoDistributionError, block_wise, draw, greedy, overlap, token_wise, verify


def rows(rng: np.random.Generator, n: int, vocab: int, sparse: bool) -> torch.Tensor:
    weights = rng.dirichlet(np.full(vocab, 0.6), n)
    if sparse:
        weights[rng.random(weights.shape) < 0.3] = 0
        weights[weights.sum(1) == 0, 0] = 1
    return torch.tensor(weights / weights.sum(1, keepdims=True), dtype=torch.float32)


def emitted(rule, q: torch.Tensor, p: torch.Tensor, cells: int = 24) -> dict[tuple[int, ...], float]:
    """Law of the emitted tokens for one-token blocks, by a fine grid of coins: exact up to the grid."""
    law: dict[tuple[int, ...], float] = {}
    grid = [(i + 0.5) / cells for i in range(cells)]
    vocab = p.shape[1]
    for y in range(vocab):
        mass = float(q[0] == y) if isinstance(q, list) else float(q[0, y])
        if not mass:
            continue
        for u, v in itertools.product(grid, grid):
            verdict = rule([y], q, p, [u, v])
            tokens = (y, verdict.token) if verdict.accepted else (verdict.token,)
            law[tokens] = law.get(tokens, 0.0) + mass / cells**2
    return law


@pytest.mark.parametrize("rule", [token_wise, block_wise])
@pytest.mark.parametrize("one_hot", [False, True])
def test_the_first_emitted_token_has_exactly_the_verifiers_distribution(rule, one_hot):
    rng = np.random.default_rng(3)
    p = rows(rng, 2, 3, sparse=False)
    q = [1] if one_hot else rows(rng, 1, 3, sparse=False)
    law = emitted(rule, q, p)
    first = [sum(mass for tokens, mass in law.items() if tokens[0] == x) for x in range(3)]
    assert first == pytest.approx(p[0].tolist(), abs=0.04)  # a grid of 24 cells resolves about 1/24


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9), st.booleans())
def test_a_draft_equal_to_the_verifier_is_always_accepted(seed, n, vocab, block):
    rng = np.random.default_rng(seed)
    p = rows(rng, n + 1, vocab, sparse=False)
    draft = [int(rng.choice(vocab, p=np.array(r) / np.sum(r))) for r in p[:n].double().numpy()]
    coins = rng.random(n + 1).tolist()
    verdict = verify(draft, p[:n].clone(), p, coins, "block" if block else "token")
    assert verdict.accepted == n


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5), st.booleans(), st.booleans())
def test_no_token_without_probability_is_ever_emitted(seed, n, one_hot, block):
    rng = np.random.default_rng(seed)
    vocab = 5
    p, q = rows(rng, n + 1, vocab, sparse=True), rows(rng, max(n, 1), vocab, sparse=True)[:n]
    draft = [int(rng.choice(np.flatnonzero(r))) for r in q.numpy()]
    coins = rng.random(n + 1).tolist()
    verdict = verify(draft, draft if one_hot else q, p, coins, "block" if block else "token")
    assert 0 <= verdict.accepted <= n
    assert p[verdict.accepted, verdict.token] > 0
    assert all(p[i, draft[i]] > 0 for i in range(verdict.accepted))


def test_block_verification_accepts_at_least_as_many_tokens_on_average():
    rng = np.random.default_rng(0)
    totals = {"token": 0, "block": 0}
    for _ in range(400):
        p, q = rows(rng, 5, 4, sparse=False), rows(rng, 4, 4, sparse=False)
        draft = [int(rng.choice(4, p=np.array(r) / np.sum(r))) for r in q.double().numpy()]
        coins = rng.random(5).tolist()
        for rule in totals:
            totals[rule] += verify(draft, q, p, coins, rule).accepted
    assert totals["block"] >= totals["token"]


def test_greedy_accepts_up_to_the_first_difference_and_adds_its_own():
    best = [5, 6, 7, 8]
    assert greedy([5, 6, 9], best) == (2, 7)
    assert greedy([5, 6, 7], best) == (3, 8)
    assert greedy([], best[:1]) == (0, 5)


def test_drawing_inverts_the_cumulative_sum_and_never_takes_an_impossible_token():
    weights = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    assert [draw(weights, coin) for coin in (0.0, 0.2499, 0.25, 1 - 2**-53)] == [1, 1, 3, 3]


@pytest.mark.parametrize("bad", [[float("nan"), 1.0], [0.0, 0.0], [float("inf"), 1.0]])
def test_what_is_no_distribution_is_refused(bad):
    row = torch.tensor(bad)
    assert draw(row, 0.5) == -1
    for rule in ("token", "block"):
        with pytest.raises(NoDistributionError):
            verify([], [], row[None], [0.5], rule)
    with pytest.raises(NoDistributionError):
        greedy([], [-1])


@pytest.mark.parametrize("rule", ["token", "block"])
def test_nan_anywhere_in_the_block_is_refused(rule):
    p = torch.full((4, 3), 1 / 3)
    p[1] = float("nan")
    with pytest.raises(NoDistributionError):
        verify([0, 1, 2], torch.full((3, 3), 1 / 3), p, [0.1] * 4, rule)


def test_overlap_is_the_chance_of_acceptance_for_every_kind_of_row():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    assert overlap(p, q).tolist() == pytest.approx([0.7, 1.0])
    assert overlap(p, [1, -1]).tolist() == pytest.approx([0.5, 0.0])
    assert overlap([0, 1], [0, -1]).tolist() == [1.0, 0.0]
