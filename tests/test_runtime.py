"""The runtime seam: our forward against transformers', caches through cuts, and what a pass costs."""

from __future__ import annotations

import models as tiny
import pytest
import torch

from hsd.bench import BenchRequest, generate
from hsd.errors import HsdError
from hsd.runtime import MAX_WIDTH, LeanModel, Reader, TransformersModel, lean, wrap
from hsd.runtime.costs import StepCosts, bucket
from hsd.runtime.reader import Pass

LEAN = ("llama", "mistral", "qwen2", "qwen3")
OTHERS = ("mistral-window", "gemma3", "smollm3", "gpt-neox", "mixtral")


def reference(model, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def some_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(
    ("shape", "means"),
    [*((shape, LeanModel) for shape in LEAN), *((shape, TransformersModel) for shape in (*LEAN, *OTHERS))],
)
def test_logits_are_those_of_transformers_through_chunks_and_cuts(shape, means):
    model = tiny.model(shape)
    ids, other = some_ids(60), some_ids(9, seed=1)
    whole = reference(model, ids)
    wrapped = means("m", model, 512)
    assert wrapped.cuttable and isinstance(wrap("m", model, 512), TransformersModel)  # on a processor
    reader = Reader(wrapped, wrapped.new_cache())
    torch.testing.assert_close(reader.read(ids[:21], 3), whole[18:21], atol=2e-5, rtol=1e-4)
    # A rejected draft, cut away, must leave nothing behind.
    reader.read(ids[:21] + other, 2)
    reader.rewind(21)
    assert reader.length == 21
    torch.testing.assert_close(reader.read(ids, 39), whole[21:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(reader.read(ids, 1), whole[-1:], atol=2e-5, rtol=1e-4)
    assert [p.width for p in reader.meter.passes] == [21 - 3, 3, 9, 16, 16, 7, 1]


@pytest.mark.parametrize("shape", LEAN)
def test_bf16_stays_within_rounding(shape):
    model = tiny.model(shape).bfloat16()
    ids = some_ids(30)
    whole = reference(model, ids).float()
    wrapped = LeanModel("m", model, 512)
    reader = Reader(wrapped, wrapped.new_cache())
    # Two bf16 orders of summation differ in the last bits of every layer.
    assert (reader.read(ids, 30, widest=30) - whole).abs().max() <= 0.05 * whole.abs().max()


def test_fused_weights_are_held_once_and_the_modules_still_work():
    model = tiny.model("qwen2")
    before = reference(model, [1, 2, 3])
    LeanModel("m", model, 128)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    torch.testing.assert_close(reference(model, [1, 2, 3]), before)


@pytest.mark.parametrize("shape", ["mamba", "qwen3-next"])
def test_a_state_that_cannot_be_cut_is_found_out_and_read_again(shape):
    model = tiny.model(shape)
    wrapped = wrap("m", model, 512)
    assert not wrapped.cuttable
    ids = some_ids(20)
    reader = Reader(wrapped, wrapped.new_cache())
    reader.read(ids, 1)
    reader.rewind(10)
    assert reader.length == 0
    again = reader.read(ids[:10] + ids[:4], 1)
    torch.testing.assert_close(again, reference(model, ids[:10] + ids[:4])[-1:], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
    ],
)
def test_what_a_lean_forward_would_get_wrong_is_refused(change, reason):
    import transformers as tf

    config = tiny.config("llama")
    config.update(change)
    assert reason in (lean.refusal(tf.AutoModelForCausalLM.from_config(config)) or "")


def test_a_cache_grows_without_losing_what_it_holds():
    model = tiny.model("llama", context=2048)
    wrapped = LeanModel("m", model, 2048)
    reader = Reader(wrapped, wrapped.new_cache())
    ids = some_ids(700)
    for end in (100, 250, 257, 600):
        reader.prefill(ids[:end])
    torch.testing.assert_close(reader.read(ids, 2), reference(model, ids)[-2:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "gpt-neox"])
def test_a_pass_that_fails_in_its_last_layer_leaves_nothing_wrong_behind(shape):
    model = tiny.model(shape)
    wrapped = (LeanModel if shape == "llama" else TransformersModel)("m", model, 512)
    reader = Reader(wrapped, wrapped.new_cache())
    ids = some_ids(12)
    reader.read(ids[:8], 1)

    def broken(*_):
        raise RuntimeError("half-way")

    if shape == "llama":
        sound, wrapped.weights.layers[-1].down = wrapped.weights.layers[-1].down, broken
    else:
        hook = model.gpt_neox.layers[-1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="half-way"):
        reader.read(ids[:10], 2)
    if shape == "llama":
        wrapped.weights.layers[-1].down = sound
    else:
        hook.remove()
    torch.testing.assert_close(reader.read(ids, 1), reference(model, ids)[-1:], atol=2e-5, rtol=1e-4)


def test_costs_are_kept_by_width_and_context_and_follow_what_is_measured():
    wrapped = wrap("m", tiny.model("llama", context=1024), 1024)
    costs = StepCosts(wrapped)
    costs.measure(widths=(1, 2, 16), repeats=3)
    assert [(w, at) for at in (0, 1) for w in range(1, 17) if costs.known(w, at)] == [
        (1, 0), (2, 0), (16, 0), (1, 1), (2, 1), (16, 1)
    ]  # fmt: skip
    compared = costs.table()
    assert len(compared) == MAX_WIDTH and compared[8] == pytest.approx((compared[1] + compared[15]) / 2, rel=0.01)
    stored = costs.all_widths()
    assert [width for width, _ in stored] == list(range(1, MAX_WIDTH + 1)) and all(cost.ms > 0 for _, cost in stored)
    assert {width for width, cost in stored if cost.samples in (3, 4)} == {1, 2, 16}
    assert all(cost.samples == 0 for width, cost in stored if width not in (1, 2, 16)), "these lie between the others"
    costs.add([Pass(2, 100, 2, 9.0)] * 40)
    assert costs.cost(2).ms == 9000.0, "replies are followed"
    assert costs.table() == compared, "how widths compare is known only from passes made at the same moments"
    for _ in range(40):
        costs.restore(0, 1, 123.0)
    assert costs.cost(1).ms == 123.0 and costs.cost(1, 600).ms != 123.0
    for width in (0, MAX_WIDTH + 1):
        with pytest.raises(ValueError, match="width"):
            costs.cost(width)
    assert [bucket(c) for c in (0, 511, 512, 2048, 9000)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("means", [LeanModel, TransformersModel])
def test_a_pass_without_room_or_tokens_is_refused_in_a_sentence(means):
    wrapped = means("m", tiny.model("llama", context=64), 64)
    reader = Reader(wrapped, wrapped.new_cache())
    reader.prefill(some_ids(63))
    assert reader.read(some_ids(64), 1).isfinite().all()
    with pytest.raises(HsdError, match="of at most 64"):
        reader.read(some_ids(65), 1)
    assert reader.length == 64
    with pytest.raises(HsdError):
        wrapped.forward([], wrapped.new_cache(), 0)


@pytest.mark.parametrize("means", [LeanModel, TransformersModel])
def test_an_id_that_the_model_does_not_know_is_an_error_and_leaves_nothing_behind(means):
    model = tiny.model("llama")
    wrapped = means("m", model, 512)
    reader = Reader(wrapped, wrapped.new_cache())
    ids = some_ids(12)
    reader.prefill(ids[:8])
    for wrong in (wrapped.vocab, -1):
        with pytest.raises(IndexError):
            reader.read([*ids[:8], wrong], 1)
    torch.testing.assert_close(reader.read(ids, 1), reference(model, ids)[-1:], atol=2e-5, rtol=1e-4)


def test_every_width_has_a_cost_where_measuring_takes_longer_than_it_may(monkeypatch):
    monkeypatch.setattr("hsd.runtime.costs._LONGEST", 0.0)
    monkeypatch.setattr("hsd.runtime.costs._ALLOCATES", 100.0)
    costs = StepCosts(TransformersModel("m", tiny.model("llama"), 256))
    costs.measure(widths=(1, 2), buckets=(0,))
    assert all(costs.cost(width).ms > 0 for width in (1, 2, 3))


def test_the_benchmark_against_generate_compares_as_many_tokens_of_both(monkeypatch):
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(generate, "SHAPE", {**generate.SHAPE, **small, "num_key_value_heads": 1, "vocab_size": 4096})
    lines: list[str] = []
    out = generate.run(BenchRequest(quick=True, tell=lines.append))
    assert [name for name in ("float32", "bfloat16") if out[name]["lowest"] > 0] and len(lines) == 3
    with pytest.raises(HsdError, match="runs on a processor"):
        generate.run(BenchRequest(device="cuda"))
