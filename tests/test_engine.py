"""The engine as a program uses it: caches and their accounting, control, bad input."""

from __future__ import annotations

import json
import threading
import time

import models as tiny
import pytest
import torch

import hsd
from hsd import Finished, SamplingParams, Started, Tokens
from hsd.candidates import comparable
from hsd.runtime import LeanModel

GREEDY = SamplingParams(temperature=0, max_tokens=24)


def engine(count: int = 4, noise: float = 0.03, **options) -> hsd.Engine:
    return hsd.Engine.from_models(tiny.related(count=count, noise=noise), tiny.ByteTokenizer(), **options)


def passes(one: hsd.Engine) -> dict[str, list[tuple[int, int]]]:
    """Counts every forward behind the seam: name -> (width, cached before)."""
    seen: dict[str, list[tuple[int, int]]] = {}
    for name, model in one._models.items():

        def counted(ids, cache, last, name=name, forward=model.forward):
            seen.setdefault(name, []).append((len(ids), cache.length))
            return forward(ids, cache, last)

        model.forward = counted
    return seen


def fail(model, after: int, error: Exception | float | None) -> None:
    """After some passes a model's forward fails, or gives this number or NaN, until `del model.forward`."""
    left = iter(range(after))

    def forward(ids, cache, last, sound=model.forward):
        logits = sound(ids, cache, last)
        if next(left, None) is not None:
            return logits
        if isinstance(error, Exception):
            raise error
        return torch.full_like(logits, error or float("nan"))

    model.forward = forward


# --- accounting


def test_forwards_and_widths_are_what_the_design_says():
    """Round by round: the draft reads one token a pass (two after full acceptance), the target block plus one."""
    one = engine(count=2)
    one.generate([9], GREEDY, plan="big")  # measures a plain step for the baseline
    seen, draft = passes(one), "medium"
    reply = one.generate([1, 2, 3, 4, 5], GREEDY, plan="medium:3>big")
    target_widths = [w for w, _ in seen["big"]]
    assert target_widths[0] == 4  # the prompt but its last token
    # Three drafted tokens and the one before them, until the length limit shortens the block.
    assert [w for w, _ in seen["big"][1:]] == [min(4, 5 + GREEDY.max_tokens - 1 - held) for _, held in seen["big"][1:]]
    assert reply.stats.target_passes == len(target_widths) - 1
    assert all(w in (1, 2) for w, _ in seen[draft][1:])
    levels = {level.name: level for level in reply.stats.levels}
    assert levels[draft].passes == len(seen[draft]) - 1 == levels[draft].proposed
    accepted = levels[draft].accepted
    assert reply.stats.tokens <= accepted + reply.stats.target_passes <= reply.stats.tokens + 1


def test_a_level_reads_no_token_twice_across_turns():
    """A turn begins where each cache ends. A draft is behind by its last token and the bonus, by one more where the
    length limit left no room to draft; the target by its own last token."""
    one = engine()
    params = SamplingParams(temperature=0, max_tokens=24, banned_ids=tuple(range(128, 256)))  # whole characters
    seen = passes(one)
    messages = [{"role": "user", "content": "hello"}]
    for turn in range(4):
        seen.clear()
        talk = one._conversations._held[0] if turn else None
        held = {name: len(reader) for name, reader in talk.readers.items()} if talk else {}
        old = len(talk.tokens) if talk else 0
        reply = one.generate(messages, params, plan="tiny:2>medium:4>big")
        for name in ("tiny", "medium", "big"):
            assert seen[name][0][1] == held.get(name, 0), f"{name} read cached tokens again"
            assert old - held.get(name, 0) <= (1 if name == "big" else 3)
        assert reply.stats.reused_tokens == held.get("big", 0)
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": f"turn {turn}"}]


def test_where_a_template_drops_earlier_thinking_reading_restarts_there():
    class Thinking(tiny.ByteTokenizer):
        """Leaves the thinking of earlier turns out, as reasoning models' templates do."""

        def apply_chat_template(self, conversation, **options):
            last = max(i for i, m in enumerate(conversation) if m["role"] == "user")
            shown = [
                {**m, "content": m["content"].split("</think>")[-1]} if m["role"] == "assistant" and i < last else m
                for i, m in enumerate(conversation)
            ]
            return super().apply_chat_template(shown, **options)

    tokenizer = Thinking()
    one = hsd.Engine.from_models(tiny.related(count=2, noise=0.03), tokenizer)
    thought = tokenizer.encode("<think>hm</think>ok")
    params = SamplingParams(temperature=0, max_tokens=len(thought) + 1, forced_ids=(*thought, tiny.END))
    first = one.generate([{"role": "user", "content": "question"}], params, plan="medium:3>big")
    assert first.text == "<think>hm</think>ok"
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": first.text}]
    seen = passes(one)
    second = one.generate([*talk, {"role": "user", "content": "next"}], GREEDY, plan="medium:3>big")
    assert second.stats.reused_tokens == first.stats.prompt_tokens
    assert seen["big"][0][1] == seen["medium"][0][1] == first.stats.prompt_tokens


def test_an_edited_history_is_read_from_the_edit_on():
    one = engine(count=2)
    prompt = list(range(60))
    one.generate(prompt, GREEDY, plan="medium:2>big")
    seen = passes(one)
    reply = one.generate([*prompt[:40], 99, 98, *prompt[42:]], GREEDY, plan="medium:2>big")
    assert reply.stats.reused_tokens == 40 and seen["big"][0] == (19, 40)
    fresh = engine(count=2).generate([*prompt[:40], 99, 98, *prompt[42:]], GREEDY, plan="big")
    assert reply.token_ids == fresh.token_ids


def test_plans_can_change_from_turn_to_turn_on_the_same_caches():
    one, messages, ids = engine(), [{"role": "user", "content": "abc"}], []
    plain, plain_messages = engine(), [{"role": "user", "content": "abc"}]
    for plan in ("tiny:3>big", "lookup:2>medium:3>big", "big", "tiny:1>small:2>medium:3>big"):
        for one_engine, talk, chosen in ((one, messages, plan), (plain, plain_messages, "big")):
            reply = one_engine.generate(talk, GREEDY, plan=chosen)
            ids.append(reply.token_ids)
            talk += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "more"}]
        assert ids[-1] == ids[-2]


def test_several_conversations_are_held_within_the_memory_budget():
    one = engine(count=2)
    a, b = [1] * 50, [2] * 50
    first = one.generate(a, GREEDY, plan="medium:2>big")
    one.generate(b, GREEDY, plan="medium:2>big")
    assert one.generate(a, GREEDY, plan="medium:2>big").stats.reused_tokens >= 49
    tight = engine(count=2, cache_bytes=1)
    tight.generate(a, GREEDY, plan="medium:2>big")
    tight.generate(b, GREEDY, plan="medium:2>big")
    assert len(tight._conversations) == 1
    again = tight.generate(a, GREEDY, plan="medium:2>big")
    assert again.stats.reused_tokens == 0 and again.token_ids == first.token_ids


def test_the_context_is_refused_or_shortened_as_the_person_chose():
    talk = [{"role": "user", "content": "x" * 60}, {"role": "assistant", "content": "y" * 30}] * 3
    talk.append({"role": "user", "content": "last"})
    with pytest.raises(hsd.PromptError, match=r"\d+ tokens, and the context holds 128"):
        engine(count=2, context=128).generate(talk, GREEDY)
    dropping = engine(count=2, context=128, overflow="drop")
    events = list(dropping.stream(talk, GREEDY, plan="big"))
    assert isinstance(events[0], Started) and events[0].dropped_turns == 3
    with pytest.raises(hsd.PromptError, match="context holds"):
        dropping.generate("z" * 500, GREEDY)


def test_a_reply_ends_where_the_context_does():
    one = engine(count=2, context=40)
    reply = one.generate([1] * 30, SamplingParams(temperature=0, max_tokens=100), plan="medium:4>big")
    assert reply.finish_reason == "length" and reply.stats.tokens == 10


# --- events, seeds, control


@pytest.mark.parametrize("unset", [{"seed": -1}, {"top_k": -1}, {"max_tokens": -1}])
def test_minus_one_is_as_good_as_not_set(unset):
    assert SamplingParams(seed=-1) == SamplingParams() == SamplingParams(top_k=-1)
    asked = {"temperature": 1.5, "max_tokens": 8, **unset}
    one = engine(count=2, context=64)
    replies = [one.generate("hello", SamplingParams(**asked)) for _ in range(4)]
    assert len({reply.text for reply in replies}) > 1
    assert len({reply.seed for reply in replies}) == 4 and all(reply.seed >= 0 for reply in replies)
    if "max_tokens" in unset:
        assert max(len(reply.token_ids) for reply in replies) > 8


@pytest.mark.parametrize("field", ["seed", "top_k", "max_tokens"])
def test_minus_one_point_something_and_true_are_still_impossible(field):
    for value in (-1.5, True, "-1"):
        with pytest.raises(hsd.ConfigError, match=field):
            SamplingParams(**{field: value})


@pytest.mark.parametrize("turn", [{"content": None}, {}, {"content": None, "tool_calls": []}])
def test_a_turn_of_the_assistant_without_words_is_an_empty_turn(turn):
    one = engine(count=2)
    before, after = {"role": "user", "content": "hello"}, {"role": "user", "content": "and now"}
    empty = one.generate([before, {"role": "assistant", "content": ""}, after], GREEDY)
    assert one.generate([before, {"role": "assistant", **turn}, after], GREEDY).token_ids == empty.token_ids
    # At the end it is a reply that has not begun.
    assert one.generate([before, {"role": "assistant", **turn}], GREEDY).token_ids
    for role in ("user", "system"):
        with pytest.raises(hsd.PromptError, match="not of the form"):
            one.generate([{"role": role, "content": None}, before], GREEDY)


def test_what_is_computed_otherwise_has_another_backend():
    models = tiny.related(count=2)
    plain = hsd.Engine.from_models(models, tiny.ByteTokenizer()).info.backend
    assert plain == hsd.Engine.from_models(models, tiny.ByteTokenizer()).info.backend
    half = {name: model.to(torch.bfloat16) for name, model in tiny.related(count=2).items()}
    backends = {
        plain,
        hsd.Engine.from_models(half, tiny.ByteTokenizer()).info.backend,
        hsd.Engine.from_models({"other": models["big"]}, tiny.ByteTokenizer()).info.backend,
    }
    assert len(backends) == 3
    stepped = hsd.Engine.from_models(models, tiny.ByteTokenizer())
    stepped._models["big"] = LeanModel("big", models["big"], 512)
    assert stepped.info.backend not in backends


def test_events_come_per_round_and_add_up_to_the_reply():
    events = list(engine().stream("hello", SamplingParams(temperature=1, seed=5, max_tokens=50), plan="tiny:2>big"))
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    reply, tokens = events[-1].reply, [e for e in events if isinstance(e, Tokens)]
    assert "".join(e.text for e in tokens) == reply.text
    assert tuple(i for e in tokens for i in e.ids) == reply.token_ids
    assert tuple(p for e in tokens for p in e.provenance) == reply.stats.provenance
    assert sum(bool(e.ids) for e in tokens) == reply.stats.target_passes
    json.dumps(list(reply.token_ids))


@pytest.mark.parametrize("rule", ["block", "token"])
def test_a_seed_reproduces_a_reply_whatever_the_caches_hold(rule):
    one, params = engine(), SamplingParams(temperature=1.0, seed=7, max_tokens=40)
    first = one.generate("hello", params, plan="lookup:2>tiny:2>medium:3>big", verification=rule)
    one.generate("something else", params, plan="big")
    again = one.generate("hello", params, plan="lookup:2>tiny:2>medium:3>big", verification=rule)
    other = one.generate("hello", SamplingParams(temperature=1.0, seed=8, max_tokens=40), plan="tiny:2>big")
    assert first.token_ids == again.token_ids != other.token_ids
    assert first.seed == 7 and other.stats.verification == "block"


def test_a_cancelled_reply_stops_within_a_round_and_leaves_the_caches_good():
    one, cancel = engine(), threading.Event()
    params = SamplingParams(temperature=0, max_tokens=400)
    rounds = 0
    for event in one.stream("hello", params, plan="tiny:2>big", cancel=cancel):
        rounds += isinstance(event, Tokens) and bool(event.ids)
        if rounds == 3:
            cancel.set()
        if isinstance(event, Finished):
            assert event.reply.finish_reason == "cancelled" and event.reply.stats.target_passes == 3
            part = event.reply.token_ids
    whole = one.generate("hello", params, plan="tiny:2>big")
    assert whole.token_ids[: len(part)] == part == engine().generate("hello", params, plan="big").token_ids[: len(part)]


def test_closing_a_stream_frees_the_engine_at_once():
    one = engine()
    stream = one.stream("hello", SamplingParams(temperature=0, max_tokens=400), plan="tiny:2>big")
    next(stream), next(stream)
    stream.close()
    assert (
        one.generate("hello", GREEDY, plan="big").token_ids == engine().generate("hello", GREEDY, plan="big").token_ids
    )
    assert one.stats.summary()["rows"]["replies"] == 2


def test_a_thread_that_would_wait_for_itself_is_told():
    one = engine(count=2)
    stream = one.stream("a", GREEDY, plan="big")
    next(stream)
    with pytest.raises(hsd.HsdError, match="still being streamed"):
        one.generate("b", GREEDY, plan="big")
    stream.close()
    assert one.generate("b", GREEDY, plan="big").finish_reason in ("stop", "length")


def test_other_threads_wait_their_turn():
    one, out = engine(), {}

    def ask(name: str) -> None:
        out[name] = one.generate(name, GREEDY, plan="tiny:2>big").token_ids

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert out == {name: engine().generate(name, GREEDY, plan="big").token_ids for name in "abcd"}


def test_the_time_limit_ends_a_reply_with_what_there_is():
    one = engine()
    for model in one._models.values():

        def slow(ids, cache, last, forward=model.forward):
            time.sleep(0.02)
            return forward(ids, cache, last)

        model.forward = slow
    reply = one.generate("hello", SamplingParams(temperature=0, max_tokens=400, time_limit=0.3), plan="big")
    assert reply.finish_reason == "timeout" and 0 < reply.stats.tokens < 40


def test_a_stop_string_ends_the_reply_before_it():
    one = engine()
    text = one.generate(
        "hello", SamplingParams(temperature=0, max_tokens=60, banned_ids=tuple(range(128, 256))), plan="big"
    ).text
    stop = text[7:10]
    for plan in ("big", "tiny:5>big"):
        params = SamplingParams(temperature=0, max_tokens=60, banned_ids=tuple(range(128, 256)), stop=(stop,))
        reply = one.generate("hello", params, plan=plan)
        assert reply.finish_reason == "stop" and reply.text == text[: text.index(stop)]


# --- failures


@pytest.mark.parametrize("level", ["tiny", "big"])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), None, float("inf")], ids=["raises", "NaN", "inf"])
def test_a_failing_model_ends_the_reply_and_the_engine_goes_on(level, error):
    one = engine()
    whole = one.generate("hello", GREEDY, plan="tiny:2>big").token_ids
    one.forget()
    fail(one._models[level], 6, error)
    reply = one.generate("hello", GREEDY, plan="tiny:2>big")
    assert reply.finish_reason == "error" and f"'{level}'" in reply.error
    assert reply.token_ids == whole[: len(reply.token_ids)]
    del one._models[level].forward
    assert one.generate("hello", GREEDY, plan="tiny:2>big").token_ids == whole


def test_a_dead_gpu_context_asks_for_a_reload():
    one = engine(count=2)
    one.generate("hi", GREEDY, plan="big")
    fail(one._models["big"], 3, RuntimeError("CUDA error: x"))
    assert one.generate("hello", GREEDY, plan="big").finish_reason == "error"
    with pytest.raises(hsd.LoadError, match="GPU stopped working"):
        one.generate("hello", GREEDY, plan="big")


def test_filters_that_leave_no_token_are_one_sentence():
    params = SamplingParams(temperature=1, max_tokens=5, banned_ids=tuple(range(tiny.END + 1)))
    reply = engine(count=2).generate("hello", params, plan="medium:2>big")
    assert reply.finish_reason == "error" and "banned" in reply.error


@pytest.mark.parametrize(
    "plan",
    ["", "nonsense:2>big", "big:3", "tiny>big", "big:2>tiny", "tiny:0>big", "tiny:10000>big", "tiny:2>lookup:2>big"],
)
def test_an_impossible_plan_is_one_sentence(plan):
    with pytest.raises(hsd.ConfigError) as caught:
        engine().generate("hello", GREEDY, plan=plan)
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize("prompt", ["", [], [999], [-1], [{"role": "user", "content": ""}]])
def test_an_impossible_prompt_is_one_sentence(prompt):
    with pytest.raises(hsd.PromptError):
        engine(count=2).generate(prompt, GREEDY)


@pytest.mark.parametrize("prompt", [[5], [tiny.USER], [tiny.USER, tiny.END, tiny.ASSISTANT]])
def test_a_prompt_of_one_token_or_of_special_tokens_alone_works(prompt):
    one = engine()
    reply = one.generate(prompt, GREEDY, plan="tiny:3>medium:3>big")
    assert reply.token_ids == one.generate(prompt, GREEDY, plan="big").token_ids


# --- families


def test_padding_differs_inside_a_family_and_never_reaches_a_reply():
    family = tiny.related(count=2)
    family["big"].resize_token_embeddings(tiny.VOCAB + 32)
    with torch.no_grad():
        family["big"].get_output_embeddings().weight[tiny.VOCAB :] = 5.0
    one = hsd.Engine.from_models(family, tiny.ByteTokenizer())
    reply = one.generate("x", SamplingParams(temperature=1.5, max_tokens=60, seed=1), plan="medium:3>big")
    assert max(reply.token_ids) <= tiny.END


@pytest.mark.parametrize("shape", ["mamba", "qwen3-next"])
def test_a_draft_that_cannot_be_cut_is_left_out_and_such_a_target_decodes_plainly(shape):
    llama, other = tiny.model("llama"), tiny.model(shape)
    family = hsd.Engine.from_models({"odd": other, "big": llama}, tiny.ByteTokenizer())
    assert family.info.models == ("big",) and "cannot be cut" in family.info.dropped[0].reason
    assert family.generate("x", GREEDY).stats.plan.endswith("big")
    plain = hsd.Engine.from_models({"small": llama, "odd": other}, tiny.ByteTokenizer())
    assert any("plainly" in note for note in plain.info.notes)
    assert plain.generate("x", GREEDY).stats.plan == "odd"
    if "small" in plain.info.models:
        with pytest.raises(hsd.ConfigError, match="plainly"):
            plain.generate("x", GREEDY, plan="small:2>odd")
    else:  # a recurrent model has no vocabulary of the same size here
        assert plain.info.dropped


def test_a_draft_with_fewer_tokens_is_left_out_with_its_reason():
    family = {"tiny": tiny.model("llama", vocab=100), "big": tiny.model("llama")}
    one = hsd.Engine.from_models(family, tiny.ByteTokenizer())
    assert one.info.models == ("big",) and "100 tokens" in one.info.dropped[0].reason


# --- statistics


def test_scoring_prices_every_pair_and_leaves_the_caches_right():
    one = engine(noise=0.02)
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=120)
    reply = one.generate("hello hello hello", params, plan="tiny:2>big")
    tiny.learn(one)
    scored = one.planner.acceptances(1.0)
    names = ("lookup", *one.info.models)
    assert set(scored) == {(d, v) for i, v in enumerate(names) if i for d in names[:i]}
    assert all(e.positions == reply.stats.tokens for e in scored.values())
    assert one.generate("hello hello hello", params, plan="tiny:2>big").token_ids == reply.token_ids
    talk = [{"role": "user", "content": "hello hello hello"}, {"role": "assistant", "content": reply.text}]
    follow = [*talk, {"role": "user", "content": "and"}]
    assert (
        one.generate(follow, GREEDY, plan="big").token_ids
        == engine(noise=0.02).generate([*one._prompts.build(follow)], GREEDY, plan="big").token_ids
    )


def test_the_scored_acceptance_is_the_rate_at_which_drafts_are_accepted():
    one = engine(count=2, noise=0.1)
    kept = proposed = 0
    for seed in range(12):
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=150, banned_ids=(tiny.END,))
        reply = one.generate("hello", params, plan="medium:1>big", verification="token")
        tiny.learn(one)
        kept, proposed = kept + reply.stats.levels[0].accepted, proposed + reply.stats.levels[0].proposed
    estimate = one.planner.acceptances(1.0)["medium", "big"]
    error = (estimate.rate * (1 - estimate.rate) / proposed) ** 0.5
    assert abs(kept / proposed - estimate.rate) < 4 * (error + estimate.standard_error)


def test_idle_work_stops_when_somebody_asks():
    one = engine()
    one.generate("hello", SamplingParams(temperature=1, seed=1, max_tokens=100), plan="big")
    asked = iter([False, False, False, True])
    one.learn(lambda: next(asked, True))
    assert set(one.planner.acceptances(1.0)) == {("lookup", "big")}, "which takes no pass"
    tiny.learn(one)
    assert ("tiny", "big") in one.planner.acceptances(1.0)


def test_without_a_data_folder_no_file_is_touched(own_home):
    one = engine(count=2)
    one.generate("hello", GREEDY)
    tiny.learn(one)
    one.close()
    assert not list(own_home.iterdir())
    with pytest.raises(hsd.LoadError, match="closed"):
        one.generate("hello", GREEDY)


def test_statistics_outlive_the_engine(tmp_path):
    with engine(count=2, data_dir=tmp_path) as one:
        one.generate("hello", SamplingParams(temperature=1, seed=1, max_tokens=60), plan="medium:2>big")
        tiny.learn(one)
    with engine(count=2, data_dir=tmp_path) as two:
        assert ("medium", "big") in two.planner.acceptances(1.0)
        assert two.explain(1.0)["acceptances"]


def test_auto_is_plain_decoding_where_no_draft_can_pay():
    """Drafts as dear as the target and never accepted."""
    family = {"bad": tiny.model("llama", seed=9, width=64, layers=4), "big": tiny.model("llama", width=32)}
    one = hsd.Engine.from_models(family, tiny.ByteTokenizer())
    for seed in range(4):
        one.generate("hello", SamplingParams(temperature=1, seed=seed, max_tokens=200), plan="big")
        tiny.learn(one)
    report = one.explain(1.0)
    assert "bad" not in report["plan"]


def test_with_enough_positions_plans_are_compared_by_replay():
    one = engine(noise=0.02)
    assert comparable(one.planner.evidence.positions(1.0)) == []
    for seed in range(6):
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=120, banned_ids=(tiny.END,))
        one.generate("hello", params, plan="tiny:2>big")
        tiny.learn(one)
    report = one.explain(1.0)
    assert report["sure"] and len(report["alternatives"]) <= 13, "only the plans that were replayed are ranked"
    assert {"big"} <= {a["plan"] for a in report["alternatives"]} | {report["plan"]}
    assert report["forecast_ms_per_token"] <= report["plain_ms_per_token"] * 1.0001
    assert str(one.planner.plan_for(1.0).plan) == report["plan"], "decided once, used until a reply is finished"


# --- what a hostile reader found


def test_three_conversations_go_least_recently_used_first():
    one = engine(count=2)
    prompts = [[n] * 40 for n in (1, 2, 3)]
    for prompt in prompts:
        one.generate(prompt, GREEDY, plan="medium:2>big")
    one.generate(prompts[0], GREEDY, plan="medium:2>big")
    one._conversations._budget = sum(c.nbytes for c in one._conversations._held) - 1
    one._conversations.trim()
    assert [c.tokens[0] for c in one._conversations._held] == [3, 1]


def test_what_waits_to_be_scored_keeps_no_memory():
    import gc
    import weakref

    one = engine(count=2, cache_bytes=1)
    seen = []
    for n in range(5):
        one.generate([n + 1] * 40, GREEDY, plan="medium:2>big")
        seen.append(weakref.ref(one._conversations._held[-1]))
    gc.collect()
    assert sum(ref() is not None for ref in seen) == 1
    one.forget()
    gc.collect()
    assert not any(ref() for ref in seen)


@pytest.mark.parametrize("how", ["cancel", "time"])
def test_a_long_prompt_can_be_stopped_while_it_is_read(how):
    one, cancel = engine(count=2, context=512), threading.Event()
    one.generate([9], GREEDY, plan="big")
    for model in one._models.values():

        def slow(ids, cache, last, forward=model.forward):
            time.sleep(0.05)
            cancel.set()
            return forward(ids, cache, last)

        model.forward = slow
    params = SamplingParams(temperature=0, max_tokens=20, time_limit=0.04 if how == "time" else None)
    flag = cancel if how == "cancel" else threading.Event()
    *_, last = one.stream([1, 2] * 240, params, plan="medium:2>big", cancel=flag)
    assert last.reply.finish_reason == ("timeout" if how == "time" else "cancelled") and not last.reply.token_ids
    assert (
        last.reply.stats.prefill_seconds > 0.04 and last.reply.stats.prefill_seconds > last.reply.stats.decode_seconds
    )
    for model in one._models.values():
        del model.forward
    whole = one.generate([1, 2] * 240, GREEDY, plan="medium:2>big")
    assert whole.token_ids == engine(count=2, context=512).generate([1, 2] * 240, GREEDY, plan="big").token_ids


def test_replies_without_a_seed_differ_and_say_which_was_drawn():
    one, params = engine(count=2), SamplingParams(temperature=1.5, max_tokens=30)
    first, second = (one.generate("hello", params, plan="medium:2>big") for _ in range(2))
    assert first.seed != second.seed and first.token_ids != second.token_ids
    again = SamplingParams(temperature=1.5, max_tokens=30, seed=first.seed)
    assert one.generate("hello", again, plan="medium:2>big").token_ids == first.token_ids


@pytest.mark.parametrize("shape", ["llama", "gpt-neox"])
def test_an_interrupt_inside_a_pass_leaves_nothing_wrong_behind(shape):
    family = tiny.related(shape, count=2, noise=0.03)
    one = hsd.Engine.from_models(family, tiny.ByteTokenizer())
    want = one.generate("hello there", GREEDY, plan="medium:3>big").token_ids
    one.forget()
    layer = (family["big"].model.layers if shape == "llama" else family["big"].gpt_neox.layers)[-1]
    sound, left = one._models["big"].forward, iter(range(4))

    def interrupted(ids, cache, last):
        if next(left, None) is None:
            hook = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            try:
                return sound(ids, cache, last) if shape == "gpt-neox" else (_ for _ in ()).throw(KeyboardInterrupt)
            finally:
                hook.remove()
        return sound(ids, cache, last)

    one._models["big"].forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        for event in one.stream("hello there", GREEDY, plan="medium:3>big"):
            assert not isinstance(event, Finished)
    del one._models["big"].forward
    assert one.generate("hello there", GREEDY, plan="medium:3>big").token_ids == want


def test_a_failure_outside_the_models_ends_the_reply_too():
    class Breaking(tiny.ByteTokenizer):
        def decode(self, token_ids, skip_special_tokens=False):
            if len(token_ids) > 6:
                raise RuntimeError("no such token")
            return super().decode(token_ids, skip_special_tokens)

    one = hsd.Engine.from_models(tiny.related(count=2), Breaking())
    params = SamplingParams(temperature=0, max_tokens=24, banned_ids=tuple(range(128)))
    reply = one.generate([1, 2, 3], params, plan="medium:8>big")
    assert reply.finish_reason in ("error", "length")
    assert one.generate([1, 2, 3], GREEDY, plan="big").finish_reason in ("error", "length", "stop")


def test_a_stream_can_be_closed_by_another_thread_and_so_can_the_engine():
    one = engine()
    stream = one.stream("hello", SamplingParams(temperature=0, max_tokens=400), plan="tiny:2>big")
    events, reader = [], None

    def consume() -> None:
        for event in stream:
            events.append(event)
            time.sleep(0.01)

    reader = threading.Thread(target=consume)
    reader.start()
    time.sleep(0.15)
    stream.close()
    reader.join(5)
    assert not reader.is_alive() and len(events) < 200
    with pytest.raises(KeyError), engine() as other:
        begun = other.stream("hello", GREEDY, plan="big")
        next(begun)
        raise KeyError


def test_a_request_that_waits_can_be_cancelled():
    one, cancel = engine(count=2), threading.Event()
    first = one.stream("a", GREEDY, plan="big")
    next(first)
    out = []
    waiting = threading.Thread(target=lambda: out.extend(one.stream("b", GREEDY, plan="big", cancel=cancel)))
    waiting.start()
    time.sleep(0.1)
    cancel.set()
    waiting.join(5)
    assert out[-1].reply.finish_reason == "cancelled" and not out[-1].reply.token_ids
    first.close()


def test_a_slow_listener_is_not_charged_to_the_reply():
    one = engine(count=2)
    one.generate("hello", GREEDY, plan="big")
    stream = one.stream("hello", GREEDY, plan="big")
    stats = [(time.sleep(0.02), event)[1] for event in stream][-1].reply.stats
    assert stats.seconds < 0.02 * stats.target_passes and stats.decode_seconds >= stats.model_seconds


def test_reading_a_prompt_is_no_sample_of_a_steps_cost():
    one = engine(count=2)
    one.generate([1] * 10, GREEDY, plan="big")
    assert not one.planner.profile._costs["big"].known(9) and one.planner.profile._costs["big"].known(1)


def test_what_a_stop_string_cut_off_does_not_come_back():
    one = engine()
    params = SamplingParams(temperature=0, max_tokens=60, banned_ids=tuple(range(128, 256)))
    text = one.generate("hello", params, plan="big").text
    cut = SamplingParams(temperature=0, max_tokens=60, banned_ids=tuple(range(128, 256)), stop=(text[7:10],))
    reply = one.generate("hello", cut, plan="big")
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": reply.text}]
    prompt = one._prompts.build([*talk, {"role": "user", "content": "x"}])
    assert text[7:10] not in one.tokenizer.decode(prompt)


@pytest.mark.parametrize("name", ["big model", "x:3", "_a", "a>b", ""])
def test_a_name_that_no_plan_can_hold_is_refused(name):
    with pytest.raises(hsd.ConfigError, match="name of a model"):
        hsd.Engine.from_models({name: tiny.model(), "big": tiny.model()}, tiny.ByteTokenizer())


def test_a_draft_that_is_no_language_model_is_left_out():
    one = hsd.Engine.from_models({"odd": torch.nn.Linear(2, 2), "big": tiny.model()}, tiny.ByteTokenizer())
    assert one.info.models == ("big",) and "cannot be used" in one.info.dropped[0].reason
    with pytest.raises(hsd.LoadError, match="no causal language model"):
        hsd.Engine.from_models({"big": torch.nn.Linear(2, 2)}, tiny.ByteTokenizer())


def test_the_smallest_context_works():
    one = engine(count=2, context=16)
    assert one.generate([1, 2, 3], GREEDY).stats.tokens == 13
