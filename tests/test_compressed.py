"""Drafts by compression: a smaller copy of a GGUF model, made once for one state of its source, never half-made."""

from __future__ import annotations

import ctypes.util
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import models as tiny
import psutil
import pytest
from test_loading import tokenizer

import hsd
from hsd import gguf
from hsd.bench.llama_cpp import write
from hsd.config import ModelSpec, find_family
from hsd.errors import ConfigError, LoadError
from hsd.loading import compressed as making
from hsd.loading.cache import copies_folder, copy_file, gguf_of, on_disk
from hsd.loading.compressed import compressed, copies
from hsd.loading.shapes import compressed_bytes, shape_of
from hsd.runtime.llama_cpp import quantizer
from hsd.runtime.llama_cpp.library import Found

pytest.importorskip("gguf", reason="writes the files of these tests")
GREEDY = hsd.SamplingParams(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows 256 divides, in float32."""
    path = tmp_path_factory.mktemp("source") / "big model ä.gguf"
    write(tiny.model(seed=3, width=256, layers=2), path, "F32", tokenizer())
    return path


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    path = tmp_path / original.name
    path.write_bytes(original.read_bytes())
    return path


def of(source: Path, form: str = "q2_k") -> ModelSpec:
    return ModelSpec("draft", str(source), quantization=form, of="big")


def files() -> list[str]:
    return sorted(file.name for file in copies_folder().glob("*")) if copies_folder().is_dir() else []


def test_a_family_with_a_compressed_draft_answers_as_its_target(source: Path, tmp_path: Path, own_home: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "families: {f: {context: 256, models: {draft: {of: big, quantization: Q2_K}, big: {path: '"
        f"{source}'}}}}}}}}"
    )
    steps: list[hsd.LoadProgress] = []
    family = find_family("f", tmp_path / "own.yaml")
    assert family.models[0] == of(source) and not gguf_of(family.models[0]) and on_disk(family.models[0])
    before = {m.name: m.weights_gb for m in hsd.memory_fit(family).models}
    for _ in range(2):
        with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=own_home, progress=steps.append) as engine:
            assert engine.info.models == ("draft", "big") and not engine.info.dropped
            plain = engine.generate("hello there", GREEDY, plan="big")
            assert engine.generate("hello there", GREEDY, plan="draft:3>big").token_ids == plain.token_ids
    told = [step.done for step in steps if step.step.startswith("compressing 'big' to q2_k")]
    assert len(set(told)) > 3 and told == sorted(told), "it is made once, and its progress is told"
    (copy,) = copies_folder().glob("*")
    assert copy == gguf_of(family.models[0]) and copies() == (1, copy.stat().st_size)
    after = {m.name: m.weights_gb for m in hsd.memory_fit(family).models}
    assert before["draft"] == pytest.approx(after["draft"], rel=0.02) and before["draft"] < 0.2 * before["big"]


def test_a_source_that_has_changed_is_compressed_anew_and_its_old_copy_goes(source: Path) -> None:
    first, other = compressed(of(source)), compressed(of(source, "q4_k_m"))
    assert compressed(of(source)) == first
    os.utime(source, (1, 1))
    second = compressed(of(source))
    assert second != first and files() == sorted([second.name, other.name])


def test_rows_that_256_does_not_divide_take_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "narrow.gguf"
    write(tiny.model(seed=3, width=96), path, "Q8_0", tokenizer())  # quantized already
    headers = [gguf.Header(path)]
    copy = gguf.Header(compressed(of(path)))
    kinds = {tensor.name: tensor.kind for tensor in copy.tensors}
    assert kinds["blk.0.ffn_up.weight"] not in (10, 11), "q2_k and q3_k have blocks of 256"
    real, guessed = sum(t.size for t in copy.tensors), compressed_bytes(headers, "q2_k")
    assert guessed == pytest.approx(real, rel=0.02) and real < sum(t.size for t in headers[0].tensors)


def test_a_copy_that_would_be_no_smaller_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write(tiny.model(seed=3, width=256), path, "Q4_0", tokenizer())
    with pytest.raises(LoadError, match="would be no smaller than 'big'"):
        compressed(of(path, "q8_0"))
    assert not files()


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        ("{of: big, quantization: q9}", "quantization: 'q9'.*q2_k, q3_k_s"),
        ("{of: big}", "quantization: None.*q2_k, q3_k_s"),
        ("{of: other, quantization: q2_k}", "'other', which is no model of the family"),
        ("{of: draft, quantization: q2_k}", "'draft', which is no model of the family, or a copy itself"),
        ("{of: hub, quantization: q2_k}", "'hub', which is no GGUF model"),
        ("{of: big, quantization: q2_k, dtype: float32}", "Unknown key 'dtype'"),
        ("{of: big, quantization: q2_k, gpu_layers: -3}", "gpu_layers: -3"),
        ("{path: ./a.gguf, quantization: q2_k}", "quantization: 'q2_k'.*none, nf4, int8"),
    ],
)
def test_mistakes_in_the_file_are_one_sentence(draft: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        f"families: {{f: {{models: {{draft: {draft}, hub: org/name, big: {{path: ./big.gguf}}}}}}}}"
    )
    with pytest.raises(ConfigError, match=said):
        find_family("f", tmp_path / "own.yaml")


def test_a_copy_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "families: {f: {models: {big: {path: ./a.gguf}, copy: {of: big, quantization: q2_k}}}}"
    )
    with pytest.raises(ConfigError, match=r"The target 'copy' of .* is a copy of 'big'"):
        find_family("f", tmp_path / "own.yaml")


def test_a_safetensors_target_is_refused_in_a_sentence_and_decodes_without_the_copy(
    tmp_path: Path, own_home: Path
) -> None:
    tiny.model().save_pretrained(tmp_path / "big")
    tokenizer().save_pretrained(tmp_path / "big")
    (tmp_path / "own.yaml").write_text(
        "families: {f: {context: 64, models: {draft: {of: big, quantization: q2_k}, big: {path: ./big}}}}"
    )
    with hsd.Engine.load(f"{tmp_path}/own.yaml#f", data_dir=own_home) as engine:
        (dropped,) = engine.info.dropped
        assert engine.info.models == ("big",) and "'big'" in dropped.reason and "is no GGUF model" in dropped.reason


def test_a_file_without_the_weights_that_its_header_promises_leaves_nothing(source: Path) -> None:
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadError, match=r"llama\.cpp cannot make the copy 'draft' of big model ä\.gguf"):
        compressed(of(source))
    assert not files()


def test_a_disk_that_is_too_small_or_gets_full_is_one_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patched:
        patched.setattr(making.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(LoadError, match=r"needs 0\.00 GB of disk, and 0\.00 GB are free"):
            compressed(of(source))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # as a disk that takes no more
    try:
        with pytest.raises(LoadError, match="cannot make the copy") as refused:
            compressed(of(source))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "HSD_HOME" in refused.value.hint and not files()


class Interrupted(Exception):
    """What a person's Ctrl-C raises, for a test."""


def child() -> psutil.Process:
    return next(p for p in psutil.Process().children() if "quantizer.py" in " ".join(p.cmdline()))


def test_a_crash_of_the_library_and_an_interrupt_leave_nothing(source: Path) -> None:
    seen: list[psutil.Process] = []

    def crash(step: str, done: float, size: float) -> None:
        if done and not seen:
            seen.append(child())
            seen[0].suspend()  # it may be done otherwise before the signal is there
            seen[0].send_signal(signal.SIGSEGV)
            seen[0].resume()

    slow = source.with_name("large.gguf")
    write(tiny.model(seed=3, width=512, layers=12), slow, "F32", tokenizer())
    with pytest.raises(LoadError, match="it crashed \\(SIGSEGV\\)"):
        compressed(of(slow), crash)

    def stop(step: str, done: float, size: float) -> None:
        if done:
            seen.append(child())
            raise Interrupted

    with pytest.raises(Interrupted):
        compressed(of(slow), stop)
    assert len(seen) == 2 and not any(p.is_running() for p in seen) and not files()
    assert compressed(of(slow)).is_file()


ALONE = """
import sys
from hsd.config import ModelSpec
from hsd.loading.compressed import compressed
compressed(ModelSpec("draft", sys.argv[1], quantization="q2_k", of="big"), lambda *told: print(*told, flush=True))
"""


@pytest.mark.full
def test_a_program_that_is_killed_leaves_no_half_file(source: Path) -> None:
    slow = source.with_name("large.gguf")
    write(tiny.model(seed=3, width=1024, layers=48), slow, "F32", tokenizer())
    program = subprocess.Popen([sys.executable, "-c", ALONE, str(slow)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    program.stdout.readline()  # before the quantizer begins
    assert program.stdout.readline() and files()
    program.kill()
    program.wait()
    deadline = time.monotonic() + 30
    while files() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not files()


def test_two_programs_make_one_copy(source: Path) -> None:
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(compressed(of(source, "q3_k_m")))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1 and files() == [made[0].name]


def test_a_library_with_another_layout_is_not_trusted() -> None:
    known = bytes.fromhex("00000000070000002b0000002b0000000001000000") + bytes(100)
    assert quantizer.unknown_layout(known) == ""
    for at, value in ((0, 4), (4, 3), (8, 1), (16, 1), (17, 0), (18, 1)):
        changed = bytearray(known)
        changed[at] = value
        assert "not known here" in quantizer.unknown_layout(bytes(changed))


def test_a_build_without_a_quantizer_is_passed_over(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Found("a library of nothing", Path(ctypes.util.find_library("m") or "libm.so.6"), (), source.parent)
    monkeypatch.setattr(making, "candidates", lambda: iter([bare]))
    used = making.library()
    monkeypatch.setattr(making, "library", lambda: type("Used", (), {"found": bare}))
    with pytest.raises(LoadError, match="the library of a library of nothing has no llama_log_set") as refused:
        compressed(of(source))
    assert "pip install" in refused.value.hint and not files()
    monkeypatch.setattr(making, "candidates", lambda: iter([bare, used.found]))
    assert compressed(of(source)).is_file()


def test_every_format_of_the_file_is_one_of_the_quantizer() -> None:
    from typing import get_args

    from hsd.config import CopyFormat

    assert set(get_args(CopyFormat)) == set(quantizer.FORMATS)


def test_the_doctor_says_where_copies_lie(source: Path, own_home: Path) -> None:
    from hsd.doctor import report

    compressed(of(source))
    said: dict[str, Any] = report()["facts"]
    assert said["compressed"].startswith("1 copies") and str(copies_folder()) in said["compressed"]
    assert copy_file(of(source.with_name("gone.gguf"))) is None and shape_of(of(source.with_name("gone.gguf"))) is None
