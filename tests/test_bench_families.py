"""The benchmark for real GPUs runs here with tiny models; on a processor it says what it wants."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf

import hsd
from hsd.bench import BenchRequest, families
from hsd.bench.made import make
from hsd.loading.estimate import GB, Place, fit
from hsd.loading.source import held_bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is asked")
def test_without_a_gpu_it_says_so():
    with pytest.raises(hsd.LoadError, match="no NVIDIA GPU") as caught:
        families.run(BenchRequest())
    assert "--quick" in caught.value.hint


def test_made_models_are_seeded_packed_and_weigh_what_is_estimated(tmp_path):
    family = families._family(families.STACKS["0.6B + 1.7B + 8B"], tmp_path, quick=True)
    assert [m.quantization for m in family.models] == ["none", "none", "nf4"]
    whole = fit(family, Place("", "cuda", 1e15, 1e15), "float32")
    for spec, memory in zip(family.models, whole.models, strict=True):
        config = tf.AutoConfig.from_pretrained(spec.path)
        model, other = (make(config, spec, "cpu", seed)[0] for seed in (1, 1))
        assert held_bytes(model) == pytest.approx(memory.weights_gb * GB, rel=0.02)
        ids = torch.tensor([[1, 2, 3]])
        with torch.inference_mode():
            assert torch.isfinite(model(ids).logits).all() and torch.equal(model(ids).logits, other(ids).logits)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_there_are_fifty_prompts_for_the_built_in_family():
    assert len(set(families.questions())) == families.PROMPTS == 50


@pytest.mark.full
def test_the_whole_benchmark_runs_with_tiny_models(tmp_path):
    said: list[str] = []
    out = families.run(BenchRequest(quick=True, device="cpu", tell=said.append))
    json.dumps(out)
    for rows in out["stacks"].values():
        assert any("without" in row["verdict"] for row in rows.values())
        assert all(row["weights_gb"] == pytest.approx(row["estimated_weights_gb"], rel=0.02) for row in rows.values())
    assert out["files"]["nf4"]["held_gb"] < out["files"]["none"]["held_gb"]
    assert set(out["divergence"]) == {"bf16", "nf4"} and all(d["tokens"] > 0 for d in out["divergence"].values())
    assert said
