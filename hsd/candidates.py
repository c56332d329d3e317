"""Which of the best plans were best on the last replies: candidates walked over their scored positions.

Acceptance comes in runs, which averages hide. Plans whose first level stops by value are walked as they would run, with
the room that it then has: what such a level is spared by stopping, no level above it has to spare it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hsd import planning
from hsd.planning import Ranked, Replayed, StopRule
from hsd.runtime import MAX_WIDTH
from hsd.stats import SURE_POSITIONS, Positions
from hsd.types import LOOKUP, Plan, Stage

_CANDIDATES = 12
"""Plans of the ranking that are replayed: milliseconds each."""

_WALKED = 3
"""Scored replies from which on plans are replayed: what few say of runs is better than that there are none, and how
much they differ is part of every decision."""

_POSITIONS = 60  # and this many positions in them

_COMPLETE = 6
"""Replies that hold every pair from which on others are left out."""

_BLOCK = 6  # threshold of a lookup to begin with

_NEAR = 3
"""Best plans of a replay whose thresholds are varied, twice."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan on the last replies.

    Args:
        replayed: what the replay says of it as it runs. Where its first level stops by value, that level's threshold is
            a cap.
        fixed: the same chain at the thresholds that are best where nothing stops by value.
        fixed_ms: ms per token of that.
    """

    replayed: Replayed
    fixed: Plan
    fixed_ms: float


def uncapped(plan: Plan) -> Plan:
    """The plan with room for its first level to go on where it is sure: the stop rule ends most blocks earlier."""
    if not plan.drafts:
        return plan
    first, *rest = plan.drafts
    return Plan(plan.target, (Stage(first.name, min(2 * first.threshold + 2, MAX_WIDTH - 1)), *rest))


def comparable(scored: Sequence[Positions]) -> list[Positions]:
    """Scored replies that plans may be replayed on; none while they are too few to compare plans reply by reply."""
    # On the same replies for all plans, if possible: where a draft was replaced, older ones know nothing of it.
    most = max((len(reply.overlaps) for reply in scored), default=0)
    complete = [reply for reply in scored if len(reply.overlaps) == most]
    kept = complete if len(complete) >= _COMPLETE else list(scored)
    positions = sum(len(next(iter(reply.overlaps.values()))) for reply in kept)
    return kept if (len(kept) >= _WALKED and positions >= _POSITIONS) or positions >= SURE_POSITIONS else []


def walked(
    ranked: Sequence[Ranked],
    held: Sequence[Plan],
    costs: Mapping[str, Sequence[float]],
    scored: Sequence[Positions],
    rule: Callable[[Plan], StopRule | None],
) -> dict[Plan, Candidate]:
    """The best candidates walked over the last replies' own positions, each chain at its best thresholds.

    The best of the ranking are walked, and then the best of those with other thresholds: the formula likes blocks
    longer than runs are. Then every chain once more as it runs, stopping by value, at thresholds that are best so.

    Args:
        ranked: all plans by the formula, best first.
        held: plans to be among the answers whatever they cost, or, of one that stops by value, its chain.
        costs: of passes, see `planning.replay`.
        scored: from `comparable`.
        rule: when a plan's first level stops by value; None where it does not.

    Returns:
        By plan as it runs; nothing where there is nothing to walk over. Plans with a pair that no reply holds are left
        out.
    """
    if not scored:
        return {}
    replies = _Replies(costs, scored)
    possible = [plan for plan in (*(r.plan for r in ranked), *_with_lookup(ranked)) if replies.hold(plan)]
    replies.walk([*possible[:_CANDIDATES], *possible[len(ranked) :], *(plan for plan in held if replies.hold(plan))])
    replies.vary()
    chains = _chains(replies.done)
    rules = {plan.names: found for plan in chains.values() if (found := rule(plan))}
    if not rules:
        replies.vary()
        chains = _chains(replies.done)
    stopping = _Replies(costs, scored, rules)
    stopping.walk(uncapped(plan) for names, plan in chains.items() if names in rules)
    stopping.vary()
    stopping.vary()
    others = [plan for plan in [*chains.values(), *held] if plan.names not in rules and plan in replies.done]
    running, out = [*_chains(stopping.done).values(), *others], {}
    for plan in dict.fromkeys(running):
        fixed = chains[plan.names] if plan.names in rules else plan
        as_run = (stopping if plan.names in rules else replies).done[plan]
        out[plan] = Candidate(as_run, fixed, replies.done[fixed].ms_per_token or 0.0)
    return out


def _with_lookup(ranked: Sequence[Ranked]) -> list[Plan]:
    """A lookup before the target and before the best chains. The formula, which knows no runs, ranks it low."""
    chains = {r.plan.names: r.plan for r in reversed(ranked) if not r.plan.drafts or r.plan.drafts[0].name != LOOKUP}
    best = sorted(chains.values(), key=lambda plan: next(i for i, r in enumerate(ranked) if r.plan == plan))
    plain = [plan for plan in best if not plan.drafts]
    return [Plan(plan.target, (Stage(LOOKUP, _BLOCK), *plan.drafts)) for plan in dict.fromkeys([*plain, *best[:3]])]


class _Replies:
    """Plans walked over the same replies, each once.

    Args:
        costs, scored: as for `walked`.
        rules: chain -> when its first level stops by value.
    """

    def __init__(
        self,
        costs: Mapping[str, Sequence[float]],
        scored: Sequence[Positions],
        rules: Mapping[tuple[str, ...], StopRule] | None = None,
    ) -> None:
        self.done: dict[Plan, Replayed] = {}
        self._costs, self._rules = costs, rules or {}
        self._overlaps = [reply.overlaps for reply in scored]
        self._sure = [reply.confidences for reply in scored]

    def hold(self, plan: Plan) -> bool:
        """Whether some reply holds all of a plan's pairs."""
        pairs = {*zip(plan.names, plan.names[1:], strict=False)}
        return any(pairs <= reply.keys() for reply in self._overlaps)

    def walk(self, plans: Iterable[Plan]) -> None:
        """Replays those that are new."""
        new = [plan for plan in dict.fromkeys(plans) if plan not in self.done]
        rules = {plan: self._rules[plan.names] for plan in new if plan.names in self._rules}
        found = planning.replay(new, self._costs, self._overlaps, ends=True, rules=rules, confidences=self._sure)
        self.done.update(zip(new, found, strict=True))

    def vary(self) -> None:
        """Replays the best ones with other thresholds."""
        best = _fastest(self.done)[:_NEAR]
        self.walk(near for plan in best for near in planning.neighbours(plan, MAX_WIDTH - 1))


def _fastest(done: Mapping[Plan, Replayed]) -> list[Plan]:
    return sorted(done, key=lambda plan: done[plan].ms_per_token or 0.0)


def _chains(done: Mapping[Plan, Replayed]) -> dict[tuple[str, ...], Plan]:
    """Every chain at its best thresholds, best first."""
    chains: dict[tuple[str, ...], Plan] = {}
    for plan in _fastest(done):
        chains.setdefault(plan.names, plan)
    return chains


def reading_ms(plan: Plan, prompt_ms: Mapping[str, float], tokens: int) -> float:
    """ms that the drafts of a plan take to read so many tokens of a prompt.

    Args:
        plan: the plan.
        prompt_ms: model -> ms for one token of a prompt.
        tokens: of the prompt.
    """
    return tokens * sum(prompt_ms[stage.name] for stage in plan.drafts if stage.name != LOOKUP)
