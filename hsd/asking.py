"""What a caller asks for, and the request that it becomes when it is its turn."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hsd.candidates import uncapped
from hsd.errors import ConfigError
from hsd.generation import Request
from hsd.params import SamplingParams
from hsd.planner import Planner
from hsd.prompts import Prepared, Prompt
from hsd.replanning import Watch
from hsd.thinking import Start
from hsd.types import Plan, ReplyStats, Verification


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants, checked; the plan of "auto" is chosen when it is this reply's turn.

    Args:
        prompt: token ids.
        params, plan, verification, early_stop, cancel: as for `Engine.stream`.
        dropped: oldest turns that were left out of the prompt.
        apart: made with caches of its own, as if nothing had been read before.
        plain: what the same prompt cost when it was decoded plainly, if that was measured.
        start: where the text of the reply begins.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    plan: str | Plan
    verification: Verification
    early_stop: bool
    cancel: threading.Event
    dropped: int
    apart: bool = False
    plain: ReplyStats | None = None
    start: Start = field(default_factory=Start)


def ask(
    messages: Prompt,
    params: SamplingParams | None,
    plan: str | Plan,
    verification: Verification,
    early_stop: bool,
    cancel: threading.Event | None,
    *,
    planner: Planner,
    fit: Callable[..., Prepared],
) -> Asked:
    """What a caller wants, checked.

    Args:
        messages, params, plan, verification, early_stop, cancel: as for `Engine.stream`.
        planner: knows which plans this family can run.
        fit: `Prompts.prepare` of this family.

    Raises:
        PromptError: no message, or more of it than the context holds.
        ConfigError: an impossible plan or setting.
    """
    params = params or SamplingParams()
    if verification not in ("block", "token"):
        raise ConfigError(f"verification={verification!r} is not known.", "Use 'block' or 'token'.")
    if plan != "auto":
        plan = planner.checked(plan)
    made = fit(messages, max_tokens=params.max_tokens, thinking=params.thinking)
    cancel = cancel or threading.Event()
    return Asked(tuple(made.ids), params, plan, verification, early_stop, cancel, made.dropped, start=made.start)


def complete(asked: Asked, planner: Planner) -> Request:
    """The request, with everything decided that may not change while the reply is made; `spent` is for the caller."""
    params, length, stop, watch = asked.params, len(asked.prompt), None, None
    # A seed promises the same reply for the same plan, and above T = 0 what is drafted moves the coins.
    free = params.greedy or params.seed is None
    by_value = asked.early_stop and free
    plan, forecast = planner.decide(asked.plan, params.temperature, length, asked.prompt, by_value)
    fixed, fixed_ms = plan, forecast
    if asked.plan == "auto" and by_value:
        fixed, fixed_ms = planner.fixed(plan, params.temperature, length)
    if asked.early_stop and free:
        stop = planner.stop_rule(fixed, params.temperature, length)
    if asked.plan == "auto" and free and plan.drafts and forecast is not None:
        watch = Watch(
            planner,
            fixed,
            forecast,
            stop,
            temperature=params.temperature,
            context=length,
            max_tokens=params.max_tokens,
            early_stop=asked.early_stop,
        )
    if asked.plan == "auto" and stop is None:
        plan, forecast = fixed, forecast if fixed_ms is None else fixed_ms
    elif asked.plan == "auto" and fixed_ms is None:
        plan = uncapped(plan)
    frozen = None if params.seed is None else planner.frozen(plan, params.temperature, length)
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(31))
    rest = (asked.verification, 0.0, stop, forecast, asked.dropped, asked.cancel, asked.plain, watch, frozen)
    return Request(asked.prompt, params, plan, *rest, start=asked.start)
