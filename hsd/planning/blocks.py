"""Blocks that the levels of a plan hand up, position by position of stored replies: the two steps of `replay`.

Arrays are [pieces, positions, n]: probabilities that a block which starts at that position has or keeps n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hsd.planning.stopping import StopRule
from hsd.planning.tables import Floats


@dataclass(frozen=True, slots=True)
class Block:
    """Blocks that one level hands up, by the position they start at; arrays are [pieces, positions, n].

    length: probability of n tokens. refused: that the level above accepts n and refuses the next.
    all_kept: that there are n, all are accepted, and one of its own follows. ended: that there are n, all are accepted,
    and the last one ends the reply. ms: [pieces, positions] expected ms of a block.
    """

    length: Floats
    refused: Floats
    all_kept: Floats
    ended: Floats
    ms: Floats

    @property
    def emits(self) -> Floats:
        """[pieces, positions, k]: probability that a round on the block emits k + 1 tokens."""
        out = self.refused + self.all_kept
        out[:, :, :-1] += self.ended[:, :, 1:]
        return out


def drafted_by_value(rule: StopRule, chances: Floats, threshold: int) -> NDArray[np.int_]:
    """[pieces, positions] tokens that a first level drafts from every position on, by its rule and up to a threshold.

    Args:
        rule: when it stops.
        chances: [pieces, positions + threshold] what its confidence says of a token's chance.
        threshold: its cap.
    """
    positions = chances.shape[1] - threshold
    held = np.ones((len(chances), positions))  # that all tokens so far survive
    drafted = np.zeros((len(chances), positions), dtype=np.int_)
    going = np.ones(drafted.shape, dtype=bool)
    for n in range(threshold):
        going = going & (held * rule.calibration.mean * rule.token_ms > rule.draft_ms)
        drafted += going
        held = held * chances[:, n : n + positions]
    return drafted


def looked_up(rule: StopRule, chances: Floats, threshold: int) -> NDArray[np.int_]:
    """[pieces, positions] tokens that a lookup proposes from every position on, by its rule and up to a threshold.

    Within a block a match only grows, so that its chances do not fall; where the stored reply left the match, the block
    was longer than the reply shows.

    Args:
        rule: what a block gains.
        chances: [pieces, positions + threshold] of its token, by its confidence; NaN where it proposed nothing.
        threshold: longest block.
    """
    positions, most = chances.shape[1] - threshold, min(threshold, len(rule.block_ms) - 1)
    nothing = np.isnan(chances[:, :positions])
    best, length = np.zeros((len(chances), positions)), np.zeros((len(chances), positions), dtype=np.int_)
    chance, survives, gain = np.zeros(best.shape), np.ones(best.shape), np.zeros(best.shape)
    for n in range(most):
        chance = np.fmax(chance, chances[:, n : n + positions])
        survives = survives * chance
        gain = gain + survives * rule.token_ms - (rule.block_ms[n + 1] - rule.block_ms[n])
        better = (gain > best) & ~nothing
        best, length = np.where(better, gain, best), np.where(better, n + 1, length)
    return length


def first_block(
    threshold: int,
    step_ms: float,
    rate: Floats,
    nothing: NDArray[np.bool_],
    left: NDArray[np.int_],
    most: NDArray[np.int_] | None = None,
) -> Block:
    """Blocks of the cheapest level: as long as its threshold, to the end, or empty where it has nothing to propose.

    Args:
        threshold: most tokens of a block.
        step_ms: what drafting one takes.
        rate: [pieces, positions + threshold] acceptance by the level above.
        nothing: likewise, where it has nothing to propose.
        left: likewise, tokens to the end of the reply.
        most: [pieces, positions] tokens to stop at, if that is sooner than the threshold.
    """
    positions = rate.shape[1] - threshold
    run = np.ones((len(rate), positions, threshold + 1))  # [.., n]: the first n tokens are accepted
    for n in range(threshold):
        run[:, :, n + 1] = run[:, :, n] * rate[:, n : n + positions]
    refused = np.zeros_like(run)
    refused[:, :, :-1] = run[:, :, :-1] - run[:, :, 1:]
    length, all_kept, ended = (np.zeros_like(run) for _ in range(3))
    stops = np.full(run.shape[:2], threshold) if most is None else most
    for n in range(threshold + 1):
        here = stops == n
        length[here, n] = 1.0
        all_kept[here, n] = run[here, n]
        refused[here, n:] = 0.0
    for n in range(1, threshold + 1):
        here = (left[:, :positions] == n) & (stops >= n)
        reached = run[here, n]
        ended[here, n] = reached
        all_kept[here] = 0.0
        refused[here, n:] = 0.0
        length[here, stops[here]] -= reached
        length[here, n] += reached
    empty = nothing[:, :positions]
    length[empty] = all_kept[empty] = np.arange(threshold + 1) == 0
    refused[empty] = ended[empty] = 0.0
    drafted = length @ np.arange(threshold + 1.0)
    drafted[empty] = threshold  # it looked for so many
    return Block(length, refused, all_kept, ended, step_ms * drafted)


def next_block(
    below: Block,
    width_ms: Floats,
    threshold: int,
    *,
    up: Floats,
    kept: Floats,
    redrawn: Floats,
    left: NDArray[np.int_],
) -> Block:
    """Blocks of the next level, made of rounds over blocks from below.

    Args:
        below: blocks under verification.
        width_ms: ms of a pass by width.
        up, kept, redrawn: [pieces, positions] acceptance by the level above of a bonus token, of a token accepted
            from below, and of one drawn after a rejection.
        left: [pieces, positions] tokens to the end of the reply.
    """
    positions, most = below.length.shape[1] - threshold, below.length.shape[2]
    reach = below.length.shape[1]
    emits = below.emits
    more = np.cumsum(emits[:, :, ::-1], axis=2)[:, :, ::-1] - emits  # a longer round
    round_ms = below.ms + below.length @ width_ms[1 : most + 1]
    survives, dies = np.empty_like(emits), np.empty_like(emits)
    run = np.ones(emits.shape[:2])  # the first k tokens of the round survive
    for k in range(most):
        at = slice(k, k + reach)
        survives[:, :, k] = run * (below.refused[:, :, k] * redrawn[:, at] + below.all_kept[:, :, k] * up[:, at])
        if k + 1 < most:
            survives[:, :, k] += run * below.ended[:, :, k + 1] * kept[:, at]
        dies[:, :, k] = run * (emits[:, :, k] + more[:, :, k] * (1 - kept[:, at])) - survives[:, :, k]
        run = run * kept[:, at]
    shape = (emits.shape[0], positions, threshold + most)
    length, all_kept, refused, ended = (np.zeros(shape) for _ in range(4))
    ms = np.zeros(shape[:2])
    length[:, :, 0] = all_kept[:, :, 0] = 1.0
    for held in range(threshold):
        at, ends, inner = slice(held, held + positions), slice(held + 1, held + 1 + most), slice(held, held + most)
        going, alive = length[:, :, held].copy(), all_kept[:, :, held].copy()
        length[:, :, held] = all_kept[:, :, held] = 0.0
        if held:
            done = np.where(left[:, :positions] == held, alive, 0.0)
            length[:, :, held] = ended[:, :, held] = done
            going, alive = going - done, alive - done
        ms += going * round_ms[:, at]
        length[:, :, ends] += going[:, :, None] * emits[:, at]
        all_kept[:, :, ends] += alive[:, :, None] * survives[:, at]
        refused[:, :, inner] += alive[:, :, None] * dies[:, at]
    for n in range(threshold, shape[2]):  # what reached its threshold at the end of the reply
        here = left[:, :positions] == n
        ended[here, n], all_kept[here, n] = all_kept[here, n], 0.0
    return Block(length, refused, all_kept, ended, ms)
