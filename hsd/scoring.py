"""Prices every pair of a family on a finished reply, without running its target again.

The reply's tokens are the target's own. With `p` the target's distribution at a position, `q` a draft's and `y ~ p` the
token that stands there, the chance that the target accepts the draft's token is

    sum_x min(p(x), q(x)) = E[ min(1, q(y) / p(y)) ]

and that holds for runs of tokens too: the chance that n draft tokens in a row are accepted is the expectation of the
product. So the target's probabilities of its own tokens, which every reply knows, and one wide pass of each draft price
every draft under the target, and the lookup costs nothing at all. Pairs of two drafts are priced by their overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hsd.conversations import Conversation
from hsd.lookup import SuffixIndex
from hsd.sampling import Sampler
from hsd.types import LOOKUP
from hsd.verify import Rows, chances_of, overlap

_LEAST = 16  # positions at once, however slow the model is
_CHUNK = 64  # positions at once: rows of every draft are held together, (models, chunk, vocabulary) floats


@dataclass(frozen=True, slots=True)
class Scores:
    """What is known of a finished reply, position by position.

    Args:
        overlaps: (draft, verifier) -> float32 `(positions,)` acceptance in [0, 1]; NaN where a lookup proposes nothing.
        confidences: level -> float32 `(positions,)`: a model's largest probability; a lookup's `confidence`.
    """

    overlaps: dict[tuple[str, str], np.ndarray]
    confidences: dict[str, np.ndarray]


def lookup_scores(tokens: Sequence[int], prompt_length: int, target: str) -> Scores:
    """What a lookup would have done under the target at every position behind the prompt; no model is run.

    Args:
        tokens: prompt and reply.
        prompt_length: tokens of the prompt.
        target: the target's name.
    """
    proposed, sure = _proposals(tokens, prompt_length)
    return Scores({(LOOKUP, target): _hits(proposed, tokens[prompt_length:])}, {LOOKUP: sure})


def score(
    conversation: Conversation,
    names: Sequence[str],
    tokens: Sequence[int],
    prompt_length: int,
    sampler: Sampler,
    chances: Sequence[float] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """The scores of a reply at once; None if it was stopped. Arguments are those of `passes`; `stop` is asked before
    every pass."""
    work = passes(conversation, names, tokens, prompt_length, sampler, chances)
    while not stop():
        try:
            next(work)
        except StopIteration as end:
            scores: Scores = end.value
            return scores
    return None


def passes(
    conversation: Conversation,
    names: Sequence[str],
    tokens: Sequence[int],
    prompt_length: int,
    sampler: Sampler,
    chances: Sequence[float] | None = None,
    width: Callable[[str], int] = lambda name: 256,
) -> Generator[None, None, Scores]:
    """Scores a reply, one pass of a model each time it is asked to go on.

    Args:
        conversation: its caches are read from and left holding the same text.
        names: the family's models, cheapest first, the target last.
        tokens: prompt and reply.
        prompt_length: tokens of the prompt; every token behind it is a position that is scored.
        sampler: the reply's own settings.
        chances: the target's probability of every token of the reply; None reads the reply by the target, too.
        width: model -> most tokens of one pass.

    Returns:
        The scores.
    """
    tokens = list(tokens)
    target, read = names[-1], list(names if chances is None else names[:-1])
    proposals, lookup_sure = _proposals(tokens, prompt_length)
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    sure: dict[str, list[np.ndarray]] = {name: [] for name in read}
    if chances is not None:
        parts[LOOKUP, target] = [_hits(proposals, tokens[prompt_length:])]
    begin = prompt_length
    while begin < len(tokens):
        # Rows of the vocabulary cost about as much again as reading.
        chunk = min([_CHUNK, *(max(width(name) // 2, _LEAST) for name in read)])
        end = min(begin + chunk, len(tokens))
        proposed = proposals[begin - prompt_length : end - prompt_length]
        rows: dict[str, Rows] = {}
        for name in read:
            yield from _catch_up(conversation, name, tokens[: begin - 1], width(name))
            # Position t is decided by the prefix before it, so the pass ends one token before the chunk does.
            prefix = tokens[: end - 1]
            logits = conversation.reader(name).read(prefix, end - begin, widest=_CHUNK)
            own = sampler.rows(logits, prefix)
            rows[name] = own.cpu() if isinstance(own, torch.Tensor) else own
            sure[name].append(sampler.confidences(own, logits).cpu().numpy())
            yield
        for pair, values in _priced(rows, proposed):
            parts.setdefault(pair, []).append(values)
        if chances is not None:
            own_chances = chances[begin - prompt_length : end - prompt_length]
            for name in read:
                parts.setdefault((name, target), []).append(_emitted(rows[name], tokens[begin:end], own_chances))
        begin = end
    confidences = {name: np.concatenate(chunks) for name, chunks in sure.items() if chunks}
    return Scores(
        {pair: np.concatenate(chunks) for pair, chunks in parts.items()}, {LOOKUP: lookup_sure, **confidences}
    )


def _catch_up(conversation: Conversation, name: str, prefix: list[int], width: int) -> Iterator[None]:
    """A model reads what it has not read of a text, in pieces."""
    reader = conversation.reader(name)
    while len(reader) < len(prefix):
        reader.prefill(prefix[: len(reader) + width])
        yield


def _priced(rows: dict[str, Rows], proposed: list[int]) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """Acceptance of every pair of which both were read, and of the lookup by every model that was."""
    names = list(rows)
    for at, verifier in enumerate(names):
        chances = overlap(rows[verifier], proposed).clamp(0, 1)
        chances[[i for i, token in enumerate(proposed) if token < 0]] = torch.nan
        yield (LOOKUP, verifier), chances.numpy()
        for draft in names[:at]:
            yield (draft, verifier), overlap(rows[verifier], rows[draft]).clamp(0, 1).numpy()


def _emitted(rows: Rows, tokens: Sequence[int], chances: Sequence[float]) -> np.ndarray:
    """`min(1, q(y) / p(y))` of the reply's own tokens; `chances` are `p(y)`."""
    if isinstance(rows, list):
        own = [float(best == token) for best, token in zip(rows, tokens, strict=True)]
    else:
        own = chances_of(rows, tokens)
    ratio = np.array(own, dtype=np.float32) / np.maximum(np.array(chances, dtype=np.float32), np.float32(1e-12))
    return np.minimum(ratio, np.float32(1))


def _hits(proposed: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
    """1 where the lookup's token is the reply's, 0 where it is another, NaN where there was none."""
    pairs = zip(proposed, tokens, strict=True)
    return np.array([math.nan if guess < 0 else float(guess == token) for guess, token in pairs], dtype=np.float32)


def _proposals(tokens: Sequence[int], prompt_length: int) -> tuple[list[int], np.ndarray]:
    """What a lookup would have proposed at every position behind the prompt, -1 for nothing; and its confidences."""
    index = SuffixIndex()
    index.settle(tokens[:prompt_length])
    out, sure = [], []
    for token in tokens[prompt_length:]:
        proposal = index.propose()
        out.append(-1 if proposal is None else proposal)
        sure.append(index.confidence)
        index.settle((token,))
    return out, np.array(sure, dtype=np.float32)
