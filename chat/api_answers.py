"""Replies in the shapes that clients know: OpenAI's, with llama.cpp's timings and what drafting did beside them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import hsd

FINISH = {"stop": "stop", "length": "length", "timeout": "length"}
"""Why a reply ended, in OpenAI's words. What is not here is a failure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The shape of one answer. `identifier`, `model` and `fingerprint` are in every part of it.

    A stream that begins before the engine knows its plan has no fingerprint in its first part.
    """

    identifier: str
    model: str
    fingerprint: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, thought: str, text: str, reply: hsd.Reply, queued: float) -> dict[str, Any]:
        """The answer in one piece. `queued`: seconds until the engine began."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thought:
            message["reasoning_content"] = thought
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[reply.finish_reason]}
        return self._named("chat.completion", [choice]) | {"usage": usage(reply.stats)} | beside(reply, queued)

    def part(self, delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        """A part of a stream."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
        return self._named("chat.completion.chunk", [choice])

    def last(self, reply: hsd.Reply, queued: float, counted: bool) -> list[dict[str, Any]]:
        """What a stream ends with: why it ended, and what it cost in a part without choices if that was asked for."""
        parts = [self.part({}, FINISH[reply.finish_reason])]
        if counted:
            parts.append(self._named("chat.completion.chunk", []) | {"usage": usage(reply.stats)})
        parts[-1] |= beside(reply, queued)
        return parts

    def _named(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.identifier,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def fingerprint(info: hsd.FamilyInfo, plan: hsd.Plan) -> str:
    """A short hash of what determines a reply beside its request: program, models, how they are computed, plan.

    Args:
        info: the family that answers.
        plan: the one that the reply begins with.
    """
    parts = (hsd.__version__, info.name, info.models, info.target, info.context, info.device, info.backend, str(plan))
    return f"fp_{hashlib.sha256(repr((parts, sorted(info.parameters.items()))).encode()).hexdigest()[:12]}"


def usage(stats: hsd.ReplyStats) -> dict[str, Any]:
    """Tokens, as OpenAI counts them; those that the caches held are part of the prompt's."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.tokens,
        "total_tokens": stats.prompt_tokens + stats.tokens,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
    }


def beside(reply: hsd.Reply, queued: float) -> dict[str, Any]:
    """What OpenAI's shape has no place for."""
    return {"timings": timings(reply.stats), "speculative": speculative(reply, queued)}


def timings(stats: hsd.ReplyStats) -> dict[str, Any]:
    """llama.cpp's names. Drafts are those of the level right below the target; of others `speculative` speaks."""
    read = stats.prompt_tokens - stats.reused_tokens
    below = stats.levels[-2] if len(stats.levels) > 1 else None
    return {
        "cache_n": stats.reused_tokens,
        "prompt_n": read,
        **_pace("prompt", read, stats.prefill_seconds),
        "predicted_n": stats.tokens,
        **_pace("predicted", stats.tokens, stats.decode_seconds),
        "draft_n": below.proposed if below else 0,
        "draft_n_accepted": below.accepted if below else 0,
    }


def _pace(name: str, tokens: int, seconds: float) -> dict[str, float | None]:
    return {
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / tokens if tokens else None,
        f"{name}_per_second": tokens / seconds if seconds > 0 else None,
    }


def speculative(reply: hsd.Reply, queued: float) -> dict[str, Any]:
    """What drafting did for a reply, with a row per level, cheapest first."""
    stats = reply.stats
    written = Counter(stats.provenance)
    return {
        "plan": stats.plan,
        "speedup": stats.speedup,
        "baseline": stats.baseline,
        "baseline_seconds": stats.baseline_seconds,
        "seconds": stats.seconds,
        "first_token_seconds": stats.first_token_seconds,
        "queued_seconds": queued,
        "tokens_per_second": stats.tokens_per_second,
        "forecast_ms_per_token": stats.forecast_ms_per_token,
        "target_passes": stats.target_passes,
        "tokens_per_target_pass": stats.tokens / stats.target_passes if stats.target_passes else None,
        "verification": stats.verification,
        "seed": reply.seed,
        "levels": [
            {
                "name": level.name,
                "proposed": level.proposed,
                "accepted": level.accepted,
                "acceptance": level.acceptance,
                "passes": level.passes,
                "seconds": level.seconds,
                "tokens": written[level.name],
            }
            for level in stats.levels
        ],
    }
