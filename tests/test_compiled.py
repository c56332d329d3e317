"""Compiled steps: the same logits, made behind the chat, and an eager pass wherever they are not to be had."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time

import models as tiny
import pytest
import torch
from test_kernels import rows

import hsd
from hsd import kernels, verify
from hsd.errors import ModelError
from hsd.runtime import LeanModel, Reader, building, wrap
from hsd.runtime.compiled import GRAPHS, CompiledSteps, prune, refusal
from hsd.runtime.fused import CompiledKernels
from hsd.runtime.upgrades import Upgrades

needs_compiler = pytest.mark.skipif(building.compiler() is None, reason="there is no C++ compiler")
IDS = torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(0)).tolist()


def wrapped(shape: str = "qwen2", dtype: torch.dtype = torch.float32) -> LeanModel:
    model = wrap("m", tiny.model(shape, layers=1).to(dtype), 512)
    assert isinstance(model, LeanModel)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Compiled steps of the qwen2-shaped model (it has biases), really compiled, once for this module."""
    if building.compiler() is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("compiled")
    steps = CompiledSteps(wrapped(), folder)
    builder = building.Builder([steps])
    assert builder.remaining == len(GRAPHS)
    builder.start()
    assert builder.wait(400)
    assert not steps.failed(), [steps.failure(g).read_text() for g in steps.failed()]
    return folder


def copied(root, tmp_path):
    """The same for a test that changes it."""
    return shutil.copytree(root, tmp_path / "compiled")


def test_logits_are_those_of_transformers_at_every_width_through_cuts_and_growth(root):
    fresh = tiny.model("qwen2", layers=1)
    with torch.inference_mode():
        whole = fresh(torch.tensor([IDS]), use_cache=False).logits[0]
    model = wrapped()
    steps = CompiledSteps(model, root)
    assert steps.attach() and model.kind == "lean-2+compiled" and not steps.fresh()
    # Whatever measured faster here, every width is to be right.
    for (runner,) in steps._loaded.values():
        widths = (1,) if [runner] == steps._loaded["one"] else range(2, 17)
        model.use(dict.fromkeys(widths, runner), "compiled")
        for width in widths:
            for start in (0, 3, 250):  # at 250 the cache grows in the middle of it
                cache = model.new_cache()
                reader = Reader(model, cache)
                if start:
                    reader.prefill(IDS[:start])
                logits = model.forward(IDS[start : start + width], cache, width)
                torch.testing.assert_close(logits, whole[start : start + width], atol=5e-5, rtol=1e-4)
                cache.rewind(start)
                if width > 1:
                    model.forward(IDS[start + 1 : start + width], cache, 1)
                    cache.rewind(start)
                logits = model.forward(IDS[start : start + width], cache, 1)
                torch.testing.assert_close(logits, whole[start + width - 1 : start + width], atol=5e-5, rtol=1e-4)


def test_every_width_uses_what_measured_faster_and_remembers_it(root, tmp_path):
    root = copied(root, tmp_path)
    model = wrapped()
    steps = CompiledSteps(model, root)
    steps.attach()
    note = steps.folder / "measured.json"
    assert note.is_file()
    note.write_text('{"1": [1.0, 2.0], ' + ", ".join(f'"{w}": [2.0, 1.0]' for w in range(2, 17)) + "}")
    again = wrapped()
    CompiledSteps(again, root).attach()
    assert set(again._fast) == set(range(2, 17))


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "another model"])
def test_a_step_that_cannot_be_used_is_set_aside(root, tmp_path, damage):
    root = copied(root, tmp_path)
    steps = CompiledSteps(wrapped(), root)
    path = steps.path("one")
    if damage == "another model":
        other = wrapped("qwen2")
        for tensor in other.weights.tensors().values():
            tensor.mul_(-1.5)
        steps = CompiledSteps(other, root)
        steps.folder.mkdir()
        shutil.copy(path, steps.path("one"))
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
        steps.path("more").unlink()
    assert not steps.attach()
    assert steps.failed() == ["one"] and not steps.path("one").exists() and steps.model.kind == "lean-2"
    assert "one" not in steps.missing()


def test_steps_belong_to_these_weights_and_this_number_of_threads(root):
    model = wrapped()
    folder = CompiledSteps(model, root).folder
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert CompiledSteps(model, root).folder != folder
    finally:
        torch.set_num_threads(threads)
    model.weights.norm[0] += 1e-3
    assert CompiledSteps(model, root).folder != folder


def test_an_engine_adopts_steps_while_idle_and_its_planner_measures_anew(root, tmp_path, monkeypatch):
    models = {"a": tiny.model("qwen2", layers=1), "b": tiny.model("llama", seed=5)}
    with hsd.Engine.from_models(models, tiny.ByteTokenizer()) as engine:
        params = hsd.SamplingParams(temperature=0, max_tokens=24)
        before = engine.generate("hello", params)
        monkeypatch.setenv("HSD_COMPILE", "1")
        engine.upgrades = Upgrades(engine._models, tmp_path)
        assert engine.upgrades.adopt() == []
        source = next(root.iterdir())
        shutil.copytree(source, engine.upgrades._steps["a"].folder)  # as if it had just been compiled
        (engine.upgrades._steps["a"].folder / "measured.json").unlink(missing_ok=True)
        assert engine._models["a"].kind == "lean-2"
        engine.learn()
        assert engine._models["a"].kind == "lean-2+compiled"
        after = engine.generate("hello", params, plan="a:4>b")
        assert after.token_ids == before.token_ids
        assert after.stats.levels[0].passes > 0


@needs_compiler
def test_a_compiler_that_fails_or_takes_too_long_leaves_eager_steps_and_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", shutil.which("false"))
    model = wrapped()
    steps = CompiledSteps(model, tmp_path)
    builder = building.Builder([steps], timeout=0.5)
    builder.start()
    assert builder.wait(60)
    assert steps.failed() == list(GRAPHS) and not steps.missing()
    assert "not done within" in steps.failure("one").read_text()
    assert not steps.attach() and model.kind == "lean-2"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["more.failed", "one.failed"]
    assert "eager steps where compiling failed" in _state(model, tmp_path, monkeypatch)


def _state(model, folder, monkeypatch) -> str:
    monkeypatch.setenv("HSD_COMPILE", "1")
    return Upgrades({"m": model}, folder).state


def test_without_a_compiler_steps_are_eager_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert building.compiler() is None
    model = wrapped()
    monkeypatch.setenv("HSD_COMPILE", "1")
    upgrades = Upgrades({"m": model}, tmp_path / "steps")
    upgrades.start()
    upgrades.wait()
    assert upgrades.state == "eager steps: there is no C++ compiler" and upgrades.adopt() == []


@needs_compiler
def test_closing_ends_the_compiling_process_at_once(tmp_path):
    builder = building.Builder([CompiledSteps(wrapped(), tmp_path)])
    builder.start()
    deadline = time.monotonic() + 30
    while builder._process is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process = builder._process
    assert process is not None
    builder.close()
    assert not builder.running
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_what_cannot_be_compiled_says_why():
    assert "lean" in refusal(wrap("m", tiny.model("gpt-neox"), 128))
    model = wrapped("llama")
    assert refusal(model) is None
    model.weights.layers[0].down = torch.nn.Identity()
    assert "quantized" in refusal(model)


def test_unused_steps_are_removed_after_two_months(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "old", (0, time.time() - 61 * 86400))
    prune(tmp_path)
    prune(tmp_path / "nowhere")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_pass_without_room_or_tokens_is_refused_in_a_sentence():
    model = wrapped("llama")
    cache = model.new_cache()
    model.forward(IDS[:200], cache, 0)
    model.forward(IDS[:200], cache, 0)
    model.forward(IDS[:111], cache, 0)
    with pytest.raises(ModelError, match="2 tokens behind 511 of at most 512"):
        model.forward([1, 2], cache, 1)
    assert cache.length == 511
    assert model.forward([1], cache, 1).shape == (1, tiny.VOCAB)  # the last place may be filled
    with pytest.raises(ModelError, match="0 tokens"):
        model.forward([], cache, 0)


@needs_compiler
@pytest.mark.full  # torch compiles them for a minute
@pytest.mark.parametrize("vocab", [384, 300])  # whole blocks of 128, and not
def test_compiled_kernels_draw_and_decide_as_the_plain_ones(vocab, tmp_path):
    made = CompiledKernels(vocab, tmp_path)
    assert made.attach() is None
    builder = building.Builder([made])
    builder.start()
    assert builder.wait(400)
    fused = made.attach()
    assert fused is not None, [made.failure(n).read_text() for n in made.failed()]
    for seed in range(60):
        q, p, draft, coins = rows(random.Random(seed), 2 + seed % 8, vocab)
        for rule in ("block", "token"):
            assert verify.verify(draft, q, p, coins, rule, fused) == verify.verify(draft, q, p, coins, rule)
        logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))
        out, same = torch.zeros(1, vocab), torch.zeros(1, vocab)
        knobs = torch.tensor([0.8, coins[0]], dtype=torch.float64)
        torch.testing.assert_close(fused.pick(logits, knobs, out), kernels.pick(logits, knobs, same))
        torch.testing.assert_close(out, same)
        torch.testing.assert_close(fused.best(logits), kernels.best(logits))
    bad = torch.full((1, vocab), torch.nan)
    assert int(fused.best(bad)[0]) == int(fused.pick(bad, knobs, out)[0]) == -1


@pytest.mark.full
@needs_compiler
@pytest.mark.parametrize("shape", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_lean_shape_compiles_in_float32_and_bf16(shape, dtype, tmp_path):
    model = wrapped(shape, dtype)
    steps = CompiledSteps(model, tmp_path)
    builder = building.Builder([steps])
    builder.start()
    assert builder.wait(500)
    assert steps.attach(), [steps.failure(g).read_text() for g in steps.failed()]
    assert not steps.failed() and sys.platform
