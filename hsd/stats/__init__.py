"""The rolling statistics that the planner plans with. The only room of `hsd` that imports sqlite_utils."""

from __future__ import annotations

from hsd.stats.records import (
    SURE_POSITIONS,
    AcceptanceEstimate,
    CostRecord,
    ReplyRecord,
    Retention,
    SwitchRecord,
    temperature_bucket,
)
from hsd.stats.rows import Positions
from hsd.stats.schema import MIGRATIONS
from hsd.stats.store import Stats

__all__ = [
    "MIGRATIONS",
    "SURE_POSITIONS",
    "AcceptanceEstimate",
    "CostRecord",
    "Positions",
    "ReplyRecord",
    "Retention",
    "Stats",
    "SwitchRecord",
    "temperature_bucket",
]
