"""Families from folders through the real loading code: transformers, bitsandbytes, accelerate."""

from __future__ import annotations

import shutil
from pathlib import Path

import models as tiny
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hsd
from hsd.config import ModelSpec
from hsd.loading.hub import fetch

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
    from hsd.loading.source import read_model

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
    with pytest.raises(hsd.LoadError, match="missing"):
        fetch(ModelSpec("x", "builtin:no-such"))


def test_the_dtype_can_be_chosen_and_an_unknown_one_is_refused(folder, tmp_path):
    with hsd.Engine.load(f"{folder}/models.yaml#mine", dtype="bfloat16", data_dir=tmp_path) as engine:
        assert {m.dtype for m in engine._models.values()} == {"bfloat16"}
    with pytest.raises(hsd.LoadError, match="float33"):
        hsd.Engine.load(f"{folder}/models.yaml#mine", dtype="float33", data_dir=tmp_path)
