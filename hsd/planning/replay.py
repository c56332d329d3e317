"""What plans would have cost on stored replies: acceptance by position instead of on average.

Acceptance comes in runs, so the marginal rate over-predicts long blocks. Here every position keeps its own acceptance,
and the expectation over all coins is computed exactly, position by position, by the recursion of `expected` with
distributions that depend on where a block starts. There is no sampling and therefore no seed: the same input gives the
same output.

Ours, after the limits that Mohri et al. 2025 (arXiv 2510.19705) state. What it assumes:
- Acceptances are those measured along the stored reply, also behind a token that a higher level would refuse.
- Dependence across levels reaches one level back: a token that a level accepted from its draft, one it drew after a
  rejection, and a bonus token survive the next level at different rates (`survival`).
- A lookup proposes a whole block or, where its array is NaN, nothing; the level above then reads one token.
- Behind its end a reply begins again; tokens past the end count, as they do in `expected_ms_per_token`.
- With `ends` there is an end: a level whose tokens will all be kept stops drafting there, and one that has lost the way
  goes on to its threshold. In replies of 25 tokens that is a tenth of the drafting.
- A plan with a rule stops by value: its first level, at every position, where the rule says so of the confidences that
  it had in the stored reply, also behind a token that will be refused. A lookup decides on its whole block at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsd.errors import ConfigError
from hsd.planning.blocks import drafted_by_value, first_block, looked_up, next_block
from hsd.planning.stopping import StopRule
from hsd.planning.tables import Costs, Floats, Tables, plan_of, tables
from hsd.types import LOOKUP, Plan

Sequences = Sequence[Mapping[tuple[str, str], NDArray[np.floating]]]
"""Per reply: (draft, verifier) -> [positions] acceptance at every scored position, equally long within a reply; NaN
where a lookup had nothing to propose."""

Confidences = Sequence[Mapping[str, NDArray[np.floating]]]
"""Per reply: model -> [positions] its largest probability at every scored position."""

_LEAST_REPLIES = 1.5
"""Replies, by weight, below which nothing is known of how much they differ."""

PIECE, PIECES = 256, 32
"""Positions walked one after the other, and pieces walked side by side: bounds time and memory (a few MB)."""

DEPENDENCE = 0.05
"""Default of `dependence`. In 12 sets of random softmax triples (a test: noise added to common logits, temperature 0.5
to 1) the true value lay between -0.13 and 0.22, 0.04 on average: given the position, levels above T = 0 are nearly
independent. At T = 0 the stored overlaps are 0 or 1 and settle the matter whatever the value."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A plan on stored replies.

    Args:
        plan: the plan.
        ms_per_token: expected ms per token over all replies that hold its pairs; None where none does.
        standard_error: of `ms_per_token`, from the spread between replies; None below two replies.
        tokens_per_round: expected tokens per round of the target.
        positions: scored positions it was walked over.
        reply_ms: expected ms of every reply given, NaN where a pair is missing.
        reply_tokens: expected tokens of every reply given (a little more than its positions), NaN likewise.
    """

    plan: Plan
    ms_per_token: float | None
    standard_error: float | None
    tokens_per_round: float
    positions: int
    reply_ms: tuple[float, ...]
    reply_tokens: tuple[float, ...]


def replay(
    plans: Sequence[Plan | str],
    costs: Costs,
    sequences: Sequences,
    dependence: float = DEPENDENCE,
    *,
    ends: bool = False,
    rules: Mapping[Plan, StopRule] | None = None,
    confidences: Confidences = (),
) -> list[Replayed]:
    """Expected cost of plans over stored replies, in the order of `plans`.

    Args:
        plans: plans or their texts.
        costs: model name -> ms at width 1, 2, …
        sequences: acceptance by position, see `Sequences`. A reply without a pair of a plan is left out for that plan.
        dependence: 0 treats levels as independent at a position, as far as the stored pairs allow that; 1 as agreeing
            as much as they allow. What a verifier does with a lookup's token is known exactly and used unless it is 0.
        ends: a reply ends where it ended, and no level drafts behind its end: what replies of these lengths would
            have cost. Without it replies go on for ever, as in the exact formula.
        rules: of plans whose first level stops by value before its threshold.
        confidences: of every reply of `sequences`, what its models were sure of. Where those of a plan's first level
            are missing, its rule goes by the mean.

    Raises:
        ConfigError: impossible numbers, arrays of unequal length in one reply, a plan's level without costs.
    """
    if not 0 <= dependence <= 1:
        raise ConfigError(f"dependence={dependence!r} is not between 0 and 1.", f"{DEPENDENCE} is usual.")
    replies = [_checked(i, reply) for i, reply in enumerate(sequences)]
    table = tables(costs, {})
    sure = [dict(known) for known in confidences] if len(confidences) == len(replies) else [{} for _ in replies]
    cases = ((plan_of(plan), table, replies, sure, dependence, ends) for plan in plans)
    return [_replay_one(_Case(*case, rule=(rules or {}).get(case[0]))) for case in cases]


def relative_gain(one: Replayed, other: Replayed, weights: Floats | None = None) -> tuple[float, float]:
    """Share of time that `one` saves against `other` on the replies both hold, and its standard error.

    Replies are compared pairwise, so what makes a reply hard for both cancels. (NaN, inf) without a common reply; the
    error is infinite below two.

    Args:
        weights: [replies] how much each of them counts; None counts all alike.
    """
    numbers = np.array([one.reply_ms, one.reply_tokens, other.reply_ms, other.reply_tokens])
    common = np.isfinite(numbers).all(axis=0)
    if not common.any():
        return float("nan"), float("inf")
    share = np.ones(common.sum()) if weights is None else weights[common]
    share = share / share.sum()
    ms, tokens, other_ms, other_tokens = numbers[:, common]
    spent, made, other_spent, other_made = (float(share @ column) for column in numbers[:, common])
    a, b = spent / made, other_spent / other_made
    residual = (a / b) * ((ms - a * tokens) / (a * made) - (other_ms - b * other_tokens) / (b * other_made))
    effective = 1 / float((share**2).sum())
    if effective < _LEAST_REPLIES:
        return float(1 - a / b), float("inf")
    error = float(np.sqrt((share**2 * residual**2).sum() * effective / (effective - 1)))
    return float(1 - a / b), error


def weighted_ms(one: Replayed, weights: Floats) -> float | None:
    """ms per token of a plan on replies that count for more or less; None where none holds its pairs."""
    numbers = np.array([one.reply_ms, one.reply_tokens])
    held = np.isfinite(numbers).all(axis=0)
    ms, tokens = (float(weights[held] @ column) for column in numbers[:, held])
    return ms / tokens if tokens else None


def survival(low_mid: Floats, mid_top: Floats, low_top: Floats | None, dependence: float) -> tuple[Floats, Floats]:
    """Acceptance by the top level of a token that the middle one accepted from the low one, and of one it drew after
    rejecting the low one's.

    The probability J of "accepted by both" lies, position by position, between independence, `low_mid · mid_top`, and
    the smallest overlap of the three pairs; `dependence` moves it from the first to the second. The two rates mix to
    `mid_top` whatever J is.
    """
    most = np.minimum(low_mid, mid_top)
    if low_top is not None:
        most = np.minimum(most, low_top)
    both = (1 - dependence) * np.minimum(low_mid * mid_top, most) + dependence * most
    kept = np.divide(both, low_mid, out=mid_top.copy(), where=low_mid > 0)
    redrawn = np.divide(mid_top - both, 1 - low_mid, out=mid_top.copy(), where=low_mid < 1)
    return np.clip(kept, 0, 1), np.clip(redrawn, 0, 1)


@dataclass(frozen=True, slots=True)
class _Case:
    plan: Plan
    table: Tables
    replies: list[dict[tuple[str, str], Floats]]
    sure: list[dict[str, NDArray[np.floating]]]
    dependence: float
    ends: bool
    rule: StopRule | None

    @property
    def length(self) -> dict[int, int]:
        """Reply -> scored positions, of the replies that hold the plan's pairs."""
        pairs = list(zip(self.plan.names, self.plan.names[1:], strict=False))
        usable = (i for i, reply in enumerate(self.replies) if reply and all(pair in reply for pair in pairs))
        return {i: len(next(iter(self.replies[i].values()))) for i in usable}

    def chances(self, reply: int, length: int) -> Floats:
        """[positions] chance, by the first level's confidence, that its token is accepted; only with a rule."""
        assert self.rule is not None
        known = self.sure[reply].get(self.plan.names[0])
        if known is None or known.shape != (length,):
            return np.full(length, self.rule.calibration.mean)
        found = self.rule.calibration.chances(known)
        return np.where(np.isnan(known), np.nan, found) if self.plan.names[0] == LOOKUP else found


def _checked(number: int, reply: Mapping[tuple[str, str], NDArray[np.floating]]) -> dict[tuple[str, str], Floats]:
    arrays = {pair: np.asarray(values, dtype=np.float64) for pair, values in reply.items()}
    if len({array.shape for array in arrays.values()}) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise ConfigError(f"The pairs of stored reply {number} have arrays of unequal length.", "Score it again.")
    for (draft, verifier), array in arrays.items():
        nothing = np.isnan(array) & (draft == LOOKUP)
        if not (((array >= 0) & (array <= 1)) | nothing).all():
            raise ConfigError(
                f"Stored reply {number} has an acceptance {draft} → {verifier} outside 0 to 1.", "Score it again."
            )
    return {pair: array for pair, array in arrays.items() if array.size}


def _replay_one(case: _Case) -> Replayed:
    plan, table, replies, length = case.plan, case.table, case.replies, case.length
    target, usable = table.index(plan.target), list(length)
    ms, tokens, rounds = (np.full(len(replies), np.nan) for _ in range(3))
    ms[usable] = tokens[usable] = rounds[usable] = 0.0
    if not plan.drafts:
        tokens[usable] = rounds[usable] = [length[i] for i in usable]
        ms[usable] = tokens[usable] * table.width_ms[target, 1]
    else:
        for pieces in _batches(length):
            found = _walk(case, length, pieces)
            np.add.at(ms, pieces[:, 0], found[0])
            np.add.at(tokens, pieces[:, 0], found[1])
            np.add.at(rounds, pieces[:, 0], found[2])
    kept = np.isfinite(ms)
    positions = sum(length.values())
    total = float(tokens[kept].sum())
    mean = float(ms[kept].sum()) / total if total else None
    error = None
    if mean is not None and kept.sum() > 1:
        error = _error_of_mean((ms[kept] - mean * tokens[kept]) / tokens[kept].mean())
    per_round = total / float(rounds[kept].sum()) if total else 0.0
    return Replayed(plan, mean, error, per_round, positions, tuple(ms.tolist()), tuple(tokens.tolist()))


def _error_of_mean(values: Floats) -> float:
    return float(np.sqrt((values**2).sum() / (values.size * (values.size - 1)))) if values.size > 1 else float("inf")


def _batches(length: Mapping[int, int]) -> Iterator[NDArray[np.intp]]:
    """[pieces, 2] reply and first position, `PIECES` at a time."""
    pieces = np.array([(i, at) for i, size in length.items() for at in range(0, size, PIECE)], dtype=np.intp)
    for first in range(0, len(pieces), PIECES):
        yield pieces[first : first + PIECES]


def _walk(case: _Case, length: Mapping[int, int], pieces: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """[pieces] expected ms, tokens and rounds of the target."""
    table, replies = case.table, case.replies
    names, thresholds = case.plan.names, case.plan.thresholds
    rows = [table.index(name) for name in names]
    span = max(min(PIECE, length[i] - at) for i, at in pieces)
    need = span + sum(thresholds)  # no block, nor what lies under it, reaches further
    where = [(i, (at + np.arange(need)) % length[i]) for i, at in pieces]

    def stored(draft: str, verifier: str) -> Floats | None:
        known = all((draft, verifier) in replies[i] for i, _ in where)
        return np.stack([replies[i][draft, verifier][at] for i, at in where]) if known else None

    def accept(draft: str, verifier: str) -> Floats | None:
        found = stored(draft, verifier)
        return None if found is None else np.nan_to_num(found, nan=0.0)

    proposed = stored(names[0], names[1])
    assert proposed is not None
    rate = np.nan_to_num(proposed, nan=0.0)
    # Tokens to the end of the reply, by position; a reply without an end is never near it.
    left = np.stack([length[i] - at for i, at in where]) if case.ends else np.full(rate.shape, np.iinfo(int).max)
    most = None
    if case.rule:
        chances = np.stack([case.chances(i, length[i])[at] for i, at in where])
        by_value = looked_up if names[0] == LOOKUP else drafted_by_value
        most = by_value(case.rule, chances, thresholds[0])
    step_ms = float(table.width_ms[rows[0], 1])
    block = first_block(thresholds[0], step_ms, rate, np.isnan(proposed), left, most)
    for i in range(1, len(names) - 1):
        up = accept(names[i], names[i + 1])
        assert up is not None
        exact = names[i - 1] == LOOKUP and case.dependence > 0  # of a one-hot draft the bound is the truth
        across = 1.0 if exact else case.dependence
        kept, redrawn = survival(rate, up, accept(names[i - 1], names[i + 1]), across)
        block = next_block(block, table.width_ms[rows[i]], thresholds[i], up=up, kept=kept, redrawn=redrawn, left=left)
        rate = up
    emitted = block.emits
    round_ms = block.ms + block.length @ table.width_ms[rows[-1], 1 : block.length.shape[2] + 1]
    visits = np.zeros((len(pieces), span + emitted.shape[2]))
    visits[:, 0] = 1.0
    for at in range(span):
        visits[:, at + 1 : at + 1 + emitted.shape[2]] += visits[:, at, None] * emitted[:, at]
    inside = np.arange(span) < np.array([min(PIECE, length[i] - at) for i, at in pieces])[:, None]
    visits = np.where(inside, visits[:, :span], 0.0)
    counts = np.arange(1.0, emitted.shape[2] + 1)
    tokens = emitted[:, :span] @ counts
    return (visits * round_ms[:, :span]).sum(1), (visits * tokens).sum(1), visits.sum(1)
