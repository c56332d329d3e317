"""The values that cross rooms: plans, events, replies and their statistics.

Everything here is frozen and knows nothing of torch, models or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hsd.errors import ConfigError
from hsd.memory import MemoryFit

LOOKUP = "lookup"
"""Name of the level that has no model: it proposes what followed the same words before."""

MAX_THRESHOLD = 64

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]
Verification = Literal["block", "token"]

MAX_PLAN = 1000
"""Characters of a plan in its text form: no chain of models has a tenth of it."""

_STAGE = re.compile(r"^\s*(?P<name>[A-Za-z0-9][A-Za-z0-9._/+-]*)\s*(?::\s*(?P<threshold>-?\d+)\s*)?$")


def check_name(name: str) -> str:
    """A level's name, if plans can be written with it.

    Raises:
        ConfigError: it holds something that a plan's text could not be read back from.
    """
    match = _STAGE.match(name) if isinstance(name, str) else None
    if match is None or match["name"] != name:
        raise ConfigError(
            f"{name!r} cannot be the name of a model.", "Use letters, digits, '.', '_', '/', '+' and '-', no spaces."
        )
    return name


@dataclass(frozen=True, slots=True)
class Stage:
    """One level of a plan below the top.

    Args:
        name: the model's name in its family, or `lookup`.
        threshold: the level hands its block up once it holds at least this many tokens, 1 to 64.
    """

    name: str
    threshold: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A chain of levels, cheapest first, under a target; `drafts=()` is plain decoding.

    Source: Mohri et al. 2025, arXiv 2510.19705.
    """

    target: str
    drafts: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) != len(names):
            raise ConfigError(
                f"The plan '{'>'.join(names)}' uses a level twice.", "Name every level once, cheapest first."
            )
        if LOOKUP in names[1:]:
            raise ConfigError(
                "'lookup' can only be the first level of a plan: it drafts but cannot verify.",
                "Write it first, like 'lookup:2>tiny:3>big'.",
            )
        if self.target == LOOKUP:
            raise ConfigError("'lookup' cannot be the target: it is no model.", "End the plan with a model.")
        for stage in self.drafts:
            if not 1 <= stage.threshold <= MAX_THRESHOLD:
                raise ConfigError(
                    f"The threshold {stage.threshold} of level '{stage.name}' is not between 1 and {MAX_THRESHOLD}.",
                    "Thresholds of 2 to 8 are usual.",
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all levels, cheapest first, the target last."""
        return (*(stage.name for stage in self.drafts), self.target)

    @property
    def thresholds(self) -> tuple[int, ...]:
        """Thresholds of the levels below the target, cheapest first."""
        return tuple(stage.threshold for stage in self.drafts)

    @classmethod
    def of(cls, names: tuple[str, ...] | list[str], thresholds: tuple[int, ...] | list[int] = ()) -> Plan:
        """Plan from level names, cheapest first, and one threshold for each level but the last.

        Raises:
            ConfigError: not exactly one threshold fewer than names, or an impossible chain.
        """
        if len(names) != len(thresholds) + 1:
            raise ConfigError(
                f"{len(names)} levels need {len(names) - 1} thresholds, not {len(thresholds)}.",
                "Give every level but the target one threshold.",
            )
        return cls(names[-1], tuple(Stage(n, t) for n, t in zip(names, thresholds, strict=False)))

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Plan from its text form, `level:threshold > … > target`; `str()` is the inverse.

        Raises:
            ConfigError: the text is no plan.
        """
        if not isinstance(text, str) or not text.strip():
            raise ConfigError("The plan is empty.", "Write levels cheapest first, like 'lookup:2>tiny:3>big'.")
        if len(text) > MAX_PLAN:
            raise ConfigError(f"A plan has at most {MAX_PLAN} characters, not {len(text):,}.", "Name fewer levels.")
        stages: list[tuple[str, int | None]] = []
        for part in text.split(">"):
            match = _STAGE.match(part)
            if match is None:
                raise ConfigError(
                    f"'{part.strip()}' in the plan '{text}' is not a level.",
                    "Write 'name:threshold' for drafts and 'name' for the target, like 'tiny:3>big'.",
                )
            number = match["threshold"]
            stages.append((match["name"], None if number is None else int(number)))
        *drafts, (target, target_threshold) = stages
        if target_threshold is not None:
            raise ConfigError(
                f"The target '{target}' of the plan '{text}' has a threshold, but nothing above it takes a block.",
                f"End the plan with '{target}'.",
            )
        for name, threshold in drafts:
            if threshold is None:
                raise ConfigError(f"The draft '{name}' of the plan '{text}' has no threshold.", f"Write '{name}:4'.")
        return cls(target, tuple(Stage(name, threshold or 0) for name, threshold in drafts))

    def __str__(self) -> str:
        return ">".join([*(f"{s.name}:{s.threshold}" for s in self.drafts), self.target])


@dataclass(frozen=True, slots=True)
class LevelStats:
    """What one level did during a reply.

    `proposed` counts tokens of this level that the level above verified, `accepted` those it kept: the acceptance
    rate `accepted / proposed` has verified draft tokens as its denominator. Both are 0 for the target.

    Args:
        name: model name or `lookup`.
        proposed: tokens handed up and verified.
        accepted: of these, accepted by the next level.
        passes: forward passes of this level after the prompt was read (a lookup's proposals count as passes).
        seconds: time inside those passes.
        width: mean number of tokens read by a pass; 0 if there was none.
    """

    name: str
    proposed: int
    accepted: int
    passes: int
    seconds: float
    width: float = 0.0

    @property
    def acceptance(self) -> float | None:
        """Accepted over proposed; None where nothing was proposed."""
        return self.accepted / self.proposed if self.proposed else None


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """What a reply cost, and what plain decoding of the same target would have cost.

    Args:
        seconds: whole reply, from the call to the last token, time to first token included.
        first_token_seconds: from the call to the first token.
        prompt_tokens: tokens of the prompt.
        reused_tokens: of these, tokens that the target's cache already held.
        tokens: tokens of the reply.
        speedup: `baseline_seconds / seconds`; None where no baseline is known.
        baseline_seconds: time plain decoding would have taken (design: prefill plus one step per later token).
        baseline: "estimated" from measured step times, or "measured" by decoding the same prompt plainly.
        plan: the plan, as text; the last one where it changed during the reply.
        target_passes: forward passes of the target after the prompt was read.
        levels: one entry per level that took part, cheapest first, the target last.
        provenance: per token of the reply, the name of the level that proposed it.
        prefill_seconds: time spent reading the prompt, all levels.
        decode_seconds: time spent after the prompt was read.
        model_seconds: time inside model forwards after the prompt was read, all levels.
        outside_seconds: of `seconds`, what passed outside model forwards, from the call on: the prompt's text and ids,
            choosing the plan, drawing, verifying, text.
        forecast_ms_per_token: what the planner expected of the plan; None where it did not say.
        verification: rule used above T = 0: "block" or "token".
    """

    seconds: float = 0.0
    first_token_seconds: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    tokens: int = 0
    speedup: float | None = None
    baseline_seconds: float | None = None
    baseline: Literal["estimated", "measured"] = "estimated"
    plan: str = ""
    target_passes: int = 0
    levels: tuple[LevelStats, ...] = ()
    provenance: tuple[str, ...] = ()
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    model_seconds: float = 0.0
    outside_seconds: float = 0.0
    forecast_ms_per_token: float | None = None
    verification: Verification = "block"

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the reply over `seconds`; 0 for an empty reply."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply. `error` holds one sentence and a hint if `finish_reason` is "error", else None."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: ReplyStats
    error: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream. `dropped_turns`: oldest turns left out because the context was full."""

    plan: Plan
    prompt_tokens: int
    reused_tokens: int
    dropped_turns: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens of the reply, one event per round of the target.

    `text` never ends inside a UTF-8 character and never holds the beginning of a stop string; it may be empty while
    the engine waits for the rest of either. `seconds`: from the call to these tokens, as `ReplyStats.seconds` counts.
    """

    text: str
    ids: tuple[int, ...]
    provenance: tuple[str, ...]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Replanned:
    """The plan changed during the reply."""

    plan: Plan
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a stream."""

    reply: Reply


Event = Started | Tokens | Replanned | Finished


@dataclass(frozen=True, slots=True)
class Race:
    """One prompt decoded plainly and by a plan, one after the other, each with caches of its own.

    Args:
        plain: the plain reply.
        plan: the plan's reply; `stats.baseline` is "measured" unless one of the two was cut short.
        plain_events, plan_events: their tokens as they came; `Tokens.seconds` lets them be shown at recorded speed.
        same_ids: at temperature 0, whether both have the same token ids; None above it, and if one was cut short.
    """

    plain: Reply
    plan: Reply
    plain_events: tuple[Tokens, ...]
    plan_events: tuple[Tokens, ...]
    same_ids: bool | None


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far the loading of a family is.

    Args:
        model: model being loaded, or "" for a step that belongs to none.
        step: what is being done, in words.
        done: finished part, in the unit of `total`.
        total: whole, 0 where unknown.
    """

    model: str
    step: str
    done: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A draft that was left out of a family, and why."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class FamilyInfo:
    """What an engine holds: names for people and programs, no weights.

    Args:
        name: the family's name in `models.yaml`.
        title: one line for people.
        models: names of the loaded models, cheapest first, the target last.
        target: name of the target.
        context: longest prompt plus reply, in tokens.
        device: where the target runs.
        parameters: model name -> number of parameters.
        dropped: drafts that were left out.
        notes: sentences a person should know (a target that runs plainly, for example).
        memory: what its weights take, measured, and its caches at the full context; None for models of a program.
        thinking: whether its chat template takes `SamplingParams.thinking`.
        backend: where the weights come from, how they are stored, what they compute in, and by which steps, per model.
            It changes when faster steps are adopted.
        exact: GGUF model -> whether its rows do not depend on how many tokens a pass reads; False: they may.
    """

    name: str
    title: str
    models: tuple[str, ...]
    target: str
    context: int
    device: str
    parameters: Mapping[str, int] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    memory: MemoryFit | None = None
    thinking: bool = False
    backend: str = ""
    exact: Mapping[str, bool] = field(default_factory=dict)
