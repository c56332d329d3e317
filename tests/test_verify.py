"""The acceptance rules as functions: exact by integration over coins, not by luck."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsd.verify import NoDistributionError, block_wise, draw, draw_from, greedy, overlap, token_wise, verify


def rows(rng: np.random.Generator, n: int, vocab: int, sparse: bool) -> torch.Tensor:
    weights = rng.dirichlet(np.full(vocab, 0.6), n)
    if sparse:
        weights[rng.random(weights.shape) < 0.3] = 0
        weights[weights.sum(1) == 0, 0] = 1
    return torch.tensor(weights / weights.sum(1, keepdims=True), dtype=torch.float32)


def threshold(accepts) -> float:
    """The coin below which something happens that happens for small coins only; exact to 2**-40."""
    low, high = 0.0, 1.0
    if not accepts(low):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return high


def tokens_of(rule, draft, q, p, coins, vocab: int) -> np.ndarray:
    """Law of the verifier's own token when the accepting coins are held: every boundary by bisection."""
    ends = [
        threshold(lambda c, x=x: rule(draft, q, p, [*coins, min(c, 1 - 2**-53)]).token <= x) if x < vocab - 1 else 1.0
        for x in range(vocab)
    ]
    return np.diff([0.0, *ends])


def law(rule, q0, q1, p0, p1, p2, one_hot: bool) -> np.ndarray:
    """Exact joint law of the first two tokens that a rule emits for blocks of two, `(V, V)`.

    `q0`, `p0` are the first rows, `q1[x]`, `p1[x]` those behind x, `p2[x, y]` behind both. Coins are integrated
    exactly: each decides by one threshold, whatever the others are (token-wise: while all before it accept).
    """
    vocab, reject = len(p0), 1 - 2**-53
    out = np.zeros((vocab, vocab))
    for x, y in itertools.product(range(vocab), repeat=2):
        mass = float(q0[x]) * float(q1[x, y])
        if not mass:
            continue
        draft, p = [x, y], torch.stack((p0, p1[x], p2[x, y]))
        q = draft if one_hot else torch.stack((q0, q1[x]))
        both = threshold(lambda c: rule(draft, q, p, [0.0, c, 0.5]).accepted == 2)  # noqa: B023 (called at once)
        first = threshold(lambda c: rule(draft, q, p, [c, reject, 0.5]).accepted >= 1)  # noqa: B023 (called at once)
        if rule is token_wise:
            chance = {2: first * both, 1: first * (1 - both), 0: 1 - first}
        else:
            chance = {2: both, 1: (1 - both) * first, 0: (1 - both) * (1 - first)}
        out[x, y] += mass * chance[2]
        if chance[1] > 0:
            out[x] += mass * chance[1] * tokens_of(rule, draft, q, p, [0.0, reject], vocab)
        if chance[0] > 0:
            alone = tokens_of(rule, draft, q, p, [reject, reject], vocab)
            out += mass * chance[0] * alone[:, None] * p1.double().numpy()
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("rule", [token_wise, block_wise])
def test_the_emitted_tokens_have_exactly_the_verifiers_joint_law(rule, one_hot, seed):
    rng = np.random.default_rng(seed)
    vocab = 3
    p0, p1 = rows(rng, 1, vocab, sparse=seed % 2 == 1)[0], rows(rng, vocab, vocab, sparse=False)
    p2 = rows(rng, vocab * vocab, vocab, sparse=False).view(vocab, vocab, vocab)
    if one_hot:
        q0, q1 = torch.eye(vocab)[1], torch.eye(vocab)[[2, 0, 1]]
    else:
        q0, q1 = rows(rng, 1, vocab, sparse=seed % 2 == 0)[0], rows(rng, vocab, vocab, sparse=False)
    want = p0.double().numpy()[:, None] * p1.double().numpy()
    assert law(rule, q0, q1, p0, p1, p2, one_hot) == pytest.approx(want, abs=1e-6)


def test_the_two_rules_are_two():
    """A token that is too likely in the draft, then one that makes up for it: only the block as a whole is accepted."""
    q, p = torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([[0.4, 0.6], [0.8, 0.2], [0.5, 0.5]])
    coins = [0.9, 0.9, 0.1]
    assert verify([0, 0], q, p, coins, "block").accepted == 2
    assert verify([0, 0], q, p, coins, "token").accepted == 0


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


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 700), st.floats(0, 1, exclude_max=True))
def test_drawing_in_blocks_is_inverting_the_whole_sum(seed, size, coin):
    rng = np.random.default_rng(seed)
    weights = (rng.random(size) * (rng.random(size) < 0.3)).astype(np.float32)
    token, total = draw_from(weights, coin)
    if not weights.any():
        assert token == -1 and total == 0
        return
    sums = weights.cumsum(dtype=np.float64)
    assert weights[token] > 0 and total == pytest.approx(float(sums[-1]), rel=1e-5)
    # Sums of 128 in float32: a coin within that of a boundary may fall to either side.
    near = {int(sums.searchsorted(coin * float(sums[-1]) * (1 + e), side="right")) for e in (-1e-6, 0, 1e-6)}
    assert token in near or weights[min(near) : max(near) + 1].sum() == 0
