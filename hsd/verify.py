"""The two acceptance rules of speculative decoding, as pure functions of distributions and coins.

A block of `n` draft tokens, their draft distributions `q` and the verifier's distributions `p` go in; how many are
accepted and the verifier's own next token come out. Nothing here knows a model, a cache or a level.

Distributions come in two shapes. *Dense* rows are float tensors `(n, V)`; they need not be normalised better than
float32 softmax does. *One-hot* rows are lists of `n` token ids, the only possible ones: greedy decoding, and the lookup
level. They stay this small on purpose: a softmax in the place of a one-hot is a known bug elsewhere.

Randomness enters as `coins`, floats in [0, 1): entries 0 to n-1 accept or reject, entry n draws the next token. So a
rule is a deterministic function and is tested as one. What is as long as the block is decided on the host, what is as
long as the vocabulary stays on the device: a dozen small kernels cost more than bringing n numbers over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hsd.kernels import Kernels

_BLOCK = 128

Rows = Tensor | list[int]
"""Distributions of consecutive tokens: dense `(n, V)`, or the ids of one-hot rows."""


class Verdict(NamedTuple):
    """`accepted` leading draft tokens are kept, then comes `token`, the verifier's own."""

    accepted: int
    token: int


class NoDistributionError(ValueError):
    """The rows are no distribution: NaN, infinite, or without any mass."""


def verify(
    draft: Sequence[int], q: Rows, p: Rows, coins: Sequence[float], rule: str, kernels: Kernels | None = None
) -> Verdict:
    """Applies the rule that fits the rows: greedy for one-hot `p`, else `rule`.

    Args:
        draft: the block, `n >= 0` token ids.
        q: its distributions, `n` rows.
        p: the verifier's distributions at the same places and one further, `n + 1` rows.
        coins: `n + 1` floats in [0, 1); not used for one-hot `p`.
        rule: "token" or "block".
        kernels: the rules as one function each, for the blocks that they take.

    Raises:
        NoDistributionError: a row of `p` that counts is not finite or has no mass.
    """
    if isinstance(p, list):
        return greedy(draft, p)
    if kernels and kernels.takes(draft, q):
        accepted, token = kernels.judge(draft, q, p, coins, rule)
        if token < 0:
            raise NoDistributionError
        return Verdict(accepted, token)
    return token_wise(draft, q, p, coins) if rule == "token" else block_wise(draft, q, p, coins)


def greedy(draft: Sequence[int], best: Sequence[int]) -> Verdict:
    """Accepts while the draft equals the verifier's only possible token: `min(1, p/q)` for one-hot `p` and `q`.

    `best` has `n + 1` ids; -1 in it marks a row that is no distribution.
    """
    accepted = 0
    while accepted < len(draft) and draft[accepted] == best[accepted]:
        accepted += 1
    if best[accepted] < 0:
        raise NoDistributionError
    return Verdict(accepted, best[accepted])


def token_wise(draft: Sequence[int], q: Rows, p: Tensor, coins: Sequence[float]) -> Verdict:
    """Accepts token `y` with probability `min(1, p(y)/q(y))`; the first rejection draws from `max(p - q, 0)`.

    Source: Leviathan, Kalman, Matias 2022, arXiv 2211.17192, algorithm 1.
    """
    accepted = 0
    for coin, chance_p, chance_q in zip(coins, *_chances(draft, q, p), strict=False):
        # coin * q < p instead of coin < p / q: no division, and right where p is 0.
        if not coin * chance_q < chance_p:
            break
        accepted += 1
    return _verdict(accepted, draft, q, p, 1.0, coins[-1])


def block_wise(draft: Sequence[int], q: Rows, p: Tensor, coins: Sequence[float]) -> Verdict:
    """Verifies the block as a whole: the longest prefix whose own coin agrees is accepted.

    With `r_i = min(r_{i-1} p(x_i)/q(x_i), 1)` and `S_i = sum_x max(r_i p(x|x^i) - q(x|x^i), 0)`, prefix `i < n` is
    accepted with probability `S_i / (S_i + 1 - r_i)`, the whole block with `r_n`; the next token is drawn from
    `max(r_i p - q, 0)` after the longest accepted prefix. Accepts at least as many tokens as the token-wise rule
    in expectation and has the same output distribution, also for blocks whose length depends on earlier tokens.

    Source: Sun et al. 2024, arXiv 2403.10444, algorithm 2.
    """
    n = len(draft)
    chances_p, chances_q = _chances(draft, q, p)
    reach = [1.0]  # r_0 … r_n
    for chance_p, chance_q in zip(chances_p, chances_q, strict=True):
        reach.append(min(reach[-1] * chance_p / chance_q, 1.0))
    accepted = n if n and coins[n - 1] < reach[n] else 0
    if accepted < n and n > 1:
        mass = _residual_masses(q, p, reach, chances_p)
        for i in range(n - 1, 0, -1):
            # coin * (S + 1 - r) < S: where neither mass nor doubt is left, the prefix cannot end here.
            if coins[i - 1] * (mass[i] + 1 - reach[i]) < mass[i]:
                accepted = i
                break
    return _verdict(accepted, draft, q, p, reach[accepted], coins[n])


def draw(weights: Tensor, coin: float) -> int:
    """Draws an index by inverting the cumulative sum: one pass over the vocabulary and one coin.

    Args:
        weights: `(V,)`, not negative; need not sum to 1.
        coin: in [0, 1).

    Returns:
        The index; -1 where the weights are not finite or have no mass.
    """
    if weights.device.type == "cpu":
        return draw_from(weights.numpy(), coin)[0]
    # float64: a float32 sum over 150k tokens loses the tail, and coin * total must stay below total.
    cumulative = weights.cumsum(0, dtype=torch.float64)
    total = float(cumulative[-1])
    if not 0 < total < math.inf:
        return -1
    return int(torch.searchsorted(cumulative, coin * total, right=True))


def draw_from(weights: NDArray[np.float32], coin: float) -> tuple[int, float]:
    """The same for an array on the host, in two steps: sums of 128 entries each, then one such block. Also the total.

    A cumulative sum over the whole vocabulary would be the dearest part of drawing; block sums run at memory speed.
    """
    # float32 adds 128 numbers well; over 150k of them it would lose the tail.
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).cumsum(dtype=np.float64)
    total = float(blocks[-1])
    if not 0 < total < math.inf:  # NaN compares false
        return -1, total
    wanted = coin * total
    block = int(blocks.searchsorted(wanted, side="right"))
    before = float(blocks[block - 1]) if block else 0.0
    sums = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    # The block holds what is wanted; its own sum may fall short of it in the last bit, never onto a token without mass.
    within = min(wanted - before, np.nextafter(float(sums[-1]), 0.0))
    return block * _BLOCK + int(sums.searchsorted(within, side="right")), total


def overlap(p: Rows, q: Rows) -> Tensor:
    """Chance that a token of `q` is accepted by `p`: `sum_x min(p(x), q(x))` per row.

    Args:
        p: `n` rows.
        q: `n` rows; -1 in a one-hot row means that nothing is proposed there.

    Returns:
        float32 `(n,)`; 0 where nothing is proposed.
    """
    if isinstance(p, Tensor) and isinstance(q, Tensor):
        return torch.minimum(p, q).sum(-1)
    if isinstance(p, list) and isinstance(q, list):
        return torch.tensor([float(a == b) for a, b in zip(p, q, strict=True)], dtype=torch.float32)
    dense, one_hot = (p, q) if isinstance(p, Tensor) else (q, p)
    assert isinstance(dense, Tensor)
    ids = torch.tensor(one_hot, dtype=torch.long, device=dense.device)
    chance = dense.gather(1, ids.clamp(min=0).unsqueeze(1))[:, 0].float()
    return torch.where(ids >= 0, chance, 0.0)


def _chances(draft: Sequence[int], q: Rows, p: Tensor) -> tuple[list[float], list[float]]:
    """`p(y)` and `q(y)` of every draft token."""
    n = len(draft)
    if n == 0:
        return [], []
    chances_p = chances_of(p, draft)
    if any(math.isnan(chance) for chance in chances_p):
        raise NoDistributionError
    return chances_p, [1.0] * n if isinstance(q, list) else chances_of(q, draft)


def chances_of(rows: Tensor, tokens: Sequence[int]) -> list[float]:
    """Each token's probability in its row, of `(>= n, V)` rows and `n` tokens."""
    if rows.device.type == "cpu":
        values: list[float] = rows.numpy()[range(len(tokens)), tokens].tolist()
        return values
    column = torch.tensor(tokens, device=rows.device).unsqueeze(1)
    out: list[float] = rows[: len(tokens)].gather(1, column)[:, 0].tolist()
    return out


def _residual_masses(q: Rows, p: Tensor, reach: Sequence[float], chances_p: Sequence[float]) -> list[float]:
    """`S_i = sum_x max(r_i p(x|x^i) - q(x|x^i), 0)` for i = 0 … n-1."""
    n = len(chances_p)
    if p.device.type == "cpu":
        return [_residual_mass(q, p, at, reach[at], chances_p[at]) for at in range(n)]
    if isinstance(q, list):
        totals = p[:n].sum(-1, dtype=torch.float64).tolist()
        return [r * (total - chance) for r, total, chance in zip(reach, totals, chances_p, strict=False)]
    scale = torch.tensor(reach[:n], dtype=p.dtype, device=p.device).unsqueeze(1)
    rest: list[float] = (p[:n] * scale).sub_(q).clamp_(min=0).sum(-1, dtype=torch.float64).tolist()
    return rest


def _residual_mass(q: Rows, p: Tensor, at: int, reach: float, chance_p: float) -> float:
    """One of them in host memory. numpy uses one thread: torch's threads wait for each other on a busy machine."""
    row = p[at].numpy()
    if isinstance(q, list):
        return reach * (float(row.sum(dtype=np.float64)) - chance_p)
    return float(_residual(row, q[at].numpy(), reach).sum(dtype=np.float64))


def _residual(p: NDArray[np.float32], q: NDArray[np.float32], reach: float) -> NDArray[np.float32]:
    """`max(reach p - q, 0)`."""
    rest = p * np.float32(reach)
    rest -= q
    np.maximum(rest, 0, out=rest)
    return rest


def _verdict(accepted: int, draft: Sequence[int], q: Rows, p: Tensor, reach: float, coin: float) -> Verdict:
    """Draws the verifier's own token from `max(r p - q, 0)`, or from `p` behind the whole block."""
    row = p[accepted]
    if accepted == len(draft):
        token = draw(row, coin)
    elif isinstance(q, list):
        rest = torch.from_numpy(row.numpy().copy()) if row.device.type == "cpu" else row.clone()
        rest[draft[accepted]] = 0.0
        token = draw(rest, coin)
    else:
        token = _draw_residual(row, q[accepted], reach, coin)
    if token < 0:
        # A rejection although r p <= q everywhere happens only by rounding; then p and q are equal and p is the
        # residual. A row that is no distribution fails here again.
        token = draw(row, coin)
    if token < 0:
        raise NoDistributionError
    return Verdict(accepted, token)


def _draw_residual(p: Tensor, q: Tensor, reach: float, coin: float) -> int:
    if p.device.type == "cpu":
        return draw_from(_residual(p.numpy(), q.numpy(), reach), coin)[0]
    return draw((p * reach).sub_(q).clamp_(min=0), coin)
