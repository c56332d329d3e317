"""What is stored and what comes back: frozen values, no database."""

from __future__ import annotations

from dataclasses import dataclass

from hsd.types import LevelStats

SURE_POSITIONS = 500
"""Scored positions of a bucket from which on an acceptance is called sure."""


def temperature_bucket(temperature: float) -> str:
    """Bucket that acceptances are kept apart by: greedy (0), low (to 0.5), mid (to 0.9), high (above)."""
    if temperature <= 0:
        return "greedy"
    return "low" if temperature <= 0.5 else "mid" if temperature <= 0.9 else "high"


@dataclass(frozen=True, slots=True)
class ReplyRecord:
    """One reply, as stored.

    Args:
        family: key of the family: everything acceptance depends on (models, quantization), chosen by the caller.
        device: where the target ran.
        plan: the plan, as text; the last one where it changed.
        temperature: sampling temperature; its bucket is stored beside it.
        verification: rule used above T = 0: "block" or "token".
        prompt_tokens, reused_tokens, reply_tokens: as in `ReplyStats`.
        seconds, first_token_seconds: from the call to the last and to the first token.
        baseline_seconds: time plain decoding would have taken; None where unknown.
        baseline: "estimated" or "measured".
        speedup: baseline over seconds; None where unknown.
        forecast_ms_per_token: what the planner expected; None where it did not say.
        decode_seconds: time after the prompt was read, what `forecast_ms_per_token` forecasts.
        target_passes: forward passes of the target after the prompt was read.
        finish_reason: as in `Reply`.
        levels: cheapest first, the target last.
        thresholds: per level, in the plan that the reply ended with; None for a level that is not in it.
        rounds: per round of the target: block length, accepted tokens, ms.
        seed: seed of the reply, None where it had none.
        planner_json: what the planner had frozen at the reply's start (costs, calibration), as JSON; "" for nothing.
    """

    family: str
    device: str
    plan: str
    temperature: float
    verification: str
    prompt_tokens: int
    reused_tokens: int
    reply_tokens: int
    seconds: float
    first_token_seconds: float
    target_passes: int
    finish_reason: str
    baseline_seconds: float | None = None
    baseline: str = "estimated"
    speedup: float | None = None
    forecast_ms_per_token: float | None = None
    decode_seconds: float | None = None
    levels: tuple[LevelStats, ...] = ()
    thresholds: tuple[int | None, ...] = ()
    rounds: tuple[tuple[int, int, float], ...] = ()
    seed: int | None = None
    planner_json: str = ""
    sketch: bytes = b""


@dataclass(frozen=True, slots=True)
class CostRecord:
    """Measured time of one model's forward pass at one width.

    Args:
        machine: key of the machine.
        device: where the model runs, "cpu" or "cuda:0".
        family: key of the family.
        model: the model's name in it, or `lookup`.
        dtype: number format or quantization of its weights.
        runtime: runtime and its version.
        context_tokens: tokens in the cache when it was measured.
        width_tokens: new tokens read by the pass.
        median_ms, spread_ms: median and standard deviation of the samples.
        samples: their number.
    """

    machine: str
    device: str
    family: str
    model: str
    dtype: str
    runtime: str
    context_tokens: int
    width_tokens: int
    median_ms: float
    spread_ms: float = 0.0
    samples: int = 1


@dataclass(frozen=True, slots=True)
class SwitchRecord:
    """A change of plan and its reason; forecasts in ms per token.

    Args:
        family: key of the family.
        from_plan: plan before, "" at the start.
        to_plan: plan after.
        reason: in words.
        from_forecast_ms, to_forecast_ms: forecasts of both plans when it was decided; None where unknown.
        reply_id: reply it happened in; None between replies.
        at_token: tokens of that reply before it.
        outcome_ms: ms per token measured afterwards; None until `record_outcome`.
    """

    family: str
    from_plan: str
    to_plan: str
    reason: str
    from_forecast_ms: float | None = None
    to_forecast_ms: float | None = None
    reply_id: int | None = None
    at_token: int = 0
    outcome_ms: float | None = None


@dataclass(frozen=True, slots=True)
class AcceptanceEstimate:
    """Acceptance of a draft by a verifier, newest positions weighing most.

    Args:
        rate: weighted mean of the overlap per position, 0 to 1.
        positions: scored positions it rests on, unweighted.
        spread: weighted standard deviation of the overlap between positions.
        standard_error: of `rate`; positions come in runs, so it is larger than spread over root positions.
        borrowed: whether the bucket has no position of this pair and others stood in.
        moved: whether the newest replies contradicted the older ones, which are then left out of all of the above.
    """

    rate: float
    positions: int
    spread: float
    standard_error: float
    borrowed: bool = False
    moved: bool = False

    @property
    def sure(self) -> bool:
        """Whether there are at least 500 positions of the bucket itself."""
        return not self.borrowed and self.positions >= SURE_POSITIONS


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept.

    Args:
        replies: newest replies, with all that belongs to them.
        positions: newest replies per family whose overlaps are kept by position.
        switches: newest changes of plan.
        megabytes: size of the data in the file; the oldest replies go first.
    """

    replies: int = 10_000
    positions: int = 200
    switches: int = 2_000
    megabytes: float = 64.0
