"""A time budget that survives kills: how many minutes of training there are, and how many are spent."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

RESERVE = 0.12
"""Share of the budget for what is not steps: text, replies, judging, storing."""


class Budget:
    """Minutes for the stages together, over all calls.

    Args:
        path: where the spent seconds are kept.
        minutes: None for as long as it takes; time is counted all the same.
    """

    def __init__(self, path: Path, minutes: float | None) -> None:
        self._path, self.minutes = path, minutes
        self._earlier = float(json.loads(path.read_text())["spent_s"]) if path.is_file() else 0.0
        self._begun = time.monotonic()

    @property
    def spent_s(self) -> float:
        """Seconds of this call and of earlier ones, up to where each last told."""
        return self._earlier + time.monotonic() - self._begun

    def tell(self) -> None:
        """Keep what is spent."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"spent_s": self.spent_s}), encoding="utf-8")
        os.replace(partial, self._path)

    def steps(self, wanted: int, least: int, step_s: float, share: float) -> int:
        """Steps that fit: as many as wanted, fewer if their share of what is left is less.

        Args:
            wanted: steps without a budget.
            least: steps that are done already, or that a schedule needs.
            step_s: measured seconds of a step.
            share: of what is left of the budget, 1 for the last stage that takes long.
        """
        if self.minutes is None:
            return wanted
        left = self.minutes * 60 * (1 - RESERVE) - self.spent_s
        return max(least, min(wanted, int(left * share / step_s)))
