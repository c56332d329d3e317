"""What a caller asks for, and the request that it becomes when it is its turn."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, replace

from hsd.generation import Request
from hsd.params import SamplingParams
from hsd.planner import Planner
from hsd.types import Plan, Verification


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants, checked; the plan of "auto" is chosen when it is this reply's turn.

    Args:
        prompt: token ids.
        params, plan, verification, early_stop, cancel: as for `Engine.stream`.
        dropped: oldest turns that were left out of the prompt.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    plan: str | Plan
    verification: Verification
    early_stop: bool
    cancel: threading.Event
    dropped: int


def complete(asked: Asked, planner: Planner) -> Request:
    """The request, with everything decided that may not change while the reply is made; `spent` is for the caller."""
    params, length, stop = asked.params, len(asked.prompt), None
    plan, forecast = planner.decide(asked.plan, params.temperature, length)
    # A seed promises the same reply for the same plan, and above T = 0 what is drafted moves the coins.
    if asked.early_stop and (params.greedy or params.seed is None):
        stop = planner.stop_rule(plan, params.temperature, length)
        if stop and asked.plan == "auto":
            plan = planner.uncapped(plan)
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(31))
    return Request(asked.prompt, params, plan, asked.verification, 0.0, stop, forecast, asked.dropped, asked.cancel)
