"""What is stored, in plain values for people and programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import sqlite_utils

from hsd.stats.schema import MIGRATIONS, TABLES

SHOWN = 20
"""Newest changes of plan that a summary lists."""


def summarize(db: sqlite_utils.Database, family: str | None) -> dict[str, Any]:
    """Counts, families and recent changes of plan; one family if it is named."""
    names = [row[0] for row in db.execute("SELECT DISTINCT family FROM replies ORDER BY family")]
    wanted = [name for name in names if family in (None, name)]
    return {
        "version": len(MIGRATIONS),
        "rows": {table: int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for table in TABLES},
        "families": [_family(db, name) for name in wanted],
        "switches": _switches(db, family),
        "costs": _costs(db, family),
    }


def _family(db: sqlite_utils.Database, family: str) -> dict[str, Any]:
    query = """SELECT bucket, reply_tokens, total_s, speedup, decode_s, forecast_ms_per_token, target_passes, plan
        FROM replies WHERE family = ? ORDER BY id"""
    rows = db.execute(query, [family]).fetchall()
    errors = [
        abs(forecast / (1e3 * decode_s / (tokens - 1)) - 1)
        for _, tokens, _, _, decode_s, forecast, _, _ in rows
        if forecast and decode_s and tokens > 1
    ]
    tokens, seconds = sum(row[1] for row in rows), sum(row[2] for row in rows)
    passes = sum(row[6] for row in rows)
    return {
        "family": family,
        "replies": len(rows),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds > 0 else None,
        "tokens_per_target_pass": tokens / passes if passes else None,
        "median_speedup": _median([row[3] for row in rows if row[3] is not None]),
        "median_forecast_error": _median(errors),
        "last_plan": rows[-1][7] if rows else None,
        "buckets": [_bucket(db, family, bucket) for bucket in sorted({row[0] for row in rows})],
    }


def _bucket(db: sqlite_utils.Database, family: str, bucket: str) -> dict[str, Any]:
    query = """SELECT s.draft, s.verifier, sum(s.positions), sum(s.overlap_sum) FROM scores s
        JOIN replies r ON r.id = s.reply_id WHERE r.family = ? AND r.bucket = ?
        GROUP BY s.draft, s.verifier ORDER BY s.draft, s.verifier"""
    pairs = [
        {"draft": draft, "verifier": verifier, "positions": count, "mean_overlap": total / count if count else None}
        for draft, verifier, count, total in db.execute(query, [family, bucket]).fetchall()
    ]
    return {"bucket": bucket, "pairs": pairs}


def _switches(db: sqlite_utils.Database, family: str | None) -> list[dict[str, Any]]:
    columns = [
        "id", "at_unix_s", "family", "reply_id", "at_token", "from_plan", "to_plan", "reason",
        "from_forecast_ms_per_token", "to_forecast_ms_per_token", "outcome_ms_per_token",
        # In the order of the schema.
    ]  # fmt: skip
    query = f"""SELECT {", ".join(columns)} FROM switches WHERE ?1 IS NULL OR family = ?1
        ORDER BY id DESC LIMIT {SHOWN}"""
    return [dict(zip(columns, row, strict=True)) for row in db.execute(query, [family]).fetchall()]


def _costs(db: sqlite_utils.Database, family: str | None) -> list[dict[str, Any]]:
    columns = ["machine", "device", "family", "model", "dtype", "runtime"]
    query = f"""SELECT {", ".join(columns)}, count(*), min(measured_unix_s), max(measured_unix_s) FROM costs
        WHERE ?1 IS NULL OR family = ?1 GROUP BY {", ".join(columns)} ORDER BY {", ".join(columns)}"""
    names = [*columns, "widths_measured", "oldest_unix_s", "newest_unix_s"]
    return [dict(zip(names, row, strict=True)) for row in db.execute(query, [family]).fetchall()]


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None
