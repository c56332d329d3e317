"""Memory before loading: what is counted is what transformers builds, and what does not fit is left out in order."""

from __future__ import annotations

import dataclasses

import models as tiny
import pytest
import torch

import hsd
from hsd.config import Family, ModelSpec
from hsd.loading.estimate import GB, LEAST_CONTEXT, NF4_BYTES, Place, fit
from hsd.loading.place import LIMIT, device_of, place_of, read_gbps
from hsd.loading.shapes import counted, published, shape_of

LADDER = Family(
    "ladder",
    (
        ModelSpec("0.6b", "Qwen/Qwen3-0.6B"),
        ModelSpec("1.7b", "Qwen/Qwen3-1.7B", quantization="nf4"),
        ModelSpec("8b", "Qwen/Qwen3-8B", quantization="nf4"),
    ),
    target="8b",
    context=8192,
)


def gpu(free_gb: float, total_gb: float = 24) -> Place:
    return Place("a GPU", "cuda", free_gb * GB, total_gb * GB)


def test_weights_are_counted_by_how_they_are_stored():
    by_name = {m.name: m for m in fit(LADDER, gpu(24)).models}
    shape = counted(published()["Qwen/Qwen3-8B"])
    assert shape is not None and shape.parameters == 8_190_735_360
    unquantized = 2 * 151936 * 4096  # embedding and head stay in bf16
    norms = shape.other
    expected = NF4_BYTES * (shape.parameters - unquantized - norms) + 2 * (unquantized + norms)
    assert by_name["8b"].weights_gb == pytest.approx(expected / GB, rel=1e-6)
    assert by_name["0.6b"].weights_gb == pytest.approx(2 * 596_049_920 / GB, rel=1e-6)
    # 36 layers, 8 key heads of 128, keys and values, two bytes
    assert by_name["8b"].cache_gb == pytest.approx(2 * 36 * 8 * 128 * 8192 * 2 / GB)


@pytest.mark.parametrize(
    ("free", "left", "context"),
    [(24, ("0.6b", "1.7b", "8b"), 8192), (11, ("0.6b", "8b"), 8192), (8.6, ("8b",), 8192), (7.6, ("8b",), 5000)],
)
def test_the_least_valuable_draft_goes_first_then_the_context_shrinks(free, left, context):
    result = fit(LADDER, gpu(free))
    assert result.fits and tuple(m.name for m in result.models) == left
    assert result.needed_gb <= free
    assert set(result.dropped) == {m.name for m in LADDER.models} - set(left)
    assert all("GB" in reason for reason in result.dropped.values())
    assert result.context == context if context == 8192 else LEAST_CONTEXT <= result.context < 8192
    if context < 8192:
        longer = dataclasses.replace(LADDER, context=result.context + 256, models=LADDER.models[-1:])
        assert fit(longer, gpu(100)).needed_gb > free, "the context that is left is the longest that fits"
        assert f"{result.context:,} tokens" in result.verdict


def test_a_family_that_does_not_fit_says_so_with_the_numbers():
    result = fit(LADDER, gpu(3, 4))
    assert not result.fits and result.context == LEAST_CONTEXT
    assert result.verdict.startswith("does not fit: wants 6.") and "3.0 GB free on a GPU" in result.verdict


def test_without_a_gpu_the_verdict_says_how_slow():
    place = Place("this computer's memory", "cpu", 40 * GB, 64 * GB, bf16=True, read_gbps=20.0)
    result = fit(LADDER, place)
    assert result.fits and result.models[-1].weights_gb == pytest.approx(2 * 8_190_735_360 / GB)  # unpacked
    assert result.seconds_per_token == pytest.approx(16.38 / 20, rel=0.01)
    assert "slow without a GPU: about 0.8 s per token" in result.verdict and not result.packed
    narrow = fit(LADDER, dataclasses.replace(place, free=9 * GB))
    assert narrow.fits and narrow.packed and "more than" in narrow.verdict


def test_a_model_of_unknown_size_counts_as_nothing_and_is_named():
    family = Family("x", (ModelSpec("a", "somebody/unheard-of"), LADDER.models[-1]), target="8b")
    result = fit(family, gpu(24))
    assert result.fits and not result.models[0].known and "without a: their size" in result.verdict


@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3", "mistral", "gemma3"])
def test_a_folder_is_counted_as_transformers_builds_it(shape, tmp_path):
    model = tiny.model(shape)
    model.save_pretrained(tmp_path)
    found = shape_of(ModelSpec("x", str(tmp_path)))
    assert found is not None and found.parameters == model.num_parameters() and found.exact
    assert (found.layers, found.vocab, found.positions) == (2, tiny.VOCAB, 512)


def test_an_unknown_kind_is_weighed_by_its_files(tmp_path):
    model = tiny.model("gpt-neox")
    model.save_pretrained(tmp_path)
    found = shape_of(ModelSpec("x", str(tmp_path)))
    assert found is not None and not found.exact
    assert found.parameters == pytest.approx(model.num_parameters(), rel=0.05)


def test_the_limit_of_the_environment_bounds_what_is_free(monkeypatch):
    monkeypatch.setenv(LIMIT, "2.5")
    assert place_of("cpu").free == 2.5 * GB
    result = hsd.memory_fit("qwen3-8b", device="cpu")
    assert not result.fits and "2.5 GB free" in result.verdict and result.download_gb > 20
    monkeypatch.setenv(LIMIT, "lots")
    with pytest.raises(hsd.ConfigError, match="lots"):
        hsd.memory_fit("builtin", device="cpu")


def test_memory_that_will_be_given_back_counts_as_free(monkeypatch):
    monkeypatch.setenv(LIMIT, "2")
    assert hsd.memory_fit("builtin", device="cpu", also_free_gb=1.5).free_gb == pytest.approx(3.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA is asked")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "balanced", "mps", "tpu"])
def test_a_device_that_is_not_there_is_one_sentence(device):
    with pytest.raises(hsd.ConfigError) as caught:
        device_of(ModelSpec("x", "y"), device)
    assert device in caught.value.message and caught.value.hint


def test_reading_speed_is_plausible():
    assert 0.5 < read_gbps() < 2000
