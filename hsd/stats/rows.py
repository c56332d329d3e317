"""Records as rows: where the names of values become names of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hsd.errors import ConfigError
from hsd.stats.records import ReplyRecord, SwitchRecord, temperature_bucket
from hsd.types import LOOKUP

Pair = tuple[str, str]


class Positions(NamedTuple):
    """Of one scored reply: overlaps by (draft, verifier) and confidences by level, each `(positions,)`, and the sketch
    of its prompt (`planning.sketch`), if one was stored."""

    overlaps: dict[Pair, NDArray[np.float32]]
    confidences: dict[str, NDArray[np.float32]]
    sketch: NDArray[np.float32] | None = None


def reply_row(record: ReplyRecord, now: float) -> dict[str, Any]:
    """Row of a reply."""
    return {
        "at_unix_s": now,
        "family": record.family,
        "device": record.device,
        "plan": record.plan,
        "temperature": record.temperature,
        "bucket": temperature_bucket(record.temperature),
        "verification": record.verification,
        "prompt_tokens": record.prompt_tokens,
        "reused_tokens": record.reused_tokens,
        "reply_tokens": record.reply_tokens,
        "total_s": record.seconds,
        "first_token_s": record.first_token_seconds,
        "decode_s": record.decode_seconds,
        "baseline_s": record.baseline_seconds,
        "baseline": record.baseline,
        "speedup": record.speedup,
        "forecast_ms_per_token": record.forecast_ms_per_token,
        "target_passes": record.target_passes,
        "finish_reason": record.finish_reason,
        "seed": None if record.seed is None else str(record.seed),  # seeds may exceed 64 bits
        "planner_json": record.planner_json,
    }


def level_rows(reply_id: int, record: ReplyRecord) -> list[dict[str, Any]]:
    """Rows of a reply's levels."""
    return [
        {
            "reply_id": reply_id,
            "position": i,
            "name": level.name,
            "threshold_tokens": record.thresholds[i] if i < len(record.thresholds) else None,
            "proposed_tokens": level.proposed,
            "accepted_tokens": level.accepted,
            "passes": level.passes,
            "busy_s": level.seconds,
            "mean_width_tokens": level.width,
        }
        for i, level in enumerate(record.levels)
    ]


def checked_overlaps(pair: Pair, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Overlaps within 0 to 1. Raises ConfigError if they are further outside than float error."""
    array = np.asarray(values, dtype=np.float64)
    nothing = np.isnan(array) & (pair[0] == LOOKUP)
    if array.ndim != 1 or not (((array >= -1e-3) & (array <= 1 + 1e-3)) | nothing).all():
        raise ConfigError(
            f"The overlaps of {pair[0]} → {pair[1]} are not numbers from 0 to 1.",
            "Give one number per scored position.",
        )
    return np.clip(array, 0.0, 1.0)


def half_floats(blob: bytes) -> NDArray[np.float32]:
    """Numbers of a stored array; what is left of one that was cut off."""
    return np.frombuffer(blob[: len(blob) // 2 * 2], dtype="<f2").astype(np.float32)


def plausible(reply: Mapping[Pair, NDArray[np.floating]]) -> bool:
    """Whether overlaps of a reply are equally long and between 0 and 1: a damaged row must cost no plan."""
    sizes = {array.size for array in reply.values()}
    inside = all(
        (((array >= 0) & (array <= 1)) | (np.isnan(array) & (draft == LOOKUP))).all()
        for (draft, _), array in reply.items()
    )
    return len(sizes) == 1 and 0 not in sizes and inside


def switch_row(record: SwitchRecord, now: float) -> dict[str, Any]:
    """Row of a change of plan."""
    row = {"at_unix_s": now, **asdict(record)}
    for name in ("from_forecast_ms", "to_forecast_ms", "outcome_ms"):
        row[f"{name}_per_token"] = row.pop(name)
    return row
