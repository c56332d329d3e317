"""What went wrong inside a model, and how far it reaches: one conversation, every cache, or the whole engine."""

from __future__ import annotations

from dataclasses import dataclass

from hsd.errors import HsdError, ModelError
from hsd.hierarchy import failed_pass


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
