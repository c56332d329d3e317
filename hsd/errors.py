"""One base error for everything a person can cause: a sentence that says what, and a hint that says what to do."""

from __future__ import annotations


class HsdError(Exception):
    """An error a person can cause and mend.

    Args:
        message: one sentence, what went wrong, with the numbers and names that matter.
        hint: one sentence, what to do about it; empty if there is nothing sensible to suggest.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(HsdError):
    """`models.yaml`, or an argument, says something impossible."""


class LoadError(HsdError):
    """A family or a model cannot be loaded."""


class PromptError(HsdError):
    """A prompt cannot be decoded: empty, too long for the context, or refused by the chat template.

    Args:
        tokens: how many it has, where they are too many for the context; None otherwise.
    """

    def __init__(self, message: str, hint: str = "", tokens: int | None = None) -> None:
        super().__init__(message, hint)
        self.tokens = tokens


class ModelError(HsdError):
    """A model gave something that is no distribution, or failed while it ran.

    Args:
        level: name of the level (model) that failed.
    """

    def __init__(self, level: str, message: str, hint: str = "") -> None:
        super().__init__(f"Level '{level}': {message}", hint)
        self.level = level


class StoreError(HsdError):
    """A database cannot be used: newer than this version, corrupt, locked, or not writable."""
