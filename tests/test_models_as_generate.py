"""Replies of models of many kinds are those of transformers' `generate`; what cannot be so is refused at load."""

from __future__ import annotations

from typing import Any

import models as tiny
import pytest
import torch
from test_loading import tokenizer

import hsd
from hsd.runtime import Reader, TransformersModel, wrap


def ids_of(count: int, seed: int = 1) -> list[int]:
    return torch.randint(6, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def generated(model: Any, ids: list[int], count: int) -> tuple[int, ...]:
    """What `generate` says, without tokens that the tokenizer has no words for."""
    beyond = list(range(tiny.END + 1, tiny.VOCAB))
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            suppress_tokens=beyond,
        )
    return tuple(out[0, len(ids) :].tolist())


def endless(models: dict[str, Any]) -> hsd.Engine:
    """An engine whose replies do not end before their length."""
    words = tiny.ByteTokenizer()
    words.eos_token_id = None  # type: ignore[assignment]
    for model in models.values():
        model.config.eos_token_id = model.generation_config.eos_token_id = None
    return hsd.Engine.from_models(models, words, context=512)


def same(engine: hsd.Engine, model: Any, ids: list[int], count: int, plan: str) -> tuple[int, ...]:
    count = min(count, engine.info.context - len(ids))
    reply = engine.generate(ids, hsd.SamplingParams(temperature=0, max_tokens=count), plan=plan)
    assert reply.error is None and reply.token_ids == generated(model, ids, count), (len(ids), plan)
    return reply.token_ids


@pytest.mark.parametrize("shape", ["mamba", "mamba-2", "falcon-mamba", "jamba", "bamba", "qwen3-next", "gpt-2"])
def test_long_prompts_and_second_turns_are_read_as_generate_reads_them(shape):
    model = tiny.model(shape)
    if shape == "mamba":
        with torch.no_grad():  # its own initial weights hardly look back
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.mul_(4)
    engine = endless({"big": model})
    ids = ids_of(300)
    reply = same(engine, model, ids[:60], 6, "big")
    same(engine, model, [*ids[:60], *reply, *ids[60:70]], 6, "big")
    same(engine, model, ids, 6, "big")
    if shape in ("mamba", "falcon-mamba", "jamba"):
        assert any("token by token" in note for note in engine.info.notes)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("recurrent-gemma", "it keeps no cache"),
        ("gpt-1", "keeps no cache"),
        ("bert", "it keeps no cache"),
    ],
)
def test_what_cannot_go_on_with_a_text_is_refused_at_load_and_left_out_as_a_draft(shape, said):
    model = tiny.model(shape)
    with pytest.raises(hsd.LoadError) as caught:
        hsd.Engine.from_models({"odd": model}, tiny.ByteTokenizer(), context=128)
    assert said in caught.value.message and "Choose a model" in caught.value.hint
    family = hsd.Engine.from_models({"odd": model, "big": tiny.model()}, tiny.ByteTokenizer(), context=128)
    assert family.info.models == ("big",) and said in family.info.dropped[0].reason


def test_a_model_that_reads_in_both_directions_or_computes_no_numbers_is_refused(monkeypatch):
    model = tiny.model("gemma3")
    monkeypatch.setattr("transformers.models.gemma3.modeling_gemma3.create_causal_mask", lambda **_: None)
    monkeypatch.setattr(
        "transformers.models.gemma3.modeling_gemma3.create_sliding_window_causal_mask", lambda **_: None
    )
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(hsd.LoadError, match="both directions"):
        wrap("odd", model, 128)
    broken = tiny.model("gpt-neox")
    with torch.no_grad():
        broken.gpt_neox.layers[0].mlp.dense_h_to_4h.weight[0, 0] = torch.nan
    with pytest.raises(hsd.LoadError, match="no finite numbers"):
        wrap("odd", broken, 128)


@pytest.mark.parametrize("part", ["lm_head", "model.norm", "model.layers.0.mlp.up_proj"])
def test_a_model_in_memory_that_computes_no_numbers_is_refused_and_left_out_as_a_draft(part):
    model = tiny.model()
    with torch.no_grad():
        model.get_submodule(part).weight.fill_(torch.nan)
    with pytest.raises(hsd.LoadError, match="no finite numbers"):
        hsd.Engine.from_models({"big": model}, tiny.ByteTokenizer(), context=128)
    family = hsd.Engine.from_models({"odd": model, "big": tiny.model()}, tiny.ByteTokenizer(), context=128)
    assert family.info.models == ("big",) and "no finite numbers" in family.info.dropped[0].reason


def test_the_command_line_refuses_such_a_model_in_one_sentence(tmp_path, capsys, monkeypatch):
    import sys

    from hsd.cli import run

    tiny.model("gpt-1").save_pretrained(tmp_path / "big")
    tokenizer().save_pretrained(tmp_path / "big")
    (tmp_path / "m.yaml").write_text("families: {f: {context: 64, models: {big: ./big}}}")
    command = ["hsd", "generate", "hello", "--family", f"{tmp_path}/m.yaml#f", "--data-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        run()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "keeps no cache" in said and "Traceback" not in said


@pytest.mark.parametrize("shape", ["phi3", "phimoe"])
def test_a_text_that_grows_beyond_the_original_length_is_read_anew_as_generate_does(shape):
    family = tiny.related(shape, count=2, noise=0.05)
    engine = endless(family)
    ids = ids_of(300)
    for length in (60, 64, 65, 300):
        for plan in ("big", "medium:3>big", "lookup:2>medium:4>big"):
            same(engine, family["big"], ids[:length], 8, plan)
    assert engine.info.context == 512
    same(engine, family["big"], ids[:40], 8, "medium:3>big")  # and back


def test_a_cache_that_is_read_anew_can_be_copied_cut_and_fails_cleanly():
    model = tiny.model("phi3")
    ids, other = ids_of(90), ids_of(90, seed=2)
    wrapped = wrap("m", model, 512)
    assert not isinstance(wrapped, TransformersModel) and wrapped.cuttable
    reader = Reader(wrapped, wrapped.new_cache())

    def right(text: list[int], shared: int) -> None:
        reader.rewind(shared)
        with torch.inference_mode():
            want = model(torch.tensor([text]), use_cache=False).logits[0, -1:]
        torch.testing.assert_close(reader.read(text, 1), want, atol=2e-5, rtol=1e-4)

    right(ids[:62], 0)
    right(ids[:66], 62)
    assert reader.copy(63).length == 63 and reader.cache.nbytes > 0
    right([*ids[:60], *other[:3]], 60)
    right([*ids[:60], *other[:9]], 63)
    hook = model.model.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reader.read([*ids[:60], *other[:12]], 1)
    hook.remove()
    right([*ids[:60], *other[:12]], 69)
    right([*ids[:60], *ids[:80]], 60)
    right(ids[:50], 50)


@pytest.mark.parametrize("shape", ["llama-longrope", "gpt-2"])
def test_a_context_ends_where_a_model_has_no_further_positions(shape):
    family = tiny.related(shape, count=2, noise=0.05, context=64 if shape == "gpt-2" else 512)
    engine = endless(family)
    assert engine.info.context == 64
    if shape == "llama-longrope":
        assert any("other factors" in note for note in engine.info.notes)
    for plan in ("big", "medium:3>big"):
        reply = engine.generate(ids_of(58), hsd.SamplingParams(temperature=0, max_tokens=50), plan=plan)
        assert reply.finish_reason == "length" and len(reply.token_ids) == 6
        same(engine, family["big"], ids_of(58), 6, plan)
