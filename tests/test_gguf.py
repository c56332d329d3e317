"""GGUF models as levels, by llama.cpp's library: the same logits, rewinding, conversations, sentences for mistakes."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models as tiny
import pytest
import torch
from hub_server import Hub
from huggingface_hub import constants
from test_loading import tokenizer
from test_loading_hub import Client

import hsd
from hsd import gguf
from hsd.bench.llama_cpp import write
from hsd.config import find_family
from hsd.errors import ConfigError, LoadError
from hsd.loading.cache import gguf_of, on_disk
from hsd.loading.shapes import shape_of
from hsd.runtime import LlamaCppModel, Reader
from hsd.runtime.llama_cpp.library import library

pytest.importorskip("gguf", reason="writes the files of these tests")
GREEDY = hsd.SamplingParams(temperature=0, max_tokens=24)
REAL = os.environ.get("HSD_REAL_MODELS", "")
"""A folder with real GGUF models."""


@pytest.fixture(scope="module")
def family() -> dict[str, Any]:
    return tiny.related(count=2, noise=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, family: dict[str, Any]) -> Path:
    """Two tiny models as GGUF in float32, the same two as safetensors, and families of both forms."""
    root = tmp_path_factory.mktemp("gguf")
    for name, model in family.items():
        write(model.float(), root / f"{name}.gguf", "F32", tokenizer())
        model.save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    small, big = family
    (root / "models.yaml").write_text(
        f"""families:
  gguf: {{context: 256, models: {{small: ./{small}.gguf, big: ./{big}.gguf}}}}
  mixed: {{context: 256, models: {{small: ./{small}.gguf, big: {{path: ./{big}, dtype: float32}}}}}}
  turned: {{context: 256, models: {{small: {{path: ./{small}, dtype: float32}}, big: {big}.gguf}}}}
"""
    )
    return root


@pytest.fixture(scope="module")
def big(folder: Path, family: dict[str, Any]) -> LlamaCppModel:
    return LlamaCppModel("big", folder / f"{list(family)[-1]}.gguf", 256, library())


TEXT = [(37 * i) % 250 for i in range(200)]


def test_logits_are_those_of_transformers_at_every_width(big: LlamaCppModel, family: dict[str, Any]) -> None:
    with torch.inference_mode():
        expected = list(family.values())[-1].float()(torch.tensor([TEXT])).logits[0]
    reader = Reader(big, big.new_cache())
    reader.prefill(TEXT[:40])
    for width in (1, 2, 3, 5, 8, 16):
        reader.rewind(40)
        got = reader.read(TEXT[: 40 + width], width)
        assert (got - expected[40 : 40 + width]).abs().max() < 0.01 * expected.abs().max(), width
    assert big.cuttable and big.vocab == expected.shape[1] and big.bytes_per_token > 0


def test_conversations_keep_what_they_hold_while_others_are_read(big: LlamaCppModel) -> None:
    first, second = Reader(big, big.new_cache()), Reader(big, big.new_cache())
    alone = first.read(TEXT[:50], 1).clone()
    second.read(TEXT[100:160], 1)
    assert first.cache.nbytes > 0 and len(first) == 50
    first.rewind(49)
    assert torch.equal(first.read(TEXT[:50], 1), alone)
    # A copy goes its own way, and the one that it was made of does not feel it.
    third = first.copy(30)
    third.read([*TEXT[:30], 7, 8, 9], 1)
    first.rewind(49)
    assert torch.equal(first.read(TEXT[:50], 1), alone) and len(third) == 33
    del second
    assert len(first) == 50


def test_a_prompt_that_is_stopped_inside_a_pass_leaves_nothing_of_it(big: LlamaCppModel) -> None:
    reader, asked = Reader(big, big.new_cache()), [0]
    reader.prefill(TEXT[:20])

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 3  # the first time before the pass

    assert not reader.prefill(TEXT, stop) and len(reader) == 20 and asked[0] > 3
    got = reader.read(TEXT[:21], 1).clone()
    fresh = Reader(big, big.new_cache())
    assert (got - fresh.read(TEXT[:21], 1)).abs().max() < 1e-3


def test_ids_that_the_model_does_not_know_and_texts_beyond_its_context_are_refused(big: LlamaCppModel) -> None:
    reader = Reader(big, big.new_cache())
    with pytest.raises(IndexError):
        reader.read([0, big.vocab], 1)
    with pytest.raises(hsd.HsdError, match="256"):
        reader.prefill([1] * 300)
    assert reader.read([1, 2], 1).isfinite().all()


PLANS = ("small:3>big", "lookup:2>big", "lookup:2>small:3>big")


@pytest.mark.parametrize("name", ["gguf", "mixed", "turned"])
def test_every_plan_gives_the_ids_of_plain_decoding(
    name: str, folder: Path, family: dict[str, Any], tmp_path: Path
) -> None:
    _small, _large = family
    with hsd.Engine.load(f"{folder}/models.yaml#{name}", data_dir=tmp_path) as engine:
        assert engine.info.models == ("small", "big") and not engine.info.dropped
        plain = engine.generate("hello there", GREEDY, plan="big")
        for plan in PLANS:
            reply = engine.generate("hello there", GREEDY, plan=plan)
            assert reply.token_ids == plain.token_ids, plan
        again = engine.generate("hello there", GREEDY, plan="big")
        assert again.stats.reused_tokens > 0 and again.token_ids == plain.token_ids
        drawn = hsd.SamplingParams(temperature=0.8, seed=5, max_tokens=16, top_p=0.9)
        texts = {engine.generate("hello", drawn, plan=plan).text for plan in ("small:3>big",) * 2}
        assert len(texts) == 1


@pytest.fixture
def spec(folder: Path) -> Any:
    return find_family("gguf", folder / "models.yaml").target_spec


def test_memory_is_known_from_the_header(spec: Any, folder: Path, family: dict[str, Any]) -> None:
    shape, model = shape_of(spec), list(family.values())[-1]
    assert shape is not None and on_disk(spec)
    held = sum(p.numel() for p in model.parameters())
    assert shape.parameters == held and shape.parameters * shape.stored == pytest.approx(4 * held)
    assert (shape.layers, shape.vocab, shape.positions) == (model.config.num_hidden_layers, 259, 512)
    fit = hsd.memory_fit("gguf", config=folder / "models.yaml")
    assert fit.fits and fit.context == 256


def test_a_folder_may_hold_the_file_and_a_pattern_may_choose_it(
    folder: Path, family: dict[str, Any], tmp_path: Path
) -> None:
    name = list(family)[-1]
    inside = tmp_path / "models"
    inside.mkdir()
    shutil.copy(folder / f"{name}.gguf", inside / "some-Q8_0.gguf")

    def chosen(entry: str) -> Any:
        (tmp_path / "own.yaml").write_text(f"families: {{f: {{context: 64, models: {{big: {entry}}}}}}}")
        return find_family("f", tmp_path / "own.yaml").target_spec

    assert gguf_of(chosen("./models")) == inside / "some-Q8_0.gguf"
    shutil.copy(folder / f"{name}.gguf", inside / "some-Q4_K_M.gguf")
    assert gguf_of(chosen("./models")) is None
    assert gguf_of(chosen("{path: ./models, file: '*q4_k_m.gguf'}")) == inside / "some-Q4_K_M.gguf"
    with pytest.raises(LoadError, match="Q4_K_M"):
        hsd.Engine.load(f"{tmp_path}/own.yaml#f") if chosen("{path: ./models, file: '*q5*'}") else None
    (inside / "big-00001-of-00002.gguf").write_bytes((folder / f"{name}.gguf").read_bytes())
    split = chosen("{path: ./models, file: 'big-*'}")
    assert gguf_of(split) == inside / "big-00001-of-00002.gguf" and not on_disk(split)
    chosen("{path: ./models, file: 'big-*'}")
    with pytest.raises(LoadError, match="big-00002-of-00002"):
        hsd.Engine.load(f"{tmp_path}/own.yaml#f")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{path: ./a.gguf, dtype: float32}", "dtype"),
        ("{path: ./a.gguf, quantization: nf4}", "quantization"),
        ("{path: ./a.gguf, device: cuda}", "device"),
        ("{path: ./a.gguf, gpu_layers: -2}", "gpu_layers"),
        ("{path: ./a.gguf, gpu_layers: some}", "gpu_layers"),
        ("{path: hub/name, file: 3}", "file"),
    ],
)
def test_keys_that_do_not_go_with_a_gguf_file_are_one_sentence(entry: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"families: {{f: {{context: 64, models: {{big: {entry}}}}}}}")
    with pytest.raises(ConfigError, match=said):
        find_family("f", tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04" + bytes(100), "is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\x05", "damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), "damaged"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(LoadError, match=said):
        gguf.Header(tmp_path / "a.gguf")


def test_a_file_that_is_cut_off_is_refused_by_the_library_in_one_sentence(
    folder: Path, family: dict[str, Any], tmp_path: Path
) -> None:
    data = (folder / f"{list(family)[-1]}.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadError, match=r"llama\.cpp cannot load a\.gguf"):
        LlamaCppModel("a", tmp_path / "a.gguf", 64, library())


def test_a_draft_with_other_tokens_is_left_out_with_its_reason(
    folder: Path, family: dict[str, Any], tmp_path: Path
) -> None:
    small, _large = family.values()
    write(small.float(), tmp_path / "other.gguf", "F32", tokenizer(extra=("zz", "yy", "xx")))
    (tmp_path / "own.yaml").write_text(
        f"families: {{f: {{context: 64, models: {{draft: ./other.gguf, big: {folder / list(family)[-1]}.gguf}}}}}}"
    )
    with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=tmp_path) as engine:
        assert engine.info.models == ("big",)
        assert "ids are of other tokens" in engine.info.dropped[0].reason


WITHOUT = """
import sys, hsd
try:
    hsd.Engine.load(sys.argv[1])
except hsd.HsdError as error:
    print(error.message, "|", error.hint)
"""


def test_without_the_library_a_sentence_says_what_to_install(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, f"{folder}/models.yaml#gguf"]
    environment = {**os.environ, "HSD_LLAMA_CPP": str(tmp_path), "HSD_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment)
    assert f"There is no llama.cpp library in {tmp_path}" in done.stdout and "HSD_LLAMA_CPP" in done.stdout


def test_the_doctor_names_the_library_and_what_it_computes_on() -> None:
    from hsd.doctor import report

    said = report()["facts"]["llama.cpp"]
    assert library().found.origin in said and ("AVX" in said or "NEON" in said or "GPU" in said.upper() or ":" in said)


def test_a_file_of_a_hub_is_chosen_by_a_pattern_downloaded_and_then_used_offline(
    folder: Path, family: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("some-Q4_K_M.gguf", "some-Q8_0.gguf"):
        shutil.copy(folder / f"{list(family)[-1]}.gguf", repository / name)
    hub = Hub()
    hub.folders["org/good"], hub.faults["org/good"] = repository, "good"
    client = Client(hub.address)
    try:
        refused = client.fetch(tmp_path / "cache", "org/good", file="*q5*.gguf")
        assert "names no GGUF file" in refused["error"] and "some-Q8_0.gguf" in refused["error"]
        done = client.fetch(tmp_path / "cache", "org/good", file="*q8_0.gguf")
        assert done["error"] is None and Path(done["folder"]).name == "some-Q8_0.gguf"
        assert not (Path(done["folder"]).parent / "some-Q4_K_M.gguf").exists()
    finally:
        client.end()
        hub.shutdown()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.yaml").write_text(
        "families: {f: {context: 64, models: {big: {path: org/good, file: '*q8_0.gguf'}}}}"
    )
    with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=tmp_path) as engine:
        assert engine.generate("hello", GREEDY).token_ids


@pytest.fixture(scope="module")
def real() -> Iterator[Path]:
    if not REAL or not list(Path(REAL).glob("*.gguf")):
        pytest.skip("HSD_REAL_MODELS names no folder with GGUF models")
    yield Path(REAL)


@pytest.mark.full
def test_real_models_split_and_join_text_as_they_should(real: Path) -> None:
    from hsd.loading.gguf_models import gguf_tokenizer

    texts = ("Hello, wörld! 你好 🦜\n\tdef f(x):\n\t\treturn x**2  # 12345", " a  b\n\n\nc", "<|im_end|> is a token")
    for file in sorted(real.glob("*.gguf")):
        used = gguf_tokenizer(LlamaCppModel("real", file, 512, library()))
        for text in texts:
            for split in (False, True):
                assert used.decode(used.encode(text, add_special_tokens=False, split_special_tokens=split)) == text
        assert used.eos_token_id in used.end_ids


@pytest.mark.full
def test_a_real_prompt_that_is_cancelled_leaves_the_next_reply_right(real: Path, tmp_path: Path) -> None:
    file = next(real.glob("SmolLM2*.gguf"), None)
    if file is None:
        pytest.skip("HSD_REAL_MODELS holds no SmolLM2")
    model = LlamaCppModel("real", file, 2048, library())
    text, reader, fresh, asked = [1000 + i % 777 for i in range(900)], Reader(model, model.new_cache()), None, [0]
    reader.prefill(text[:100])

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 600  # inside a pass

    assert not reader.prefill(text, stop)
    kept, fresh = len(reader), Reader(model, model.new_cache())
    assert 100 <= kept < 900
    got = reader.read(text[: kept + 3], 1).clone()
    fresh.prefill(text[:100])
    fresh.prefill(text[:kept])
    wanted = fresh.read(text[: kept + 3], 1)
    assert (got - wanted).abs().max() < 0.02 * wanted.abs().max() and got.argmax() == wanted.argmax()
