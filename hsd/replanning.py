"""Inside a reply: leaves a plan whose own rounds contradict its forecast, and says why.

Only between two rounds of the target, when nothing is pending: what was drawn stays drawn, so no distribution changes.
Replies that promise to be reproducible are not watched (`asking`), nor are plans that a person pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hsd import planning
from hsd.candidates import uncapped
from hsd.levels import Round
from hsd.planning import Ranked, StopRule
from hsd.types import LOOKUP, Plan

if TYPE_CHECKING:
    from hsd.planner import Planner

PATIENCE = 20
"""Times that ranking all plans must fit into the time since the last judgement: a short reply has nothing to gain."""

EVERY = 8
"""Rounds of a plan before it is judged, and between two judgements."""

WINDOW = 32
"""Newest rounds that a judgement rests on."""

MARGIN = 0.08
"""Share of time a switch inside a reply must be forecast to save: twice what it takes between replies, because what is
left of the reply is not known and the evidence is short."""

AGAIN = 64
"""Plain tokens after which a reply that was left to plain decoding tries drafts again; doubled every time."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of plan inside a reply; forecasts are in ms per token for the text as it turned out to be."""

    from_plan: Plan
    plan: Plan
    reason: str
    from_ms: float
    to_ms: float
    at_token: int
    stop: StopRule | None


@dataclass(slots=True)
class _State:
    plan: Plan  # without the room that stopping by value adds
    stop: StopRule | None
    forecast_ms: float
    began: int  # tokens of the reply when it took over
    rounds: list[Round]
    judged: int = 0
    seconds: float = 0.0  # of rounds since it was judged last
    older: int = 0  # rounds that were made by another plan, with the same draft under the target


class Watch:
    """The plan of one reply, held against its forecast.

    Args:
        planner: costs, acceptances, and the rule for stopping by value.
        plan: the plan it begins with.
        forecast_ms: what was forecast of it.
        stop: its rule for stopping by value.
        temperature: of the reply.
        context: tokens of its prompt.
        max_tokens: longest reply.
        early_stop: whether plans may stop by value.
    """

    def __init__(
        self,
        planner: Planner,
        plan: Plan,
        forecast_ms: float,
        stop: StopRule | None,
        *,
        temperature: float,
        context: int,
        max_tokens: int,
        early_stop: bool,
    ) -> None:
        self._planner = planner
        self._temperature, self._context = temperature, context
        self._max_tokens, self._early_stop = max_tokens, early_stop
        self._first, self._first_ms = plan, forecast_ms
        self._tokens, self._again = 0, AGAIN
        self._now = _State(plan, stop, forecast_ms, 0, [])

    def after(self, done: Round, cached: Callable[[str], int]) -> Switch | None:
        """What to change after this round; None for nothing.

        Args:
            done: the round that ended.
            cached: model -> leading tokens of the text that its cache holds.
        """
        now = self._now
        now.rounds.append(done)
        now.seconds += done.seconds
        self._tokens += len(done.tokens)
        if not now.plan.drafts:
            return self._retry(now)
        if len(now.rounds) - now.judged < EVERY or now.seconds < PATIENCE * self._planner.ranking_seconds:
            return None
        now.judged, now.seconds = len(now.rounds), 0.0
        return self._judge(now, now.rounds[-WINDOW:], cached)

    def _retry(self, now: _State) -> Switch | None:
        """Back to the first plan for another try, after a while of plain decoding."""
        if not self._first.drafts or self._tokens - now.began < self._again:
            return None
        reason = f"{self._first} is tried again after {self._tokens - now.began} plain tokens."
        self._again *= 2
        return self._switch(self._first, reason, now.forecast_ms, self._first_ms)

    def _judge(self, now: _State, rounds: list[Round], cached: Callable[[str], int]) -> Switch | None:
        costs, rates, deep = self._planner.ground(self._temperature, self._context)
        pair = now.plan.names[-2:]
        shift = planning.shift_of([(r.proposed, r.accepted) for r in rounds], rates[pair[0], pair[1]])
        slower = shift.seen < 0
        if now.stop and not slower:
            return None  # a draft that stops when it is unsure looks better than it is
        times = [(len(r.tokens), 1000 * r.seconds) for r in now.rounds[now.older :][-WINDOW:]]
        if abs(shift.seen) < 3 and not (planning.contradicts(now.forecast_ms, times) and abs(shift.seen) > 2):
            return None
        moved = planning.shifted(rates, shift.value)
        left = min(self._max_tokens - self._tokens, max(self._tokens, AGAIN // 2))
        ranked = self._charged(planning.ranking(costs, moved, 8 if deep else 4, max_drafts=2), costs, cached, left)
        held_ms = planning.expected_ms_per_token(now.plan, costs, moved)

        def error(new: Plan, old: Plan) -> float:
            saved = [
                1 - planning.expected_ms_per_token(new, costs, at) / planning.expected_ms_per_token(old, costs, at)
                for sign in (-1, 1)
                for at in [planning.shifted(rates, shift.value + sign * shift.error)]
            ]
            return abs(saved[1] - saved[0]) / 2

        chosen = planning.choose(ranked, now.plan, current_ms=held_ms, uncertainty=error, margin=MARGIN)
        if chosen.plan == now.plan or 1 - chosen.forecast_ms / held_ms < MARGIN:
            return None
        reason = (
            f"The text is {'harder' if slower else 'easier'} than expected: {pair[1]} kept "
            f"{sum(r.accepted for r in rounds)} of {sum(r.proposed for r in rounds)} drafted tokens, so {now.plan} now "
            f"costs about {held_ms:.3g} ms per token and {chosen.plan} {chosen.forecast_ms:.3g}."
        )
        return self._switch(chosen.plan, reason, held_ms, chosen.forecast_ms)

    def _charged(
        self, ranked: list[Ranked], costs: Mapping[str, list[float]], cached: Callable[[str], int], left: int
    ) -> list[Ranked]:
        """Forecasts that include what a draft must read first, spread over the tokens that are left."""
        length = self._context + self._tokens

        def catch_up(plan: Plan) -> float:
            missing = {name: max(0, length - cached(name) - 16) for name in plan.names if name != LOOKUP}
            return sum(count / 16 * costs[name][15] for name, count in missing.items())

        return [Ranked(r.plan, r.ms_per_token + catch_up(r.plan) / max(left, 1)) for r in ranked]

    def _switch(self, plan: Plan, reason: str, from_ms: float, to_ms: float) -> Switch:
        before = self._now.plan
        same = before.names[-2:] == plan.names[-2:]  # then verdicts on the old plan's tokens go on counting
        stop = self._planner.stop_rule(plan, self._temperature, self._context) if self._early_stop else None
        kept = self._now.rounds[-WINDOW:] if same else []
        self._now = _State(plan, stop, to_ms, self._tokens, kept, len(kept), len(kept))
        run = uncapped(plan) if stop else plan
        return replace(Switch(before, plan, reason, from_ms, to_ms, self._tokens, stop), plan=run)
