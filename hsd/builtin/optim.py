"""Optimizers and the learning-rate schedule.

Muon (Jordan et al. 2024, as in `torch.optim.Muon`) for the matrices inside the layers, AdamW for embeddings and
norms. Rates were picked in trials of 40 steps; figures in `docs/builtin.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Rates:
    """Peak learning rates and the schedule's shape."""

    muon: float = 0.03
    adam: float = 3e-3
    warmup: int = 72  # steps
    decay: float = 0.4  # share of all steps


def optimizers(model: nn.Module, rates: Rates) -> list[Optimizer]:
    """Muon for matrices in layers, AdamW for all the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    fused = others[0].device.type == "cuda"
    return [
        torch.optim.Muon(matrices, lr=rates.muon, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=rates.adam, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=fused),
    ]


def scale(step: int, steps: int, rates: Rates) -> float:
    """Factor on the peak rates: warm-up, constant, then linear to zero (Hägele et al. 2024, arXiv 2405.18392)."""
    cool = max(1, round(steps * rates.decay))
    return min(1.0, (step + 1) / max(1, rates.warmup), (steps - step) / cool)


def set_rates(found: list[Optimizer], factor: float, rates: Rates) -> None:
    """Set every group's rate to its peak times `factor`."""
    for optimizer, peak in zip(found, (rates.muon, rates.adam), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
