"""One prompt decoded plainly and by a plan: what plain decoding took is then known, not estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from hsd.asking import Asked
from hsd.types import Event, Finished, Plan, Race, Reply, Tokens


def race(asked: Asked, target: str, run: Callable[[Asked], Iterable[Event]], tell: Callable[[Event], None]) -> Race:
    """Both replies, the plain one first.

    Args:
        asked: what the plan's reply is asked for.
        target: name of the target.
        run: makes a reply.
        tell: hears every event of both while they are made.
    """
    plain, plain_events = _reply(run(replace(asked, plan=Plan(target), apart=True)), tell)
    whole = plain.finish_reason in ("stop", "length") and plain.stats.tokens > 0
    measured = plain.stats if whole else None
    plan, plan_events = _reply(run(replace(asked, apart=True, plain=measured)), tell)
    whole = whole and plan.finish_reason in ("stop", "length")
    same = plain.token_ids == plan.token_ids if whole and asked.params.greedy else None
    return Race(plain, plan, plain_events, plan_events, same)


def _reply(events: Iterable[Event], tell: Callable[[Event], None]) -> tuple[Reply, tuple[Tokens, ...]]:
    tokens: list[Tokens] = []
    for event in events:
        tell(event)
        if isinstance(event, Tokens):
            tokens.append(event)
        elif isinstance(event, Finished):
            return event.reply, tuple(tokens)
    raise AssertionError("a reply ends with Finished")
