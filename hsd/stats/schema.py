"""The tables of `stats.db`. Append-only: a migration that was released is never edited.

Units are part of the column names; `docs/statistics.md` says what every column means.
"""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE replies (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at_unix_s REAL NOT NULL,
            family TEXT NOT NULL,
            device TEXT NOT NULL,
            plan TEXT NOT NULL,
            temperature REAL NOT NULL,
            bucket TEXT NOT NULL,
            verification TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            reused_tokens INTEGER NOT NULL,
            reply_tokens INTEGER NOT NULL,
            total_s REAL NOT NULL,
            first_token_s REAL NOT NULL,
            decode_s REAL,
            baseline_s REAL,
            baseline TEXT NOT NULL,
            speedup REAL,
            forecast_ms_per_token REAL,
            target_passes INTEGER NOT NULL,
            finish_reason TEXT NOT NULL,
            seed TEXT,
            planner_json TEXT NOT NULL
        )""",
        """CREATE TABLE levels (
            reply_id INTEGER NOT NULL REFERENCES replies(id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            name TEXT NOT NULL,
            threshold_tokens INTEGER,
            proposed_tokens INTEGER NOT NULL,
            accepted_tokens INTEGER NOT NULL,
            passes INTEGER NOT NULL,
            busy_s REAL NOT NULL,
            mean_width_tokens REAL NOT NULL,
            PRIMARY KEY (reply_id, position)
        )""",
        """CREATE TABLE rounds (
            reply_id INTEGER PRIMARY KEY REFERENCES replies(id) ON DELETE CASCADE,
            rounds INTEGER NOT NULL,
            block_accepted_ms BLOB NOT NULL
        )""",
        """CREATE TABLE scores (
            reply_id INTEGER NOT NULL REFERENCES replies(id) ON DELETE CASCADE,
            draft TEXT NOT NULL,
            verifier TEXT NOT NULL,
            positions INTEGER NOT NULL,
            overlap_sum REAL NOT NULL,
            overlap_square_sum REAL NOT NULL,
            PRIMARY KEY (reply_id, draft, verifier)
        )""",
        """CREATE TABLE positions (
            reply_id INTEGER NOT NULL REFERENCES replies(id) ON DELETE CASCADE,
            draft TEXT NOT NULL,
            verifier TEXT NOT NULL,
            overlaps BLOB NOT NULL,
            PRIMARY KEY (reply_id, draft, verifier)
        )""",
        """CREATE TABLE costs (
            machine TEXT NOT NULL,
            device TEXT NOT NULL,
            family TEXT NOT NULL,
            model TEXT NOT NULL,
            dtype TEXT NOT NULL,
            runtime TEXT NOT NULL,
            context_tokens INTEGER NOT NULL,
            width_tokens INTEGER NOT NULL,
            median_ms REAL NOT NULL,
            spread_ms REAL NOT NULL,
            samples INTEGER NOT NULL,
            measured_unix_s REAL NOT NULL,
            PRIMARY KEY (machine, family, device, dtype, runtime, model, context_tokens, width_tokens)
        )""",
        """CREATE TABLE switches (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at_unix_s REAL NOT NULL,
            family TEXT NOT NULL,
            reply_id INTEGER REFERENCES replies(id) ON DELETE SET NULL,
            at_token INTEGER NOT NULL,
            from_plan TEXT NOT NULL,
            to_plan TEXT NOT NULL,
            reason TEXT NOT NULL,
            from_forecast_ms_per_token REAL,
            to_forecast_ms_per_token REAL,
            outcome_ms_per_token REAL
        )""",
    ),
    (
        "CREATE INDEX replies_by_family ON replies (family, bucket, id)",
        "CREATE INDEX switches_by_family ON switches (family, id)",
        "CREATE INDEX switches_by_reply ON switches (reply_id)",
    ),
    (
        """CREATE TABLE confidences (
            reply_id INTEGER NOT NULL REFERENCES replies(id) ON DELETE CASCADE,
            model TEXT NOT NULL,
            confidences BLOB NOT NULL,
            PRIMARY KEY (reply_id, model)
        )""",
    ),
    (
        """CREATE TABLE sketches (
            reply_id INTEGER PRIMARY KEY REFERENCES replies(id) ON DELETE CASCADE,
            bins BLOB NOT NULL
        )""",
    ),
)

TABLES = ("replies", "levels", "rounds", "scores", "positions", "confidences", "sketches", "costs", "switches")
