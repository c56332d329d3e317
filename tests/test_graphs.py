"""The CUDA path's step with fixed shapes: here uncaptured on the CPU, captured where there is a GPU."""

from __future__ import annotations

import models as tiny
import pytest
import torch

import hsd
from hsd.bench import BenchRequest
from hsd.bench.gpu import run
from hsd.errors import LoadError
from hsd.runtime import LeanModel, Reader
from hsd.runtime.graphs import GraphedSteps, told

IDS = torch.randint(0, 256, (1400,), generator=torch.Generator().manual_seed(0)).tolist()
gpu = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


def graphed(shape: str, device: str = "cpu", context: int = 1300) -> tuple[GraphedSteps, torch.Tensor]:
    """A model that reads through fixed shapes, and transformers' logits of the whole text."""
    model = tiny.model(shape, context=context).to(device)
    with torch.inference_mode():
        whole = model(torch.tensor([IDS[:context]], device=device), use_cache=False).logits[0].float()
    wrapped = LeanModel("m", model, context)
    steps = GraphedSteps(wrapped, capture=device == "cuda")
    steps.install()
    assert steps.failure is None and wrapped.kind == "lean-2+graphs"
    return steps, whole


@pytest.mark.parametrize("device", ["cpu", gpu])
@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3", "mistral"])
def test_logits_are_those_of_transformers_in_every_bucket_through_cuts(shape, device):
    steps, whole = graphed(shape, device)
    reader = Reader(steps.model, steps.model.new_cache())
    for start in (0, 5, 507, 1018, 1290):  # the second bucket begins at 512, the last is as long as the context
        reader.prefill(IDS[:start])
        for width in (1, 2, 10, 16):
            if start + width > 1300:
                continue
            reader.read(IDS[:start] + [7] * width, width)  # drafts that are rejected leave nothing behind
            reader.rewind(start)
            got = reader.read(IDS[: start + width], width)
            torch.testing.assert_close(got, whole[start : start + width], atol=5e-5, rtol=1e-3)
            reader.rewind(start)


@pytest.mark.parametrize("device", ["cpu", gpu])
def test_conversations_take_turns_in_the_buffers_and_keep_what_they_hold(device):
    steps, whole = graphed("llama", device)
    one, two = (Reader(steps.model, steps.model.new_cache()) for _ in range(2))
    one.prefill(IDS[:40])
    two.prefill(IDS[100:130])
    first = one.read(IDS[:42], 2).clone()
    second = two.read(IDS[100:131], 1).clone()
    branch = one.copy(20)
    torch.testing.assert_close(first, whole[40:42], atol=5e-5, rtol=1e-3)
    torch.testing.assert_close(one.read(IDS[:43], 1), whole[42:43], atol=5e-5, rtol=1e-3)
    torch.testing.assert_close(branch.read(IDS[:23], 3), whole[20:23], atol=5e-5, rtol=1e-3)
    torch.testing.assert_close(one.read(IDS[:44], 1), whole[43:44], atol=5e-5, rtol=1e-3)
    del one  # who was in the buffers may be gone
    torch.testing.assert_close(two.read(IDS[100:131], 1), second)


def test_a_model_that_cannot_be_captured_runs_eagerly_and_says_so():
    model = tiny.model("llama")
    wrapped = LeanModel("m", model, 512)
    steps = GraphedSteps(wrapped, capture=False)
    reader = Reader(wrapped, wrapped.new_cache())
    wrapped.use(dict.fromkeys(range(1, 17), steps), "graphs")
    reader.read(IDS[:20], 1)

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    steps._runs.clear()
    steps._captured = broken
    got = reader.read(IDS[:23], 3)
    with torch.inference_mode():
        whole = model(torch.tensor([IDS[:30]]), use_cache=False).logits[0]
    torch.testing.assert_close(got, whole[20:23], atol=5e-5, rtol=1e-3)
    assert "cannot be captured: operation not permitted" in str(steps.failure)
    assert wrapped.kind == "lean-2" and reader.cache.keys[0].data_ptr() not in [k.data_ptr() for k in steps._keys]
    torch.testing.assert_close(reader.read(IDS[:30], 1), whole[29:30], atol=5e-5, rtol=1e-3)


def test_a_family_decodes_through_fixed_shapes_what_it_decodes_eagerly():
    def replies() -> list[tuple[int, ...]]:
        family = tiny.related()
        with hsd.Engine.from_models(family, tiny.ByteTokenizer()) as engine:
            if captured:
                for name, model in family.items():
                    engine._models[name] = lean = LeanModel(name, model, engine.info.context)
                    GraphedSteps(lean, capture=False).install()
            ask = hsd.SamplingParams(temperature=0, max_tokens=40)
            return [
                engine.generate(text, ask, plan=plan).token_ids
                for plan in ("big", "small:3>big", "lookup:2>small:2>medium:3>big")
                for text in ("hello", "a longer text, and another")
            ]

    captured = False
    eager = replies()
    captured = True
    assert replies() == eager


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_family_is_captured_at_load_and_decodes_the_same():
    models = {name: model.cuda() for name, model in tiny.related().items()}
    with hsd.Engine.from_models(models, tiny.ByteTokenizer()) as engine:
        ask = hsd.SamplingParams(temperature=0, max_tokens=60)
        assert told(engine.captured) == "captured steps" and engine._kernels is not None
        plain = engine.generate("hello", ask, plan="big")
        assert engine.generate("hello", ask, plan="small:2>medium:3>big").token_ids == plain.token_ids
        sampled = hsd.SamplingParams(temperature=0.8, max_tokens=60, seed=3)
        once = engine.generate("hello", sampled, plan="small:2>medium:3>big")
        assert engine.generate("hello", sampled, plan="small:2>medium:3>big").token_ids == once.token_ids


@pytest.mark.parametrize("device", ["cpu", gpu])
def test_the_benchmark_of_the_gpu_runs_with_tiny_shapes(device):
    lines: list[str] = []
    out = run(BenchRequest(device=device, quick=True, tell=lines.append))
    assert set(out["models"]) >= {"0.6B bf16", "32B nf4"}
    assert all(len(m["graphed_ms"]) == 16 and min(m["graphed_ms"]) > 0 for m in out["models"].values())
    assert any("outside steps" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_is_refused_in_a_sentence():
    with pytest.raises(LoadError, match="no NVIDIA GPU"):
        run(BenchRequest())
