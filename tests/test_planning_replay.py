"""Replay of stored positions, against a simulation that walks them coin by coin."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hsd import Plan, planning
from hsd.errors import ConfigError
from hsd.planning import Calibration, StopRule
from hsd.planning.replay import DEPENDENCE, PIECE

COSTS = {
    "lookup": [0.02],
    "A": [1.2 + 0.02 * w for w in range(1, 17)],
    "B": [2.4 + 0.03 * w for w in range(1, 17)],
    "big": [14 + 0.15 * w for w in range(1, 17)],
}
RATES = {
    ("lookup", "A"): 0.35,
    ("lookup", "B"): 0.30,
    ("lookup", "big"): 0.25,
    ("A", "B"): 0.85,
    ("A", "big"): 0.72,
    ("B", "big"): 0.82,
}
RULE = StopRule(Calibration((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99), 0.8, 900), 6.0, 1.4)
PLANS = ["big", "A:4>big", "lookup:2>B:5>big", "A:3>B:4>big", "lookup:2>A:2>B:5>big"]


def runs(rng: np.random.Generator, length: int) -> dict[tuple[str, str], np.ndarray]:
    """A reply whose positions are easy or hard for all pairs alike, in runs."""
    level = np.repeat(rng.random(length // 8 + 1), 8)[:length]
    return {
        pair: np.clip(rate + 0.6 * (level - 0.5) + rng.normal(0, 0.05, length), 0, 1) for pair, rate in RATES.items()
    }


class Walk:
    """One reply, decoded by a plan: tokens carry how they came about, one level back, and what comes of them above."""

    def __init__(
        self,
        plan: Plan,
        reply: dict,
        dependence: float,
        rng: random.Random,
        costs: dict = COSTS,
        ends: bool = False,
        sure: dict | None = None,
    ) -> None:
        self.names, self.thresholds, self.rng, self.costs, self.ends = plan.names, plan.thresholds, rng, costs, ends
        self.sure = (sure or {}).get(plan.names[0])
        self.reply = {pair: np.nan_to_num(array).tolist() for pair, array in reply.items()}
        self.nothing = {pair: np.isnan(array).tolist() for pair, array in reply.items()}
        self.dependence, self.length = dependence, len(next(iter(reply.values())))

    def rate(self, level: int, kind: str, at: int) -> float:
        """Acceptance by the next level of a token of this kind."""
        at %= self.length
        up = self.reply[self.names[level], self.names[level + 1]][at]
        if level == 0 or kind == "bonus":
            return up
        below = self.reply[self.names[level - 1], self.names[level]][at]
        across = self.reply[self.names[level - 1], self.names[level + 1]][at]
        most = min(below, up, across)
        weight = 1.0 if self.names[level - 1] == "lookup" and self.dependence else self.dependence
        both = (1 - weight) * min(below * up, most) + weight * most
        chance = below if kind == "kept" else 1 - below
        return (both if kind == "kept" else up - both) / chance if chance else up

    def finished(self, at: int, fates: list[bool]) -> bool:
        """Whether tokens from a position on end with the reply's end token: they do if they are the reply's own."""
        return self.ends and all(fates) and len(fates) == self.length - at % self.length

    def block(self, level: int, at: int) -> tuple[list[str], list[bool], float]:
        """Tokens: how each came about, whether the level above will keep it, and ms."""
        costs, most = self.costs[self.names[level]], self.thresholds[level]
        kinds: list[str] = []
        fates: list[bool] = []
        ms, chance = 0.0, 1.0
        if level == 0 and self.nothing[self.names[0], self.names[1]][at % self.length]:
            return [], [], most * costs[0]
        while len(kinds) < most and not (kinds and self.finished(at, fates)):
            if level == 0 and self.sure is not None:
                if not RULE.pays(chance):
                    break
                chance *= RULE.calibration.chance(self.sure[(at + len(kinds)) % self.length])
            more, spent = (["first"], costs[0]) if level == 0 else self.round(level, at + len(kinds))
            for kind in more:
                fates.append(self.rng.random() < self.rate(level, kind, at + len(kinds)))
                kinds.append(kind)
            ms += spent
        return kinds, fates, ms

    def round(self, level: int, at: int) -> tuple[list[str], float]:
        kinds, fates, ms = self.block(level - 1, at)
        ms += self.costs[self.names[level]][len(kinds)]
        if not all(fates):
            return ["kept"] * fates.index(False) + ["redrawn"], ms
        return ["kept"] * len(kinds) + ([] if kinds and self.finished(at, fates) else ["bonus"]), ms

    def reply_cost(self) -> tuple[float, int]:
        at, total = 0, 0.0
        while at < self.length:
            kinds, ms = self.round(len(self.names) - 1, at)
            at, total = at + len(kinds), total + ms
        return total, at


def simulated(
    plan: str, reply: dict, dependence: float, count: int, ends: bool, sure: dict | None = None
) -> tuple[float, float]:
    walk = Walk(Plan.parse(plan), reply, dependence, random.Random(4), ends=ends, sure=sure)
    samples = [walk.reply_cost() for _ in range(count)]
    tokens = sum(t for _, t in samples)
    mean = sum(ms for ms, _ in samples) / tokens
    return mean, sum((ms - mean * t) ** 2 for ms, t in samples) ** 0.5 / tokens


def check_against_simulation(replies: int, count: int, ends: bool, by_value: bool = False) -> None:
    rng = np.random.default_rng(6)
    off = []
    for number in range(replies):
        reply = runs(rng, int(rng.integers(1, 20 if ends else 120)))
        for plan in ("A:9>big", "A:7>B:4>big", "A:2>B:5>big", "B:12>big") if by_value else PLANS[1:]:
            dependence, rules, sure = (0.0, 0.3, 1.0)[number % 3], None, None
            if by_value:
                rules, sure = (
                    {Plan.parse(plan): RULE},
                    {name: rng.random(len(reply["A", "big"])) ** 0.1 for name in "AB"},
                )
            want = planning.replay(
                [plan], COSTS, [reply], dependence, ends=ends, rules=rules, confidences=[sure or {}]
            )[0].ms_per_token
            mean, error = simulated(plan, reply, dependence, count, ends, sure)
            off.append(abs(want - mean) / max(error, 1e-9 * mean))
    assert sum(d > 3 for d in off) <= max(1, len(off) // 60)
    assert max(off) < 4.5


@pytest.mark.parametrize("ends", [False, True])
def test_agrees_with_a_walk_coin_by_coin(ends: bool):
    check_against_simulation(6 if ends else 3, 250, ends)


@pytest.mark.parametrize("ends", [False, True])
def test_agrees_with_a_walk_that_stops_by_value(ends: bool):
    check_against_simulation(6 if ends else 3, 250, ends, by_value=True)


@pytest.mark.full
@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_agrees_with_a_walk_coin_by_coin_on_many_replies(ends: bool, by_value: bool):
    check_against_simulation(45, 1500, ends, by_value)


def test_a_rule_without_confidences_goes_by_the_mean():
    reply = {("A", "big"): np.full(40, 0.8)}
    plan = Plan.parse("A:9>big")
    # 0.8 · 6 ms > 1.4 ms while what is held survives with 0.29 or more: six tokens.
    stopping = planning.replay([plan], COSTS, [reply], rules={plan: RULE})[0]
    assert stopping.ms_per_token == pytest.approx(planning.expected_ms_per_token("A:6>big", COSTS, reply_rates(0.8)))
    odd = planning.replay([plan], COSTS, [reply], rules={plan: RULE}, confidences=[{"A": np.ones(7)}])[0]
    assert odd == stopping, "confidences of another length are none"


def test_a_rule_that_never_pays_leaves_plain_decoding():
    plan, dear = Plan.parse("A:9>big"), StopRule(RULE.calibration, 1.0, 5.0)
    found = planning.replay([plan], COSTS, [{("A", "big"): np.full(9, 0.8)}], rules={plan: dear})[0]
    assert found.ms_per_token == pytest.approx(COSTS["big"][0]) and found.tokens_per_round == pytest.approx(1)


def reply_rates(rate: float) -> dict[tuple[str, str], float]:
    return {("A", "big"): rate}


def test_no_level_drafts_behind_the_end_of_a_reply():
    reply = {pair: np.ones(10) for pair in RATES}
    found = planning.replay(["A:12>big", "A:3>B:12>big", "A:6>big"], COSTS, [reply], ends=True)
    a, b, big = (COSTS[name] for name in ("A", "B", "big"))
    assert [r.reply_tokens[0] for r in found] == [10, 10, 10]
    # Ten tokens drafted and read at once; three rounds of B emit four, four and two; a full round, then three tokens.
    assert found[0].reply_ms[0] == pytest.approx(10 * a[0] + big[10])
    assert found[1].reply_ms[0] == pytest.approx(8 * a[0] + 2 * b[3] + b[2] + big[10])
    assert found[2].reply_ms[0] == pytest.approx(9 * a[0] + big[6] + big[3])


def test_a_draft_that_lost_the_way_goes_on_behind_the_end():
    reply = {("A", "big"): np.array([1.0, 1.0, 0.0, 1.0])}
    found = planning.replay(["A:6>big"], COSTS, [reply], ends=True)[0]
    assert found.reply_ms[0] == pytest.approx(6 * COSTS["A"][0] + COSTS["big"][6] + COSTS["A"][0] + COSTS["big"][1])


@pytest.mark.parametrize("plan", PLANS)
def test_constant_acceptance_is_the_iid_forecast(plan: str):
    replies = [{pair: np.full(length, rate) for pair, rate in RATES.items()} for length in (1, 40, 300, PIECE * 2)]
    found = planning.replay([plan], COSTS, replies, dependence=0)[0]
    assert found.ms_per_token == pytest.approx(planning.expected_ms_per_token(plan, COSTS, RATES), rel=1e-9)
    assert found.tokens_per_round == pytest.approx(planning.expected_tokens_per_round(plan, COSTS, RATES), rel=1e-9)
    assert found.positions == 341 + 2 * PIECE


def test_acceptance_in_runs_costs_more_than_its_average_says():
    rng = np.random.default_rng(1)
    in_runs = np.repeat(rng.random(60) < 0.7, 10).astype(float)
    scattered = rng.permutation(in_runs)
    for n in (2, 8):
        by_average = planning.expected_ms_per_token(f"A:{n}>big", COSTS, {("A", "big"): float(in_runs.mean())})
        found = [planning.replay([f"A:{n}>big"], COSTS, [{("A", "big"): a}])[0] for a in (in_runs, scattered)]
        assert found[0].ms_per_token > 1.1 * by_average
        assert found[1].ms_per_token == pytest.approx(by_average, rel=0.06)


def test_a_run_is_walked_as_it_lies():
    # Nine accepted and one refused, over and over: rounds of nine drafts emit ten tokens each.
    found = planning.replay(["A:9>big"], COSTS, [{("A", "big"): np.tile([1.0] * 9 + [0.0], 5)}])[0]
    assert found.tokens_per_round == pytest.approx(10)
    assert found.ms_per_token == pytest.approx((9 * COSTS["A"][0] + COSTS["big"][9]) / 10)


def test_at_temperature_zero_overlaps_of_0_and_1_replay_as_they_happened():
    lower = np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 1] * 3, dtype=float)
    upper = np.array([1, 1, 1, 1, 0, 1, 0, 1, 1, 1] * 3, dtype=float)
    reply = {("A", "B"): lower, ("B", "big"): upper, ("A", "big"): lower * upper}
    plan = "A:2>B:3>big"
    walk = Walk(Plan.parse(plan), reply, 0.1, random.Random(0))
    ms, tokens = walk.reply_cost()
    found = planning.replay([plan], COSTS, [reply])[0]
    assert found.reply_ms[0] == pytest.approx(ms)
    assert found.reply_tokens[0] == pytest.approx(tokens)


def test_survival_mixes_back_to_the_pairs_own_acceptance():
    rng = np.random.default_rng(0)
    low_mid, mid_top = rng.random(500), rng.random(500)
    low_top = rng.uniform(np.maximum(0, low_mid + mid_top - 1), 1)  # what the triangle inequality leaves
    for dependence in (0.0, 0.1, 1.0):
        kept, redrawn = planning.survival(low_mid, mid_top, low_top, dependence)
        assert low_mid * kept + (1 - low_mid) * redrawn == pytest.approx(mid_top)
        if dependence:
            loose, _ = planning.survival(low_mid, mid_top, None, dependence)
            assert (kept <= loose + 1e-12).all()


def test_survival_of_a_lookup_token_is_exact():
    rng = np.random.default_rng(2)
    middle, top = rng.dirichlet(np.ones(6), 50), rng.dirichlet(np.ones(6), 50)
    token = rng.integers(6, size=50)
    p, q = middle[np.arange(50), token], top[np.arange(50), token]
    kept, redrawn = planning.survival(p, np.minimum(middle, top).sum(1), q, 1.0)
    assert kept == pytest.approx(np.minimum(1, q / p))
    others = np.minimum(middle, top)
    others[np.arange(50), token] = 0
    assert redrawn == pytest.approx(others.sum(1) / (1 - p))


def test_only_the_lookups_tokens_survive_at_a_rate_that_is_known_exactly():
    reply = runs(np.random.default_rng(8), 200)
    low, high = (planning.replay(["lookup:2>A:2>big", "A:3>B:4>big"], COSTS, [reply], d) for d in (0.3, 1.0))
    assert low[0].ms_per_token == high[0].ms_per_token
    assert low[1].ms_per_token != pytest.approx(high[1].ms_per_token, rel=1e-4)


def test_a_plan_is_replayed_only_on_replies_that_hold_its_pairs():
    full = {pair: np.full(50, rate) for pair, rate in RATES.items()}
    some = {("A", "big"): np.full(50, 0.1)}
    one, other = planning.replay(["A:2>big", "B:2>big"], COSTS, [full, some])
    assert one.positions == 100
    assert other.positions == 50
    assert np.isnan(other.reply_ms[1])
    assert planning.replay(["B:2>big"], COSTS, [some])[0].ms_per_token is None
    assert planning.replay(["B:2>big"], COSTS, [])[0].ms_per_token is None


def test_gains_are_compared_reply_by_reply():
    rng = np.random.default_rng(3)
    replies = [runs(rng, 80) for _ in range(12)]
    fast, slow = planning.replay(["lookup:2>A:2>B:5>big", "lookup:2>B:5>big"], COSTS, replies)
    gain, error = planning.relative_gain(fast, slow)
    assert gain == pytest.approx(1 - fast.ms_per_token / slow.ms_per_token)
    assert error < fast.standard_error / fast.ms_per_token  # what is hard for both cancels
    assert planning.relative_gain(fast, fast) == (0.0, 0.0)
    bootstrap = np.random.default_rng(0).integers(12, size=(2000, 12))
    sums = [np.array(values)[bootstrap].sum(1) for r in (fast, slow) for values in (r.reply_ms, r.reply_tokens)]
    assert error == pytest.approx(np.std(1 - (sums[0] / sums[1]) / (sums[2] / sums[3])), rel=0.2)


def test_the_same_input_gives_the_same_output_whatever_stands_beside_it():
    rng = np.random.default_rng(9)
    replies = [runs(rng, int(n)) for n in rng.integers(1, 700, 40)]
    together = planning.replay(PLANS, COSTS, replies)
    assert together == planning.replay(PLANS, COSTS, replies)
    alone = planning.replay([PLANS[3]], COSTS, [replies[17]])[0]
    assert together[3].reply_ms[17] == pytest.approx(alone.reply_ms[0], rel=1e-12)


@pytest.mark.parametrize(
    "reply",
    [
        {("A", "big"): np.array([0.5, 1.2])},
        {("A", "big"): np.array([0.5, np.nan])},
        {("A", "big"): np.ones(3), ("B", "big"): np.ones(4)},
        {("A", "big"): np.ones((2, 2))},
    ],
)
def test_impossible_sequences_are_refused(reply):
    with pytest.raises(ConfigError) as caught:
        planning.replay(["A:2>big"], COSTS, [reply])
    assert caught.value.hint


def test_where_a_lookup_has_nothing_the_pass_is_one_wide():
    nothing = {("lookup", "big"): np.full(30, np.nan)}
    found = planning.replay(["lookup:4>big"], COSTS, [nothing])[0]
    assert found.tokens_per_round == 1
    assert found.ms_per_token == pytest.approx(COSTS["big"][0] + 4 * COSTS["lookup"][0])


def test_levels_of_random_softmax_models_are_nearly_independent_at_a_position():
    """What the default of `dependence` rests on: three models that share logits up to noise."""
    rng, found = np.random.default_rng(1), []
    for temperature in (0.5, 0.8, 1.0):
        for low_noise, mid_noise in ((1.5, 0.8), (1.0, 0.5), (2.0, 1.0), (0.7, 0.4)):
            logits, noise = rng.normal(0, 3, (200, 200)), rng.normal(0, 1, (200, 200))
            other = 0.5 * noise + 0.75**0.5 * rng.normal(0, 1, (200, 200))
            low, mid, top = (
                np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True)
                for z in (logits + low_noise * other, logits + mid_noise * noise, logits)
            )
            pairs = [np.minimum(p, q).sum(1) for p, q in ((low, mid), (mid, top), (low, top))]
            both = (np.minimum(low, mid) * np.minimum(1, top / mid)).sum(1)
            independent, most = pairs[0] * pairs[1], np.min(pairs, axis=0)
            found.append((both - independent).sum() / (most - independent).sum())
    assert max(np.abs(found)) < 0.3
    assert np.mean(found) == pytest.approx(DEPENDENCE, abs=0.1)


def test_an_empty_reply_counts_for_nothing():
    found = planning.replay(["A:2>big", "big"], COSTS, [{("A", "big"): np.ones(0)}, {}])
    assert [r.ms_per_token for r in found] == [None, None]


@pytest.mark.parametrize("dependence", [-0.1, 1.1, float("nan")])
def test_impossible_dependence_is_refused(dependence: float):
    with pytest.raises(ConfigError, match="dependence"):
        planning.replay(["big"], COSTS, [], dependence)
