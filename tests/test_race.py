"""A race: one prompt decoded plainly and by a plan, so that the baseline is measured and not estimated."""

from __future__ import annotations

import threading

import models as tiny
import pytest

import hsd
from hsd import Finished, SamplingParams, Started, Tokens

GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture
def one() -> hsd.Engine:
    return hsd.Engine.from_models(tiny.related(count=3, noise=0.03), tiny.ByteTokenizer())


@pytest.mark.parametrize("plan", ["auto", "lookup:2>medium:3>big"])
def test_a_race_measures_the_baseline_and_stores_it(one, plan):
    result = one.race("hello", GREEDY, plan=plan)
    assert result.same_ids and result.plain.stats.plan == "big" and result.plain.token_ids == result.plan.token_ids
    stats = result.plan.stats
    assert stats.baseline == "measured" and result.plain.stats.baseline == "estimated"
    assert stats.baseline_seconds == pytest.approx(result.plain.stats.seconds, rel=0.05)
    assert stats.speedup == pytest.approx(stats.baseline_seconds / stats.seconds)
    rows = one.stats._db.read(
        lambda db: list(db.execute("SELECT plan, baseline, baseline_s FROM replies ORDER BY id")), []
    )
    assert [row[1] for row in rows] == ["estimated", "measured"]
    assert rows[1] == (stats.plan, "measured", stats.baseline_seconds)


def test_both_lanes_can_be_shown_again_at_recorded_speed(one):
    result = one.race("hello", GREEDY, plan="medium:3>big")
    for reply, events in ((result.plain, result.plain_events), (result.plan, result.plan_events)):
        assert tuple(i for e in events for i in e.ids) == reply.token_ids
        assert "".join(e.text for e in events) == reply.text
        times = [e.seconds for e in events]
        assert (
            times == sorted(times) and reply.stats.first_token_seconds <= times[0] <= times[-1] <= reply.stats.seconds
        )
    assert len(result.plain_events) > len(result.plan_events)


def test_both_read_the_prompt_anew_and_held_conversations_stay(one):
    one.generate("hello", GREEDY, plan="medium:3>big")
    held = len(one._conversations)
    result = one.race("hello", GREEDY, plan="medium:3>big")
    assert result.plain.stats.reused_tokens == result.plan.stats.reused_tokens == 0
    assert len(one._conversations) == held
    assert one.generate("hello", GREEDY, plan="medium:3>big").stats.reused_tokens > 0
    tiny.learn(one)


def test_replies_of_unequal_length_are_compared_by_the_token(one):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=40)
    result = one.race("hello", params, plan="medium:3>big")
    assert result.same_ids is None and result.plain.seed == result.plan.seed == 3
    plain, stats = result.plain.stats, result.plan.stats
    each = plain.decode_seconds / plain.tokens
    assert stats.baseline_seconds == pytest.approx(plain.prefill_seconds + each * stats.tokens)


def test_everything_is_told_while_it_happens_and_cancelling_ends_both(one):
    heard, cancel = [], threading.Event()
    one.race("hello", GREEDY, plan="medium:3>big", tell=heard.append)
    assert [type(e) for e in heard if not isinstance(e, Tokens)] == [Started, Finished, Started, Finished]

    def stop(event: hsd.Event) -> None:
        if isinstance(event, Tokens):
            cancel.set()

    result = one.race("hello", GREEDY, plan="medium:3>big", cancel=cancel, tell=stop)
    assert result.plain.finish_reason == result.plan.finish_reason == "cancelled"
    assert result.same_ids is None and result.plan.stats.baseline == "estimated"


def test_impossible_wishes_are_one_sentence(one):
    with pytest.raises(hsd.ConfigError, match="uses 'nobody'"):
        one.race("hello", GREEDY, plan="nobody:2>big")
    with pytest.raises(hsd.ConfigError, match="verification"):
        one.race("hello", GREEDY, verification="both")
