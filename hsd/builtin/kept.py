"""Replies with the target's distributions, stored in rounds and read in batches of whole conversations.

Every conversation begins at place 0 of a row of its own, as it does in use. Batch s is a function of the seed and s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hsd.builtin.distill import kept_loss
from hsd.builtin.writing import Written

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""As `distill.kept_loss`, or that compiled."""

WINDOW = 4000  # conversations that are sorted by length together
_STEP = 8  # lengths are multiples of this, so that there are fewer shapes


@dataclass(frozen=True)
class KeptPiece:
    """A part of a batch: `ids`, `places` and `weights` as in `stream.Piece`.

    Attributes:
        likeliest: [kept places, KEPT] ids.
        logs: [kept places, KEPT] log-probabilities of the target in nats at temperature 1.
        measure: the loss.
    """

    ids: Tensor
    places: Tensor
    weights: Tensor
    likeliest: Tensor
    logs: Tensor
    measure: Loss

    def to(self, device: torch.device) -> KeptPiece:
        """The same on a device; to a GPU from pinned memory, so that nobody waits for the copy."""
        if device.type != "cuda":
            return self
        names = ("ids", "places", "weights", "likeliest", "logs")
        sent = {name: getattr(self, name).pin_memory().to(device, non_blocking=True) for name in names}
        return replace(self, **sent)

    def loss(self, logits: Tensor) -> Tensor:
        """What this piece adds to the loss of a batch, for a draft's logits [kept places, vocabulary]."""
        return self.measure(logits, self.likeliest, self.logs, self.weights)


@dataclass(frozen=True)
class KeptBatch:
    """Whole conversations, one a row."""

    written: Sequence[Written]
    measure: Loss = kept_loss

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.written)

    def pieces(self, count: int, lightest: float = 0.0) -> Iterator[KeptPiece]:
        """The rows in at most `count` parts. Only places of replies have a distribution, so `lightest` says nothing."""
        total = sum(len(one.ids) for one in self.written)
        each = -(-self.rows // count)
        for first in range(0, self.rows, each):
            some = self.written[first : first + each]
            ids = np.zeros((len(some), max(map(_length, some))), np.int64)
            places = []
            for row, one in enumerate(some):
                begin = len(one.prompt)
                ids[row, : begin + len(one.ids)] = np.concatenate([one.prompt, one.ids])
                places.append(np.arange(begin - 1, begin + len(one.ids) - 1) + row * ids.shape[1])
            at = torch.from_numpy(np.concatenate(places))
            likeliest = torch.from_numpy(np.concatenate([one.likeliest for one in some]).astype(np.int64))
            logs = torch.from_numpy(np.concatenate([one.logs for one in some]).astype(np.float32))
            yield KeptPiece(torch.from_numpy(ids), at, torch.full((len(at),), 1 / total), likeliest, logs, self.measure)


class KeptStream:
    """Batches of kept replies, over and over, in an order drawn anew for every turn.

    Args:
        replies: all of them.
        seed: of the order.
        measure: the loss.
    """

    def __init__(self, replies: Sequence[Written], seed: int, measure: Loss = kept_loss) -> None:
        self._replies, self._seed, self._measure = replies, seed, measure
        self._batches: list[list[int]] = []
        self._turns = 0

    def batch(self, step: int, rows: int, length: int) -> KeptBatch:
        """Batch `step`: at most rows × length tokens, padding included."""
        while len(self._batches) <= step:
            self._batches += self._turn(rows * length)
        return KeptBatch([self._replies[i] for i in self._batches[step]], self._measure)

    def _turn(self, tokens: int) -> list[list[int]]:
        """Every reply once: windows of a drawn order are sorted by length and cut into batches, and these drawn too."""
        rng = Random(f"{self._seed} {self._turns}")
        self._turns += 1
        order = list(range(len(self._replies)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for first in range(0, len(order), WINDOW):
            held: list[int] = []
            for i in sorted(order[first : first + WINDOW], key=lambda i: _length(self._replies[i])):
                if held and _length(self._replies[i]) * (len(held) + 1) > tokens:
                    batches.append(held)
                    held = []
                held.append(i)
            batches.append(held)
        rng.shuffle(batches)
        return batches


def _length(one: Written) -> int:
    return -(-(len(one.prompt) + len(one.ids)) // _STEP) * _STEP


def keep(path: Path, written: Sequence[Written]) -> None:
    """Write a round, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: [getattr(one, name) for one in written] for name in ("prompt", "ids", "likeliest", "logs")}
    lengths = {f"{name}_length": np.array([len(p) for p in parts[name]], np.int32) for name in ("prompt", "ids")}
    partial = path.with_suffix(f".{os.getpid()}.partial.npz")
    np.savez(partial, **{name: np.concatenate(found) for name, found in parts.items()}, **lengths)  # type: ignore[arg-type]
    os.replace(partial, path)


def read(path: Path) -> list[Written]:
    """Read what `keep` wrote."""
    with np.load(path) as file:
        held: dict[str, NDArray[np.generic]] = dict(file)
    begins, ends = (np.cumsum(held[f"{name}_length"])[:-1] for name in ("prompt", "ids"))
    replies = [np.split(held[name], ends) for name in ("ids", "likeliest", "logs")]
    return [Written(*one) for one in zip(np.split(held["prompt"], begins), *replies, strict=True)]
