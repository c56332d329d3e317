"""The exact cost of a plan, against a simulation that shares no code with it."""

from __future__ import annotations

import itertools
import random

import pytest

from hsd import Plan, planning
from hsd.errors import ConfigError

WORKED_COSTS = {
    "lookup": [0.02] * 16,
    "A": [1.2 + 0.02 * w for w in range(1, 17)],
    "B": [2.4 + 0.03 * w for w in range(1, 17)],
    "target": [14 + 0.15 * w for w in range(1, 17)],
}
WORKED_ACCEPTANCES = {
    ("lookup", "A"): 0.35,
    ("lookup", "B"): 0.30,
    ("lookup", "target"): 0.25,
    ("A", "B"): 0.85,
    ("A", "target"): 0.72,
    ("B", "target"): 0.82,
}


def cost(values: list[float], width: int) -> float:
    """ms of a pass, written from the words: extend by the last difference, chunks of at most 16."""
    if width > 16:
        return cost(values, 16) + cost(values, width - 16)
    if width <= len(values):
        return values[width - 1]
    step = values[-1] - values[-2] if len(values) > 1 else 0.0
    return values[-1] + (width - len(values)) * step


def block(levels: list[tuple[list[float], int, float]], rng: random.Random) -> tuple[int, float]:
    """Tokens and ms of one block of the last of some levels, each (costs, threshold, acceptance by the next)."""
    values, threshold, _ = levels[-1]
    if len(levels) == 1:
        return threshold, threshold * values[0]
    held, ms = 0, 0.0
    while held < threshold:
        tokens, spent = round_of(levels[:-1], values, rng)
        held, ms = held + tokens, ms + spent
    return held, ms


def round_of(below: list[tuple[list[float], int, float]], values: list[float], rng: random.Random) -> tuple[int, float]:
    """Tokens and ms of one round of a level with these costs."""
    if not below:
        return 1, values[0]
    drafted, ms = block(below, rng)
    accepted = 0
    while accepted < drafted and rng.random() < below[-1][2]:
        accepted += 1
    return accepted + 1, ms + cost(values, drafted + 1)


def simulate(plan: Plan, costs: dict, acceptances: dict, rounds: int, rng: random.Random) -> tuple[float, float]:
    """ms per token and its standard error (ratio estimator)."""
    levels = [
        (costs[stage.name], stage.threshold, acceptances[stage.name, above])
        for stage, above in zip(plan.drafts, plan.names[1:], strict=True)
    ]
    samples = [round_of(levels, costs[plan.target], rng) for _ in range(rounds)]
    tokens = sum(t for t, _ in samples)
    mean = sum(ms for _, ms in samples) / tokens
    squares = sum((ms - mean * t) ** 2 for t, ms in samples)
    return mean, (squares**0.5) / tokens


def instance(rng: random.Random) -> tuple[Plan, dict, dict]:
    """A random plan of 1 to 5 levels with stepped, sometimes short, cost tables."""
    count = rng.randint(1, 5)
    names = [f"m{i}" for i in range(count)]
    if count > 1 and rng.random() < 0.4:
        names[0] = "lookup"
    costs = {}
    for i, name in enumerate(names):
        base, values = 0.05 * 4**i * rng.uniform(0.5, 2), []
        for _ in range(rng.choice([1, 2, 5, 16, 20])):
            base += base * rng.choice([0.0, 0.02, 0.3])
            values.append(base)
        costs[name] = values
    acceptances = {
        (a, b): rng.choice([rng.uniform(0.05, 0.98), rng.uniform(0.6, 0.95), 0.0, 1.0][: rng.choice([2, 2, 2, 4])])
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    top = 5 if count > 3 else 20
    return Plan.of(names, [rng.randint(1, top) for _ in names[1:]]), costs, acceptances


def deviations(count: int, rounds: int) -> list[float]:
    rng = random.Random(20251022)
    found = []
    for _ in range(count):
        plan, costs, acceptances = instance(rng)
        want = planning.expected_ms_per_token(plan, costs, acceptances)
        mean, error = simulate(plan, costs, acceptances, rounds, rng)
        if error < 1e-9 * mean:  # nothing random: acceptances 0 or 1, or plain decoding
            assert want == pytest.approx(mean, rel=1e-9), str(plan)
            found.append(0.0)
        else:
            found.append(abs(want - mean) / error)
    return found


def test_agrees_with_an_independent_simulation():
    off = deviations(40, 600)
    assert sum(d > 3 for d in off) <= 1
    assert max(off) < 4.5
    assert sum(d > 0.5 for d in off) >= 5  # the errors are real ones, not so wide that anything passes


@pytest.mark.full
def test_agrees_with_an_independent_simulation_on_200_instances():
    off = deviations(200, 6000)
    print(f"beyond 3 standard errors: {sum(d > 3 for d in off)} of {len(off)}, largest {max(off):.2f}")
    assert sum(d > 3 for d in off) <= 3
    assert max(off) < 4.5


@pytest.mark.parametrize(
    ("plan", "ms", "speedup"),
    [
        ("target", 14.15, 1.00),
        ("A:4>target", 6.82, 2.08),
        ("lookup:2>B:5>target", 6.22, 2.27),
        ("lookup:2>A:2>B:5>target", 6.02, 2.35),
    ],
)
def test_the_worked_case_of_the_design(plan: str, ms: float, speedup: float):
    found = planning.expected_ms_per_token(plan, WORKED_COSTS, WORKED_ACCEPTANCES)
    assert round(found, 2) == ms
    assert round(14.15 / found, 2) == speedup


def test_the_best_plans_of_the_worked_case():
    assert str(planning.best_plan(WORKED_COSTS, WORKED_ACCEPTANCES)[0]) == "lookup:2>A:2>B:5>target"
    by_length: dict[int, planning.Ranked] = {}
    for ranked in planning.ranking(WORKED_COSTS, WORKED_ACCEPTANCES):
        by_length.setdefault(len(ranked.plan.drafts), ranked)
    best = {length: str(ranked.plan) for length, ranked in by_length.items()}
    assert best == {0: "target", 1: "A:4>target", 2: "lookup:2>B:5>target", 3: "lookup:2>A:2>B:5>target"}
    assert round(by_length[1].ms_per_token / by_length[3].ms_per_token, 2) == 1.13


def test_leviathans_formula_is_the_two_level_case():
    a, n, draft, target = 0.7, 4, 1.0, 10.0
    want = (n * draft + target) * (1 - a) / (1 - a ** (n + 1))
    found = planning.expected_ms_per_token("d:4>t", {"d": [draft], "t": [target]}, {("d", "t"): a})
    assert found == pytest.approx(want)


def test_a_plan_and_its_text_cost_the_same():
    plan = Plan.parse("lookup:3>A:2>target")
    as_text = planning.expected_ms_per_token(str(plan), WORKED_COSTS, WORKED_ACCEPTANCES)
    assert planning.expected_ms_per_token(plan, WORKED_COSTS, WORKED_ACCEPTANCES) == as_text


def test_widths_past_the_end_extend_by_the_last_difference_and_run_in_chunks_of_16():
    accepted = {("d", "t"): 1.0}
    # 21 columns: 16 and 5; every round emits 21 tokens.
    ms = planning.expected_ms_per_token("d:20>t", {"d": [1.0], "t": [10.0, 11.0, 13.0]}, accepted)
    assert ms == pytest.approx((20 * 1.0 + (13 + 13 * 2) + (13 + 2 * 2)) / 21)


def test_the_forecast_adds_up():
    plan = "lookup:2>A:2>B:5>target"
    found = planning.forecast(plan, WORKED_COSTS, WORKED_ACCEPTANCES)
    assert sum(level.ms for level in found.levels) / found.tokens_per_round == pytest.approx(found.ms_per_token)
    assert found.tokens_per_round == planning.expected_tokens_per_round(plan, WORKED_COSTS, WORKED_ACCEPTANCES)
    assert [level.threshold for level in found.levels] == [2, 2, 5, None]
    assert found.levels[-1].passes == 1
    assert found.levels[2].block >= 5


def test_high_thresholds_on_long_chains_stay_a_distribution():
    names = ["lookup", "a", "b", "c", "d", "t"]
    costs = {name: [1.0 + i] for i, name in enumerate(names)}
    all_accepted = {(a, b): 1.0 for a, b in itertools.pairwise(names)}
    plan = Plan.of(names, [64] * 5)
    # All accepted: the blocks are 64, 65, 66, 67, 68 long, and 69 tokens arrive per round.
    assert planning.expected_tokens_per_round(plan, costs, all_accepted) == pytest.approx(69)
    some = dict.fromkeys(all_accepted, 0.9)
    assert 1 < planning.expected_tokens_per_round(plan, costs, some) < 69


def test_a_missing_pair_is_named():
    with pytest.raises(ConfigError, match=r"lookup → B.*not known"):
        planning.expected_ms_per_token("lookup:2>B:5>target", WORKED_COSTS, {("B", "target"): 0.8})


def test_an_extension_below_zero_is_refused_where_it_is_used_and_only_there():
    costs = {"d": [1.0], "t": [10.0, 4.0]}
    with pytest.raises(ConfigError, match="fall below zero"):
        planning.expected_ms_per_token("d:4>t", costs, {("d", "t"): 0.8})
    assert planning.expected_ms_per_token("d:1>t", costs, {("d", "t"): 0.8}) > 0
    assert planning.best_plan(costs, {("d", "t"): 0.8})[0].thresholds == (1,)
