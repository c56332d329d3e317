"""What it takes to make a distribution of a row of 151,936 logits, and to draw from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from hsd.bench import BenchRequest
from hsd.params import SamplingParams
from hsd.sampling import Sampler

VOCAB = 151_936  # Qwen's
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 0.7, "top_p": 0.95},
    {"temperature": 0.7, "min_p": 0.05},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
)


def run(request: BenchRequest) -> dict[str, Any]:
    """Medians of interleaved calls, milliseconds a row: a draft's draw, and transformers' filters with a softmax."""
    repeats = 15 if request.quick else 101
    rows = torch.from_numpy(np.random.default_rng(0).normal(0, 2.5, (8, VOCAB)).astype(np.float32))
    sequence = list(range(64))
    taken: dict[str, tuple[list[float], list[float]]] = {}
    for at in range(repeats):
        logits = rows[at % len(rows)].unsqueeze(0)
        for settings in SETTINGS:
            sampler = Sampler(SamplingParams(**settings), sequence[:8], VOCAB, "cpu")
            ours, theirs = taken.setdefault(_words(settings), ([], []))
            ours.append(_ms(lambda s=sampler, x=logits: s.draw(x, sequence, 0.5, measured=False)))  # type: ignore[misc]
            theirs.append(_ms(lambda s=settings, x=logits: _transformers(x, s)))  # type: ignore[misc]
    out = []
    for words, times in taken.items():
        ours_ms, theirs_ms = map(median, times)
        request.tell(f"{words:60} {ours_ms:6.2f} ms a row; by transformers' filters {theirs_ms:6.2f} ms")
        out.append({"settings": words, "ms": ours_ms, "transformers_ms": theirs_ms})
    return {"benchmark": "sampling", "vocabulary": VOCAB, "repeats": repeats, "rows": out}


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _ms(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begun)


def _transformers(logits: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    from transformers.generation import logits_process

    if not settings["temperature"]:
        return logits.argmax(-1)
    logits = logits / settings["temperature"]
    names = {"top_k": "TopKLogitsWarper", "top_p": "TopPLogitsWarper", "min_p": "MinPLogitsWarper"}
    for key, name in names.items():
        if key in settings:
            logits = getattr(logits_process, name)(settings[key])(None, logits)
    return torch.softmax(logits, -1)
