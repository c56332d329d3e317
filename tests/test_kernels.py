"""Kernels against the rules that people read: the same coins, the same tokens."""

from __future__ import annotations

import random

import pytest
import torch

from hsd import kernels, verify
from hsd.kernels import Kernels
from hsd.params import SamplingParams
from hsd.sampling import Sampler

RULES = {"block": verify.block_wise, "token": verify.token_wise}


def rows(rnd: random.Random, n: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor, list[int], list[float]]:
    """Draft rows, verifier rows, a block drawn from the draft, and coins: near and far, equal, with holes."""
    torch.manual_seed(rnd.randrange(1 << 30))
    q = torch.softmax(torch.randn(n, vocab) * rnd.choice([0.3, 1.0, 3.0]), -1)
    near = torch.log(torch.cat((q, q[-1:]))) * rnd.choice([1.0, 0.8])
    p = torch.softmax(near + torch.randn(n + 1, vocab) * rnd.choice([0.0, 0.2, 1.0]), -1)
    if rnd.random() < 0.3:
        p = torch.where(p < p.median(), 0.0, p)
        p = p / p.sum(-1, keepdim=True)
    draft = [int(torch.multinomial(q[i], 1)) for i in range(n)]
    return q, p, draft, [rnd.random() for _ in range(n + 1)]


@pytest.mark.parametrize("rule", RULES)
def test_both_rules_decide_as_those_on_the_host(rule):
    rnd, seen = random.Random(1), set()
    for _ in range(800):
        n = rnd.randint(1, 9)
        q, p, draft, coins = rows(rnd, n, rnd.choice([5, 130, 300, 1000]))
        want = RULES[rule](draft, q, p, coins)
        decide = kernels.block_wise if rule == "block" else kernels.token_wise
        got = decide(torch.tensor(draft), q, p, torch.tensor(coins, dtype=torch.float64)).tolist()
        assert got == list(want)
        seen.add(want.accepted == n)
    assert seen == {True, False}  # whole blocks and rejections were among them


@pytest.mark.parametrize("rule", RULES)
def test_a_row_that_is_no_distribution_is_told_from_a_token(rule):
    q, p, draft, coins = rows(random.Random(2), 4, 50)
    p[2] = torch.nan
    p[:2] = q[:2]
    with pytest.raises(verify.NoDistributionError):
        verify.verify(draft, q, p, coins, rule, Kernels())


def test_verify_uses_them_for_dense_blocks_and_the_host_for_the_rest():
    q, p, draft, coins = rows(random.Random(3), 4, 50)
    for rule in RULES:
        assert verify.verify(draft, q, p, coins, rule, Kernels()) == verify.verify(draft, q, p, coins, rule)
        one_hot = verify.verify(draft, draft, p, coins, rule, Kernels())
        assert one_hot == verify.verify(draft, draft, p, coins, rule)
        short = verify.verify(draft[:1], q[:1], p[:2], coins[:2], rule, Kernels())
        assert short == verify.verify(draft[:1], q[:1], p[:2], coins[:2], rule)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("padding", [0, 7])
def test_a_sampler_with_kernels_draws_what_one_without_draws(temperature, padding):
    rnd = random.Random(4)
    vocab = 300
    plain = Sampler(SamplingParams(temperature=temperature), [1], vocab, "cpu")
    fused = Sampler(SamplingParams(temperature=temperature), [1], vocab, "cpu", Kernels())
    for turn in range(100):
        torch.manual_seed(turn)
        logits, coin = 3 * torch.randn(1, vocab + padding), rnd.random()
        out = torch.zeros(1, vocab)
        token, row, sure = plain.draw(logits, [1], coin)
        again, row_again, sure_again = fused.draw(logits, [1], coin, out)
        assert token == again and sure == pytest.approx(sure_again, rel=1e-4)
        if temperature:
            assert row_again is out
            torch.testing.assert_close(row, out, atol=1e-6, rtol=1e-4)
            written = torch.zeros(1, vocab)
            _, in_place, _ = plain.draw(logits, [1], coin, written)
            assert in_place.data_ptr() == written.data_ptr()
        else:
            assert row == row_again == [token]
    for bad in (torch.full((1, vocab), torch.nan), torch.full((1, vocab), -torch.inf)):
        assert fused.draw(bad, [1], 0.5)[0] == -1


def test_the_last_token_with_mass_is_drawn_by_the_highest_coin():
    weights = torch.zeros(1, 300)
    weights[0, [3, 200]] = 0.5
    knobs = torch.tensor([1.0, 1 - 2**-53], dtype=torch.float64)
    assert int(kernels.pick(weights.log(), knobs, torch.empty(1, 300))[0]) == 200
    knobs[1] = 0.0
    assert int(kernels.pick(weights.log(), knobs, torch.empty(1, 300))[0]) == 3
