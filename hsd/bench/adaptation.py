"""How soon `auto` recovers: when the workload turns to another category, and when a draft is replaced by a bad one.

Both are runs of `auto` with the idle time of a chat between replies. After them the same prompts are decoded plainly
and by a few plans, which shows which one suits the new state: recovered is from where on `auto` needs at most a tenth
more than that plan does on the same prompts, over all replies that follow. Every scene is played several times.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hsd.bench import BenchRequest, svg
from hsd.bench.progress import Journal
from hsd.bench.workloads import JUDGE, LEARN
from hsd.params import SamplingParams
from hsd.types import Finished, Plan, Replanned

if TYPE_CHECKING:
    from hsd.engine import Engine

NEAR = 1.10
"""How much more than the plan that suits the new state counts as recovered."""

BEFORE, AFTER = 1200, 1200
"""Tokens of `auto` before and after the change."""

STRETCH = 300
"""Tokens behind a reply that have to be near as well."""

SCENES = 3
"""Times that a scene is played: replies above temperature 0 differ, and what counts is the median."""

SEEDS = 4
"""Replies to every prompt by every plan that may suit the new state: half to choose it by, half to measure it on, since
the best of several looks better than it is on what it was chosen by."""

TEMPERATURE = 0.7


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench adaptation`: the workload turns, then a draft is spoiled; with --out also the pictures."""
    journal = Journal(ask.out, "adaptation")
    out: dict[str, Any] = {}
    easy, hard = _texts("command"), _texts("talk")
    mixed = [text for group in zip(*(_texts(c) for c in JUDGE), strict=True) for text in group]
    for name, before, after, change in (
        ("workload", easy, hard, lambda engine: None),
        ("draft", mixed, mixed, spoil),
    ):
        scenes = [
            journal.once(f"{name} {turn}", partial(_scene, ask, before, after, change))
            for turn in range(1 if ask.quick else SCENES)
        ]
        # "Not within this run" is later than anything.
        order = sorted(scenes, key=lambda scene: float("inf") if (at := scene["recovered_after"]) is None else at)
        middle = order[len(order) // 2]
        out[name] = {**middle, "recovered_after_each": [scene["recovered_after"] for scene in scenes]}
        _tell(ask, name, out[name])
        if ask.out is not None:
            (ask.out / f"adaptation-{name}.svg").write_text(picture(name, middle), encoding="utf-8")
    return out


def spoil(engine: Engine) -> None:
    """The first draft of the plan in use, and every smaller one, answer from now on as a model that learned nothing.

    Passes cost what they cost before; only what they say is worthless: their logits change their sign.
    """
    names = list(engine.info.models)
    used = [name for name in engine.planner.plan_for(TEMPERATURE).plan.names if name in names[:-1]]
    for name in names[: names.index(used[-1] if used else names[0]) + 1]:
        model: Any = engine._models[name]
        model.forward = partial(_negated, model.forward)


def _negated(forward: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    return -forward(*arguments)


def _scene(ask: BenchRequest, before: list[str], after: list[str], change: Callable[[Engine], None]) -> dict[str, Any]:
    """Auto before and after a change, and what would have been best after it."""
    scale = 4 if ask.quick else 1
    with ask.engine() as engine:
        engine.stats.reset()
        rows = _phase(engine, before, BEFORE // scale)
        change(engine)
        changed = sum(row["tokens"] for row in rows)
        later = _phase(engine, after, AFTER // scale)
        best, due, plain_ms = _suited(engine, later)
        switches = engine.stats.summary()["switches"]
    for row in later:
        row["due_ms"] = due[row["text"]] * row["tokens"]
    return {
        "rows": [*({**row, "after": False} for row in rows), *({**row, "after": True} for row in later)],
        "changed_at": changed,
        "best_after": best,
        "best_ms": sum(row["due_ms"] for row in later) / sum(row["tokens"] for row in later),
        "plain_ms": plain_ms,
        "recovered_after": recovered(later),
        "switches": len(switches),
    }


def _phase(engine: Engine, texts: list[str], tokens: int) -> list[dict[str, Any]]:
    """Replies of `auto`, with idle work between them, until there are so many tokens."""
    rows: list[dict[str, Any]] = []
    for text in itertools.cycle(texts):
        if sum(row["tokens"] for row in rows) >= tokens:
            return rows
        engine.forget()
        events = list(engine.stream(text, SamplingParams(temperature=TEMPERATURE, max_tokens=128)))
        while engine.learn():
            pass
        assert isinstance(events[-1], Finished)
        stats = events[-1].reply.stats
        changes = sum(isinstance(event, Replanned) for event in events)
        own = {"tokens": stats.tokens, "ms": 1000 * stats.decode_seconds, "plan": stats.plan, "changes": changes}
        rows.append({"text": text, **own})
    raise AssertionError("texts go round for ever")


def _suited(engine: Engine, rows: list[dict[str, Any]]) -> tuple[str, dict[str, float], float]:
    """The best of what `auto` ended with, a few others and plain decoding, on the same prompts.

    Returns:
        The plan, its ms per token by prompt, and plain decoding's over all prompts.
    """
    names = list(engine.info.models)
    plain = str(Plan(names[-1]))
    plans = {plain, *(row["plan"] for row in rows[-5:])}
    plans |= {f"{name}:{threshold}>{names[-1]}" for name in names[:-1] for threshold in (2, 4)}
    texts = list(dict.fromkeys(row["text"] for row in rows))
    taken = {(plan, half): dict.fromkeys(texts, (0.0, 0)) for plan in plans for half in (0, 1)}
    for seed, text in itertools.product(range(SEEDS), texts):
        for plan in sorted(plans):
            engine.forget()
            params = SamplingParams(temperature=TEMPERATURE, max_tokens=128, seed=seed)
            stats = engine.generate(text, params, plan=plan).stats
            ms, tokens = taken[plan, seed % 2][text]
            taken[plan, seed % 2][text] = ms + 1000 * stats.decode_seconds, tokens + stats.tokens

    def over_all(plan: str, half: int) -> float:
        ms, tokens = (sum(values) for values in zip(*taken[plan, half].values(), strict=True))
        return ms / tokens

    best = min(sorted(plans), key=lambda plan: over_all(plan, 0))
    return best, {text: ms / tokens for text, (ms, tokens) in taken[best, 1].items()}, over_all(plain, 1)


def recovered(rows: list[dict[str, Any]]) -> int | None:
    """Tokens after which what follows is within `NEAR` of what is due; None if it never is.

    From a reply on, the next `STRETCH` tokens together and all replies that follow together (at least the last third):
    one easy reply is no recovery, and a good end does not make up for a bad beginning.
    """

    def near(part: list[dict[str, Any]]) -> bool:
        return sum(r["ms"] for r in part) <= NEAR * sum(r["due_ms"] for r in part)

    for first in range(max(1, len(rows) * 2 // 3) + 1):
        rest = rows[first:]
        ends = list(itertools.accumulate(r["tokens"] for r in rest))
        next_ones = rest[: bisect.bisect_left(ends, STRETCH) + 1]
        if rest and near(rest) and near(next_ones):
            return sum(r["tokens"] for r in rows[:first])
    return None


def picture(name: str, scene: dict[str, Any]) -> str:
    """ms per token of `auto` over the tokens of the run; plain decoding and the best plan beside it."""
    rows, at, points = scene["rows"], 0, []
    for i, row in enumerate(rows):
        at += row["tokens"]
        near = [r for r in rows[max(0, i - 2) : i + 1] if r["after"] == row["after"]]
        points.append((float(at), sum(r["ms"] for r in near) / sum(r["tokens"] for r in near)))
    begin, end = float(scene["changed_at"]), float(at)
    level = {"plain decoding": scene["plain_ms"], scene["best_after"]: scene["best_ms"]}
    series = {"auto, mean of up to three replies": points}
    series |= {f"{plan} after the change ({ms:.2f} ms)": [(begin, ms), (end, ms)] for plan, ms in level.items()}
    words = {"workload": "other category", "draft": "draft spoiled"}[name]
    return svg.lines(f"auto adapts: {words}", "tokens", "ms per token", series, {words: begin}, dots=True)


def _texts(category: str) -> list[str]:
    return [*JUDGE[category], *LEARN[category]]


def _tell(ask: BenchRequest, name: str, scene: dict[str, Any]) -> None:
    rows = scene["rows"]
    after = scene["recovered_after"]
    words = "not within this run" if after is None else f"after {after} tokens"
    each = ", ".join("never" if at is None else str(at) for at in scene["recovered_after_each"])
    best = f"{scene['best_after']} {scene['best_ms']:.3f} ms per token, plain {scene['plain_ms']:.3f}"
    ask.tell(f"{name}: {len(rows)} replies, {sum(r['tokens'] for r in rows)} tokens; best after the change {best};")
    ask.tell(
        f"   within {100 * (NEAR - 1):.0f}% of it {words} (each time: {each}); {scene['switches']} changes of plan"
    )
