"""Measured pass times on their way into and out of the database."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hsd.errors import ConfigError
from hsd.stats.records import CostRecord


@dataclass(frozen=True, slots=True)
class CostRow:
    """One stored time."""

    width_tokens: int
    median_ms: float
    measured_unix_s: float


def cost_rows(records: Iterable[CostRecord], now: float) -> list[dict[str, Any]]:
    """Rows to store. Raises ConfigError for a time, width or context that cannot be."""
    rows = []
    for record in records:
        if not (math.isfinite(record.median_ms) and record.median_ms > 0):
            raise ConfigError(
                f"The time of '{record.model}' at width {record.width_tokens} is {record.median_ms:g} ms, not above 0.",
                "Measure it again.",
            )
        if record.width_tokens < 1 or record.context_tokens < 0:
            raise ConfigError(
                f"'{record.model}' cannot have been measured at width {record.width_tokens} and context "
                f"{record.context_tokens}.",
                "Widths start at 1, contexts at 0.",
            )
        rows.append({**asdict(record), "measured_unix_s": now})
    return rows


def latest(
    rows: Iterable[tuple[Any, ...]], dtype: str | Mapping[str, str], runtime: str | Mapping[str, str], context: int
) -> dict[str, list[CostRow]]:
    """Model -> its times at the stored context nearest to the wanted one (the smaller of two), by width without a gap.

    Args:
        rows: model, dtype, runtime, context, width, ms, time of measurement; by ascending width.
    """
    grouped: dict[str, dict[int, list[CostRow]]] = {}
    for model, row_dtype, row_runtime, row_context, width, ms, at in rows:
        if row_dtype == _of(dtype, model) and row_runtime == _of(runtime, model):
            grouped.setdefault(model, {}).setdefault(row_context, []).append(CostRow(width, ms, at))
    chosen: dict[str, list[CostRow]] = {}
    for model, contexts in grouped.items():
        # Only a context that has width 1 is a profile; a lone refreshed width is not.
        whole = {tokens: group for tokens, group in contexts.items() if group[0].width_tokens == 1}
        if whole:
            nearest = whole[min(whole, key=lambda tokens: (abs(tokens - context), tokens))]
            chosen[model] = [row for i, row in enumerate(nearest, start=1) if row.width_tokens == i]
    return chosen


def table_of(rows: Mapping[str, list[CostRow]]) -> dict[str, list[float]]:
    """Model -> ms by width."""
    return {model: [row.median_ms for row in group] for model, group in rows.items()}


def _of(value: str | Mapping[str, str], model: str) -> str | None:
    return value if isinstance(value, str) else value.get(model)
