"""The two acceptance rules of speculative decoding, as pure functions of tensors and coins.

A block of `n` draft tokens, their draft distributions `q` and the verifier's distributions `p` go in; how many are
accepted and the verifier's own next token come out. Nothing here knows a model, a cache or a level.

Distributions come in two shapes. *Dense* rows are float tensors `(n, V)`; they need not be normalised better than
float32 softmax does. *One-hot* rows are int64 tensors `(n,)` that name the one possible token: greedy decoding, and the
lookup level. They stay this small on purpose: a softmax in the place of a one-hot is a known bug elsewhere.

Randomness enters as `coins`, float64 in [0, 1): entries 0 to n-1 accept or reject, entry n draws the next token. So a
rule is a deterministic function and can be tested as one. Everything is computed on the tensors' device and one
transfer brings the verdict back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """`accepted` leading draft tokens are kept, then comes `token`, the verifier's own (-1 where none was drawn)."""

    accepted: int
    token: int


class NoDistributionError(ValueError):
    """The rows are no distribution: NaN, infinite, or without any mass."""


def verify(draft: Tensor, q: Tensor, p: Tensor, coins: Tensor, rule: str) -> Verdict:
    """Applies the rule that fits the rows: greedy for one-hot `p`, else `rule`.

    Args:
        draft: int64 `(n,)`, the block, `n >= 0`.
        q: its distributions, dense `(n, V)` or one-hot `(n,)`.
        p: the verifier's distributions at the same places and one further, dense `(n+1, V)` or one-hot `(n+1,)`.
        coins: float64 `(n+1,)` in [0, 1); unused for one-hot `p`.
        rule: "token" or "block".

    Raises:
        NoDistributionError: `p` is not finite or has no mass.
    """
    if p.ndim == 1:
        return greedy(draft, p)
    return token_wise(draft, q, p, coins) if rule == "token" else block_wise(draft, q, p, coins)


def greedy(draft: Tensor, best: Tensor) -> Verdict:
    """Accepts while the draft equals the verifier's only possible token.

    This is `min(1, p/q)` for one-hot `p` and `q`. `best` is `(n+1,)`; -1 in it marks a row that is no distribution.
    """
    wanted, proposed = best.tolist(), draft.tolist()
    accepted = 0
    while accepted < len(proposed) and proposed[accepted] == wanted[accepted]:
        accepted += 1
    if wanted[accepted] < 0:
        raise NoDistributionError
    return Verdict(accepted, wanted[accepted])


def token_wise(draft: Tensor, q: Tensor, p: Tensor, coins: Tensor) -> Verdict:
    """Accepts token `y` with probability `min(1, p(y)/q(y))`; the first rejection draws from `max(p - q, 0)`.

    Source: Leviathan, Kalman, Matias 2022, arXiv 2211.17192, algorithm 1.
    """
    n = draft.shape[0]
    chance_p, chance_q = _chances(draft, q, p)
    # coin * q < p instead of coin < p / q: no division, and right where p is 0.
    accepted = (coins[:n] * chance_q < chance_p).long().cumprod(0).sum()
    residual = p.index_select(0, accepted.view(1))[0]
    if n and q.ndim == 2:
        # Behind the block stands a draft that proposes nothing: its residual is p itself, the bonus token.
        below = q.index_select(0, accepted.clamp(max=n - 1).view(1))[0]
        residual = torch.where(accepted < n, (residual - below).clamp_(min=0), residual)
    elif n:
        residual = _without(residual, draft, accepted)
    return _verdict(accepted, residual, p, coins[n])


def block_wise(draft: Tensor, q: Tensor, p: Tensor, coins: Tensor) -> Verdict:
    """Verifies the block as a whole: the longest prefix whose own coin agrees is accepted.

    With `r_i = min(r_{i-1} p(x_i)/q(x_i), 1)` and `S_i = sum_x max(r_i p(x|x^i) - q(x|x^i), 0)`, prefix `i < n` is
    accepted with probability `S_i / (S_i + 1 - r_i)`, the whole block with `r_n`; the next token is drawn from
    `max(r_i p - q, 0)` after the longest accepted prefix. Accepts at least as many tokens as the token-wise rule
    in expectation and has the same output distribution, also for blocks whose length depends on earlier tokens.

    Source: Sun et al. 2024, arXiv 2403.10444, algorithm 2.
    """
    n = draft.shape[0]
    if n == 0:
        return _verdict(torch.zeros((), dtype=torch.long, device=p.device), p[0], p, coins[0])
    chance_p, chance_q = _chances(draft, q, p)
    # log r is a random walk reflected at 0: the walk less its running maximum. No loop over the block on the device.
    walk = (chance_p.log() - chance_q.log()).cumsum(0)
    reach = torch.ones(n + 1, dtype=torch.float64, device=p.device)  # r_0 … r_n
    reach[1:] = (walk - walk.cummax(0).values.clamp(min=0)).exp()
    if q.ndim == 2:
        rest = torch.addcmul(q, p[:n], reach[:n, None].to(p.dtype), value=-1).neg_().clamp_(min=0)  # (n, V)
        mass = rest.sum(-1, dtype=torch.float64)
    else:
        mass = reach[:n] * (p[:n].sum(-1, dtype=torch.float64) - chance_p)
    agree = torch.empty(n, dtype=torch.float64, device=p.device)  # entry i-1 belongs to prefix i
    agree[: n - 1] = mass[1:] / (mass[1:] + 1 - reach[1:n])
    agree[n - 1] = reach[n]
    place = torch.arange(1, n + 1, device=p.device)
    accepted = torch.where(coins[:n] < agree, place, 0).max()
    if q.ndim == 2:
        chosen = rest.index_select(0, accepted.clamp(max=n - 1).view(1))[0]
        residual = torch.where(accepted < n, chosen, p[n])
    else:
        residual = _without(p.index_select(0, accepted.view(1))[0], draft, accepted)
    return _verdict(accepted, residual, p, coins[n])


def draw(weights: Tensor, coin: Tensor) -> Tensor:
    """Draws an index by inverting the cumulative sum: one pass over the vocabulary and one coin.

    Args:
        weights: `(V,)`, not negative; need not sum to 1.
        coin: float64 scalar in [0, 1).

    Returns:
        int64 scalar on the same device; -1 where the weights are not finite or have no mass.
    """
    # float64: a float32 sum over 150k tokens loses the tail, and coin * total must stay below total.
    cumulative = weights.cumsum(0, dtype=torch.float64)
    total = cumulative[-1]
    index = torch.searchsorted(cumulative, (coin * total).view(1), right=True)[0]
    # NaN compares false, an infinite total gives NaN minus itself, no mass gives 0.
    return torch.where(total - total + total > 0, index, -1)


def overlap(p: Tensor, q: Tensor) -> Tensor:
    """Chance that a token of `q` is accepted by `p`: `sum_x min(p(x), q(x))` per row.

    Args:
        p: dense `(n, V)` or one-hot `(n,)`.
        q: dense `(n, V)` or one-hot `(n,)`; -1 in a one-hot row means that nothing is proposed there.

    Returns:
        float32 `(n,)`; 0 where nothing is proposed.
    """
    if p.ndim == 2 and q.ndim == 2:
        return torch.minimum(p, q).sum(-1)
    if p.ndim == 1 and q.ndim == 1:
        return (p == q).float()
    dense, ids = (p, q) if p.ndim == 2 else (q, p)
    chance = dense.gather(1, ids.clamp(min=0).unsqueeze(1))[:, 0].float()
    return torch.where(ids >= 0, chance, 0.0)


def _chances(draft: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """`p(y)` and `q(y)` of every draft token, float64 `(n,)`."""
    n, column = draft.shape[0], draft.unsqueeze(1)
    chance_p = p[:n].gather(1, column)[:, 0].double()
    chance_q = q.gather(1, column)[:, 0].double() if q.ndim == 2 else torch.ones_like(chance_p)
    return chance_p, chance_q


def _without(row: Tensor, draft: Tensor, accepted: Tensor) -> Tensor:
    """Residual of a one-hot draft: `row` less the rejected token; all of `row` behind the block's end."""
    rejected = torch.cat((draft, draft.new_full((1,), -1))).index_select(0, accepted.view(1))
    places = torch.arange(row.shape[0], device=row.device)
    return torch.where(places == rejected, 0.0, row)


def _verdict(accepted: Tensor, residual: Tensor, p: Tensor, coin: Tensor) -> Verdict:
    # Any NaN in p makes this sum NaN; an infinity cannot come out of a softmax without one.
    sound = torch.isfinite(p.sum())
    count, token, fine = torch.stack((accepted, draw(residual, coin), sound.long())).tolist()
    if fine and token < 0:
        # A rejection although p <= q everywhere happens only by rounding; then p and q are equal and p is the residual.
        token = int(draw(p[count], coin))
    if not fine or token < 0:
        raise NoDistributionError
    return Verdict(count, token)
