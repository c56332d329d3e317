"""How the next token is drawn, and when a reply ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hsd.errors import ConfigError

NO_LIMIT = 2**31 - 1
"""More tokens than any context has room for."""
MAX_STOP = 1000
"""Characters of a stop string: every new token is compared with all of its beginnings."""


def _reject(field_name: str, value: object, want: str) -> ConfigError:
    return ConfigError(f"{field_name}={value!r} is not possible.", f"{field_name} must be {want}.")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn from a model's logits, and when a reply ends.

    The filters are applied at every level on that level's own prefix, in this order: forced ids, banned ids and
    logit bias, penalties, temperature, top-k, top-p, min-p.

    Args:
        temperature: 0 is greedy (one-hot on the largest logit); otherwise logits are divided by it.
        top_p: keep the smallest set of tokens whose probabilities reach this, in (0, 1]; 1 keeps all.
        top_k: keep the k most likely tokens; 0 keeps all, and so does -1.
        min_p: keep tokens at least this fraction as likely as the likeliest, in [0, 1); 0 keeps all.
        repetition_penalty: divides (multiplies) positive (negative) logits of tokens in prompt or reply; 1 is off.
        presence_penalty: subtracted from the logits of tokens that the reply already holds.
        frequency_penalty: subtracted once per time that the reply already holds the token.
        logit_bias: token id -> number added to its logit.
        banned_ids: token ids that never appear.
        forced_ids: token ids that the reply begins with, one after the other.
        max_tokens: the reply ends after this many tokens; -1 is as many as the context has room for.
        stop: the reply ends before any of these strings.
        seed: reproduces a reply on the same device and plan; None draws a new one, and so does -1.
        time_limit: seconds after which the reply ends with what it has; None is no limit.
        thinking: whether the model thinks before it answers, where the family's chat template has a switch for that
            (`FamilyInfo.thinking`); None is the template's own default.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    banned_ids: tuple[int, ...] = ()
    forced_ids: tuple[int, ...] = ()
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None
    time_limit: float | None = None
    thinking: bool | None = None

    def __post_init__(self) -> None:
        self._unset()

        def finite(name: str, low: float, high: float, want: str) -> None:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _reject(name, value, want)
            if not (math.isfinite(value) and low <= value <= high):
                raise _reject(name, value, want)

        finite("temperature", 0, 100, "between 0 (greedy) and 100")
        finite("top_p", 1e-9, 1, "above 0 and at most 1")
        finite("min_p", 0, 0.999999, "at least 0 and below 1")
        finite("repetition_penalty", 1e-3, 1e3, "above 0; 1 is off")
        finite("presence_penalty", -100, 100, "between -100 and 100")
        finite("frequency_penalty", -100, 100, "between -100 and 100")
        for name, low in (("top_k", 0), ("max_tokens", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise _reject(name, value, f"a whole number of at least {low}")
        if self.time_limit is not None:
            finite("time_limit", 0, math.inf, "a number of seconds, or None")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise _reject("seed", self.seed, "a whole number, or None")
        if self.thinking is not None and not isinstance(self.thinking, bool):
            raise _reject("thinking", self.thinking, "True, False, or None")
        object.__setattr__(self, "stop", self._stops())
        for name in ("banned_ids", "forced_ids"):
            ids = tuple(getattr(self, name))
            if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
                raise _reject(name, ids, "token ids, whole numbers of at least 0")
            object.__setattr__(self, name, ids)
        if self.logit_bias is not None:
            bias = {int(k): float(v) for k, v in self.logit_bias.items()}
            if any(k < 0 or math.isnan(v) or v == math.inf for k, v in bias.items()):
                raise _reject("logit_bias", self.logit_bias, "token id -> finite number, or -inf")
            object.__setattr__(self, "logit_bias", bias)

    def _unset(self) -> None:
        """-1 has one meaning for all programs that came from llama.cpp's server or vLLM: not set."""
        for name, unset in (("seed", None), ("top_k", 0), ("max_tokens", NO_LIMIT)):
            if type(getattr(self, name)) is int and getattr(self, name) == -1:
                object.__setattr__(self, name, unset)

    def _stops(self) -> tuple[str, ...]:
        # One string is a common way to write `stop`; iterating over its characters never is what was meant.
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stop):
            raise _reject("stop", self.stop, "one or more non-empty strings")
        if any(len(s) > MAX_STOP for s in stop):
            raise _reject("stop", f"{max(stop, key=len)[:40]}…", f"strings of at most {MAX_STOP} characters")
        return stop

    @property
    def greedy(self) -> bool:
        """Whether every next-token distribution is one-hot on its largest logit."""
        return self.temperature == 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Settings from a mapping. Raises ConfigError for a name that is no setting."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(f"'{name}' is not a sampling setting.", f"Known: {', '.join(sorted(known))}.")
        return cls(**values)
