"""What there is to say about plans: what the engine knows at a moment, and what the last replies did, as plain values.

Knows nothing of pages. Everything here is measured or was forecast from what was measured; nothing is made up where
nothing is known.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hsd
from chat.records import Message

log = logging.getLogger(__name__)

LOOKUP = "lookup"


@dataclass(frozen=True, slots=True)
class Known:
    """What the engine knew of its family's plans at a moment.

    Args:
        explained: `hsd.Engine.explain`: costs, acceptances, the plan of "auto", the alternatives.
        measured: model -> when its step times were measured last, Unix seconds.
        replies: how many replies of this family the statistics hold.
        switches: the last changes of plan that "auto" made, newest first, as the statistics hold them.
        at: when all this was looked up, Unix seconds.
    """

    explained: Mapping[str, Any]
    measured: Mapping[str, float] = field(default_factory=dict)
    replies: int = 0
    switches: Sequence[Mapping[str, Any]] = ()
    at: float = 0.0


def look_up(engine: Any, temperature: float) -> Known | None:
    """What the engine knows now, for replies at this temperature; None where it cannot say.

    Takes the engine's turn for some milliseconds: ask only while nobody waits for a reply.
    """
    if not hasattr(engine, "explain"):
        return None
    try:
        explained = engine.explain(temperature)
        stored = engine.stats.summary(explained["family"])
    except Exception:
        # Only the plan page needs it; replies go on.
        log.exception("the engine could not explain its plans")
        return None
    measured: dict[str, float] = {}
    for row in stored.get("costs", ()):
        measured[row["model"]] = max(row["newest_unix_s"], measured.get(row["model"], 0.0))
    families = stored.get("families", ())
    return Known(
        explained,
        measured,
        replies=families[0]["replies"] if families else 0,
        switches=tuple(stored.get("switches", ())[:5]),
        at=time.time(),
    )


@dataclass(frozen=True, slots=True)
class Level:
    """A level in the picture. `ms`: a pass over one new token. `threshold`: in the plan on show."""

    name: str
    ms: float | None
    parameters: int | None
    target: bool
    used: bool
    threshold: int | None
    measured: float | None


@dataclass(frozen=True, slots=True)
class Edge:
    """A draft and a model that verifies it. `rate` of `positions` scored ones; `sure` from 500 positions on."""

    draft: str
    verifier: str
    rate: float
    error: float
    positions: int
    borrowed: bool
    used: bool

    @property
    def sure(self) -> bool:
        return not self.borrowed and self.positions >= 500


@dataclass(frozen=True, slots=True)
class Rank:
    """A plan of the ranking: forecast in ms per token, times faster than plain decoding, why it lost ("" if chosen)."""

    plan: str
    ms: float
    speedup: float
    why: str


def levels(info: hsd.FamilyInfo, known: Known | None, plan: hsd.Plan | None) -> list[Level]:
    """Levels cheapest first, the lookup before all, the target last."""
    costs = known.explained["costs_ms"] if known else {}
    measured = known.measured if known else {}
    thresholds = {stage.name: stage.threshold for stage in plan.drafts} if plan else {}
    names = [LOOKUP, *(name for name in info.models if name != info.target), info.target]
    return [
        Level(
            name=name,
            ms=costs[name][0] if costs.get(name) else None,
            parameters=info.parameters.get(name),
            target=name == info.target,
            used=plan is not None and name in plan.names,
            threshold=thresholds.get(name),
            measured=measured.get(name),
        )
        for name in names
    ]


def edges(info: hsd.FamilyInfo, known: Known | None, plan: hsd.Plan | None) -> list[Edge]:
    """Measured pairs of this family; a pair that was never scored is not there."""
    chain = set(itertools.pairwise(plan.names)) if plan else set()
    names = {LOOKUP, *info.models}
    found = []
    for pair, estimate in (known.explained["acceptances"] if known else {}).items():
        draft, _, verifier = pair.partition(">")
        if draft in names and verifier in names:
            found.append(
                Edge(
                    draft,
                    verifier,
                    rate=estimate["rate"],
                    error=estimate["standard_error"],
                    positions=estimate["positions"],
                    borrowed=estimate["borrowed"],
                    used=(draft, verifier) in chain,
                )
            )
    return found


def ranking(known: Known) -> list[Rank]:
    """All ranked plans, the fastest forecast first; the one that "auto" runs has no reason why it lost."""
    explained = known.explained
    plain = explained["plain_ms_per_token"]
    rows = [(explained["plan"], explained["forecast_ms_per_token"], "")]
    rows += [(a["plan"], a["forecast_ms_per_token"], a["why"]) for a in explained["alternatives"]]
    return sorted((Rank(plan, ms, plain / ms, why) for plan, ms, why in rows), key=lambda rank: rank.ms)


def forecast(known: Known, plan: str) -> float | None:
    """Forecast of any plan in ms per token; None where a pair of it was never scored."""
    for rank in ranking(known):
        if rank.plan == plan:
            return rank.ms
    rates = {tuple(pair.split(">")): e["rate"] for pair, e in known.explained["acceptances"].items()}
    try:
        ms = hsd.planning.expected_ms_per_token(hsd.Plan.parse(plan), known.explained["costs_ms"], rates)
    except (hsd.ConfigError, KeyError):
        return None
    return float(ms)


def checked(text: str, models: Sequence[str], target: str | None = None) -> str:
    """A plan that a person asks for, in its usual form; "auto" stays as it is.

    Args:
        models: the family's, cheapest first.
        target: the last one unless named.

    Raises:
        ConfigError: no plan, or not one of this family.
    """
    text = text.strip()
    if text in ("", "auto"):
        return "auto"
    plan = hsd.Plan.parse(text)
    if not models:
        return str(plan)
    target = target or models[-1]
    order = [LOOKUP, *(name for name in models if name != target), target]
    for name in plan.names:
        if name not in order:
            raise hsd.ConfigError(
                f"The plan '{plan}' names '{name}', which this family does not have.",
                f"Known levels: {', '.join(order)}.",
            )
    if plan.target != target:
        raise hsd.ConfigError(
            f"The plan '{plan}' ends with '{plan.target}', but the target is '{target}'.",
            "The reply must be the target's own words.",
        )
    if [name for name in order if name in plan.names] != list(plan.names):
        raise hsd.ConfigError(f"The plan '{plan}' is not cheapest first.", f"The order is: {', '.join(order)}.")
    return str(plan)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of one level's tokens in one reply. `reply`: its place among the replies on show, from 0."""

    reply: int
    accepted: int
    proposed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Forecast and outcome of one reply, both in ms per token after the first."""

    plan: str
    forecast_ms: float
    outcome_ms: float


def accepted(replies: Sequence[Message]) -> dict[tuple[str, str], list[Accepted]]:
    """(draft, verifier) -> what was proposed and accepted in each reply whose plan had this pair, oldest first."""
    found: dict[tuple[str, str], list[Accepted]] = {}
    for place, message in enumerate(replies):
        rows = (message.stats or {}).get("levels") or ()
        for below, above in itertools.pairwise(rows):
            if below["proposed"]:
                point = Accepted(place, below["accepted"], below["proposed"])
                found.setdefault((below["name"], above["name"]), []).append(point)
    return found


def outcomes(replies: Sequence[Message]) -> list[Outcome]:
    """Replies whose plan had a forecast, oldest first."""
    found = []
    for message in replies:
        stats = message.stats or {}
        expected, tokens, spent = (stats.get(k) for k in ("forecast_ms_per_token", "tokens", "decode_seconds"))
        # The first token comes out of the prompt's pass.
        if expected and tokens and tokens > 1 and spent:
            found.append(Outcome(stats.get("plan", ""), expected, spent * 1000 / (tokens - 1)))
    return found


def median_error(points: Sequence[Outcome]) -> float | None:
    """Median of how far outcomes were from their forecasts, as a share of the forecast; None without any."""
    errors = sorted(abs(math.log(point.outcome_ms / point.forecast_ms)) for point in points)
    return math.exp(errors[len(errors) // 2]) - 1 if errors else None
