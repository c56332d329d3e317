"""Rounds made in advance by other processes, so that a GPU does not wait for text."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

from hsd.builtin import tokenizer
from hsd.builtin.mixture import Mixture, Shares
from hsd.builtin.stream import keep

DISTANCE = 24  # rounds


class Workers:
    """Processes that make rounds.

    Args:
        job: makes and keeps the round of a number; it and its arguments travel to the other processes.
        count: processes.
    """

    def __init__(self, job: Callable[[int], None], count: int) -> None:
        self._job = job
        # Not forked: tokenizers and torch have threads by now.
        self._pool = ProcessPoolExecutor(
            count, mp_context=multiprocessing.get_context("spawn"), initializer=_belong, initargs=(os.getpid(),)
        )
        self._futures: dict[int, Future[None]] = {}

    def wait(self, number: int) -> None:
        """Asks for this round and the next ones; returns when this one is kept, or at once if nobody has begun it."""
        for other in range(number, number + DISTANCE):
            if other not in self._futures:
                self._futures[other] = self._pool.submit(self._job, other)
        if not self._futures[number].cancel():
            self._futures[number].result()

    def close(self) -> None:
        """Ends the processes; what is half made is made again when it is asked for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def workers(folder: Path, corpus: Path | None, seed: int, shares: Shares, size: str, learnt: Path) -> Workers | None:
    """Half of the processors, for the rounds of a mixture; None where there are too few to spare any.

    Args:
        folder: where rounds are kept.
        corpus, seed, shares, size: of the mixture.
        learnt: folder of the tokenizer.
    """
    count = min(8, (os.cpu_count() or 1) // 2)
    return Workers(partial(_make, folder, corpus, seed, shares, size, learnt), count) if count > 1 else None


def _belong(parent: int) -> None:
    """Leaves an interrupt to the parent, and ends when the parent is gone: a killed run leaves nobody behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _make(folder: Path, corpus: Path | None, seed: int, shares: Shares, size: str, learnt: Path, number: int) -> None:
    path = folder / f"round-{number:04d}.npy"
    if not path.exists():
        keep(path, tokenizer.encode(_mixture(corpus, seed, shares, size).round(number), _tokenizer(learnt)))


@cache
def _mixture(corpus: Path | None, seed: int, shares: Shares, size: str) -> Mixture:
    return Mixture(corpus, seed, shares, size)


_tokenizer = cache(tokenizer.load)
