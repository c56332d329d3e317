"""What a plan costs, exactly under independent, identically distributed acceptance.

Source: Mohri et al. 2025, arXiv 2510.19705; the exact block distribution (overshoot included) is ours. It prices the
token-wise rule of Leviathan et al. 2022, arXiv 2211.17192. Neglected: the wider pass after a full acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsd.errors import ConfigError
from hsd.planning.tables import UNUSABLE, Acceptances, Costs, Floats, Tables, plan_of, tables
from hsd.types import Plan

Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LevelForecast:
    """What one level is expected to do in one round of the target.

    Args:
        name: model name or `lookup`.
        threshold: its threshold; None for the target.
        acceptance: probability that the level above accepts one of its tokens; None for the target.
        block: mean number of tokens it hands up at a time; for the target, tokens of the reply per round.
        passes: forward passes per round of the target.
        ms: time in its own passes per round of the target.
    """

    name: str
    threshold: int | None
    acceptance: float | None
    block: float
    passes: float
    ms: float


@dataclass(frozen=True, slots=True)
class PlanForecast:
    """What a plan is expected to do.

    Args:
        plan: the plan.
        ms_per_token: expected ms per token of the reply.
        tokens_per_round: expected tokens of the reply per round of the target.
        levels: cheapest first, the target last; their `ms` add up to the ms of a round.
    """

    plan: Plan
    ms_per_token: float
    tokens_per_round: float
    levels: tuple[LevelForecast, ...]


def expected_ms_per_token(plan: Plan | str, costs: Costs, acceptances: Acceptances) -> float:
    """Expected ms per token of the reply, exact under i.i.d. acceptance; block lengths are never truncated.

    Args:
        plan: a plan or its text.
        costs: model name -> ms at width 1, 2, …, see `tables`.
        acceptances: (draft, verifier) -> acceptance, see `tables`.

    Raises:
        ConfigError: impossible numbers, or a level or pair of the plan that has none.
    """
    return forecast(plan, costs, acceptances).ms_per_token


def expected_tokens_per_round(plan: Plan | str, costs: Costs, acceptances: Acceptances) -> float:
    """Expected tokens of the reply per round (forward pass) of the target: 1 for plain decoding. Errors as above."""
    return forecast(plan, costs, acceptances).tokens_per_round


def forecast(plan: Plan | str, costs: Costs, acceptances: Acceptances) -> PlanForecast:
    """The forecast of a plan, level by level. Arguments and errors as for `expected_ms_per_token`."""
    plan = plan_of(plan)
    table = tables(costs, acceptances)
    rows = np.array([[table.index(name) for name in plan.names]], dtype=np.intp)
    for draft, verifier in zip(plan.names, plan.names[1:], strict=False):
        if np.isnan(table.accept[table.index(draft), table.index(verifier)]):
            raise ConfigError(
                f"The acceptance {draft} → {verifier}, which the plan '{plan}' needs, is not known.",
                "Add the pair to the acceptances, or score a reply first.",
            )
    levels = _walk(table, rows, np.array([plan.thresholds], dtype=np.intp))
    rounds_above = np.cumprod([1.0, *(float(level.rounds[0]) for level in levels[-2::-1])])[::-1]
    tokens = float(levels[-1].block[0])
    ms = sum(float(level.pass_ms[0]) * rounds for level, rounds in zip(levels, rounds_above, strict=True))
    if ms >= UNUSABLE / 1e9:
        raise ConfigError(
            f"The costs of the plan '{plan}' fall below zero where they are extended to wider passes.",
            "Measure the models at every width from 1 to 16.",
        )
    shown = tuple(
        LevelForecast(
            name,
            plan.thresholds[i] if i < len(plan.drafts) else None,
            float(table.accept[rows[0, i], rows[0, i + 1]]) if i < len(plan.drafts) else None,
            float(levels[i].block[0]),
            float(rounds_above[i]),
            float(rounds_above[i] * levels[i].pass_ms[0]),
        )
        for i, name in enumerate(plan.names)
    )
    return PlanForecast(plan, float(ms / tokens), tokens, shown)


def ms_of(table: Tables, plans: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Floats:
    """[plans] ms per token of plans given as (levels, thresholds); infinite where a plan cannot run."""
    ms = np.full(len(plans), np.inf)
    for length in {len(levels) for levels, _ in plans}:
        group = [i for i, (levels, _) in enumerate(plans) if len(levels) == length]
        levels = np.array([plans[i][0] for i in group], dtype=np.intp)
        ms[group] = batch_ms(table, levels, np.array([plans[i][1] for i in group], dtype=np.intp))
    return ms


def batch_ms(table: Tables, levels: Ints, thresholds: Ints) -> Floats:
    """[plans] ms per token of plans of one length; infinite where a plan cannot run.

    Args:
        levels: [plans, length], rows of the table, the target last.
        thresholds: [plans, length - 1].
    """
    walked = _walk(table, levels, thresholds)
    ms = np.zeros(len(levels))
    for level in walked:
        ms = level.rounds * (ms + level.pass_ms)
    ms /= walked[-1].block
    return np.where(ms < UNUSABLE / 1e9, ms, np.inf)  # NaN, an unknown pair, compares False


@dataclass(frozen=True, slots=True)
class _Level:
    rounds: Floats  # [plans] passes it makes for one block (the target: 1)
    pass_ms: Floats  # [plans] expected ms of one of its passes
    block: Floats  # [plans] expected tokens of its block (the target: of its round)


def _walk(table: Tables, levels: Ints, thresholds: Ints) -> list[_Level]:
    """Levels of plans of one length, cheapest first, many plans at once; see `batch_ms` for the arguments."""
    count, length = levels.shape
    first = levels[:, 0]
    if length == 1:
        return [_Level(np.ones(count), table.width_ms[first, 1], np.ones(count))]
    start = thresholds[:, 0]
    block = np.zeros((count, int(start.max()) + 1))  # [plans, n]: probability that the block below has n tokens
    block[np.arange(count), start] = 1.0
    walked = [_Level(start.astype(float), table.width_ms[first, 1], start.astype(float))]
    for i in range(1, length):
        verifier = levels[:, i]
        round_tokens = emission(block, table.accept[levels[:, i - 1], verifier])
        pass_ms = (block * table.width_ms[verifier, 1 : block.shape[1] + 1]).sum(axis=1)
        if i == length - 1:
            mean = mean_of(round_tokens) + 1
            walked.append(_Level(np.ones(count), pass_ms, mean))
        else:
            block, rounds = renew(round_tokens, thresholds[:, i])
            walked.append(_Level(rounds, pass_ms, mean_of(block)))
    return walked


def mean_of(distribution: Floats) -> Floats:
    """[plans] mean of [plans, n] distributions over 0, 1, …"""
    # Not `@`: for arrays this small, waking the threads of a BLAS costs more than everything else together.
    return (distribution * np.arange(distribution.shape[1])).sum(axis=1)


def emission(block: Floats, acceptance: Floats) -> Floats:
    """[plans, k]: probability that a round emits k + 1 tokens.

    Args:
        block: [plans, n], probability that the block under verification has n tokens.
        acceptance: [plans], probability that one of its tokens is accepted.
    """
    longer = np.cumsum(block[:, :0:-1], axis=1)[:, ::-1]  # [plans, k]: P(n > k), k = 0 … max - 1
    rejected = np.zeros_like(block)
    rejected[:, :-1] = longer * (1.0 - acceptance)[:, None]
    return acceptance[:, None] ** np.arange(block.shape[1]) * (rejected + block)


def renew(round_tokens: Floats, threshold: Ints) -> tuple[Floats, Floats]:
    """Rounds repeated until at least `threshold` tokens are held.

    Args:
        round_tokens: [plans, k], probability that a round emits k + 1 tokens.
        threshold: [plans].

    Returns:
        [plans, n] probability that the block has n tokens (overshoot included), and [plans] expected rounds.
    """
    count, most = round_tokens.shape
    widest = int(threshold.max())
    going_on = np.arange(widest) < threshold[:, None]  # [plans, tokens held]
    held = np.zeros((count, widest + most))
    held[:, 0] = 1.0
    for tokens in range(widest):
        share = held[:, tokens, None] * going_on[:, tokens, None]
        held[:, tokens + 1 : tokens + 1 + most] += share * round_tokens
    rounds = (held[:, :widest] * going_on).sum(axis=1)
    held[:, :widest] *= ~going_on
    return held, rounds
