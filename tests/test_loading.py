"""Families from folders through the real loading code: transformers, bitsandbytes, accelerate."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import models as tiny
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hsd
from hsd.builtin import stored
from hsd.builtin.models import LADDERS, build
from hsd.builtin.tokenizer import train
from hsd.config import Family, ModelSpec
from hsd.loading.estimate import GB, NF4_BYTES, Place
from hsd.loading.estimate import fit as estimate
from hsd.loading.explain import explained
from hsd.loading.hub import fetch
from hsd.loading.shapes import shape_of
from hsd.loading.source import held_bytes, read_model, read_tokenizer

GREEDY = hsd.SamplingParams(temperature=0, max_tokens=16)
TEMPLATE = "{% for m in messages %}<u>{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A real byte-level tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *extra])}
    fast = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    out = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<e>", additional_special_tokens=["<u>", "<a>"])
    out.chat_template = TEMPLATE
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A family of three on disk, and the file that describes it."""
    root = tmp_path_factory.mktemp("family")
    for name, model in tiny.related(count=3, noise=0.05).items():
        model.save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    (root / "models.yaml").write_text(
        "families: {mine: {context: 256, models: {small: ./small, medium: ./medium, big: ./big}}}"
    )
    return root


def variant(folder: Path, tmp_path: Path, text: str) -> Path:
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    (copied / "models.yaml").write_text(text)
    return copied


def test_a_family_loads_and_decodes_the_targets_ids(folder, tmp_path):
    seen: list[hsd.LoadProgress] = []
    with hsd.Engine.load(f"{folder}/models.yaml#mine", data_dir=tmp_path, progress=seen.append) as engine:
        assert engine.info.models == ("small", "medium", "big") and not engine.info.dropped
        plain = engine.generate("hello", GREEDY, plan="big")
        assert engine.generate("hello", GREEDY, plan="lookup:2>small:2>medium:3>big").token_ids == plain.token_ids
        assert engine.generate("hello", GREEDY).stats.speedup is not None
    assert {"small", "medium", "big"} <= {p.model for p in seen} and any("measuring" in p.step for p in seen)
    again: list[hsd.LoadProgress] = []
    hsd.Engine.load(f"{folder}/models.yaml#mine", data_dir=tmp_path, progress=again.append).close()
    assert not any("measuring" in p.step for p in again), "costs of this machine were measured before"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_load_and_a_stack_gives_their_own_plain_ids(folder, tmp_path, quantization):
    text = "families: {q: {context: 256, models: {small: ./small, big: {path: ./big, quantization: %s}}}}"
    copied = variant(folder, tmp_path, text % quantization)
    with hsd.Engine.load(f"{copied}/models.yaml#q", device="cpu", dtype="float32", data_dir=tmp_path) as engine:
        plain = engine.generate("hello", GREEDY, plan="big")
        assert engine.generate("hello", GREEDY, plan="small:3>big").token_ids == plain.token_ids
        assert f"/{quantization}/float32" in engine.planner.family


def test_quantization_changes_the_weights(folder):
    plain = read_model(ModelSpec("big", str(folder / "big")), "cpu", "float32")
    packed = read_model(ModelSpec("big", str(folder / "big"), quantization="nf4"), "cpu", "float32")
    one, other = (m.model.layers[0].mlp.up_proj.weight.float() for m in (plain, packed))
    assert one.shape == other.shape and 0 < (one - other).abs().max() < one.abs().max()


def test_a_draft_with_another_tokenizer_is_left_out(folder, tmp_path):
    copied = variant(folder, tmp_path, (folder / "models.yaml").read_text())
    shuffled = tokenizer()
    vocab = shuffled.get_vocab()
    swapped = {**vocab, "A": vocab["B"], "B": vocab["A"]}
    fast = Tokenizer(models.BPE(vocab={k: v for k, v in swapped.items() if not k.startswith("<")}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<e>", additional_special_tokens=["<u>", "<a>"]
    ).save_pretrained(copied / "small")
    with hsd.Engine.load(f"{copied}/models.yaml#mine", data_dir=tmp_path) as engine:
        assert engine.info.models == ("medium", "big")
        assert engine.info.dropped[0].model == "small" and "tokenizer" in engine.info.dropped[0].reason


@pytest.mark.parametrize("damage", ["missing", "truncated", "no config"])
def test_a_damaged_draft_is_left_out_and_a_damaged_target_is_one_sentence(folder, tmp_path, damage):
    for name in ("small", "big"):
        copied = variant(folder, tmp_path / name, (folder / "models.yaml").read_text())
        weights = copied / name / "model.safetensors"
        if damage == "missing":
            weights.unlink()
        elif damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        else:
            (copied / name / "config.json").unlink()
        if name == "small":
            with hsd.Engine.load(f"{copied}/models.yaml#mine", data_dir=tmp_path) as engine:
                assert engine.info.models == ("medium", "big") and engine.info.dropped[0].model == "small"
                assert engine.generate("x", GREEDY).token_ids
        else:
            with pytest.raises(hsd.LoadError) as caught:
                hsd.Engine.load(f"{copied}/models.yaml#mine", data_dir=tmp_path)
            assert "'big'" in caught.value.message and "\n" not in str(caught.value)


def test_a_model_that_is_on_no_disk_is_one_sentence_offline():
    with pytest.raises(hsd.LoadError, match=r"not on this disk"):
        hsd.Engine.load("qwen3-8b")


def test_missing_built_in_weights_are_named():
    with pytest.raises(hsd.LoadError, match=r"there is no .*no-such\.gguf"):
        fetch(ModelSpec("x", "builtin:no-such"))


def test_the_dtype_can_be_chosen_and_an_unknown_one_is_refused(folder, tmp_path):
    with hsd.Engine.load(f"{folder}/models.yaml#mine", dtype="bfloat16", data_dir=tmp_path) as engine:
        assert {m.dtype for m in engine._models.values()} == {"bfloat16"}
    with pytest.raises(hsd.LoadError, match="float33"):
        hsd.Engine.load(f"{folder}/models.yaml#mine", dtype="float33", data_dir=tmp_path)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_packed_weights_decode_on_a_processor_and_stay_small(tmp_path, quantization):
    """As on a GPU: bitsandbytes' own layers compute.

    Their arithmetic depends on the width of a pass (int8 looks for outliers over all its rows), so ids are not compared
    here; the logits are, with those of the same weights unpacked.
    """
    tiny.model("llama", width=128).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    spec = ModelSpec("big", str(tmp_path), quantization=quantization)
    packed, unpacked = (read_model(spec, "cpu", "float32", packed=p) for p in (True, False))
    kinds = {type(m).__name__ for m in packed.model.layers.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in kinds and "Linear" not in kinds
    if quantization == "nf4":
        assert packed.model.layers[0].mlp.up_proj.weight.quant_state.nested, "double quantization"
    assert held_bytes(packed) < 0.6 * held_bytes(unpacked)
    ids = torch.tensor([[5, 17, 200, 31]])
    near, exact = packed(ids).logits[0], unpacked(ids).logits[0]
    assert torch.nn.functional.cosine_similarity(near, exact, dim=-1).min() > 0.98
    with hsd.Engine.from_models({"big": packed}, read_tokenizer(spec)) as engine:
        assert len(engine.generate("hello", GREEDY).token_ids) > 0


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_estimate_of_the_weights_is_what_they_take(folder, quantization):
    """bitsandbytes' tables are of fixed size: a few kB per layer, which only models as tiny as these notice."""
    spec = ModelSpec("big", str(folder / "big"), quantization=quantization)
    place = Place("memory", "cpu", 1e12, 1e12)
    estimated = estimate(Family("f", (spec,), target="big"), place, "float32").models[0].weights_gb * GB
    unpacked = held_bytes(read_model(spec, "cpu", "float32"))
    assert unpacked == pytest.approx(estimated, rel=0.02)
    if quantization != "none":
        model = read_model(spec, "cpu", "float32", packed=True)
        tables = sum(
            t.numel() * t.element_size()
            for p in model.parameters()
            if (state := getattr(p, "quant_state", None)) is not None
            for t in (state.code, state.state2.code, state.offset)
        )
        shape = shape_of(spec)
        assert shape is not None
        wide = 4 * (shape.embedding + shape.head + shape.other)
        linear = shape.linear * NF4_BYTES if quantization == "nf4" else shape.linear + 4 * shape.rows
        assert held_bytes(model) - tables == pytest.approx(wide + linear, rel=0.02)


def test_a_model_that_sees_pictures_gives_its_text_part_alone(tmp_path):
    text = tiny.config("gemma3")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.Gemma3Config(text_config=text.to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14})
    torch.manual_seed(0)
    whole = tf.Gemma3ForConditionalGeneration(config).float().eval()
    whole.save_pretrained(tmp_path)
    part = read_model(ModelSpec("g", str(tmp_path)), "cpu", "float32")
    assert type(part).__name__ == "Gemma3ForCausalLM" and part.num_parameters() < whole.num_parameters()
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(part(ids).logits, whole(input_ids=ids).logits)
    packed = read_model(ModelSpec("g", str(tmp_path), quantization="nf4"), "cpu", "float32", packed=True)
    assert packed(ids).logits.shape == (1, 4, tiny.VOCAB)


def test_what_does_not_fit_is_left_out_with_its_reason_and_the_context_shrinks(folder, tmp_path, monkeypatch):
    text = "families: {f: {context: 512, models: {small: ./small, medium: ./medium, big: ./big}}}"
    file = f"{variant(folder, tmp_path, text)}/models.yaml#f"

    def loaded(limit: float) -> hsd.FamilyInfo:
        monkeypatch.setenv("HSD_MEMORY_GB", str(limit))
        with hsd.Engine.load(file, data_dir=tmp_path / str(limit)) as engine:
            assert engine.generate("x", GREEDY).token_ids
            return engine.info

    whole = loaded(1)
    assert whole.memory is not None and len(whole.models) == 3 and not whole.dropped
    assert all(m.measured for m in whole.memory.models) and "were estimated" in whole.memory.verdict
    per = whole.memory.models[0].total_gb
    fewer = loaded(whole.memory.needed_gb - per / 2)
    assert len(fewer.models) == 2 and len(fewer.dropped) == 1
    assert "GB" in fewer.dropped[0].reason and "missed least" in fewer.dropped[0].reason
    with pytest.raises(hsd.LoadError) as caught:
        loaded(0.0001)
    assert "does not fit" in caught.value.message and "0.0 GB free" in caught.value.message
    assert "hsd families" in caught.value.hint


def test_a_context_that_shrank_is_said(folder, tmp_path, monkeypatch):
    text = "families: {f: {context: 8192, models: {big: ./big}}}"
    copied = variant(folder, tmp_path, text)
    tiny.model(context=8192).save_pretrained(copied / "big")
    wanted = hsd.memory_fit(f"{copied}/models.yaml#f", device="cpu")
    monkeypatch.setenv("HSD_MEMORY_GB", str(wanted.needed_gb * 0.6))
    with hsd.Engine.load(f"{copied}/models.yaml#f", device="cpu", data_dir=tmp_path) as engine:
        assert 512 <= engine.info.context < 8192
        assert any(f"{engine.info.context:,} tokens instead of 8,192" in note for note in engine.info.notes)


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    copied = variant(folder, tmp_path, (folder / "models.yaml").read_text())
    config = json.loads((copied / "big" / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (copied / "big" / "config.json").write_text(json.dumps(config))
    (copied / "big" / "own.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    with pytest.raises(hsd.LoadError, match="Python code of its own") as caught:
        hsd.Engine.load(f"{copied}/models.yaml#mine", data_dir=tmp_path)
    assert "trust_remote_code: true" in caught.value.hint and not Path("ran").exists()


def test_weights_in_another_format_and_unknown_kinds_are_one_sentence(folder, tmp_path):
    copied = variant(folder, tmp_path, (folder / "models.yaml").read_text())
    (copied / "big" / "model.safetensors").rename(copied / "big" / "pytorch_model.bin")
    with pytest.raises(hsd.LoadError) as caught:
        hsd.Engine.load(f"{copied}/models.yaml#mine", data_dir=tmp_path)
    assert "safetensors" in caught.value.message and "\n" not in str(caught.value)
    (copied / "big" / "config.json").write_text('{"model_type": "from-the-future", "vocab_size": 10}')
    with pytest.raises(hsd.LoadError) as caught:
        hsd.Engine.load(f"{copied}/models.yaml#mine", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_memory_that_runs_out_is_told_with_the_numbers():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB in all, of which 1.20 GiB is free."
    error = explained(ModelSpec("big", "org/big"), torch.OutOfMemoryError(said))
    assert "2.00 GiB more were wanted, and 1.20 GiB are free" in error.message and "nf4" in error.hint


def test_what_fits_only_packed_stays_packed_and_says_so(tmp_path, monkeypatch):
    tiny.model("llama", width=128, layers=4).save_pretrained(tmp_path / "big")
    tokenizer().save_pretrained(tmp_path / "big")
    text = "families: {f: {context: 512, models: {big: {path: ./big, quantization: nf4, dtype: float32}}}}"
    (tmp_path / "models.yaml").write_text(text)
    whole = hsd.memory_fit(f"{tmp_path}/models.yaml#f", device="cpu")
    assert not whole.packed
    monkeypatch.setenv("HSD_MEMORY_GB", str(whole.needed_gb - 0.5 * whole.models[0].weights_gb))
    with hsd.Engine.load(f"{tmp_path}/models.yaml#f", device="cpu", data_dir=tmp_path) as engine:
        assert any("stay packed" in note for note in engine.info.notes)
        assert engine.info.memory.models[0].weights_gb < 0.5 * whole.models[0].weights_gb
        assert engine.generate("hello", GREEDY).token_ids


def test_truncated_weights_are_told_with_both_sizes(folder, tmp_path):
    copied = variant(folder, tmp_path, (folder / "models.yaml").read_text())
    weights = copied / "big" / "model.safetensors"
    whole = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(hsd.LoadError) as caught:
        hsd.Engine.load(f"{copied}/models.yaml#mine", data_dir=tmp_path)
    assert f"has {whole - 100:,} bytes where its header wants {whole:,}" in caught.value.message


def test_an_engine_that_is_closed_and_dropped_keeps_no_weights(folder, tmp_path):
    engine = hsd.Engine.load(f"{folder}/models.yaml#mine", data_dir=tmp_path)
    engine.generate("hello", GREEDY)
    engine.learn()
    held = [weakref.ref(model) for model in engine._models.values()]
    engine.close()
    del engine
    hsd.free_memory()
    assert not [ref for ref in held if ref() is not None]


def test_a_folder_that_is_stored_in_4_bits_is_read_as_that_whatever_models_yaml_says(tmp_path, caplog):
    folder = tmp_path / "m"
    stored.store(build(LADDERS["try"]["medium"], 512, seed=0), train(["a few words"], 300), folder, nf4_from=0)
    caplog.clear()
    told, silent = (read_model(ModelSpec("x", str(folder), quantization=q), "cpu", None) for q in ("nf4", "none"))
    assert silent.dtype == told.dtype and not getattr(silent, "is_quantized", False)
    for a, b in zip(told.parameters(), silent.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("all_proxy", "foo://127.0.0.1:9"),
        ("HTTPS_PROXY", "http://127.0.0.1:many"),
        ("NO_PROXY", "[::1]"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said_to_be_the_cause(monkeypatch, variable, value):
    import httpx

    monkeypatch.setenv(variable, value)
    with pytest.raises(Exception) as caught:
        httpx.Client()
    error = explained(ModelSpec("big", "org/big"), caught.value)
    assert "proxy that the environment names cannot be used" in error.message and variable.upper() in error.hint
