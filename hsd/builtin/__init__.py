"""The built-in family: weights in the repository, and the code that trained them.

Importing this package imports no torch. `weights_file("large")` is where a model lies; `python -m
hsd.builtin.train` is how it came to be. The recipe is told in `docs/builtin.md`.
"""

from __future__ import annotations

from pathlib import Path

MODELS: tuple[str, ...] = ("tiny", "small", "medium", "large")
"""Names of the models, cheapest first; the last is the target."""

WEIGHTS = Path(__file__).parent / "weights"
DATA = Path(__file__).parent / "data"


def weights_file(name: str) -> Path:
    """The GGUF file of one model.

    Args:
        name: one of `MODELS`.
    Raises:
        HsdError: no model of that name is in the family.
    """
    if name not in MODELS:
        from hsd.errors import HsdError

        raise HsdError(f"The built-in family has no model '{name}'.", f"It has {', '.join(MODELS)}.")
    return WEIGHTS / f"{name}.gguf"
