"""Steps of our own in C++: right for every shape, the same at every width, and given up in a sentence."""

from __future__ import annotations

import shutil

import models as tiny
import pytest
import torch

import hsd
from hsd.runtime import LeanModel, Reader, building, native, wrap
from hsd.runtime.compiled import CompiledSteps
from hsd.runtime.native import Library, NativeSteps, refusal
from hsd.runtime.upgrades import Upgrades, native_possible

able = native.abilities().issuperset(native.NEEDED) and building.compiler() is not None
pytestmark = pytest.mark.skipif(not able, reason="this processor has no AVX512-BF16, or there is no C++ compiler")
IDS = torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(0)).tolist()
SHAPES = ("llama", "mistral", "qwen2", "qwen3")


def made(shape: str, dtype: torch.dtype, seed: int = 0):
    """A tiny model of bf16 weights; smaller ones than usual, or rounding alone would change every opinion."""
    model = tiny.model(shape, seed=seed, width=64)
    for weight in model.parameters():
        weight.data = (weight.data * (0.3 if weight.ndim > 1 else 1)).bfloat16()
    return model.to(dtype)


def wrapped(shape: str = "qwen2", seed: int = 0) -> LeanModel:
    model = wrap("m", made(shape, torch.bfloat16, seed), 512)
    assert isinstance(model, LeanModel)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The library, compiled behind everything as an engine does it."""
    folder = tmp_path_factory.mktemp("compiled")
    steps = NativeSteps(wrapped(), folder)
    builder = building.Builder([steps])
    assert builder.remaining == 1
    builder.start()
    assert builder.wait(200)
    assert not steps.failed(), [steps.failure(name).read_text() for name in steps.failed()]
    return folder


@pytest.fixture(params=["matrix unit", "vectors"])
def tiles(request, root):
    has = Library(NativeSteps(wrapped(), root).path("step")).tiles
    if request.param == "matrix unit" and not has:
        pytest.skip("this processor has no matrix unit")
    return request.param == "matrix unit"


def using(model: LeanModel, root, tiles: bool) -> LeanModel:
    step = Library(NativeSteps(model, root).path("step")).step(model, tiles=tiles)
    model.use(dict.fromkeys(range(1, 17), step), "native")
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers_at_every_width_through_cuts_and_growth(shape, root, tiles):
    """Against transformers in float32 with the same weights: no further from it than its own bf16 pass may be."""
    model = using(wrapped(shape), root, tiles)
    with torch.inference_mode():
        whole, coarse = (
            made(shape, dtype)(torch.tensor([IDS]), use_cache=False).logits[0].float()
            for dtype in (torch.float32, torch.bfloat16)
        )
    allowed = 1.5 * float((whole - coarse).abs().max())
    assert allowed < 0.05 * float(whole.abs().max())  # or the comparison would say nothing
    for width in range(1, 17):
        for start in (0, 3, 250):  # at 250 the cache grows in the middle of it
            cache = model.new_cache()
            if start:
                Reader(model, cache).prefill(IDS[:start])
            got = model.forward(IDS[start : start + width], cache, width)
            assert float((got - whole[start : start + width]).abs().max()) < allowed
            cache.rewind(start)
            last = model.forward(IDS[start : start + width], cache, 1).clone()
            assert float((last - whole[start + width - 1]).abs().max()) < allowed
            assert model.forward([5], cache, 0).shape == (0, tiny.VOCAB)


@pytest.mark.parametrize("shape", SHAPES)
def test_on_the_matrix_unit_a_wide_pass_gives_bit_for_bit_what_single_ones_give(shape, root):
    step = Library(NativeSteps(wrapped(), root).path("step"))
    if not step.tiles:
        pytest.skip("this processor has no matrix unit")
    model = using(wrapped(shape), root, True)
    for width in (2, 3, 5, 8, 16):
        for start in (0, 37, 255):
            wide, narrow = model.new_cache(), model.new_cache()
            for cache in (wide, narrow):
                if start:
                    Reader(model, cache).prefill(IDS[:start])
            rows = model.forward(IDS[start : start + width], wide, width).clone()
            for i in range(width):
                assert torch.equal(model.forward([IDS[start + i]], narrow, 1)[0], rows[i])
            for a, b in zip(wide.views(start + width), narrow.views(start + width), strict=True):
                assert torch.equal(a, b)


def test_a_stack_in_bf16_says_bit_for_bit_what_its_target_says_alone(root, monkeypatch):
    """What eager bf16 passes cannot promise: their rounding depends on the width."""
    if not Library(NativeSteps(wrapped(), root).path("step")).tiles:
        pytest.skip("this processor has no matrix unit")
    models = tiny.related("qwen2", seed=3, width=64, noise=0.1)
    models = {name: model.to(torch.bfloat16) for name, model in models.items()}
    drafted = 0
    with hsd.Engine.from_models(models, tiny.ByteTokenizer()) as engine:
        monkeypatch.setenv("HSD_COMPILE", "1")
        engine.upgrades = Upgrades(engine._models, root)
        assert {model.kind for model in engine._models.values()} == {"lean-2+native"}
        for turn in range(12):
            replies = []
            for plan in ("big", "small:3>big", "small:2>medium:4>big", "lookup:4>big"):
                engine.forget()
                replies.append(
                    engine.generate(f"say {turn}", hsd.SamplingParams(temperature=0, max_tokens=50), plan=plan)
                )
                drafted += replies[-1].stats.levels[-1].passes < len(replies[-1].token_ids)
            assert len({tuple(reply.token_ids) for reply in replies}) == 1
    assert drafted > 24  # the stacks really saved passes of the target


def test_an_id_that_the_model_does_not_know_reads_no_foreign_memory(root, tiles):
    model = using(wrapped(), root, tiles)
    for bad in (tiny.VOCAB, -1, 10**12):
        with pytest.raises(IndexError, match="288"):
            model.forward([1, bad], model.new_cache(), 1)


def test_a_cache_full_to_the_last_position(root, tiles):
    model = using(wrapped(), root, tiles)
    cache = model.new_cache()
    Reader(model, cache).prefill((IDS * 2)[:509])
    assert model.forward([1, 2], cache, 1).isfinite().all()
    assert model.forward([1], cache, 1).isfinite().all() and cache.length == 512


def test_weights_that_are_no_numbers_give_logits_that_are_none(root, tiles):
    """So that the engine can say so: nothing turns a NaN into a token."""
    model = using(wrapped(), root, tiles)
    model.weights.layers[0].down.weight[0, 0] = torch.nan
    for width in (1, 4):
        assert model.forward(IDS[:width], model.new_cache(), 1).isnan().any()


def test_what_it_cannot_compute_says_why_and_torch_compiles_it():
    assert refusal(wrapped()) is None
    assert "bfloat16" in refusal(wrap("m", tiny.model("llama", width=64), 512))
    assert "multiples" in refusal(wrap("m", tiny.model("llama", width=32).to(torch.bfloat16), 512))
    model = wrapped()
    model.weights.layers[0].down = torch.nn.Identity()
    assert "quantized" in refusal(model)


def test_a_library_that_fails_is_set_aside_for_its_model_and_torch_compiles_instead(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HSD_COMPILE", "1")
    assert native_possible()
    folder = shutil.copytree(root, tmp_path / "compiled")
    library = NativeSteps(wrapped(), folder).path("step")
    library.write_bytes(library.read_bytes()[:1000])
    model = wrapped()
    upgrades = Upgrades({"m": model}, folder)
    assert model.kind == "lean-2" and "m (OSError" in upgrades.state
    again = Upgrades({"m": wrapped()}, folder)
    assert isinstance(again._steps["m"], CompiledSteps)


def test_a_step_that_computes_something_else_is_never_used(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "compiled")
    for note in folder.rglob("measured-*.json"):
        note.unlink()
    model, other = wrapped(), wrapped(seed=9)
    steps = NativeSteps(model, folder)
    steps.load = lambda name: Library(steps.path(name)).step(other)
    assert not steps.attach() and model.kind == "lean-2"
    assert "differs" in steps.failure("step").read_text() and steps.failed() and not steps.missing()


def test_a_compiler_that_fails_leaves_a_reason(tmp_path, monkeypatch):
    broken = tmp_path / "source.cpp"
    broken.write_text("int hsd_step( {")
    monkeypatch.setattr(native, "SOURCE", broken)
    with pytest.raises(RuntimeError, match="error"):
        native.compile_to(tmp_path / "step.so", building.compiler())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.cpp"]


def test_tests_and_switched_off_machines_stay_eager(monkeypatch):
    assert not native_possible()  # HSD_COMPILE=0 in the tests
    monkeypatch.setenv("HSD_COMPILE", "1")
    assert native_possible()
    monkeypatch.setenv("CXX", "/nowhere")
    assert not native_possible()
