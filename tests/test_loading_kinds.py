"""Folders that are not a whole model of the right kind: each is refused in one sentence that names what it is."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models as tiny
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from test_loading import GREEDY, tokenizer

import hsd
from hsd.builtin import stored
from hsd.builtin.models import LADDERS, build
from hsd.builtin.tokenizer import train
from hsd.config import Family, ModelSpec
from hsd.loading.cache import damage, hub_folder
from hsd.loading.estimate import Place, fit
from hsd.loading.hub import fetch
from hsd.loading.kinds import cannot_run
from hsd.loading.source import read_model, read_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
CONFIG = json.dumps(tiny.config().to_dict())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A model in a folder."""
    path = tmp_path_factory.mktemp("whole") / "model"
    tiny.model().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def copied(whole: Path, to: Path, edit: Callable[[dict[str, torch.Tensor]], Any], **config: Any) -> Path:
    """The model with other tensors, and other keys in config.json."""
    shutil.copytree(whole, to)
    tensors = load_file(to / "model.safetensors")
    edit(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((to / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(told))
    return to


def refusal(path: Path) -> str:
    """What is said of a folder as a target."""
    with pytest.raises(hsd.LoadError) as caught:
        read_model(ModelSpec("big", str(path)), "cpu", None)
    assert "'big'" in caught.value.message and "\n" not in str(caught.value) and caught.value.hint
    return caught.value.message


# --- weights


@pytest.mark.parametrize(
    ("edit", "config", "said"),
    [
        (lambda d: d.pop(UP), {}, f"1 of its 21 tensors is missing: {UP}"),
        (lambda d: d.pop("lm_head.weight"), {}, "1 of its 21 tensors is missing: lm_head.weight"),
        (lambda d: None, {"num_hidden_layers": 3}, "9 of its 30 tensors are missing: model.layers.2."),
        (lambda d: d.update({UP: torch.zeros(3, 5)}), {}, f"{UP} has the shape (3, 5) in its files, and config.json"),
        (lambda d: d[UP].__setitem__((0, 0), torch.nan), {}, f"{UP} holds values that are no finite numbers"),
        (lambda d: d.update({UP.replace("weight", "bias"): torch.ones(64)}), {}, "says that it has no biases"),
        (lambda d: [d.update({f"x.{n}": d.pop(n)}) for n in list(d)], {}, "21 of its 21 tensors are missing"),
        (lambda d: None, {"num_hidden_layers": 1}, "its files hold model.layers.1.input_layernorm.weight, and config"),
        (lambda d: None, {"num_hidden_layers": 0}, "config.json says that it has fewer layers"),
    ],
    ids=["one", "head", "layers", "shape", "nan", "biases", "names", "fewer layers", "no layers"],
)
def test_a_model_whose_weights_are_not_whole_is_refused_and_what_is_wrong_is_named(whole, tmp_path, edit, config, said):
    assert said in refusal(copied(whole, tmp_path / "model", edit, **config))


def test_a_layer_that_drafts_behind_the_last_one_is_left_out(whole, tmp_path):
    def more(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {n.replace(".1.", ".2."): t.clone() for n, t in tensors.items() if ".layers.1." in n}

    read_model(ModelSpec("big", str(copied(whole, tmp_path / "m", more, num_nextn_predict_layers=1))), "cpu", None)
    assert "fewer layers" in refusal(copied(whole, tmp_path / "n", more))


def test_an_end_token_that_is_no_id_is_one_sentence(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "big")
    (tmp_path / "big" / "generation_config.json").write_text('{"eos_token_id": "<end>"}')
    (tmp_path / "models.yaml").write_text("families: {f: {context: 64, models: {big: ./big}}}")
    with pytest.raises(hsd.LoadError, match="'<end>' is no token id") as caught:
        hsd.Engine.load(f"{tmp_path}/models.yaml#f", data_dir=tmp_path)
    assert "eos_token_id" in caught.value.hint


def test_a_tied_head_and_buffers_need_not_be_in_the_files(whole, tmp_path):
    tied = copied(whole, tmp_path / "m", lambda d: d.pop("lm_head.weight"), tie_word_embeddings=True)
    model = read_model(ModelSpec("big", str(tied)), "cpu", "float32")
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    tiny.model("qwen3").save_pretrained(tmp_path / "qwen3")
    read_model(ModelSpec("big", str(tmp_path / "qwen3")), "cpu", "float32")


def test_a_shard_that_lacks_a_tensor_is_found_out(tmp_path):
    tiny.model().save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, shard, metadata={"format": "pt"})
    assert f"missing: {lost}" in refusal(tmp_path)


@pytest.mark.parametrize("part", ["weight", "weight.absmax", "weight.nested_absmax"])
def test_weights_in_4_bits_that_lack_a_part_are_refused(tmp_path, part):
    stored.store(build(LADDERS["try"]["medium"], 512, seed=0), train(["a few words"], 300), tmp_path / "m", nf4_from=0)
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    assert damage(tmp_path / "m") is None
    lost = next(name for name in tensors if name.endswith(f"up_proj.{part}"))
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    assert f"{lost} is missing" in (damage(tmp_path / "m") or "")


def test_an_expert_that_lacks_a_tensor_is_named(tmp_path):
    tiny.model("mixtral").save_pretrained(tmp_path)
    assert damage(tmp_path) is None
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if ".experts.2." in name)
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert damage(tmp_path) == f"{lost} is missing in its files"


def test_a_draft_that_lacks_a_tensor_is_left_out_and_the_family_works(whole, tmp_path):
    copied(whole, tmp_path / "small", lambda d: d.pop(UP))
    (tmp_path / "models.yaml").write_text(
        f"families: {{f: {{context: 64, models: {{small: ./small, big: {{path: '{whole}'}}}}}}}}"
    )
    with hsd.Engine.load(f"{tmp_path}/models.yaml#f", data_dir=tmp_path) as engine:
        assert engine.info.models == ("big",) and UP in engine.info.dropped[0].reason
        assert engine.generate("x", GREEDY).token_ids


# --- folders of other kinds


@pytest.mark.parametrize(
    ("files", "said", "hint"),
    [
        ({"adapter_config.json": "{}", "adapter_model.safetensors": "x"}, "LoRA adapter", "Merge it into its base"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": "x", "config.json": CONFIG}, "LoRA", "Merge it"),
        ({"some-q4.gguf": "x", "some-q8.gguf": "x"}, "GGUF files, like some-q4.gguf", "file:"),
        ({"config.json": CONFIG, "some-q4.gguf": "not GGUF at all"}, "some-q4.gguf is no GGUF file", "another"),
        ({"config.json": CONFIG, "pytorch_model.bin": "x"}, "no safetensors, but pytorch_model.bin", "convert it"),
        ({"consolidated.00.pth": "x", "params.json": "{}"}, "no safetensors, but consolidated.00.pth", "convert it"),
        ({"config.json": CONFIG, "onnx/model.onnx": "x"}, "an ONNX model", "original form"),
        ({"config.json": CONFIG, "tf_model.h5": "x"}, "TensorFlow", "original form"),
        ({"model_index.json": "{}", "unet/config.json": "{}"}, "a diffusers model", "writes text"),
        (
            {"modules.json": "[]", "config.json": CONFIG, "model.safetensors": "x"},
            "sentence-transformers",
            "writes text",
        ),
        ({"refs/main": "c", "snapshots/c/config.json": CONFIG}, "a folder of the hub's cache", "org/name"),
        ({"checkpoint-5/config.json": CONFIG}, "its folder checkpoint-5 does", "checkpoint-5"),
        (
            {"config.json": CONFIG, "model.safetensors": LFS},
            "model.safetensors is a pointer of Git LFS",
            "git lfs pull",
        ),
        (
            {"config.json": CONFIG, "tokenizer.json": LFS, "model.safetensors": "x"},
            "tokenizer.json is a pointer",
            "lfs",
        ),
        ({"adapter_model.safetensors": "x"}, "LoRA adapter", "Merge it"),
        ({"lora/adapter_config.json": "{}"}, "a LoRA adapter, which is a change to another model in lora", "Merge it"),
        ({"Q4/Some.GGUF": "x"}, "holds GGUF files, like Some.GGUF in Q4", "as the path"),
        ({"ggml-model-q4_0.bin": "x"}, "an older form of llama.cpp", "original form"),
        ({"Modelfile": "x"}, "a model of Ollama", "original form"),
        ({"config.json": CONFIG, "model.bin": "x", "vocabulary.json": "x"}, "a CTranslate2 model", "original form"),
        ({"saved_model.pb": "x"}, "TensorFlow", "original form"),
        ({"trainer_state.json": "x", "optimizer.pt": "x"}, "the state of a training", "save_pretrained"),
        ({"config.json": CONFIG, "model.safetensors.part": "x"}, "its download is not over", "Download"),
        ({"model.zip": "x"}, "an archive", "Unpack"),
        ({"train.parquet": "x"}, "holds data", "model"),
        ({"tokenizer.json": "x"}, "a tokenizer alone", "Download"),
        ({"config.json": "<html>", "model.safetensors": "x"}, "its config.json is no JSON object", "Restore"),
        ({"config.json": '{"_class_name": "VAE"}', "x.safetensors": "x"}, "a part of a diffusers model", "text"),
        (
            {"config.json": '{"architectures": ["GPT2ForSequenceClassification"]}', "m.safetensors": ""},
            "judges",
            "text",
        ),
        ({"config.json": CONFIG, "weights.safetensors": "x"}, "called weights.safetensors", "Rename"),
        (
            {"config.json": CONFIG, "a.safetensors": "", "b.safetensors": ""},
            "no model.safetensors.index.json",
            "Download",
        ),
        ({"config.json": CONFIG, "model-00001-of-00002.safetensors": ""}, "no model.safetensors.index", "Download"),
        ({"config.json": CONFIG}, "its weights are missing", "Download"),
        ({"readme.md": "x"}, "no config.json", "safetensors"),
        ({}, "is empty", "path"),
    ],
)
def test_a_folder_of_another_kind_is_named_for_what_it_is(tmp_path, files, said, hint):
    folder = tmp_path / "models--org--name"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    with pytest.raises(hsd.LoadError) as caught:
        fetch(ModelSpec("big", str(folder)))
    assert said in caught.value.message and hint in caught.value.hint, str(caught.value)


def test_a_file_in_the_place_of_a_folder_is_named(whole, tmp_path):
    (tmp_path / "some.gguf").write_text("x")
    for path, said in (
        (tmp_path / "some.gguf", "some.gguf is cut off or damaged"),
        (tmp_path / "absent.gguf", "there is no"),
        (whole / "model.safetensors", f"Give its folder: {whole}"),
        (whole / "config.json", "is a file, not a folder"),
        (tmp_path / "absent", "there is no folder"),
    ):
        with pytest.raises(hsd.LoadError) as caught:
            fetch(ModelSpec("big", str(path)))
        assert said in str(caught.value)


# --- checkpoints that are stored quantized

LLAMA_8B = {
    **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192},
}
PACKED = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "type": "int"}}}}


@pytest.mark.parametrize(
    ("stored", "on_gpu", "without"),
    [
        (None, 16.1, 16.1),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 5.7, 5.7),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, 9.2, 9.2),
        ({"quant_method": "compressed-tensors", **PACKED}, 5.7, 5.7),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 9.1, 16.1),  # unpacked where there is no GPU
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 5.7, 16.1),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 9.1, 16.1),
    ],
    ids=["none", "awq", "gptq", "compressed-tensors", "fp8", "nf4", "int8"],
)
def test_a_checkpoint_that_is_stored_quantized_is_estimated_as_it_is_stored(tmp_path, stored, on_gpu, without):
    config = LLAMA_8B | ({"quantization_config": stored} if stored else {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    family = Family("f", (ModelSpec("big", str(tmp_path)),), target="big")
    for kind, gb in (("cuda", on_gpu), ("cpu", without)):
        found = fit(family, Place("memory", kind, 80e9, 80e9), "bfloat16").models[0].weights_gb
        assert found == pytest.approx(gb, abs=0.06), kind


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "stored in AWQ, which cannot be computed here"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "stored in GPTQ, which cannot be computed here"),
        ({"quantization_config": {"quant_method": "new", "bits": 3}}, "transformers does not know it"),
        ({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}, "stored for ExLlama"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "stored for MLX"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
    ],
)
def test_weights_that_cannot_be_computed_with_here_are_one_sentence(whole, tmp_path, config, said):
    copied(whole, tmp_path / "big", lambda d: None, **config)
    if "cannot be computed" in said and cannot_run(config) is None:
        pytest.skip("kernels for it are installed here")
    (tmp_path / "models.yaml").write_text("families: {f: {context: 64, models: {big: ./big}}}")
    with pytest.raises(hsd.LoadError) as caught:
        hsd.Engine.load(f"{tmp_path}/models.yaml#f", data_dir=tmp_path)
    assert said in caught.value.message and caught.value.hint and "\n" not in str(caught.value)


# --- tokenizers


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
@pytest.mark.parametrize("shape", ["llama", "qwen2", "gpt-neox"])
def test_a_target_without_a_tokenizer_is_one_sentence(tmp_path, shape, kept):
    tiny.config(shape).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    for file in (*tmp_path.glob("tok*"), *tmp_path.glob("*.jinja")):
        if file.name not in kept:
            file.unlink()
    with pytest.raises(hsd.LoadError, match="has no tokenizer") as caught:
        read_tokenizer(ModelSpec("big", str(tmp_path)), tmp_path)
    assert "tokenizer.json" in caught.value.hint


def test_a_draft_needs_no_tokenizer(whole, tmp_path):
    copied(whole, tmp_path / "small", lambda d: None)
    for file in (*(tmp_path / "small").glob("tok*"), *(tmp_path / "small").glob("*.jinja")):
        file.unlink()
    (tmp_path / "models.yaml").write_text(
        f"families: {{f: {{context: 64, models: {{small: ./small, big: {{path: '{whole}'}}}}}}}}"
    )
    with hsd.Engine.load(f"{tmp_path}/models.yaml#f", data_dir=tmp_path) as engine:
        assert engine.info.models == ("small", "big") and not engine.info.dropped


# --- the hub's cache


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"HUGGINGFACE_HUB_CACHE": "/a/b"}, "/a/b"),
        ({"HF_HUB_CACHE": "/a/c", "HUGGINGFACE_HUB_CACHE": "/a/b"}, "/a/c"),
        ({"HF_HOME": "/a/d"}, "/a/d/hub"),
        ({"HF_HUB_CACHE": "$XDG_CACHE_HOME/e", "XDG_CACHE_HOME": "/a"}, "/a/e"),
    ],
)
def test_models_are_looked_for_where_the_hubs_client_keeps_them(monkeypatch, given, folder):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    try:
        importlib.reload(constants)
        assert str(hub_folder()) == folder
    finally:
        monkeypatch.undo()
        importlib.reload(constants)


def test_a_model_in_the_clients_cache_is_found_there(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(whole, tmp_path / "models--org--name" / "snapshots" / "c0ffee")
    assert fetch(ModelSpec("big", "org/name", revision="c0ffee")).parts[-3:] == (
        "models--org--name",
        "snapshots",
        "c0ffee",
    )
