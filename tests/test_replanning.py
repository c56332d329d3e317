"""A plan that changes inside a reply: tokens, distribution and accounting stay right; when and why it changes."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from dataclasses import replace

import models as tiny
import pytest
from test_distribution import HORIZON, PLAIN, PROMPT, VOCAB, Case, models, p_value

import hsd
from hsd import Plan, Replanned, SamplingParams, Started, Tokens, planning
from hsd.asking import Asked, complete
from hsd.hierarchy import Hierarchy
from hsd.levels import Round, TokenSequence, make_levels
from hsd.lookup import SuffixIndex
from hsd.replanning import AGAIN, EVERY, Switch, Watch
from hsd.runtime import Reader
from hsd.sampling import Sampler
from hsd.stats import SwitchRecord

GREEDY = SamplingParams(temperature=0, max_tokens=40)
PLANS = ("big", "tiny:2>big", "lookup:2>big", "tiny:2>medium:3>big", "lookup:2>small:2>big", "medium:4>big")


class Script:
    """Takes the plans of a list, one after every `every` rounds."""

    def __init__(self, plans: list[str], every: int = 1) -> None:
        self.plans, self.every, self.count, self.before = iter(plans), every, 0, Plan("big")

    def after(self, done: Round, cached) -> Switch | None:
        self.count += 1
        text = None if self.count % self.every else next(self.plans, None)
        if text is None:
            return None
        before, self.before = self.before, Plan.parse(text)
        return Switch(before, self.before, f"now {text}", 2.0, 1.0, 0, None)


def engine(noise: float = 0.03, **options) -> hsd.Engine:
    return hsd.Engine.from_models(tiny.related(count=4, noise=noise), tiny.ByteTokenizer(), **options)


def scripted(one: hsd.Engine, prompt: list[int], params: SamplingParams, plan: str, script: Script) -> list[hsd.Event]:
    """The events of a reply whose plan changes as the script says."""
    one.planner.profile.ready(needed=False)
    asked = Asked(tuple(prompt), params, Plan.parse(plan), "block", True, threading.Event(), 0)
    request = replace(complete(asked, one.planner), watch=script)
    return list(one._reply(request, one._conversations.take(request.prompt)))


# --- what a switch may not change


@pytest.mark.parametrize("seed", range(6))
def test_greedy_ids_are_those_of_plain_decoding_whatever_the_plans(seed):
    rng = random.Random(seed)
    one, plain = engine(), engine()
    prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 30))]
    plans = rng.choices(PLANS, k=20)
    params = SamplingParams(temperature=0, max_tokens=60)
    events = scripted(one, prompt, params, plans[0], Script(plans[1:], rng.randrange(1, 4)))
    reply = events[-1].reply
    assert reply.token_ids == plain.generate(prompt, params, plan="big").token_ids
    assert any(isinstance(e, Replanned) for e in events)
    follow = [*prompt, *reply.token_ids[:-1], 7, 8]
    again = one.generate(follow, params, plan="lookup:2>tiny:2>medium:3>big")
    assert again.stats.reused_tokens > 0, "the caches are still good"
    assert again.token_ids == plain.generate(follow, params, plan="big").token_ids
    tiny.learn(one)
    assert one.generate(prompt, params, plan="tiny:2>medium:2>big").token_ids == reply.token_ids


def test_statistics_cover_the_whole_reply():
    one = engine()
    plans = ["lookup:2>tiny:2>big", "big", "tiny:2>medium:3>big", "medium:3>big"]
    events = scripted(one, [1, 2, 3], GREEDY, plans[0], Script(plans[1:], 3))
    reply = events[-1].reply
    stats = reply.stats
    changes = [e for e in events if isinstance(e, Replanned)]
    assert [str(e.plan) for e in changes] == plans[1 : 1 + len(changes)] and len(changes) >= 2
    assert isinstance(events[0], Started) and str(events[0].plan) == plans[0]
    assert stats.plan == str(changes[-1].plan)
    assert len(stats.provenance) == stats.tokens == len(reply.token_ids)
    assert tuple(i for e in events if isinstance(e, Tokens) for i in e.ids) == reply.token_ids
    assert [level.name for level in stats.levels] == ["lookup", "tiny", "medium", "big"]
    levels = {level.name: level for level in stats.levels}
    assert levels["big"].passes == stats.target_passes == sum(isinstance(e, Tokens) and bool(e.ids) for e in events)
    assert {name: stats.provenance.count(name) for name in levels}["big"] >= 1
    assert sum(level.seconds for level in stats.levels) == pytest.approx(stats.model_seconds)
    assert 0 < stats.model_seconds <= stats.decode_seconds <= stats.seconds
    assert levels["medium"].passes > 0 and levels["tiny"].accepted <= levels["tiny"].proposed


def test_every_change_is_stored_with_reason_forecast_and_outcome():
    one = engine()
    events = scripted(one, [1, 2, 3], GREEDY, "tiny:2>big", Script(["big", "medium:3>big"], 4))
    stored = one.stats.summary()["switches"][::-1]
    assert [s["to_plan"] for s in stored] == ["big", "medium:3>big"]
    assert all(s["reply_id"] == 1 and s["reason"] and s["outcome_ms_per_token"] > 0 for s in stored)
    assert all(s["from_forecast_ms_per_token"] == 2.0 and s["to_forecast_ms_per_token"] == 1.0 for s in stored)
    thresholds = one.stats._db.read(lambda db: db.execute("SELECT name, threshold_tokens FROM levels").fetchall(), [])
    assert thresholds == [("tiny", None), ("medium", 3), ("big", None)], "of the last plan"
    assert events[-1].reply.stats.plan == "medium:3>big"


def test_a_change_between_replies_meets_its_outcome_as_tokens_come():
    one = engine()
    number = one.stats.record_switch(SwitchRecord(one.planner.family, "tiny:2>big", "big", "a test", 2.0, 1.0))
    one.planner.awaited[number] = Plan("big")

    def outcome() -> float | None:
        return one.stats.summary()["switches"][0]["outcome_ms_per_token"]

    params = SamplingParams(temperature=0, max_tokens=160, banned_ids=(tiny.END,))
    one.generate("hello", params, plan="tiny:2>big")
    assert outcome() is None, "another plan says nothing of it"
    one.generate("hello", params, plan="big")
    first = outcome()
    assert first > 0 and one.planner.awaited
    one.generate("more", params, plan="big")
    assert outcome() > 0 and not one.planner.awaited, "300 tokens settle it"
    settled = outcome()
    one.generate("again", params, plan="big")
    assert outcome() == settled


@pytest.mark.parametrize("rule", ["token", "block"])
def test_the_joint_law_stays_what_it_is(rule):
    """Plans change because of what was refused; what the target emits keeps its distribution."""
    case, coins = Case("c:2>t", rule, PLAIN), random.Random(11)
    chains = [Plan.parse(text) for text in ("c:3>t", "a:1>c:2>t", "t", "lookup:2>t")]
    readers = {name: Reader(model, model.new_cache()) for name, model in models(case).items()}
    index = SuffixIndex()
    index.settle(PROMPT)
    seen: Counter[tuple[int, ...]] = Counter()
    switched = 0
    for _ in range(1500):
        for reader in readers.values():
            reader.rewind(len(PROMPT) - 1)
            reader.meter.passes.clear()
        index.cut(len(PROMPT))
        sequence, at = TokenSequence(list(PROMPT), len(PROMPT)), 0

        def chain(plan: Plan, sequence=sequence) -> Hierarchy:
            def searched() -> SuffixIndex:
                index.settle(sequence.tokens[len(index) :])
                return index

            return Hierarchy(
                make_levels(plan.names, plan.thresholds, readers.__getitem__, searched),
                sequence,
                Sampler(case.params, PROMPT, VOCAB, "cpu"),
                end_ids=(),
                limit=len(PROMPT) + 40,
                rule=rule,
                coins=coins,
            )

        hierarchy = chain(chains[0])
        while len(sequence.tokens) < len(PROMPT) + HORIZON:
            done = hierarchy.round()
            if done.accepted < done.proposed or not done.proposed:
                at, switched = at + 1, switched + 1
                hierarchy = chain(chains[at % len(chains)])
        seen[tuple(sequence.tokens[len(PROMPT) : len(PROMPT) + HORIZON])] += 1
    assert switched > 500
    assert p_value(case, seen) > 1e-4


# --- when it changes


def warmed(noise: float = 0.02) -> hsd.Engine:
    """A target whose passes are dear and drafts that are often right: drafts pay, and the numbers are sure."""
    one = engine(noise)
    big = one._models["big"]

    def slow(ids, cache, last, forward=big.forward):
        time.sleep(0.008)
        return forward(ids, cache, last)

    big.forward = slow
    for n in range(3):
        params = SamplingParams(temperature=0, max_tokens=200, banned_ids=(tiny.END,))
        one.generate(f"hello {n}", params, plan="tiny:4>big")
        tiny.learn(one)
    return one


def spoil(one: hsd.Engine) -> None:
    """Every draft is replaced by one that is never right."""
    for name, model in one._models.items():
        if name != "big":

            def wrong(ids, cache, last, forward=model.forward):
                return -forward(ids, cache, last)

            model.forward = wrong
    one.planner.ranking_seconds = 0.0  # replies of such tiny models end before a ranking could pay


LONG = SamplingParams(temperature=0, max_tokens=150, banned_ids=(tiny.END,))


def test_a_reply_leaves_a_plan_that_its_own_rounds_contradict():
    one = warmed()
    assert one.explain(0.0)["forecast_ms_per_token"] < 0.8 * one.explain(0.0)["plain_ms_per_token"]
    good = one.generate("hello 9", LONG)
    assert good.stats.tokens / good.stats.target_passes > 1.5
    spoil(one)
    events = list(one.stream("hello 9", LONG))
    changes = [e for e in events if isinstance(e, Replanned)]
    reply = events[-1].reply
    assert changes and "harder than expected" in changes[0].reason and reply.stats.plan == str(changes[-1].plan)
    before = sum(
        len(e.ids) for e in itertools.takewhile(lambda e: e is not changes[0], events) if isinstance(e, Tokens)
    )
    assert before <= 4 * EVERY, "found out within a few dozen tokens"
    assert reply.token_ids == good.token_ids
    assert one.stats.summary()["switches"][0]["reply_id"] is not None


def test_pinned_plans_and_seeds_above_zero_never_change():
    one = warmed()
    pinned = str(one.planner.plan_for(0.0).plan)
    spoil(one)
    assert not [e for e in one.stream("hello 9", LONG, plan=pinned) if isinstance(e, Replanned)]
    asked = Asked((1, 2), replace(LONG, temperature=1.0, seed=5), "auto", "block", True, threading.Event(), 0)
    assert complete(asked, one.planner).watch is None
    assert complete(replace(asked, params=replace(LONG, seed=5)), one.planner).watch is not None
    assert complete(replace(asked, plan=Plan.parse(pinned)), one.planner).watch is None


def test_a_reply_that_changed_its_plan_above_zero_promises_no_seed():
    one = warmed()
    one.planner.choose(1.0)
    spoil(one)
    events = list(one.stream("hello 9", replace(LONG, temperature=1.0)))
    changed = any(isinstance(e, Replanned) for e in events)
    assert (events[-1].reply.seed is None) == changed


class Numbers:
    """Costs and acceptances as a planner gives them."""

    ranking_seconds = 0.0

    def __init__(self, rate: float = 0.8) -> None:
        self.costs = {"tiny": [1.0] * 16, "small": [2.0] * 16, "big": [10.0] * 16}
        self.rates = {("tiny", "small"): rate, ("tiny", "big"): rate, ("small", "big"): rate}

    def ground(self, temperature, context):
        return self.costs, self.rates, True

    def stop_rule(self, plan, temperature, context):
        return None


def watch(plan: str, rate: float = 0.8, max_tokens: int = 1000) -> Watch:
    numbers = Numbers(rate)
    ms = planning.expected_ms_per_token(plan, numbers.costs, numbers.rates)
    parsed = Plan.parse(plan)
    return Watch(numbers, parsed, ms, None, temperature=0, context=10, max_tokens=max_tokens, early_stop=True)


def rounds(count: int, block: int, rate: float, seed: int = 0) -> list[Round]:
    """Rounds of independent verdicts."""
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        kept = next((i for i in range(block) if rng.random() >= rate), block)
        out.append(Round([0] * (kept + 1), ["big"] * (kept + 1), block, kept, 0.001 * (block + 10)))
    return out


def test_rounds_as_expected_change_nothing():
    """40 replies of 60 rounds at the expected rate: a change would be a false alarm."""
    alarms = 0
    for seed in range(40):
        one = watch("tiny:4>big")
        alarms += any(one.after(r, lambda _: 10_000) for r in rounds(60, 4, 0.8, seed))
    assert alarms <= 2


def test_refusals_shorten_the_chain_and_plain_decoding_is_tried_again():
    one = watch("tiny:6>big")
    changes = [c for r in rounds(40, 6, 0.02) if (c := one.after(r, lambda _: 10_000))]
    assert changes[-1].plan == Plan("big") and all(c.from_ms > c.to_ms for c in changes)
    assert "of" in changes[0].reason and "drafted tokens" in changes[0].reason
    later = [c for r in rounds(AGAIN + 1, 0, 0.0) if (c := one.after(r, lambda _: 10_000))]
    assert [str(c.plan) for c in later] == ["tiny:6>big"] and "tried again" in later[0].reason


def test_a_reply_that_is_short_beside_a_ranking_is_let_be(monkeypatch):
    monkeypatch.setattr(Numbers, "ranking_seconds", 0.01)
    one = watch("tiny:6>big")
    assert not [c for r in rounds(12, 6, 0.02) if (c := one.after(r, lambda _: 10_000))]  # 0.19 s
    assert [c for r in rounds(12, 6, 0.02) if (c := one.after(r, lambda _: 10_000))]


def test_a_draft_that_must_first_read_a_long_text_has_to_earn_that():
    def after(cached: int, max_tokens: int) -> list[str]:
        one = watch("tiny:6>big", rate=0.6, max_tokens=max_tokens)
        one._context = 6000
        changes = (one.after(r, lambda name: cached) for r in rounds(16, 6, 0.98))
        return [str(c.plan) for c in changes if c]

    assert after(10_000, 1000), "easier text: a better plan is at hand"
    assert all("small" not in plan for plan in after(0, 120)), "but not one that reads 6,000 tokens first"


def test_the_shift_goes_the_right_way_and_a_few_verdicts_move_it_little():
    harder = planning.shift_of([(4, 0)] * 10, 0.8)
    easier = planning.shift_of([(4, 4)] * 10, 0.5)
    assert harder.value < 0 < easier.value and harder.seen < -3 and easier.seen > 3
    few = planning.shift_of([(4, 0)], 0.8)
    assert harder.value < few.value < 0 and few.seen > -3, "a single refusal contradicts nothing"
    assert planning.shift_of([], 0.8).value == planning.shift_of([(0, 0)], 0.8).value == pytest.approx(0)
    for rate in (0.0, 1.0):
        assert abs(planning.shift_of([(4, 2)] * 5, rate).value) < 10
    moved = planning.shifted({("a", "b"): 0.5, ("a", "c"): 1.0, ("b", "c"): 0.0}, 1.0)
    assert moved == {("a", "b"): pytest.approx(0.731, abs=1e-3), ("a", "c"): 1.0, ("b", "c"): 0.0}
