"""From forecasts to a decision: which plan to run next, and why, in words.

A switch has to pay: the share of time it is forecast to save must exceed both a margin and its own uncertainty.
Leaving for plain decoding needs no margin: the app is never slower on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hsd.errors import ConfigError
from hsd.planning.expected import expected_ms_per_token
from hsd.planning.refine import Ranked
from hsd.planning.tables import Acceptances, Costs
from hsd.types import Plan

MARGIN = 0.03
"""Default share of the time per token that a switch must be forecast to save."""

Uncertainty = float | Callable[[Plan, Plan], float]
"""Standard error of "share of time saved by the first plan against the second"."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that was not chosen: its forecast in ms per token, and why it lost."""

    plan: Plan
    forecast_ms: float
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan to run next.

    Args:
        plan: the plan.
        reason: one or two sentences for people.
        forecast_ms: its forecast, ms per token.
        plain_ms: forecast of plain decoding, ms per token.
        alternatives: every other plan of the ranking, best first.
        sure: whether the forecast rests on enough measurements.
        switched: whether the plan differs from the current one (False where there was none).
    """

    plan: Plan
    reason: str
    forecast_ms: float
    plain_ms: float
    alternatives: tuple[Alternative, ...]
    sure: bool
    switched: bool

    @property
    def forecast_speedup(self) -> float:
        """How many times faster than plain decoding the plan is forecast to be."""
        return self.plain_ms / self.forecast_ms


def choose(
    ranking: Sequence[Ranked],
    current: Plan | None = None,
    *,
    current_ms: float | None = None,
    uncertainty: Uncertainty = 0.0,
    margin: float = MARGIN,
    sure: bool = True,
) -> Decision:
    """The plan to run next.

    Args:
        ranking: candidate plans with forecasts, in any order; plain decoding must be among them.
        current: the plan in use; None at the start, which counts as plain decoding.
        current_ms: its forecast; None looks it up in `ranking`, and a plan not found there counts as none.
        uncertainty: standard error of the share of time saved, a number or a function of (new plan, old plan), for
            example from `gain_error` or `relative_gain`.
        margin: smallest share of time a switch must save, whatever its uncertainty.
        sure: whether the numbers behind the ranking are enough (the caller counts positions).

    Raises:
        ConfigError: plain decoding is missing from the ranking, or a forecast is no time.
    """
    ordered = sorted(ranking, key=lambda ranked: ranked.ms_per_token)
    plain = next((ranked for ranked in ordered if not ranked.plan.drafts), None)
    if plain is None:
        raise ConfigError("The ranking lacks plain decoding.", "Rank with `planning.ranking`, which includes it.")
    if not all(0 < ranked.ms_per_token < float("inf") for ranked in ordered):
        raise ConfigError("A forecast in the ranking is no time.", "Forecasts are ms per token, above 0.")
    best, held = ordered[0], _held(ordered, current, current_ms)

    def pays(new: Ranked, old: Ranked) -> bool:
        error = uncertainty(new.plan, old.plan) if callable(uncertainty) else uncertainty
        # `not <=`: an uncertainty that is NaN never pays.
        return 1 - new.ms_per_token / old.ms_per_token > margin and 1 - new.ms_per_token / old.ms_per_token > error

    if held is not None and held.ms_per_token < plain.ms_per_token:
        chosen = best if best.plan != held.plan and pays(best, held) else held
    else:
        chosen = best if best.plan.drafts and pays(best, plain) else plain
    switched = current is not None and chosen.plan != current
    others = tuple(
        Alternative(other.plan, other.ms_per_token, _why(other, chosen, plain))
        for other in ordered
        if other.plan != chosen.plan
    )
    reason = _reason(chosen, best, plain, held, sure)
    return Decision(chosen.plan, reason, chosen.ms_per_token, plain.ms_per_token, others, sure, switched)


def gain_error(
    new: Plan, old: Plan, costs: Costs, acceptances: Acceptances, errors: Mapping[tuple[str, str], float]
) -> float:
    """Standard error of the share of time that one plan saves against another, from those of the acceptances.

    First order, acceptances taken as independent; what both plans depend on alike cancels.

    Args:
        errors: (draft, verifier) -> standard error of its acceptance; a pair left out counts as exact.

    Raises:
        ConfigError: as `expected_ms_per_token`.
    """
    pairs = {pair for plan in (new, old) for pair in zip(plan.names, plan.names[1:], strict=False)}
    total = 0.0
    for pair in sorted(pairs):
        ratio = []
        for sign in (-1, 1):
            moved = {**acceptances, pair: float(np.clip(acceptances[pair] + sign * errors.get(pair, 0.0), 0, 1))}
            ratio.append(expected_ms_per_token(new, costs, moved) / expected_ms_per_token(old, costs, moved))
        total += ((ratio[1] - ratio[0]) / 2) ** 2
    return float(np.sqrt(total))


def _held(ordered: Sequence[Ranked], current: Plan | None, current_ms: float | None) -> Ranked | None:
    if current is None:
        return None
    if current_ms is not None:
        return Ranked(current, current_ms)
    return next((ranked for ranked in ordered if ranked.plan == current), None)


def _reason(chosen: Ranked, best: Ranked, plain: Ranked, held: Ranked | None, sure: bool) -> str:
    doubt = "" if sure else " The numbers behind this are few, so it may change soon."
    now = f"{chosen.ms_per_token:.3g} ms per token"
    if not chosen.plan.drafts:
        if not best.plan.drafts:
            return f"Plain decoding: no draft pays. It is forecast at {now}, and every other plan is slower.{doubt}"
        return (
            f"Plain decoding at {now}: the best draft chain, {best.plan}, is forecast at {best.ms_per_token:.3g} ms "
            f"per token, which is too little gain to rely on.{doubt}"
        )
    speed = f"{plain.ms_per_token / chosen.ms_per_token:.2f}× plain decoding ({plain.ms_per_token:.3g} ms)"
    if held is not None and held.plan == chosen.plan:
        if best.plan == chosen.plan:
            return f"{chosen.plan} stays the best: {now}, {speed}.{doubt}"
        return f"{chosen.plan} stays: {now}, {speed}; {best.plan} would be too little faster to switch.{doubt}"
    if held is not None:
        saved = 100 * (1 - chosen.ms_per_token / held.ms_per_token)
        return f"{chosen.plan} is forecast at {now}, {saved:.0f}% less than {held.plan}; that is {speed}.{doubt}"
    return f"{chosen.plan} is forecast at {now}, {speed}.{doubt}"


def _why(other: Ranked, chosen: Ranked, plain: Ranked) -> str:
    change = 100 * (other.ms_per_token / chosen.ms_per_token - 1)
    if change < 0:
        return f"{-change:.1f}% faster by forecast, too little to switch"
    slower = f"{change:.1f}% slower by forecast"
    if other.plan.drafts and other.ms_per_token >= plain.ms_per_token:
        return f"{slower}, and no faster than plain decoding"
    return slower
