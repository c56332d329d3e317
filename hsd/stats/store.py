"""Rolling statistics: what replies cost, how often drafts are accepted, how long passes take, why plans changed.

One engine thread writes, others may read; two processes may share the file. Order is that of the ids, never of the
clock, so a clock that jumps changes nothing but the times shown. See `docs/statistics.md` for the schema.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sqlite_utils
from numpy.typing import NDArray

from hsd.errors import ConfigError
from hsd.stats import retention
from hsd.stats.costs import cost_rows, latest, table_of
from hsd.stats.database import Database
from hsd.stats.estimate import Aggregate, estimates
from hsd.stats.records import AcceptanceEstimate, CostRecord, ReplyRecord, Retention, SwitchRecord
from hsd.stats.rows import Pair, Positions, checked_overlaps, half_floats, level_rows, plausible, reply_row, switch_row
from hsd.stats.schema import TABLES
from hsd.stats.summary import summarize

SCORED_REPLIES = 1_000
"""Newest scored replies that an acceptance looks at: older ones weigh nothing at any sensible half-life."""

CHECK_SIZE_EVERY = 32
"""Replies between two looks at the size of the data."""


class Stats:
    """The statistics of this machine's user, in a file or in memory.

    Args:
        path: `stats.db`; None keeps everything in memory.
        retention: how much is kept.
        busy_seconds: how long a call waits for another process before it gives up on storing something.

    Raises:
        StoreError: the file was written by a newer version.
    """

    def __init__(self, path: Path | None = None, retention: Retention | None = None, busy_seconds: float = 5.0) -> None:
        self._db = Database(None if path is None else Path(path), busy_seconds)
        self._keep = retention or Retention()
        self.scored = 0  # replies scored through this object: whoever keeps acceptances knows when they are old

    @property
    def warning(self) -> str | None:
        """One sentence if something could not be stored where it belongs; None as long as all is well."""
        return self._db.warning

    @property
    def path(self) -> Path | None:
        """The file in use; None if the statistics are in memory."""
        return self._db.path

    def record_reply(self, record: ReplyRecord) -> int:
        """Stores a reply with its levels and rounds, and prunes; its id, or 0 if another process blocked the file."""

        def work(db: sqlite_utils.Database) -> int:
            reply_id = int(db.table("replies").insert(reply_row(record, time.time())).last_rowid or 0)
            db.table("levels").insert_all(level_rows(reply_id, record))
            if record.rounds:
                blob = np.asarray(record.rounds, dtype="<f4").tobytes()
                row = {"reply_id": reply_id, "rounds": len(record.rounds), "block_accepted_ms": blob}
                db.table("rounds").insert(row)
            if record.sketch:
                db.table("sketches").insert({"reply_id": reply_id, "bins": record.sketch})
            retention.prune_replies(db, self._keep)
            return reply_id

        reply_id = self._db.write(work, 0)
        if reply_id % CHECK_SIZE_EVERY == 0:
            self._bound_size()
        return reply_id

    def _bound_size(self) -> None:
        if self._db.bytes_used() <= self._keep.megabytes * 1e6:
            return
        while self._db.bytes_used() > self._keep.megabytes * 1e6 and self._db.write(retention.drop_oldest, 0):
            pass
        self._db.shrink()

    def record_scores(
        self,
        reply_id: int,
        overlaps: Mapping[Pair, NDArray[np.floating]],
        confidences: Mapping[str, NDArray[np.floating]] | None = None,
    ) -> bool:
        """Stores the overlap of every scored position of a reply; scoring a reply again replaces what was there.

        Args:
            reply_id: from `record_reply`. A reply that is no longer stored is skipped.
            overlaps: (draft, verifier) -> [positions] `sum_x min(p_draft(x), p_verifier(x))`, 0 to 1; NaN where a
                lookup had nothing to propose, which counts as 0 in `acceptances`.
            confidences: model -> [positions] its largest probability, 0 to 1.

        Returns:
            Whether something was stored.

        Raises:
            ConfigError: an overlap is not between 0 and 1 (float error of 0.001 is clipped).
        """
        arrays = {pair: checked_overlaps(pair, values) for pair, values in overlaps.items()}

        def work(db: sqlite_utils.Database) -> bool:
            found = db.execute("SELECT family FROM replies WHERE id = ?", [reply_id]).fetchone()
            if found is None:
                return False
            for (draft, verifier), array in arrays.items():
                key = {"reply_id": reply_id, "draft": draft, "verifier": verifier}
                sums = {"overlap_sum": float(np.nansum(array)), "overlap_square_sum": float(np.nansum(array**2))}
                db.table("scores").insert({**key, "positions": array.size, **sums}, replace=True)
                db.table("positions").insert({**key, "overlaps": array.astype("<f2").tobytes()}, replace=True)
            for model, values in (confidences or {}).items():
                blob = np.asarray(values, dtype="<f2").tobytes()
                row = {"reply_id": reply_id, "model": model, "confidences": blob}
                db.table("confidences").insert(row, replace=True)
            retention.prune_positions(db, found[0], self._keep)
            return bool(arrays)

        self.scored += 1
        return self._db.write(work, False)

    def acceptances(self, family: str, bucket: str, half_life_tokens: float = 2000) -> dict[Pair, AcceptanceEstimate]:
        """Acceptance of every scored pair, a position with `half_life_tokens` newer ones weighing half.

        Where the newest replies contradict the older ones, those are left out, and it is marked `moved`. A pair without
        a position in `bucket` is estimated from the family's other buckets and marked `borrowed`.

        Args:
            family: key of the family.
            bucket: from `temperature_bucket`.
            half_life_tokens: in scored positions of the pair; above 0.
        """
        if not 0 < half_life_tokens < 1e12:
            raise ConfigError(f"half_life_tokens={half_life_tokens!r} is no number of tokens.", "2000 is usual.")
        query = """SELECT s.draft, s.verifier, r.bucket, s.positions, s.overlap_sum, s.overlap_square_sum
            FROM replies r JOIN scores s ON s.reply_id = r.id
            WHERE r.family = ? AND r.id IN (SELECT id FROM replies WHERE family = ? AND (bucket = ?) = ? AND
                EXISTS (SELECT 1 FROM scores WHERE reply_id = replies.id) ORDER BY id DESC LIMIT ?)
            ORDER BY r.id DESC"""

        def work(db: sqlite_utils.Database) -> list[tuple[Any, ...]]:
            sides = (db.execute(query, [family, family, bucket, own, SCORED_REPLIES]).fetchall() for own in (1, 0))
            return [row for rows in sides for row in rows]

        rows: list[tuple[Any, ...]] = self._db.read(work, [])
        return estimates((((d, v), Aggregate(*rest)) for d, v, *rest in rows), bucket, half_life_tokens)

    def sequences(self, family: str, bucket: str, last: int = 50) -> list[dict[Pair, NDArray[np.float32]]]:
        """Overlaps by position of the last scored replies of a bucket, newest first, for `planning.replay`."""
        return [reply.overlaps for reply in self.positions(family, bucket, last)]

    def positions(self, family: str, bucket: str, last: int = 50) -> list[Positions]:
        """The same, and beside the overlaps of each reply the confidences of its models."""
        replies = """reply_id IN (SELECT id FROM replies WHERE family = ? AND bucket = ?
            AND EXISTS (SELECT 1 FROM positions WHERE reply_id = replies.id) ORDER BY id DESC LIMIT ?)"""
        queries = (
            f"SELECT reply_id, draft, verifier, overlaps FROM positions WHERE {replies} ORDER BY reply_id DESC",
            f"SELECT reply_id, model, confidences FROM confidences WHERE {replies}",
            f"SELECT reply_id, '', bins FROM sketches WHERE {replies}",
        )

        def work(db: sqlite_utils.Database) -> list[list[tuple[Any, ...]]]:
            return [db.execute(query, [family, bucket, last]).fetchall() for query in queries]

        nothing: list[list[tuple[Any, ...]]] = [[], [], []]
        overlaps, confidences, sketches = self._db.read(work, nothing)
        found: dict[int, Positions] = {}
        bins = {reply: half_floats(blob) for reply, _, blob in sketches}
        for reply, draft, verifier, blob in overlaps:
            found.setdefault(reply, Positions({}, {}, bins.get(reply))).overlaps[draft, verifier] = half_floats(blob)
        for reply, model, blob in confidences:
            if reply in found:
                found[reply].confidences[model] = half_floats(blob)
        return [reply for reply in found.values() if plausible(reply.overlaps)]

    def verdicts(
        self, family: str, bucket: str, last: int = 50
    ) -> dict[Pair, list[tuple[list[tuple[int, int]], NDArray[np.float32]]]]:
        """(draft, target) -> rounds of (block length, accepted tokens) and overlaps, for `planning.block_factor`.

        Of the last scored replies that were verified block-wise and kept to one plan.
        """
        query = """SELECT p.draft, p.verifier, o.block_accepted_ms, p.overlaps FROM replies r
            JOIN rounds o ON o.reply_id = r.id
            JOIN levels v ON v.reply_id = r.id
                AND v.position = (SELECT max(position) FROM levels WHERE reply_id = r.id)
            JOIN levels d ON d.reply_id = r.id AND d.position = v.position - 1
            JOIN positions p ON p.reply_id = r.id AND p.draft = d.name AND p.verifier = v.name
            WHERE r.family = ? AND r.bucket = ? AND r.verification = 'block'
                AND NOT EXISTS (SELECT 1 FROM switches WHERE reply_id = r.id)
            ORDER BY r.id DESC LIMIT ?"""
        rows: list[tuple[Any, ...]] = self._db.read(lambda db: db.execute(query, [family, bucket, last]).fetchall(), [])
        found: dict[Pair, list[tuple[list[tuple[int, int]], NDArray[np.float32]]]] = {}
        for draft, verifier, rounds, overlaps in rows:
            kept = np.frombuffer(rounds, dtype="<f4").reshape(-1, 3)[:, :2].astype(int)
            found.setdefault((draft, verifier), []).append(([(b, k) for b, k in kept.tolist()], half_floats(overlaps)))
        return found

    def turns(self, family: str, last: int = 50) -> list[tuple[int, int]]:
        """(tokens of the prompt that had to be read, tokens of the reply) of the last replies, newest first."""
        query = """SELECT prompt_tokens - reused_tokens, reply_tokens FROM replies WHERE family = ? AND reply_tokens > 0
            ORDER BY id DESC LIMIT ?"""
        rows: list[tuple[int, int]] = self._db.read(lambda db: db.execute(query, [family, last]).fetchall(), [])
        return rows

    def record_costs(self, records: Iterable[CostRecord]) -> None:
        """Stores measured times; a newer one replaces that of the same machine, model, context and width.

        Raises:
            ConfigError: a time is not above 0, or a width or context is impossible.
        """
        rows = cost_rows(records, time.time())
        self._db.write(lambda db: db.table("costs").insert_all(rows, replace=True) and None, None)

    def costs(
        self,
        machine: str,
        family: str,
        *,
        device: str,
        dtype: str | Mapping[str, str],
        runtime: str | Mapping[str, str],
        context_tokens: int = 0,
    ) -> dict[str, list[float]]:
        """Model -> ms at width 1, 2, …, of the stored context nearest to `context_tokens`.

        Numbers of another machine, device, number format or runtime are ignored. A model's widths end at the first
        that was not measured; a model without width 1 is left out.

        Args:
            dtype, runtime: one for all models, or by model name (a model not named is left out).
        """
        rows = self._cost_rows(machine, family, device)
        return table_of(latest(rows, dtype, runtime, context_tokens))

    def cost_ages(
        self,
        machine: str,
        family: str,
        *,
        device: str,
        dtype: str | Mapping[str, str],
        runtime: str | Mapping[str, str],
        context_tokens: int = 0,
    ) -> dict[str, float]:
        """Model -> seconds since the oldest of the numbers that `costs` gives was measured; never negative."""
        rows = latest(self._cost_rows(machine, family, device), dtype, runtime, context_tokens)
        now = time.time()
        return {model: max(0.0, now - min(row.measured_unix_s for row in group)) for model, group in rows.items()}

    def _cost_rows(self, machine: str, family: str, device: str) -> list[tuple[Any, ...]]:
        query = """SELECT model, dtype, runtime, context_tokens, width_tokens, median_ms, measured_unix_s FROM costs
            WHERE machine = ? AND family = ? AND device = ? ORDER BY width_tokens"""
        return self._db.read(lambda db: db.execute(query, [machine, family, device]).fetchall(), [])

    def record_switch(self, record: SwitchRecord) -> int:
        """Stores a change of plan; its id, or 0 if another process blocked the file."""

        def work(db: sqlite_utils.Database) -> int:
            row = switch_row(record, time.time())
            if not db.execute("SELECT 1 FROM replies WHERE id = ?", [record.reply_id]).fetchone():
                row["reply_id"] = None  # the reply is not stored yet, or no longer
            switch_id = int(db.table("switches").insert(row).last_rowid or 0)
            retention.prune_switches(db, self._keep)
            return switch_id

        return self._db.write(work, 0)

    def record_outcome(self, switch_id: int, ms_per_token: float) -> None:
        """Stores what a plan cost after a switch, to be compared with its forecast."""
        query = "UPDATE switches SET outcome_ms_per_token = ? WHERE id = ?"
        self._db.write(lambda db: db.execute(query, [ms_per_token, switch_id]) and None, None)

    def summary(self, family: str | None = None) -> dict[str, Any]:
        """What is stored, for `hsd stats --json`: plain values only.

        Args:
            family: key of one family; None for all.
        """
        head = {"path": str(self.path) if self.path else None, "warning": self.warning, "bytes": self._db.bytes_used()}
        return {**head, **self._db.read(lambda db: summarize(db, family), {})}

    def reset(self) -> Path | None:
        """Deletes every row after copying the file beside itself.

        Returns:
            The copy; None if there was nothing to copy (statistics in memory).

        Raises:
            StoreError: the copy cannot be made; nothing is deleted then.
        """
        copy = None
        if self.path is not None:
            copy = _free_name(self.path)
            self._db.backup(copy)
        self._db.write(lambda db: [db.execute(f"DELETE FROM {table}") for table in reversed(TABLES)] and None, None)
        self._db.shrink()
        return copy

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> Stats:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 10_000):
        copy = path.with_name(f"{path.stem}-backup-{stamp}-{number}{path.suffix}")
        if not copy.exists():
            return copy
    raise AssertionError("ten thousand backups within a second")
