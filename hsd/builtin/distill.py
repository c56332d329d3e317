"""What a draft is trained for: to give the target's distribution, because that is what acceptance measures."""

from __future__ import annotations

import torch
from torch import Tensor

TEXT_SHARE = 0.1
TEMPERATURE = 0.7
"""At which acceptance is trained; the app's own default."""
KL_SHARE = 0.5


def soften(teacher: Tensor, targets: Tensor) -> Tensor:
    """The target's distribution at temperature 1 with a little of the text itself mixed in.

    Cross-entropy towards this mixture is KL(teacher || draft) and a little cross-entropy to the text, up to a
    constant, for the price of one.

    Args:
        teacher: [targets, vocabulary] logits.
        targets: [targets] ids of the text.
    Returns:
        [targets, vocabulary] probabilities.
    """
    wanted = torch.softmax(teacher, dim=-1).mul_(1 - TEXT_SHARE)
    at_text = wanted.new_full((len(targets), 1), TEXT_SHARE)
    return wanted.scatter_add_(1, targets[:, None], at_text)


def overlap(draft: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Probability that the target accepts the draft's next token, position by position.

    Args:
        draft, target: logits [..., vocabulary].
        temperature: 0 compares the likeliest tokens.
    Returns:
        [...] in 0 to 1: sum over tokens of min(p, q), Leviathan et al. 2022, arXiv 2211.17192.
    """
    if temperature == 0:
        return (draft.argmax(-1) == target.argmax(-1)).float()
    p = torch.softmax(target.float() / temperature, -1)
    q = torch.softmax(draft.float() / temperature, -1)
    return torch.minimum(p, q).sum(-1)


def kept_loss(draft: Tensor, likeliest: Tensor, logs: Tensor, weights: Tensor) -> Tensor:
    """Mean of -log(acceptance) at TEMPERATURE, and half of KL(target || draft) at temperature 1, in nats.

    Acceptance itself has next to no gradient where a draft is far off; its logarithm has one everywhere.

    Args:
        draft: [places, vocabulary] logits.
        likeliest: [places, kept] ids of the target's likeliest tokens; all others count as impossible.
        logs: [places, kept] their log-probabilities at temperature 1.
        weights: [places], shares of the whole.
    """
    found = draft.gather(1, likeliest)
    wanted = torch.log_softmax(logs, -1)
    divergence = (wanted.exp() * (wanted - found + draft.logsumexp(-1, keepdim=True))).sum(-1)
    p = torch.softmax(logs / TEMPERATURE, -1)
    q = torch.exp(found / TEMPERATURE - (draft / TEMPERATURE).logsumexp(-1, keepdim=True))
    refusal = -torch.minimum(p, q).sum(-1).clamp(min=1e-4).log()
    return ((KL_SHARE * divergence + refusal) * weights).sum()
