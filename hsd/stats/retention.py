"""What is deleted when, always the oldest by id; foreign keys take what belongs to a reply along."""

from __future__ import annotations

import sqlite_utils

from hsd.stats.records import Retention


def prune_replies(db: sqlite_utils.Database, keep: Retention) -> None:
    """Keeps the newest replies."""
    db.execute(
        "DELETE FROM replies WHERE id <= (SELECT id FROM replies ORDER BY id DESC LIMIT 1 OFFSET ?)", [keep.replies]
    )


def prune_positions(db: sqlite_utils.Database, family: str, keep: Retention) -> None:
    """Keeps the overlaps and confidences by position of a family's newest scored replies."""
    for table in ("positions", "confidences"):
        db.execute(
            f"""DELETE FROM {table} WHERE reply_id IN (
                SELECT r.id FROM replies r
                WHERE r.family = ? AND EXISTS (SELECT 1 FROM {table} p WHERE p.reply_id = r.id)
                ORDER BY r.id DESC LIMIT -1 OFFSET ?)""",
            [family, keep.positions],
        )


def prune_switches(db: sqlite_utils.Database, keep: Retention) -> None:
    """Keeps the newest changes of plan."""
    db.execute(
        "DELETE FROM switches WHERE id <= (SELECT id FROM switches ORDER BY id DESC LIMIT 1 OFFSET ?)", [keep.switches]
    )


def drop_oldest(db: sqlite_utils.Database) -> int:
    """Deletes the older tenth of the replies (at least one), to make room; the newest always stays. Their number."""
    return db.execute(
        """DELETE FROM replies WHERE id IN (
            SELECT id FROM replies WHERE id < (SELECT max(id) FROM replies) ORDER BY id
            LIMIT (SELECT count(*) / 10 + 1 FROM replies))"""
    ).rowcount
