"""One look per level, the same everywhere: a colour of the Okabe–Ito palette and an underline pattern."""

from __future__ import annotations

from collections.abc import Sequence

from chat.plans import LOOKUP

# The stylesheet gives each of these a colour and a pattern, so that neither eye nor printer needs the colour.
DRAFTS = ("sky", "green", "purple", "vermillion", "yellow")


def looks(models: Sequence[str], target: str | None = None) -> dict[str, str]:
    """Level name -> class name. `models` are cheapest first; the last is the target unless one is named."""
    target = target or (models[-1] if models else "")
    drafts = [name for name in models if name not in (target, LOOKUP)]
    result = {LOOKUP: "orange", target: "blue"}
    result.update({name: DRAFTS[place % len(DRAFTS)] for place, name in enumerate(drafts)})
    return result


def look(name: str, known: dict[str, str]) -> str:
    """Class names of a level; one that is not loaded any more is grey."""
    return f"level level-{known.get(name, 'grey')}"
