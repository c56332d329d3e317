"""What a reply is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hsd
from chat.disk import storable


@dataclass(frozen=True, slots=True)
class Settings:
    """What a reply is asked for, as the page shows it.

    `seed` None draws a new one; `plan` is "auto" or a plan; `thinking` None is the default of the family's template.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    thinking: bool | None = None
    system: str = ""
    plan: str = "auto"

    def __post_init__(self) -> None:
        # Half an emoji is no text that a tokenizer, or the page, takes.
        for name in ("system", "plan"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, storable(value))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from stored values; what this version does not know is left out."""
        return cls(**{name: value for name, value in values.items() if name in NAMES})

    def params(self) -> hsd.SamplingParams:
        """The sampling settings. Raises ConfigError for an impossible one."""
        return hsd.SamplingParams(**{name: getattr(self, name) for name in NAMES if name not in ("system", "plan")})


NAMES = tuple(field.name for field in dataclasses.fields(Settings))
"""All settings, in the order in which the page shows them."""
