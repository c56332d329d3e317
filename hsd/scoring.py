"""Prices every pair of a family on a finished reply: one wide pass per model, no exploration.

For every position of the reply and every pair, the chance that the verifier accepts the draft's token is
`sum_x min(p(x), q(x))`, also for pairs that no plan has used, and the lookup level included. It has far less variance
than counting accepted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hsd.conversations import Conversation
from hsd.lookup import SuffixIndex
from hsd.sampling import Sampler
from hsd.types import LOOKUP
from hsd.verify import Rows, overlap

_CHUNK = 64  # positions at once: rows of every model are held together, (models, chunk, vocabulary) floats


@dataclass(frozen=True, slots=True)
class Scores:
    """What is known of a finished reply, position by position.

    Args:
        overlaps: (draft, verifier) -> float32 `(positions,)` acceptance in [0, 1]; NaN where a lookup proposes nothing.
        confidences: model -> float32 `(positions,)`, its largest probability.
    """

    overlaps: dict[tuple[str, str], np.ndarray]
    confidences: dict[str, np.ndarray]


def score(
    conversation: Conversation,
    names: Sequence[str],
    tokens: Sequence[int],
    prompt_length: int,
    sampler: Sampler,
    stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Acceptance per pair and position.

    Args:
        conversation: its caches are read from and left holding the same text.
        names: the family's models, cheapest first.
        tokens: prompt and reply.
        prompt_length: tokens of the prompt; every token behind it is a position that is scored.
        sampler: the reply's own settings.
        stop: asked before every pass.

    Returns:
        The scores; None if it was stopped.
    """
    tokens = list(tokens)
    proposals = _proposals(tokens, prompt_length)
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    sure: dict[str, list[np.ndarray]] = {}
    for begin in range(prompt_length, len(tokens), _CHUNK):
        end = min(begin + _CHUNK, len(tokens))
        proposed = proposals[begin - prompt_length : end - prompt_length]
        rows: dict[str, Rows] = {LOOKUP: proposed}
        for name in names:
            if stop():
                return None
            # Position t is decided by the prefix before it, so the pass ends one token before the chunk does.
            prefix = tokens[: end - 1]
            logits = conversation.reader(name).read(prefix, end - begin, widest=_CHUNK)
            own = sampler.rows(logits, prefix)
            rows[name] = own.cpu() if isinstance(own, torch.Tensor) else own
            sure.setdefault(name, []).append(sampler.confidences(own, logits).cpu().numpy())
        for at, verifier in enumerate(names):
            for draft in (LOOKUP, *names[:at]):
                chances = overlap(rows[verifier], rows[draft]).clamp(0, 1)
                if draft == LOOKUP:
                    chances[[i for i, token in enumerate(proposed) if token < 0]] = torch.nan
                parts.setdefault((draft, verifier), []).append(chances.numpy())
    return Scores(
        {pair: np.concatenate(chunks) for pair, chunks in parts.items()},
        {name: np.concatenate(chunks) for name, chunks in sure.items()},
    )


def _proposals(tokens: Sequence[int], prompt_length: int) -> list[int]:
    """What a lookup would have proposed at every position behind the prompt; -1 for nothing."""
    index = SuffixIndex()
    index.settle(tokens[:prompt_length])
    out = []
    for token in tokens[prompt_length:]:
        proposal = index.propose()
        out.append(-1 if proposal is None else proposal)
        index.settle((token,))
    return out
