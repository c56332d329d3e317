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

_WALKED = 6
"""Scored replies from which on plans are replayed: what few say of runs is better than that there are none."""

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
    most = max((len(overlaps) for overlaps, _ in scored), default=0)
    complete = [reply for reply in scored if len(reply[0]) == most]
    kept = complete if len(complete) >= _WALKED else list(scored)
    positions = sum(len(next(iter(overlaps.values()))) for overlaps, _ in kept)
    return kept if len(kept) >= _WALKED or positions >= SURE_POSITIONS else []


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
        By plan as it runs; nothing where there is nothing to walk over, or where some candidate cannot be replayed.
    """
    replies = _Replies(costs, scored)
    if not scored or not replies.walk([*(r.plan for r in ranked[:_CANDIDATES]), *held]):
        return {}
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
    others = [plan for plan in [*chains.values(), *held] if plan.names not in rules]
    running, out = [*_chains(stopping.done).values(), *others], {}
    for plan in dict.fromkeys(running):
        fixed = chains[plan.names] if plan.names in rules else plan
        as_run = (stopping if plan.names in rules else replies).done[plan]
        out[plan] = Candidate(as_run, fixed, replies.done[fixed].ms_per_token or 0.0)
    return out


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
        self._overlaps, self._sure = [overlaps for overlaps, _ in scored], [sure for _, sure in scored]

    def walk(self, plans: Iterable[Plan]) -> bool:
        """Replays those that are new; False if some cannot be."""
        new = [plan for plan in dict.fromkeys(plans) if plan not in self.done]
        rules = {plan: self._rules[plan.names] for plan in new if plan.names in self._rules}
        found = planning.replay(new, self._costs, self._overlaps, ends=True, rules=rules, confidences=self._sure)
        self.done.update(zip(new, found, strict=True))
        return all(one.ms_per_token for one in found)

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


def reading_ms(plan: Plan, costs: Mapping[str, Sequence[float]], tokens: int) -> float:
    """ms that the drafts of a plan take to read so many tokens of a prompt, in the widest passes."""
    whole, rest = divmod(tokens, MAX_WIDTH)
    drafts = [costs[stage.name] for stage in plan.drafts if stage.name != LOOKUP]
    return sum(whole * ms[MAX_WIDTH - 1] + (ms[rest - 1] if rest else 0.0) for ms in drafts)
