"""An endless stream of tokens made of rounds, cut into batches. Batch s is a function of the seed and s alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hsd.builtin.tokenizer import WEIGHT_SCALE


@dataclass(frozen=True)
class Piece:
    """A part of a batch, as a model is trained on it.

    Attributes:
        ids: [rows, length] int64, what the model reads.
        places: [kept] int64, where in the flattened rows something is to be predicted.
        targets: [kept] int64, the next token at each place.
        weights: [kept] float32, share of each in the whole batch's weight.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Piece:
        """The same on a device; to a GPU from pinned memory, so that nobody waits for the copy."""
        if device.type != "cuda":
            return self
        parts = (self.ids, self.places, self.targets, self.weights)
        return Piece(*(part.pin_memory().to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class Batch:
    """Rows of packed conversations, on the host.

    Attributes:
        ids: [rows, length] int64, what the model reads.
        targets: [rows, length] int64, the next tokens.
        weights: [rows, length] float32, loss weight of each target, 0 to 1.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.ids.shape[0])

    def pieces(self, count: int, lightest: float = 0.0) -> Iterator[Piece]:
        """The rows in `count` parts, with the targets that weigh more than `lightest`."""
        whole = max(float(self.weights[self.weights > lightest].sum()), 1.0)
        parts = (tensor.chunk(count) for tensor in (self.ids, self.targets, self.weights))
        for ids, targets, weights in zip(*parts, strict=True):
            flat = weights.flatten()
            places = (flat > lightest).nonzero().flatten()
            yield Piece(ids, places, targets.flatten()[places], flat[places] / whole)


Encoded = list[tuple[NDArray[np.uint16], NDArray[np.uint8]]]
"""Per conversation its ids and its loss weights, each of shape [tokens]."""

Round = NDArray[np.uint16]
"""[2, tokens]: ids and loss weights of many conversations, one after the other."""


class Rounds:
    """Numbered rounds, each made once and kept in `folder`.

    Args:
        folder: where they are kept; what is missing is made again.
        make: encoded conversations of round r.
        ahead: other processes that make the rounds to come; see `hsd.builtin.ahead`.
    """

    def __init__(self, folder: Path, make: Callable[[int], Encoded], ahead: Ahead | None = None) -> None:
        self.folder, self.make, self.ahead = folder, make, ahead

    def __call__(self, number: int) -> Round:
        path = self.folder / f"round-{number:04d}.npy"
        if self.ahead is not None:
            self.ahead.wait(number)
        if not path.exists():
            keep(path, self.make(number))
        found: Round = np.load(path, mmap_mode="r")
        return found


class Ahead(Protocol):
    """Somebody who makes rounds in advance."""

    def wait(self, number: int) -> None:
        """Asks for this round and some after it, and waits while this one is being made."""
        ...


def keep(path: Path, encoded: Encoded) -> None:
    """Write a round, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.stack([np.concatenate(part).astype(np.uint16) for part in zip(*encoded, strict=True)])
    partial = path.with_suffix(f".{os.getpid()}.partial.npy")
    np.save(partial, data)
    os.replace(partial, path)


class Stream:
    """Rounds one after the other.

    Args:
        rounds: gives round r; it is asked once for each.
    """

    def __init__(self, rounds: Callable[[int], Round]) -> None:
        self.rounds = rounds
        self._rounds: list[Round] = []
        self._starts = [0]

    def batch(self, step: int, rows: int, length: int) -> Batch:
        """Batch `step` of rows × length tokens; neighbouring rows follow each other in the stream."""
        size = rows * length
        flat = self._slice(step * size, size + 1)
        ids = torch.from_numpy(flat[0].astype(np.int64))
        weights = torch.from_numpy(flat[1].astype(np.float32)) / WEIGHT_SCALE
        shape = (rows, length)
        return Batch(ids[:-1].view(shape), ids[1:].view(shape), weights[1:].view(shape))

    def _slice(self, start: int, count: int) -> Round:
        while self._starts[-1] < start + count:
            self._rounds.append(self.rounds(len(self._rounds)))
            self._starts.append(self._starts[-1] + self._rounds[-1].shape[1])
        pieces = []
        for begin, data in zip(self._starts, self._rounds, strict=False):
            low, high = max(start - begin, 0), min(start + count - begin, data.shape[1])
            if low < high:
                pieces.append(data[:, low:high])
        return np.concatenate(pieces, axis=1)


def padded(encoded: Encoded, rows: int, length: int) -> Iterator[Batch]:
    """Conversations one a row, cut to `length` and padded with weight 0, for held-out loss."""
    ordered = sorted(encoded, key=lambda pair: len(pair[0]))
    for first in range(0, len(ordered), rows):
        some = ordered[first : first + rows]
        widest = min(max(len(ids) for ids, _ in some), length + 1)
        ids = np.zeros((len(some), widest), np.int64)
        weights = np.zeros((len(some), widest), np.float32)
        for row, (i, w) in enumerate(some):
            ids[row, : len(i)] = i[:widest]
            weights[row, : len(w)] = w[:widest] == WEIGHT_SCALE  # only what the assistant says is judged
        all_ids, all_weights = torch.from_numpy(ids), torch.from_numpy(weights)
        yield Batch(all_ids[:, :-1], all_ids[:, 1:], all_weights[:, 1:])
