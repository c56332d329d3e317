"""Which chain of drafts, at which thresholds, makes the target's next token cheapest.

Numbers in, plans out: numpy only; no models, no files, no clock. See `docs/planning.md`.
"""

from __future__ import annotations

from hsd.planning.choice import MARGIN, Alternative, Decision, choose, gain_error
from hsd.planning.expected import (
    LevelForecast,
    PlanForecast,
    expected_ms_per_token,
    expected_tokens_per_round,
    forecast,
)
from hsd.planning.inplace import in_place
from hsd.planning.observed import (
    ObservedAcceptance,
    Verdicts,
    block_factor,
    contradicts,
    corrected,
    measured_ms_per_token,
    observed_acceptance,
)
from hsd.planning.overhead import Overhead, Work, fit_overhead, with_overhead
from hsd.planning.path import relaxed_ms_per_token, relaxed_plan
from hsd.planning.priors import prior_acceptance, standard_errors, with_priors
from hsd.planning.refine import Ranked, best_plan, neighbours, ranking
from hsd.planning.replay import Replayed, Sequences, relative_gain, replay, survival, weighted_ms
from hsd.planning.similar import sketch, weights
from hsd.planning.stopping import Calibration, StopRule, fit
from hsd.planning.tables import Acceptances, Costs
from hsd.planning.within import Shift, shift_of, shifted

__all__ = [
    "MARGIN",
    "Acceptances",
    "Alternative",
    "Calibration",
    "Costs",
    "Decision",
    "LevelForecast",
    "ObservedAcceptance",
    "Overhead",
    "PlanForecast",
    "Ranked",
    "Replayed",
    "Sequences",
    "Shift",
    "StopRule",
    "Verdicts",
    "Work",
    "best_plan",
    "block_factor",
    "choose",
    "contradicts",
    "corrected",
    "expected_ms_per_token",
    "expected_tokens_per_round",
    "fit",
    "fit_overhead",
    "forecast",
    "gain_error",
    "in_place",
    "measured_ms_per_token",
    "neighbours",
    "observed_acceptance",
    "prior_acceptance",
    "ranking",
    "relative_gain",
    "relaxed_ms_per_token",
    "relaxed_plan",
    "replay",
    "shift_of",
    "shifted",
    "sketch",
    "standard_errors",
    "survival",
    "weighted_ms",
    "weights",
    "with_overhead",
    "with_priors",
]
