"""The training loop: one or several learners on the same batches, checkpoints, held-out loss, a progress bar.

It knows nothing of the corpus; of the models it trains it knows that they have a body and a head.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import LlamaForCausalLM

from hsd.builtin.optim import Rates, optimizers, scale, set_rates
from hsd.builtin.stream import Batch, Stream
from hsd.errors import HsdError

Soften = Callable[[Tensor, Tensor], Tensor]
"""(teacher's logits [targets, vocabulary], targets [targets]) -> wanted probabilities [targets, vocabulary]."""


@dataclass(frozen=True)
class Settings:
    """What one stage of training is: how long, how wide, how often it is looked at."""

    steps: int
    rows: int = 8
    length: int = 512
    save_every: int = 50
    judge_every: int = 300
    rates: Rates = field(default_factory=Rates)
    lightest: float = 0.0  # targets of this weight or less are left out
    long_rows: float = 0.15  # share of the steps, at the end, with rows twice as long and half as many
    stop_after: int | None = None  # leave early after this step, checkpoint written: pauses, and the resume test

    def shape_at(self, step: int) -> tuple[int, int]:
        """Rows and length of the batch of `step`; their product never changes, so neither does the stream."""
        if self.rows % 2 == 0 and step >= self.steps * (1 - self.long_rows):
            return self.rows // 2, self.length * 2
        return self.rows, self.length


@dataclass
class Learner:
    """A model with its optimizers."""

    model: LlamaForCausalLM
    rates: Rates
    optimizers: list[Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = optimizers(self.model, self.rates)

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def logits_of(model: LlamaForCausalLM, ids: Tensor, keep: Tensor) -> Tensor:
    """Logits where they are wanted, computed in bfloat16 where that is safe.

    Args:
        ids: [rows, length].
        keep: [rows, length] bool. The head is a large part of a small model, so what is left out is saved.
    Returns:
        [kept, vocabulary] float32.
    """
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden[keep]).float()


def weighted_loss(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy in nats, averaged by weight.

    Args:
        logits: [targets, vocabulary].
        wanted: [targets] token ids, or [targets, vocabulary] probabilities.
        weights: [targets].
    """
    per_token = F.cross_entropy(logits, wanted, reduction="none")
    return (per_token * weights).sum() / weights.sum().clamp(min=1)


def train(
    learners: dict[str, Learner],
    stream: Stream,
    settings: Settings,
    checkpoint: Path,
    *,
    teacher: tuple[LlamaForCausalLM, Soften] | None = None,
    judge: Callable[[LlamaForCausalLM], dict[str, float]] | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> int:
    """Train until `settings.steps`, going on from `checkpoint` if it exists. Returns the step that was reached.

    With a teacher the learners are trained towards what its `Soften` makes of its logits, else towards the text.
    A checkpoint is written to a neighbour and renamed, so a kill at any moment leaves a whole one.
    """
    device = next(next(iter(learners.values())).model.parameters()).device
    tokens = settings.rows * settings.length
    first = restore(checkpoint, learners, tokens) if checkpoint.exists() else 0
    last = min(settings.steps, settings.stop_after or settings.steps)
    with tqdm(total=settings.steps * tokens, initial=first * tokens, unit="tok", unit_scale=True, mininterval=5) as bar:
        for step in range(first, last):
            batch = stream.batch(step, *settings.shape_at(step)).to(device)
            factor = scale(step, settings.steps, settings.rates)
            losses = _step(learners, batch, teacher, factor, settings.lightest)
            bar.update(tokens)
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            done = step + 1
            if done % settings.save_every == 0 or done == last:
                save(checkpoint, done, learners, tokens)
            if judge and (done % settings.judge_every == 0 or done == last):
                for name, learner in learners.items():
                    found = judge(learner.model)
                    say(f"step {done}  {name}  " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    return max(first, last)


def _step(
    learners: dict[str, Learner],
    batch: Batch,
    teacher: tuple[LlamaForCausalLM, Soften] | None,
    factor: float,
    lightest: float,
) -> dict[str, float]:
    keep = batch.weights > lightest
    wanted, weights = batch.targets[keep], batch.weights[keep]
    if teacher is not None:
        model, soften = teacher
        with torch.no_grad():
            wanted = soften(logits_of(model, batch.ids, keep), wanted)
    losses = {}
    for name, learner in learners.items():
        learner.model.train()
        value = weighted_loss(logits_of(learner.model, batch.ids, keep), wanted, weights)
        value.backward()
        nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
        set_rates(learner.optimizers, factor, learner.rates)
        for optimizer in learner.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses[name] = value.item()
    return losses


def save(path: Path, step: int, learners: dict[str, Learner], tokens: int) -> None:
    """Write step, weights and optimizer states, whole or not at all; `tokens` is the size of a step."""
    partial = path.with_suffix(".partial")
    states = {name: learner.state() for name, learner in learners.items()}
    torch.save({"step": step, "tokens": tokens, "learners": states}, partial)
    os.replace(partial, path)


def restore(path: Path, learners: dict[str, Learner], tokens: int) -> int:
    """Load what `save` wrote. Returns the steps done.

    Raises:
        HsdError: its steps were of another size, so it would go on at the wrong place in the text.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["tokens"] != tokens:
        message = f"{path} was trained with {saved['tokens']} tokens a step, not {tokens}."
        raise HsdError(message, "Use the same --rows and --length, or another --work folder.")
    for name, learner in learners.items():
        learner.restore(saved["learners"][name])
    return int(saved["step"])


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, batches: list[Batch]) -> float:
    """Cross-entropy in nats per token over all targets with a weight."""
    model.eval()
    total = count = 0.0
    for batch in batches:
        keep = batch.weights > 0
        logits = logits_of(model, batch.ids, keep)
        total += float(F.cross_entropy(logits, batch.targets[keep], reduction="sum"))
        count += float(keep.sum())
    return total / max(count, 1)
