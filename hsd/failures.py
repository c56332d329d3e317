"""What went wrong inside a model, and how far it reaches: one conversation, every cache, or the whole engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hsd.errors import HsdError, ModelError


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of a reply.

    Args:
        error: what to tell a person.
        everywhere: all caches are freed, because most often memory ran out; else one conversation is read anew.
        broken: why this engine is at its end; None if it goes on.
    """

    error: HsdError
    everywhere: bool
    broken: str | None


def understand(failure: Exception, target: str) -> Failure:
    """How far a failure reaches.

    Logits that are no distribution may come from what is cached, so that conversation is read anew. Anything else
    frees all caches. A dead GPU context ends the engine.
    """
    error = failure if isinstance(failure, HsdError) else failed_pass(target, failure)
    cause = failure.__cause__ if isinstance(failure, ModelError) else failure
    if cause is None or isinstance(cause, HsdError):
        return Failure(error, False, None)
    text, broken = str(cause), None
    if "CUDA error" in text or "device-side assert" in text or type(cause).__name__ == "AcceleratorError":
        broken = f"The GPU stopped working for this program ({text.splitlines()[0][:120]})."
    return Failure(error, True, broken)


def failed_pass(level: str, error: Exception) -> ModelError:
    """What to tell a person of an exception inside a model."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ModelError(level, f"the forward pass failed: {first}.", _advice(error))


def _advice(error: Exception) -> str:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in str(error).lower():
        return "Shorten the conversation, choose a smaller context, or leave a draft out."
    return "Send the message again; if it fails again, load the family anew."


def no_distribution(level: str) -> ModelError:
    """What to tell a person of logits from which nothing can be drawn."""
    return ModelError(
        level,
        "its next-token distribution is empty or not finite.",
        "Either the model computes NaN (try another dtype or quantization), or the banned ids and biases leave "
        "no token at all.",
    )
