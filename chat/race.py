"""A race: the prompt of a reply decoded once more, plainly and by the reply's plan, and kept to be shown again.

It is a request like others: it waits its turn, can be stopped, and outlives the page. What it gives is stored with the
reply, whose baseline is then measured and no longer estimated.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hsd
from chat import plans
from chat.prompt import messages_for_engine
from chat.records import Message
from chat.request import EngineLike, Request
from chat.settings import Settings

_PREFIX = "race-"


def place(message_id: str) -> str:
    """What the race of a reply is called among the worker's requests: its conversation can go on meanwhile."""
    return _PREFIX + message_id


@dataclass(slots=True)
class RaceRequest(Request):
    """A race somebody waits for. `stats` are those of the reply, `counts` the tokens of both runs so far."""

    stats: Mapping[str, Any] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)

    def run(self, engine: EngineLike, changed: Callable[[str], None]) -> dict[str, Any]:
        """Columns of the reply: the race, and its statistics with what was measured. Takes as long as both runs."""

        def tell(event: hsd.Event) -> None:
            if isinstance(event, hsd.Started):
                self.counts.append(0)
            elif isinstance(event, hsd.Tokens):
                self.counts[-1] += len(event.ids)
            changed(self.conversation_id)

        race = engine.race(self.messages, self.params, plan=self.plan, cancel=self.cancel, tell=tell)
        for reply in (race.plain, race.plan):
            if reply.finish_reason == "error":
                return {"state": "error", "error": reply.error}
        measured = race.plan.stats
        # Stopped in its second run it has a baseline and nothing to hold against it, or only the beginning of that.
        whole = all(reply.finish_reason in ("stop", "length") for reply in (race.plain, race.plan))
        if not whole or measured.baseline != "measured" or measured.speedup is None:
            return {"state": "cancelled"}
        stats = {
            **self.stats,
            "speedup": measured.speedup,
            "baseline_seconds": measured.baseline_seconds,
            "baseline": "measured",
            "race_seconds": measured.seconds,
        }
        return {"race": record(race, self.params), "stats": stats}

    def ending(self, values: dict[str, Any]) -> dict[str, Any]:
        """What is stored: a race that failed says so beside the reply, which stays as it is."""
        if "race" in values:
            return values
        return {"race": {"error": values.get("error")}} if values.get("state") == "error" else {}


@dataclass(frozen=True, slots=True)
class Standing:
    """A race that is not over. `ahead`: requests before it. `counts`: tokens of each run that has begun."""

    ahead: int
    started: bool
    stopping: bool
    counts: tuple[int, ...]

    @classmethod
    def of(cls, request: Request, ahead: int) -> Standing:
        """A race at this moment."""
        counts = tuple(request.counts) if isinstance(request, RaceRequest) else ()
        return cls(ahead, request.started is not None, request.cancel.is_set(), counts)


def request_for(reply: Message, path: Sequence[Message], models: Sequence[str], target: str | None) -> RaceRequest:
    """The race of a finished reply.

    Args:
        path: the messages before it.
        models, target: of the family that is loaded.

    Raises:
        HsdError: it cannot be raced; the sentence says why.
    """
    stats = reply.stats or {}
    plan = str(stats.get("plan") or "")
    if reply.state == "running" or not plan:
        raise hsd.HsdError("This reply has no figures to compare with.", "Race one that has a line under it.")
    if stats.get("continued_after"):
        raise hsd.HsdError("This reply was made in two parts, so it cannot be raced.", "Race another one.")
    plan = plans.checked(plan, models, target)
    if not hsd.Plan.parse(plan).drafts:
        raise hsd.HsdError(
            "This reply was decoded plainly: there is nothing to race.", "Leave the plan to auto, and try again."
        )
    settings = Settings.from_dict(reply.params or {})
    params = dataclasses.replace(settings.params(), seed=stats.get("seed"))
    messages = messages_for_engine(path, settings.system)
    return RaceRequest(reply.id, place(reply.id), messages, params, plan, stats=stats)


def record(race: hsd.Race, params: hsd.SamplingParams) -> dict[str, Any]:
    """A race as plain values. `differ_at`: the first token, from 1, that is not the same; None where all are."""
    pairs = zip(race.plain.token_ids, race.plan.token_ids, strict=False)
    differ = next((at for at, (a, b) in enumerate(pairs, 1) if a != b), None)
    if differ is None and len(race.plain.token_ids) != len(race.plan.token_ids):
        differ = min(len(race.plain.token_ids), len(race.plan.token_ids)) + 1
    return {
        "at": time.time(),
        "plan": race.plan.stats.plan,
        "temperature": params.temperature,
        "seed": race.plan.seed,
        "same_ids": race.same_ids,
        "differ_at": differ,
        "speedup": race.plan.stats.speedup,
        "baseline_seconds": race.plan.stats.baseline_seconds,
        "lanes": [lane(race.plain, race.plain_events), lane(race.plan, race.plan_events)],
    }


def lane(reply: hsd.Reply, events: Sequence[hsd.Tokens]) -> dict[str, Any]:
    """One run. `steps`: (milliseconds, how much of the text was there in UTF-16 units, as browsers count)."""
    steps, length = [], 0
    for event in events:
        length += len(event.text.encode("utf-16-le", "surrogatepass")) // 2
        steps.append([round(event.seconds * 1000, 2), length])
    stats = reply.stats
    return {
        "plan": stats.plan,
        "text": reply.text,
        "tokens": stats.tokens,
        "seconds": stats.seconds,
        "first_token_seconds": stats.first_token_seconds,
        "target_passes": stats.target_passes,
        "steps": steps,
    }
