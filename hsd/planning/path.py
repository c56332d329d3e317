"""The best hierarchy under the per-token relaxation: a generalized shortest path, in polynomial time.

If level j delivers tokens at t ms each and level i verifies n of them per pass, i delivers tokens at
`(n t + c_i(n + 1)) / E(a, n)` ms with `E(a, n) = 1 + a + … + a^n`: an increasing affine map for every edge (j, i, n).
Dynamic programming over the number of edges is exact for increasing maps and costs O(levels · levels² · thresholds).
Source: Mohri et al. 2025, arXiv 2510.19705.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hsd.planning.tables import UNUSABLE, Acceptances, Costs, Floats, Tables, check_threshold, plan_of, tables
from hsd.types import Plan

Coded = tuple[tuple[int, ...], tuple[int, ...]]
"""A plan as rows of a table (the target last) and thresholds."""


@dataclass(frozen=True, eq=False)
class Edges:
    """The maps `t -> gain · t + base` of all edges.

    Args:
        gain: [draft, verifier, n - 1], tokens drafted per token emitted; infinite where there is no edge.
        base: [draft, verifier, n - 1], verifier ms per token emitted; infinite where there is no edge.
    """

    gain: Floats
    base: Floats


def edges(table: Tables, max_threshold: int) -> Edges:
    """The maps of all pairs a chain may use and all block lengths up to `max_threshold`."""
    lengths = np.arange(1, max_threshold + 1)
    accept = table.edges()
    emitted = np.cumsum(accept[:, :, None] ** np.arange(max_threshold + 1), axis=2)[:, :, 1:]
    missing = np.isnan(emitted)
    emitted = np.where(missing, 1.0, emitted)
    gain = np.where(missing, np.inf, lengths / emitted)
    base = np.where(missing, np.inf, table.width_ms[None, :, lengths + 1] / emitted)
    return Edges(gain, base)


def shortest_paths(table: Tables, max_threshold: int) -> list[tuple[Coded, float]]:
    """The best chain of every length, fewest drafts first, with its relaxed ms per token; lengths without one left out.

    The first entry is plain decoding.
    """
    maps = edges(table, max_threshold)
    count, target = len(table.names), len(table.names) - 1
    ms = table.width_ms[:, 1].copy()  # [levels] ms per token of the best chain that ends here, of the current length
    back: list[np.ndarray] = []  # per length, [levels]: flat index of (draft, n - 1) of the last edge
    found: list[tuple[Coded, float]] = [(((target,), ()), float(ms[target]))]
    for _ in range(count - 1):
        through = (maps.gain * ms[:, None, None] + maps.base).transpose(1, 0, 2).reshape(count, -1)
        back.append(through.argmin(axis=1))
        ms = through.min(axis=1)
        if not np.isfinite(ms).any():
            break
        if ms[target] < UNUSABLE / 1e9:
            found.append((_trace(back, target, max_threshold), float(ms[target])))
    return found


def _trace(back: list[np.ndarray], target: int, max_threshold: int) -> Coded:
    levels, thresholds = [target], []
    for step in reversed(back):
        draft, length = divmod(int(step[levels[-1]]), max_threshold)
        levels.append(draft)
        thresholds.append(length + 1)
    return tuple(reversed(levels)), tuple(reversed(thresholds))


def relaxed_plan(costs: Costs, acceptances: Acceptances, max_threshold: int = 8) -> tuple[Plan, float]:
    """The best plan under the relaxation, and its relaxed ms per token.

    Raises:
        ConfigError: impossible numbers, see `tables`.
    """
    table = tables(costs, acceptances)
    (levels, thresholds), ms = min(shortest_paths(table, check_threshold(max_threshold)), key=lambda found: found[1])
    return decode(table, levels, thresholds), ms


def relaxed_ms_per_token(plan: Plan | str, costs: Costs, acceptances: Acceptances) -> float:
    """Relaxed ms per token of one plan; NaN if one of its pairs is unknown. Raises ConfigError as `tables` does."""
    plan = plan_of(plan)
    table = tables(costs, acceptances)
    rows = [table.index(name) for name in plan.names]
    ms = float(table.width_ms[rows[0], 1])
    for draft, verifier, length in zip(rows, rows[1:], plan.thresholds, strict=False):
        emitted = float((table.accept[draft, verifier] ** np.arange(length + 1)).sum())
        ms = (length * ms + float(table.width_ms[verifier, length + 1])) / emitted
    return ms


def decode(table: Tables, levels: tuple[int, ...], thresholds: tuple[int, ...]) -> Plan:
    """The plan that rows of a table and thresholds stand for."""
    return Plan.of([table.names[i] for i in levels], list(thresholds))
