"""What a reply is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hsd


@dataclass(frozen=True, slots=True)
class Settings:
    """What a reply is asked for, as the page shows it. `seed` None draws a new one; `plan` is "auto" or a plan."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    system: str = ""
    plan: str = "auto"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from stored values; what this version does not know is left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def params(self) -> hsd.SamplingParams:
        """The sampling settings. Raises ConfigError for an impossible one."""
        return hsd.SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )
