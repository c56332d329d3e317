"""Drawing and verifying as functions of tensors alone: no number comes to the host before the answer does.

The same rules as in `hsd.sampling` and `hsd.verify`, which are what people read and what tests trust; here they are
written so that a GPU is waited for once. Coins and settings come in as tensors, in float64: one that is rounded could
fall on the other side of a boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hsd.types import MAX_THRESHOLD

_BLOCK = 128

LONGEST = MAX_THRESHOLD
"""Longest block that the rules take."""


def pick(logits: Tensor, knobs: Tensor, out: Tensor) -> Tensor:
    """Draws one token at a temperature above 0.

    Args:
        logits: float `(1, V)`.
        knobs: float64 `(2,)`: one over the temperature, and a coin in [0, 1).
        out: float32 `(1, V)`, takes the distribution.

    Returns:
        float64 `(2,)`: the token, -1 if the logits are no distribution; and the largest probability.
    """
    scaled = logits[0].float() * knobs[0].float()
    weights = torch.exp(scaled - scaled.amax())
    token, total = _draw(weights, knobs[1])
    out.copy_((weights / total.float()).unsqueeze(0))
    return torch.stack((token.double(), 1 / total))


def best(logits: Tensor) -> Tensor:
    """The most likely token of a row and how sure the model is of it, at temperature 1.

    Args:
        logits: float `(1, V)`.

    Returns:
        float64 `(2,)`: the token, -1 if the logits are no distribution; and its probability.
    """
    row = logits[0].float()
    top = row.amax()
    token = torch.where(torch.isfinite(top), (row == top).to(torch.int32).argmax(), -1)
    return torch.stack((token.double(), 1 / torch.exp(row - top).sum().double()))


def block_wise(draft: Tensor, q: Tensor, p: Tensor, coins: Tensor) -> Tensor:
    """`hsd.verify.block_wise` for dense rows.

    Args:
        draft: int64 `(n,)`, n at least 1.
        q: float32 `(n, V)`.
        p: float32 `(n + 1, V)`.
        coins: float64 `(n + 1,)`.

    Returns:
        int64 `(2,)`: how many are accepted, and the verifier's own token, -1 if `p` is no distribution.
    """
    n = draft.shape[0]
    chance_p = p[:n].gather(1, draft.unsqueeze(1))[:, 0].double()
    chance_q = q.gather(1, draft.unsqueeze(1))[:, 0].double()
    # r_i = min(r_{i-1} p/q, 1) without a loop: the product since the last place where it would have passed 1.
    logs = torch.cat((coins.new_zeros(1), torch.log(chance_p / chance_q).cumsum(0)))
    reach = torch.exp(logs - _running_maximum(logs))  # r_0 … r_n
    mass = (p[:n] * reach[:n].float().unsqueeze(1) - q).clamp(min=0).sum(-1, dtype=torch.float64)
    # Prefix i < n ends the block if its coin falls below S / (S + 1 - r), the whole block if its coin is below r_n:
    # the same condition with S = r. Every prefix but the empty one, which is always left, has the coin before it.
    mass = torch.cat((mass, reach[n:]))
    places = torch.arange(n + 1, device=p.device)
    ends = coins[(places - 1).clamp(min=0)] * (mass + 1 - reach) < mass
    accepted = (ends * places).amax()
    return _verdict(accepted, q, p, reach[accepted], coins[n], chance_p)


def token_wise(draft: Tensor, q: Tensor, p: Tensor, coins: Tensor) -> Tensor:
    """`hsd.verify.token_wise` for dense rows; arguments and result as in `block_wise`."""
    n = draft.shape[0]
    chance_p = p[:n].gather(1, draft.unsqueeze(1))[:, 0].double()
    chance_q = q.gather(1, draft.unsqueeze(1))[:, 0].double()
    accepted = (coins[:n] * chance_q < chance_p).long().cumprod(0).sum()
    return _verdict(accepted, q, p, coins.new_ones(()), coins[n], chance_p)


def _verdict(accepted: Tensor, q: Tensor, p: Tensor, reach: Tensor, coin: Tensor, chance_p: Tensor) -> Tensor:
    """The token drawn from `max(r p - q, 0)`, or from `p` behind the whole block."""
    n = q.shape[0]
    own = _row(p, accepted)
    below = _row(q, accepted.clamp(max=n - 1)) * (accepted < n).float()
    rest, _ = _draw((own * reach.float() - below).clamp(min=0), coin)
    # Where p and q are equal up to rounding nothing is left, and p itself is the residual.
    plain, _ = _draw(own, coin)
    token = torch.where(rest < 0, plain, rest)
    return torch.stack((accepted, torch.where(chance_p.isnan().any(), -1, token)))


def _draw(weights: Tensor, coin: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts the cumulative sum, in two steps: sums of 128 entries each, then one such block. Also the total."""
    missing = -weights.shape[0] % _BLOCK
    blocks = (torch.cat((weights, weights.new_zeros(missing))) if missing else weights).view(-1, _BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(0)
    total = sums[-1]
    wanted = coin * total
    at = (sums <= wanted).sum().clamp(max=sums.shape[0] - 1)
    before = torch.where(at > 0, sums[(at - 1).clamp(min=0)], 0.0)
    inner = _row(blocks, at).double().cumsum(0)
    # The block holds what is wanted; its own sum may fall short of it in the last bit, never onto a token without mass.
    within = torch.minimum(wanted - before, torch.nextafter(inner[-1], torch.zeros_like(total)))
    token = at * _BLOCK + (inner <= within).sum()
    sound = torch.isfinite(total) & (total > 0)
    return torch.where(sound, token, -1), total


def _row(rows: Tensor, at: Tensor) -> Tensor:
    """`rows[at]` without the host learning which."""
    return rows.index_select(0, at.view(1))[0]


def _running_maximum(values: Tensor) -> Tensor:
    """Largest value up to every place."""
    n = values.shape[0]
    earlier = torch.ones(n, n, dtype=torch.bool, device=values.device).tril()
    return torch.where(earlier, values.unsqueeze(0), -torch.inf).amax(1)


@dataclass
class Kernels:
    """The functions above for numbers, as `hsd.sampling` and `hsd.verify` use them on a GPU."""

    pick: Callable[[Tensor, Tensor, Tensor], Tensor] = pick
    best: Callable[[Tensor], Tensor] = best
    block_wise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = block_wise
    token_wise: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = token_wise
    shortest: int = 1
    _knobs: Tensor = field(init=False, default_factory=lambda: torch.zeros(2, dtype=torch.float64))

    def top(self, logits: Tensor, measured: bool) -> tuple[int, float]:
        """The likeliest token of `(1, V)` logits (-1 if they are no distribution), and how sure the model is of it.

        Args:
            logits: float `(1, V)`.
            measured: whether the probability matters; it may be 1 otherwise.
        """
        token, sure = self.best(logits).tolist()
        return int(token), sure

    def draw(self, logits: Tensor, scale: float, coin: float, out: Tensor) -> tuple[int, float]:
        """`pick` for numbers: the token, and the largest probability; `out` takes `softmax(scale * logits)`."""
        knobs = self._knobs
        knobs[0], knobs[1] = scale, coin
        token, sure = self.pick(logits, knobs if logits.device.type == "cpu" else knobs.to(logits.device), out).tolist()
        return int(token), sure

    def rows(self, logits: Tensor, scale: float) -> Tensor | list[int] | None:
        """`softmax(scale * logits)` of `(n, V)` logits, or the likeliest ids where `scale` is 0; None: ask others."""
        return None

    def takes(self, draft: Sequence[int], q: Tensor | list[int]) -> bool:
        """Whether `judge` is made for such a block."""
        return isinstance(q, Tensor) and self.shortest <= len(draft) <= LONGEST

    def judge(
        self, draft: Sequence[int], q: Tensor | list[int], p: Tensor, coins: Sequence[float], rule: str
    ) -> tuple[int, int]:
        """`hsd.verify.verify` for dense `p`: how many are accepted, and the verifier's own token or -1."""
        assert isinstance(q, Tensor), "see `takes`"
        decide = self.token_wise if rule == "token" else self.block_wise
        tossed = torch.tensor(coins, dtype=torch.float64, device=p.device)
        accepted, token = decide(torch.tensor(draft, device=p.device), q, p, tossed).tolist()
        return accepted, token
