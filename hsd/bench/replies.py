"""Plain decoding against the plan that `auto` chooses: same engine, same dtype, interleaved, ratio of medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hsd.bench import BenchRequest
from hsd.bench.prompts import PROMPTS
from hsd.params import SamplingParams
from hsd.types import Plan, Reply

if TYPE_CHECKING:
    from hsd.engine import Engine

_WARM_UP = 6
"""Replies before the measurement that fill the statistics, of prompts that are not measured afterwards."""

_WARM_UP_PROMPTS = (
    "How do I list all files, also hidden ones?",
    "Good morning, how are you?",
    "What can you help me with?",
    "How do I delete an empty directory?",
    "Tell me about your day.",
    "How do I download a file from the web?",
)


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench`."""
    with ask.engine() as engine:
        return compare(engine, quick=ask.quick, tell=ask.tell)


def compare(
    engine: Engine,
    temperatures: tuple[float, ...] = (0.0, 0.7),
    quick: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs every prompt plainly and by `auto`, alternating which comes first, and compares ms per reply token.

    Args:
        engine: a loaded engine.
        temperatures: sampling temperatures.
        quick: one repeat and two prompts of each category.
        tell: takes lines of text for people.

    Returns:
        The figures as plain values. Time is from the call to the last token, per token of the reply.
    """
    repeats, each, length = (1, 2, 64) if quick else (3, 8, 128)
    prompts = [(category, text) for category, texts in PROMPTS.items() for text in texts[:each]]
    out: dict[str, Any] = {"family": engine.info.name, "device": engine.info.device, "prompts": len(prompts)}
    for temperature in temperatures:
        for text in _WARM_UP_PROMPTS[:_WARM_UP]:
            engine.generate(text, SamplingParams(temperature=temperature, max_tokens=length, seed=1))
            while engine.learn():
                pass
        rows = [
            _pair(engine, category, text, temperature, length, repeat)
            for repeat in range(repeats)
            for category, text in prompts
        ]
        figures = _figures(rows)
        out[f"T={temperature:g}"] = figures
        tell(
            f"T={temperature:g}: {figures['ratio']:.2f}× (plain {figures['plain_tokens_per_second']:.0f} tok/s, auto "
            f"{figures['auto_tokens_per_second']:.0f} tok/s, {len(prompts)} prompts × {repeats}, "
            f"{figures['same_ids']} of {figures['replies']} with the same ids; outside model passes "
            f"{100 * figures['overhead_share']:.1f}% of auto's time, {100 * figures['plain_overhead_share']:.1f}% of "
            f"plain's); plans: {figures['plans']}"
        )
        for category, ratio in figures["by_category"].items():
            tell(f"   {category:8} {ratio:.2f}×")
    return out


def _pair(engine: Engine, category: str, text: str, temperature: float, length: int, repeat: int) -> dict[str, Any]:
    """One prompt both ways. The order alternates, and each side reads the prompt anew."""
    params = SamplingParams(temperature=temperature, max_tokens=length, seed=1000 + repeat)
    plans: dict[str, str] = {"plain": str(Plan(engine.info.target)), "auto": "auto"}
    order = list(plans) if (repeat + len(text)) % 2 else list(plans)[::-1]
    replies: dict[str, Reply] = {}
    for side in order:
        engine.forget()
        replies[side] = engine.generate(text, params, plan=plans[side])
        while engine.learn():  # as in the chat: between two replies the engine scores, measures and decides
            pass
    return {"category": category, **replies}


def _ms_per_token(reply: Reply) -> float:
    return 1000 * reply.stats.seconds / max(reply.stats.tokens, 1)


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratio of medians over all replies, and both sides' speeds."""

    def median(side: str, some: list[dict[str, Any]]) -> float:
        return statistics.median(_ms_per_token(r[side]) for r in some)

    def outside(side: str) -> float:
        """Share of the replies' time, from the call to the last token, that is not spent in model passes."""
        own = sum(r[side].stats.outside_seconds for r in rows)
        return own / sum(r[side].stats.seconds for r in rows)

    categories = dict.fromkeys(r["category"] for r in rows)
    plans: dict[str, int] = {}
    for r in rows:
        plans[r["auto"].stats.plan] = plans.get(r["auto"].stats.plan, 0) + 1
    return {
        "ratio": median("plain", rows) / median("auto", rows),
        "plain_tokens_per_second": 1000 / median("plain", rows),
        "auto_tokens_per_second": 1000 / median("auto", rows),
        "by_category": {
            c: median("plain", own) / median("auto", own)
            for c in categories
            for own in [[r for r in rows if r["category"] == c]]
        },
        "replies": len(rows),
        "same_ids": sum(r["plain"].token_ids == r["auto"].token_ids for r in rows),
        "overhead_share": outside("auto"),
        "plain_overhead_share": outside("plain"),
        "estimated_speedup": statistics.median(r["auto"].stats.speedup or 0.0 for r in rows),
        "plans": plans,
    }
