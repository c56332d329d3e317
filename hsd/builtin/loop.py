"""The training loop: one or several learners on the same batches, checkpoints, held-out loss, a progress bar.

It knows nothing of the corpus; of the models it trains it knows that they have a body and a head. On a GPU nothing in a
step waits for the device: what must be counted is counted on the host before the batch is sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import LlamaForCausalLM

from hsd.builtin.kept import KeptBatch, KeptPiece, KeptStream
from hsd.builtin.optim import Rates, optimizers, scale, set_rates
from hsd.builtin.stream import Batch, Piece, Stream
from hsd.errors import HsdError

Soften = Callable[[Tensor, Tensor], Tensor]
"""(teacher's logits [targets, vocabulary], targets [targets]) -> wanted probabilities [targets, vocabulary]."""

WARM, PROBED = 4, 12
"""Steps that are not timed, and the step after which the rest is planned; both lie in the warm-up of the rate."""


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
    pieces: int = 1  # a step's rows go through in so many parts, to bound the memory of a device

    def shape_at(self, step: int, steps: int) -> tuple[int, int]:
        """Rows and length of the batch of `step`; their product never changes, so neither does the stream."""
        if self.rows % 2 == 0 and step >= steps * (1 - self.long_rows):
            return self.rows // 2, self.length * 2
        return self.rows, self.length


class Learner:
    """A model with its optimizers.

    Args:
        model: on a GPU its embeddings are handed on in bfloat16, which halves what the additions along it move.
        compiled: compile its body; worth it where training takes minutes.
        varied: batches have many shapes and short rows. Compiled once for all of them; attention written out
            is then faster than torch's kernel for it.
    """

    def __init__(self, model: LlamaForCausalLM, rates: Rates, compiled: bool = False, varied: bool = False) -> None:
        self.model, self.rates = model, rates
        self.optimizers: list[Optimizer] = optimizers(model, rates)
        if model.device.type == "cuda":
            model.model.embed_tokens.register_forward_hook(lambda module, args, out: out.bfloat16())
        if varied and model.device.type == "cpu":
            model.set_attn_implementation("eager")
        if compiled:
            model.model.compile(dynamic=varied)

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def logits_of(model: LlamaForCausalLM, ids: Tensor, places: Tensor) -> Tensor:
    """Logits where they are wanted, computed in bfloat16 where that is safe.

    Args:
        ids: [rows, length].
        places: [kept] int64, places in the flattened rows. The head is a large part of a small model, so what is left
            out is saved; numbers and not a mask, because counting a mask would wait for the device.
    Returns:
        [kept, vocabulary] float32.
    """
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden.flatten(0, 1).index_select(0, places)).float()


def train(
    learners: dict[str, Learner],
    stream: Stream | KeptStream,
    settings: Settings,
    checkpoint: Path,
    *,
    teacher: tuple[LlamaForCausalLM, Soften] | None = None,
    judge: Callable[[LlamaForCausalLM], dict[str, float]] | None = None,
    plan: Callable[[float], int] | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> int:
    """Train until `settings.steps`, going on from `checkpoint` if it exists. Returns the step that was reached.

    With a teacher the learners are trained towards what its `Soften` makes of its logits, else towards the text; kept
    replies have the teacher's distributions with them.
    A checkpoint is written to a neighbour and renamed, so a kill at any moment leaves a whole one.

    Args:
        plan: given the measured seconds of a step, says how many steps there shall be; asked once, after `PROBED`
            steps, and kept in the checkpoint. Without it `settings.steps` counts, whatever an earlier run meant.
    """
    device = next(next(iter(learners.values())).model.parameters()).device
    tokens = settings.rows * settings.length
    first, steps = restore(checkpoint, learners, tokens) if checkpoint.exists() else (0, None)
    unplanned = plan is not None and steps is None
    steps = steps if plan is not None and steps is not None else settings.steps
    pieces, step, begun = settings.pieces, first, time.perf_counter()
    with tqdm(total=steps * tokens, initial=first * tokens, unit="tok", unit_scale=True, mininterval=5) as bar:
        while step < min(steps, settings.stop_after or steps):
            batch = stream.batch(step, *settings.shape_at(step, steps))
            try:
                losses = _step(learners, batch, device, pieces, teacher, scale(step, steps, settings.rates), settings)
            except torch.OutOfMemoryError:
                if pieces >= batch.rows:
                    raise
                pieces *= 2
                _forget_gradients(learners)
                torch.cuda.empty_cache()
                say(f"out of memory: a step now goes through in {pieces} pieces")
                continue
            step += 1
            if step == first + WARM:
                begun = _now(device)
            if unplanned and plan is not None and step == first + PROBED:
                steps, unplanned = plan((_now(device) - begun) / (PROBED - WARM)), False
                bar.total = steps * tokens
            bar.update(tokens)
            last = step == min(steps, settings.stop_after or steps)
            if device.type == "cpu" or step % 20 == 0:
                bar.set_postfix({name: f"{float(value):.3f}" for name, value in losses.items()})
            if step % settings.save_every == 0 or last:
                save(checkpoint, step, learners, tokens, None if unplanned else steps)
            if judge and (step % settings.judge_every == 0 or last):
                for name, learner in learners.items():
                    found = judge(learner.model)
                    say(f"step {step}  {name}  " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    return step


def _step(
    learners: dict[str, Learner],
    batch: Batch | KeptBatch,
    device: torch.device,
    pieces: int,
    teacher: tuple[LlamaForCausalLM, Soften] | None,
    factor: float,
    settings: Settings,
) -> dict[str, Tensor]:
    """One step of every learner on one batch; the mean losses in nats, still on the device."""
    losses = {name: torch.zeros((), device=device) for name in learners}
    for piece in batch.pieces(pieces, settings.lightest):
        sent = piece.to(device)
        measure = _measure(sent, teacher)
        for name, learner in learners.items():
            learner.model.train()
            value = measure(logits_of(learner.model, sent.ids, sent.places))
            value.backward()
            losses[name] += value.detach()
    for learner in learners.values():
        nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
        set_rates(learner.optimizers, factor, learner.rates)
        for optimizer in learner.optimizers:
            optimizer.step()
    _forget_gradients(learners)
    return losses


def _measure(sent: Piece | KeptPiece, teacher: tuple[LlamaForCausalLM, Soften] | None) -> Callable[[Tensor], Tensor]:
    """What a learner's logits for this piece are worth."""
    if isinstance(sent, KeptPiece):
        return sent.loss
    wanted = sent.targets
    if teacher is not None:
        model, soften = teacher
        with torch.no_grad():
            wanted = soften(logits_of(model, sent.ids, sent.places), wanted)
    return partial(weighted_loss, wanted=wanted, weights=sent.weights)


def _forget_gradients(learners: dict[str, Learner]) -> None:
    for learner in learners.values():
        for optimizer in learner.optimizers:
            optimizer.zero_grad(set_to_none=True)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def weighted_loss(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy in nats, summed by weight.

    Args:
        logits: [targets, vocabulary].
        wanted: [targets] token ids, or [targets, vocabulary] probabilities.
        weights: [targets], shares of the whole batch's weight.
    """
    return (F.cross_entropy(logits, wanted, reduction="none") * weights).sum()


def save(path: Path, step: int, learners: dict[str, Learner], tokens: int, steps: int | None) -> None:
    """Write step, weights and optimizer states, whole or not at all.

    Args:
        tokens: size of a step.
        steps: how many there shall be; None while that is not decided.
    """
    partial = path.with_suffix(".partial")
    states = {name: learner.state() for name, learner in learners.items()}
    torch.save({"step": step, "steps": steps, "tokens": tokens, "learners": states}, partial)
    os.replace(partial, path)


def restore(path: Path, learners: dict[str, Learner], tokens: int) -> tuple[int, int | None]:
    """Load what `save` wrote. Returns the steps done, and how many there shall be if that was decided.

    Raises:
        HsdError: its steps were of another size, so it would go on at the wrong place in the text.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["tokens"] != tokens:
        message = f"{path} was trained with {saved['tokens']} tokens a step, not {tokens}."
        raise HsdError(message, "Use the same --rows and --length, or another --work folder.")
    for name, learner in learners.items():
        learner.restore(saved["learners"][name])
    return int(saved["step"]), saved["steps"]


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, batches: list[Batch]) -> float:
    """Cross-entropy in nats per token over all targets with a weight."""
    model.eval()
    total = count = 0.0
    # Every batch here has a shape of its own: a compiled body would be compiled again for each.
    with torch.compiler.set_stance("force_eager"):
        for batch in batches:
            for piece in batch.pieces(1):
                sent: Piece = piece.to(next(model.parameters()).device)
                logits = logits_of(model, sent.ids, sent.places)
                total += float(F.cross_entropy(logits, sent.targets, reduction="sum"))
                count += len(sent.targets)
    return total / max(count, 1)
