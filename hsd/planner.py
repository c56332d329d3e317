"""What the engine asks before a reply: which plan, at what forecast, and what plain decoding would cost.

Joins three sources: step times of `hsd.profile`, rolling acceptances from the statistics, and the mathematics of
`hsd.planning`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from hsd import candidates, planning
from hsd.candidates import Candidate
from hsd.errors import ConfigError
from hsd.evidence import Evidence
from hsd.planning import Calibration, Decision, Ranked, StopRule
from hsd.profile import LOOKUP_MS, Profile
from hsd.runtime import MAX_WIDTH, LanguageModel
from hsd.runtime.costs import bucket
from hsd.stats import AcceptanceEstimate, Stats, SwitchRecord, temperature_bucket
from hsd.types import LOOKUP, Plan

_OLD = 64
"""Replies after which it is made anew even if nothing was scored: step times may have changed."""

_AWAITED = 8
"""Switches between replies whose outcome is still added to; older ones keep what they have."""

_STALE = 8
"""Replies after which a decision is made anew even if nobody was idle."""

_CALIBRATED = 200
"""Scored positions from which on drafts stop by value."""

_TURNS = 24
"""Last replies whose lengths say what a prompt costs a draft."""

_SAVED = 0.7
"""What a token from a lookup saves, in plain steps of the level above: what a token costs with the lookup, less than a
step. Of 0.7 to 1, this was best on replies of a 1.5B model (docs/log.md)."""

_COLUMNS = 8
"""Columns over which the cost of one more is averaged: single widths have steps."""


Ground = tuple[dict[str, list[float]], dict[tuple[str, str], float], bool]
"""Costs, acceptances, and whether all of them are sure."""


class Planner:
    """Chooses plans for one family.

    Args:
        family: key under which statistics are kept: everything that acceptance depends on.
        models: name -> model, cheapest first, the target last.
        stats: the rolling statistics.
    """

    def __init__(self, family: str, models: Mapping[str, LanguageModel], stats: Stats) -> None:
        self.family = family
        self._models = models
        self._stats = stats
        self.target = list(models)[-1]
        self.profile = Profile(family, models, stats)
        self.evidence = Evidence(family, stats)
        self._decisions: dict[tuple[str, int], Decision] = {}
        self._replies_since: dict[tuple[str, int], int] = {}
        self._calibrations: dict[tuple[str, str, str], Calibration | None] = {}
        self._rules: dict[tuple[str, Plan, int], StopRule] = {}  # as old as the grounds
        self._grounds: dict[tuple[str, int], Ground] = {}
        self._decode_ms: dict[tuple[str, int], float] = {}  # of the last decision, behind the prompt
        self._walked: dict[tuple[str, int], dict[Plan, Candidate]] = {}  # what the last decision chose from
        self._sketches: dict[tuple[str, int], list[Any]] = {}  # of the prompts of the replies that it was chosen on
        self._scored_at: dict[tuple[str, int], int] = {}
        self.ranking_seconds = 0.0  # what ranking all plans took last
        self.choosing_seconds = 0.0  # what the last decision took
        self.awaited: dict[int, Plan] = {}  # switches between replies whose outcome is not known yet

    def acceptances(self, temperature: float) -> dict[tuple[str, str], AcceptanceEstimate]:
        """Measured acceptance estimates of this family at this temperature, by (draft, verifier)."""
        return self.evidence.estimates(temperature)

    def replied(self) -> None:
        """A reply was finished: what was decided before it is one reply older."""
        for key in self._replies_since:
            self._replies_since[key] += 1

    def plan_for(self, temperature: float, context: int = 0) -> Decision:
        """The plan for a reply that begins now: the last decision, unless it has grown old.

        Ranking takes milliseconds that belong to the time to the first token, so it is done by `replan` while idle;
        where nobody is ever idle, after a few replies if something was scored, and else after many.
        """
        key = (temperature_bucket(temperature), bucket(context))
        if key not in self._decisions:
            return self.choose(temperature, context)
        since = self._replies_since.get(key, _OLD)
        if since >= _OLD or (since >= _STALE and self._scored_at.get(key) != self._stats.scored):
            return self.choose(temperature, context)
        return self._decisions[key]

    def replan(self, temperature: float, context: int, plan: Plan, seconds: float = float("inf")) -> None:
        """Decides anew if there was a reply since; what its plan needs, if it is pinned, is fitted as well.

        Args:
            temperature, context, plan: of the last reply.
            seconds: that may be spent; a decision that would take longer is made after `_STALE` replies only.
        """
        key = (temperature_bucket(temperature), bucket(context))
        since = self._replies_since.get(key, _STALE)
        if since and (since >= _STALE or self.choosing_seconds <= seconds):
            self.choose(temperature, context)
        self.stop_rule(plan, temperature, context)

    def choose(self, temperature: float, context: int = 0) -> Decision:
        """Ranks all plans by today's numbers and decides; a switch is stored with its reason."""
        started, names = time.perf_counter(), {LOOKUP, *self._models}
        measured = {
            pair: estimate for pair, estimate in self.acceptances(temperature).items() if names.issuperset(pair)
        }
        costs = self.profile.costs(temperature == 0, context)
        known = {pair: rate for pair, rate in self.evidence.rates(temperature).items() if pair in measured}
        rates = planning.with_priors(costs, known)
        errors = planning.standard_errors(rates, {pair: e.standard_error for pair, e in measured.items()})
        key = (temperature_bucket(temperature), bucket(context))
        current = self._decisions[key].plan if key in self._decisions else None
        # What few replies say of long blocks and deep stacks is worth little, and being wrong there is dear.
        certain = bool(measured) and all(e.sure for e in measured.values())
        self._grounds[key] = costs, rates, certain
        self._calibrations.clear()
        self._rules.clear()
        scored = candidates.comparable(self.evidence.positions(temperature))
        begun = time.perf_counter()
        # A replay sees for itself how long blocks may be, but not from few replies what a third draft would do.
        ranked = planning.ranking(costs, rates, 8 if certain or scored else 4, max_drafts=3 if certain else 2)
        self.ranking_seconds = time.perf_counter() - begun
        held_ms = None if current is None else planning.expected_ms_per_token(current, costs, rates)
        pairs = {(a, b) for r in ranked[:3] for a, b in zip(r.plan.names, r.plan.names[1:], strict=False)}
        sure = all(pair in measured and measured[pair].sure for pair in pairs)

        def error(new: Plan, old: Plan) -> float:
            return planning.gain_error(new, old, costs, rates, errors)

        def rule(plan: Plan) -> StopRule | None:
            return self.stop_rule(plan, temperature, context)

        self._sketches[key] = [reply.sketch for reply in scored]
        held = [Plan(self.target), *([current] if current else [])]
        walked = self._walked[key] = candidates.walked(ranked, held, costs, scored, rule)
        if walked:
            ranked = [Ranked(plan, one.replayed.ms_per_token or 0.0) for plan, one in walked.items()]
            if current is not None and current not in walked:
                # Another cap for the same drafts costs nothing, so it need not pay by a margin.
                current = next((plan for plan in walked if plan.names == current.names), None)
            held_ms = None if current is None else walked[current].replayed.ms_per_token

            def error(new: Plan, old: Plan) -> float:
                return planning.relative_gain(walked[new].replayed, walked[old].replayed)[1]
        else:
            current = None

        reading = self._reading(context)
        decision = planning.choose(
            [Ranked(r.plan, r.ms_per_token + reading(r.plan)) for r in ranked],
            current,
            current_ms=None if current is None or held_ms is None else held_ms + reading(current),
            uncertainty=error if walked else float("inf"),
            sure=sure,
        )
        if not walked:
            decision = replace(decision, reason="Plain decoding until a few replies have shown what drafts are worth.")
        self._decode_ms[key] = decision.forecast_ms - reading(decision.plan)
        if current is not None and decision.plan != current:
            self._record_switch(current, held_ms, decision, self._decode_ms[key])
        self._decisions[key] = decision
        self._replies_since[key] = 0
        self._scored_at[key] = self._stats.scored
        # Fitted now, not while somebody waits for a first token.
        self.stop_rule(self.fixed(decision.plan, temperature, context)[0], temperature, context)
        self.choosing_seconds = time.perf_counter() - started
        return decision

    def _record_switch(self, current: Plan, current_ms: float | None, decision: Decision, decode_ms: float) -> None:
        """Stores a change of plan between replies; its outcome is added later."""
        number = self._stats.record_switch(
            SwitchRecord(
                family=self.family,
                from_plan=str(current),
                to_plan=str(decision.plan),
                reason=decision.reason,
                from_forecast_ms=current_ms,
                to_forecast_ms=decode_ms,
            )
        )
        self.awaited[number] = decision.plan
        while len(self.awaited) > _AWAITED:
            del self.awaited[min(self.awaited)]

    def _reading(self, context: int) -> Callable[[Plan], float]:
        """What the drafts of a plan take to read the new part of a prompt, ms per token of the reply.

        Of a prompt and a reply as long as those of the last replies are at the median. The target reads it for every
        plan, so that its time decides nothing.
        """
        turns = self._stats.turns(self.family, _TURNS)
        if not turns:
            return lambda plan: 0.0
        new, made = (float(np.median(sizes)) for sizes in zip(*turns, strict=True))
        prompt_ms = {name: self.profile.prompt_ms(name) for name in self._models}
        return lambda plan: candidates.reading_ms(plan, prompt_ms, round(new)) / made

    def running(self, temperature: float, context: int = 0) -> list[Plan]:
        """The plans that the last decision was made between, as they run; none where nothing was replayed."""
        return list(self._walked.get((temperature_bucket(temperature), bucket(context)), {}))

    def ground(self, temperature: float, context: int = 0) -> Ground:
        """What the last decision rested on: costs, acceptances with priors, and whether all of them were sure."""
        return self._grounds[temperature_bucket(temperature), bucket(context)]

    def frozen(self, plan: Plan, temperature: float, context: int = 0) -> Callable[[], str]:
        """What a reply with a seed rests on, to be stored with it: its plan and the costs and rates behind it, JSON.

        Written out when it is called, after the reply: what it says is what was known before it.
        """
        costs, rates, certain = self._grounds.get((temperature_bucket(temperature), bucket(context)), ({}, {}, False))
        return lambda: json.dumps(
            {
                "plan": str(plan),
                "costs_ms": {name: [round(ms, 4) for ms in times] for name, times in costs.items()},
                "acceptances": {">".join(pair): round(rate, 4) for pair, rate in rates.items()},
                "certain": certain,
            }
        )

    def stop_rule(self, plan: Plan, temperature: float, context: int = 0) -> StopRule | None:
        """When the first level of a plan stops drafting by value; None for a model until it is calibrated."""
        if not plan.drafts or not self.profile.measured:
            return None
        first, above, name = plan.names[0], plan.names[1], temperature_bucket(temperature)
        key, ground = (name, plan, bucket(context)), self._grounds.get((name, bucket(context)))
        if ground and key in self._rules:
            return self._rules[key]
        if (name, first, above) not in self._calibrations:
            known = self.evidence.positions(temperature)
            self._calibrations[name, first, above] = planning.fit(
                (
                    (reply.confidences[first], reply.overlaps[first, above])
                    for reply in known
                    if first in reply.confidences and (first, above) in reply.overlaps
                ),
                trusted=first == LOOKUP,
            )
        calibration = self._calibrations[name, first, above]
        if calibration is None or (first != LOOKUP and calibration.positions < _CALIBRATED):
            return None
        costs = ground[0] if ground else self.profile.costs(temperature == 0, context)
        if first == LOOKUP:
            rule = _lookup_rule(calibration, costs[above])
            if ground:
                self._rules[key] = rule
            return rule
        pair = Plan(above, plan.drafts[:1])
        token_ms = planning.expected_ms_per_token(pair, costs, {(first, above): calibration.mean})
        column_ms = (costs[above][_COLUMNS] - costs[above][1]) / (_COLUMNS - 1)  # widths 2 to 9: verifying passes
        rule = StopRule(calibration, token_ms, costs[first][0] + max(column_ms, 0.0))
        if ground:
            self._rules[key] = rule
        return rule

    def decide(
        self, plan: str | Plan, temperature: float, context: int, prompt: Sequence[int] = (), by_value: bool = True
    ) -> tuple[Plan, float | None]:
        """The plan to run, decided here for "auto" and checked otherwise, and its forecast in ms per token.

        Args:
            plan: "auto", or a plan.
            temperature, context: of the reply.
            prompt: its token ids: for "auto", replies to prompts like it count for more.
            by_value: whether levels may stop by value.

        Raises:
            ConfigError: this family cannot run it.
        """
        if plan != "auto":
            chosen = self.checked(plan)
            return chosen, self.forecast(chosen, temperature, context)
        if not self._models[self.target].cuttable:
            return Plan(self.target), None
        decision = self.plan_for(temperature, context)
        key = temperature_bucket(temperature), bucket(context)
        found = self._for_prompt(key, prompt, self._reading(context), by_value)
        return found or (decision.plan, self._decode_ms[key])

    def _for_prompt(
        self, key: tuple[str, int], prompt: Sequence[int], reading: Callable[[Plan], float], by_value: bool
    ) -> tuple[Plan, float] | None:
        """The best of the plans that the last decision was made between, on replies to prompts like this one, and its
        forecast, ms per token; None where nothing was replayed."""
        walked, weights = self._walked.get(key), planning.weights(self._sketches.get(key, []), prompt)
        if not walked:
            return None
        if not by_value:
            fixed = {one.fixed: one.fixed_ms for one in walked.values()}
            best = min(fixed, key=lambda plan: fixed[plan] + reading(plan))
            plain = Plan(self.target)
            pays = fixed[best] + reading(best) < (1 - planning.MARGIN) * fixed[plain]
            return (best, fixed[best]) if pays else (plain, fixed[plain])
        ms = {plan: found for plan, one in walked.items() if (found := planning.weighted_ms(one.replayed, weights))}

        def error(new: Plan, old: Plan) -> float:
            return planning.relative_gain(walked[new].replayed, walked[old].replayed, weights)[1]

        decision = planning.choose([Ranked(plan, time + reading(plan)) for plan, time in ms.items()], uncertainty=error)
        return decision.plan, ms[decision.plan]

    def fixed(self, plan: Plan, temperature: float, context: int) -> tuple[Plan, float | None]:
        """The plan of `decide` at thresholds for a reply in which nothing stops by value, and the forecast of that in
        ms per token; itself, and none, where nothing was replayed."""
        known = self._walked.get((temperature_bucket(temperature), bucket(context)), {}).get(plan)
        return (known.fixed, known.fixed_ms) if known else (plan, None)

    def checked(self, plan: str | Plan) -> Plan:
        """A plan that somebody asks for, if this family can run it.

        Raises:
            ConfigError: its levels are not in this family, in another order, or under another target.
        """
        chosen = plan if isinstance(plan, Plan) else Plan.parse(plan)
        order = [LOOKUP, *self._models]
        for name in chosen.names:
            if name not in order:
                raise ConfigError(f"The plan '{chosen}' uses '{name}'.", f"This family has: {', '.join(order)}.")
        if chosen.target != self.target:
            raise ConfigError(
                f"The plan '{chosen}' ends with '{chosen.target}', but the target is '{self.target}'.",
                "The reply must be the target's own words.",
            )
        if [n for n in order if n in chosen.names] != list(chosen.names):
            raise ConfigError(
                f"The plan '{chosen}' is not cheapest first.", f"The order of this family is: {', '.join(order)}."
            )
        if chosen.drafts and not self._models[self.target].cuttable:
            raise ConfigError(
                f"'{self.target}' decodes plainly: its cache cannot be cut back.", f"Use the plan '{self.target}'."
            )
        return chosen

    def forecast(self, plan: Plan, temperature: float, context: int = 0) -> float | None:
        """Expected ms per token of a plan; None where its costs or a pair of it were never measured."""
        if not self.profile.measured:
            return None
        # Pricing everything that happens around passes anew takes milliseconds, and somebody waits for a first token.
        ground = self._grounds.get((temperature_bucket(temperature), bucket(context)))
        costs = ground[0] if ground else self.profile.costs(temperature == 0, context)
        try:
            return planning.expected_ms_per_token(plan, costs, self.evidence.rates(temperature))
        except ConfigError:
            return None

    def report(self, temperature: float) -> dict[str, Any]:
        """Tables, choice and ranking, as plain values for JSON and pages."""
        decision = self.choose(temperature)
        known = self.acceptances(temperature)
        _, rates, certain = self.ground(temperature)
        ages = self.profile.ages()
        return {
            "family": self.family,
            "temperature": temperature,
            "bucket": temperature_bucket(temperature),
            "costs_ms": self.profile.table(),
            "costs_age_seconds": ages,
            "around_passes_ms": asdict(self.profile.overhead(temperature == 0)),
            "acceptances": {f"{d}>{v}": {**asdict(e), "sure": e.sure} for (d, v), e in sorted(known.items())},
            "block_factors": {">".join(pair): round(f, 4) for pair, f in self.evidence.factors(temperature).items()},
            "guessed": {f"{d}>{v}": rate for (d, v), rate in sorted(rates.items()) if (d, v) not in known},
            "certain": certain,
            "compared_by": "replay" if self._walked[temperature_bucket(temperature), bucket(0)] else "formula",
            "plan": str(decision.plan),
            "reason": decision.reason,
            "sure": decision.sure,
            "forecast_ms_per_token": decision.forecast_ms,
            "plain_ms_per_token": decision.plain_ms,
            "forecast_speedup": decision.forecast_speedup,
            "alternatives": [
                {"plan": str(a.plan), "forecast_ms_per_token": a.forecast_ms, "why": a.why}
                for a in decision.alternatives
            ],
        }


def _lookup_rule(calibration: Calibration, above: Sequence[float]) -> StopRule:
    """How long a lookup's blocks are under a level that takes `above` ms by width."""
    added = np.maximum.accumulate(np.asarray(above[:MAX_WIDTH]) - above[0])
    block_ms = tuple(float(ms) + LOOKUP_MS * n for n, ms in enumerate(added))
    return StopRule(calibration, _SAVED * above[0], block_ms[1], block_ms)
