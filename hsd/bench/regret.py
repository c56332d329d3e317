"""What leaving the plan to `auto` costs against knowing the best fixed plan beforehand, and against plain decoding.

Every prompt is decoded twice by every candidate: each chain at its three best-forecast thresholds and at those that are
best with stopping by value, plain decoding, and `auto`, interleaved in an order drawn anew for every prompt. The best
fixed plan is chosen on one half of the runs and compared on the other, both ways round: chosen and compared on the same
runs, it would be flattered. In the same way the best plan with several model drafts is compared with the best that has
one.

Most plans are out of the question after that; what separates the others is less than 80 replies can show. So the best
of them run on, with `auto`, on the same prompts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hsd import planning
from hsd.bench import BenchRequest
from hsd.bench.progress import Journal
from hsd.bench.workloads import JUDGE, LEARN
from hsd.params import SamplingParams
from hsd.types import LOOKUP, Plan

if TYPE_CHECKING:
    from hsd.engine import Engine

WARM_UP = 10
"""Replies of `auto` before anything is measured, of prompts that are not measured."""

FINALISTS = 4
"""Best plans with one draft, and with several or a lookup, that run on with `auto` and plain decoding."""

MORE = 6
"""Further replies of each of those to every prompt, half of them in either half."""

AUTO = "auto"

_CACHES = np.zeros(8_000_000)
"""More than the processor's caches hold."""


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench regret`: ends where it was, if it was cut off and is started again with the same --out."""
    length, each = (48, 2) if ask.quick else (96, 10)
    journal = Journal(ask.out, "regret")
    out: dict[str, Any] = {"prompts": each * len(JUDGE)}
    with ask.engine() as engine:
        out |= {"family": engine.info.name, "device": engine.info.device}
        for temperature in (0.7, 0.0):
            name = f"T={temperature:g}"
            warm_up(engine, temperature, length)
            plans = journal.once(f"{name} plans", partial(candidates, engine, temperature, ask.quick))
            work = partial(measure, engine, temperature, length)
            out[name] = figures(contest(journal, name, _prompts(each), plans, work, 2 if ask.quick else MORE))
            _tell(ask, name, out[name])
    return out


def warm_up(engine: Engine, temperature: float, length: int) -> None:
    """What `auto` may learn before it is judged: ten replies of a mixed workload, with the idle time of a chat."""
    texts = [text for group in zip(*LEARN.values(), strict=True) for text in group]
    for text in texts[:WARM_UP]:
        engine.forget()
        engine.generate(text, SamplingParams(temperature=temperature, max_tokens=length, seed=None))
        while engine.learn():
            pass


def candidates(engine: Engine, temperature: float, quick: bool) -> list[str]:
    """Every chain at its three best-forecast thresholds and as `auto` would run it, plain decoding first."""
    planner = engine.planner
    planner.choose(temperature)
    costs, rates, _ = planner.ground(temperature)
    *drafts, target = [LOOKUP, *engine.info.models]
    out = [str(Plan(target))]
    for count in range(1, 3 if quick else len(drafts) + 1):
        for chain in itertools.combinations(drafts, count):
            plans = [
                Plan.of([*chain, target], thresholds)
                for thresholds in itertools.product((1, 2, 3, 4, 5, 6, 8, 10, 12, 15), repeat=count)
                if list(thresholds) == sorted(thresholds)  # a level that hands up less than it gets wastes it
            ]
            forecast = {str(p): planning.expected_ms_per_token(p, costs, rates) for p in plans}
            out += sorted(forecast, key=lambda p: forecast[p])[: 1 if quick else 3]
    return list(dict.fromkeys([*out, *map(str, planner.running(temperature))]))


def contest(
    journal: Journal,
    name: str,
    prompts: list[tuple[str, str]],
    plans: list[str],
    work: Callable[[str, str, list[str], int], list[dict[str, Any]]],
    more: int,
) -> list[dict[str, Any]]:
    """Two runs of all plans and `more` of the best ones; in turn for the first and the second half."""
    rows: list[dict[str, Any]] = []
    for run in range(2 + more):
        if run == 2:
            plans = finalists(rows, plans)
        for at, (category, text) in enumerate(prompts):
            found = journal.once(f"{name} {run} {text}", partial(work, category, text, plans, 1000 * run + at))
            rows += [{**row, "half": run % 2} for row in found]
    return rows


def finalists(rows: list[dict[str, Any]], plans: list[str]) -> list[str]:
    """Plain decoding and the best plans of either kind, by what was measured so far; best first within a kind."""
    kinds: dict[bool, list[str]] = {False: [], True: []}
    for plan in sorted(plans[1:], key=lambda plan: _ms(rows, plan)):
        kinds[_drafts(plan) == 1].append(plan)
    return [plans[0], *kinds[True][:FINALISTS], *kinds[False][:FINALISTS]]


def _drafts(plan: str) -> int:
    """Model drafts of a plan, a lookup beside one counted as one more."""
    return len(Plan.parse(plan).drafts)


def measure(
    engine: Engine, temperature: float, length: int, category: str, text: str, plans: list[str], turn: int
) -> list[dict[str, Any]]:
    """One prompt by every candidate and by `auto`, in a random order."""
    order = random.Random(turn).sample([*plans, AUTO], len(plans) + 1)
    rows = []
    for plan in order:
        engine.forget()
        if plan == AUTO:
            while engine.learn():  # nothing waits to be scored; the decision is as fresh as it is in a chat
                pass
        else:
            # What idle time does in a chat, where the reply before this one had the same plan: forecast and rule.
            engine.planner.decide(plan, temperature, 0)
            engine.planner.stop_rule(Plan.parse(plan), temperature)
        # In a chat something else ran before: `auto` has just ranked plans here, and would alone find its weights gone.
        _CACHES.sum()
        # No seed, as in a chat: above temperature 0 with one, nothing would stop by value.
        reply = engine.generate(text, SamplingParams(temperature=temperature, max_tokens=length, seed=None), plan=plan)
        if plan == AUTO:
            while engine.learn():
                pass
        rows.append(
            {
                "category": category,
                "prompt": text,
                "plan": plan,
                "ran": reply.stats.plan,
                "ms": 1000 * reply.stats.seconds,
                "tokens": reply.stats.tokens,
            }
        )
    return rows


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of ms per token, time of the whole reply, first token included; with intervals from resampled prompts."""
    every = list(dict.fromkeys(row["plan"] for row in rows))
    rows = [capped for plan in every for capped in _capped([row for row in rows if row["plan"] == plan])]
    count = {plan: sum(row["plan"] == plan for row in rows) for plan in every}
    plans = [plan for plan in every if count[plan] == count[AUTO]]  # those that ran to the end
    plain = next(plan for plan in plans if ">" not in plan and plan != AUTO)
    halves = [[row for row in rows if row["half"] == half] for half in (0, 1)]
    against = []
    for chosen_on, compared_on in (halves, halves[::-1]):
        best = min((p for p in plans if p != AUTO), key=lambda p: _ms(chosen_on, p))
        against.append(
            {
                "best": best,
                "auto_over_best": _ms(compared_on, AUTO) / _ms(compared_on, best),
                "interval": _interval(compared_on, AUTO, best),
            }
        )
    categories = list(dict.fromkeys(row["category"] for row in rows))
    by_category, ratios = {}, {}
    for category in categories:
        own = [row for row in rows if row["category"] == category]
        ratios[category] = _ms(own, AUTO) / _ms(own, plain)
        by_category[category] = {"auto_over_plain": ratios[category], "interval": _interval(own, AUTO, plain)}
    ran: dict[str, int] = {}
    for row in rows:
        if row["plan"] == AUTO:
            ran[row["ran"]] = ran.get(row["ran"], 0) + 1
    return {
        "replies": len(rows),
        "candidates": len(every) - 1,
        "replies_a_plan": {"first": min(count.values()), "finalists": count[AUTO]},
        "plain_ms": _ms(rows, plain),
        "auto_ms": _ms(rows, AUTO),
        "halves": against,
        "regret": sum(a["auto_over_best"] for a in against) / 2 - 1,
        "by_category": by_category,
        "worst_over_plain": max(ratios.values()),
        "drafts": _several(halves, plans) + _several(halves[::-1], plans),
        "ran": dict(sorted(ran.items(), key=lambda item: -item[1])),
        "all_ms": dict(sorted(((p, _ms(rows, p)) for p in every), key=lambda item: item[1])),
    }


def _capped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replies of one plan; one that took over three times the plan's median per token counts as three times.

    Something else ran then. All plans are treated alike.
    """
    most = 3 * float(np.median([row["ms"] / row["tokens"] for row in rows]))
    return [{**row, "ms": min(row["ms"], most * row["tokens"])} for row in rows]


def _ms(rows: list[dict[str, Any]], plan: str) -> float:
    own = [row for row in rows if row["plan"] == plan]
    return float(sum(row["ms"] for row in own) / sum(row["tokens"] for row in own))


def _several(halves: list[list[dict[str, Any]]], plans: list[str]) -> list[dict[str, Any]]:
    """How many times as fast the best plan with several model drafts is as the best with one, chosen on the first half
    and compared on the second; nothing where no plan has several."""
    drafts = {plan: sum(name != LOOKUP for name in Plan.parse(plan).names) - 1 for plan in plans if plan != AUTO}
    chosen_on, compared_on = halves
    one, several = (
        min((p for p, count in drafts.items() if fits(count)), key=lambda p: _ms(chosen_on, p), default=None)
        for fits in (lambda count: count == 1, lambda count: count > 1)
    )
    if one is None or several is None:
        return []
    ratio, interval = _ms(compared_on, one) / _ms(compared_on, several), _interval(compared_on, one, several)
    return [{"one": one, "several": several, "ratio": ratio, "interval": interval}]


def _interval(rows: list[dict[str, Any]], plan: str, other: str, count: int = 400) -> list[float]:
    """90% interval of a plan over another, prompts drawn again with replacement."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        if row["plan"] in (plan, other):
            own = sums.setdefault(row["prompt"], [0.0] * 4)
            at = 0 if row["plan"] == plan else 2
            own[at] += row["ms"]
            own[at + 1] += row["tokens"]
    table = np.array(list(sums.values()))
    drawn = table[np.random.default_rng(0).integers(0, len(table), (count, len(table)))].sum(axis=1)
    ratios = (drawn[:, 0] / drawn[:, 1]) / (drawn[:, 2] / drawn[:, 3])
    return [float(q) for q in np.quantile(ratios, (0.05, 0.95))]


def _prompts(each: int) -> list[tuple[str, str]]:
    """Prompts of all categories mixed, as a day's conversation is."""
    prompts = [(category, text) for category, texts in JUDGE.items() for text in texts[:each]]
    random.Random(0).shuffle(prompts)
    return prompts


def _tell(ask: BenchRequest, name: str, out: dict[str, Any]) -> None:
    times = f"auto {out['auto_ms']:.3f} ms per token, plain {out['plain_ms']:.3f}"
    ask.tell(f"{name}: {times}; regret {100 * out['regret']:+.1f}% against the best of {out['candidates']} fixed plans")
    ask.tell(f"   auto ran {out['ran']}")
    for half in out["halves"]:
        low, high = half["interval"]
        ask.tell(f"   over {half['best']}: {half['auto_over_best']:.3f} (90% {low:.3f} to {high:.3f})")
    for half in out["drafts"]:
        low, high = half["interval"]
        times = f"{half['ratio']:.3f} times as fast as {half['one']} (90% {low:.3f} to {high:.3f})"
        ask.tell(f"   {half['several']}: {times}")
    for category, one in out["by_category"].items():
        low, high = one["interval"]
        ask.tell(f"   {category:8} over plain: {one['auto_over_plain']:.3f} (90% {low:.3f} to {high:.3f})")
    best = ", ".join(f"{plan} {ms:.3f}" for plan, ms in itertools.islice(out["all_ms"].items(), 6))
    ask.tell(f"   fastest over all runs: {best}")
