"""`exact: true`: rows of a GGUF model do not depend on how many tokens a pass reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models as tiny
import pytest
import torch
from test_loading import tokenizer

import hsd
from hsd.bench.llama_cpp import write
from hsd.machine import fit
from hsd.runtime import LlamaCppModel, Reader
from hsd.runtime.base import MAX_WIDTH
from hsd.runtime.llama_cpp.library import library

pytest.importorskip("gguf", reason="writes the files of these tests")
TEXT = [(37 * i) % 250 for i in range(400)]
GREEDY = hsd.SamplingParams(temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def family() -> dict[str, Any]:
    return tiny.related(count=2, noise=0.05)


@pytest.mark.parametrize("form", ["F32", "BF16", "Q8_0"])
def test_rows_of_wide_passes_are_those_of_single_ones(form: str, family: dict[str, Any], tmp_path: Path) -> None:
    write(list(family.values())[-1].float(), tmp_path / "big.gguf", form, tokenizer())
    model = LlamaCppModel("big", tmp_path / "big.gguf", 384, library(), exact=True)
    assert 1 <= model.widest <= MAX_WIDTH and f"exact{model.widest}" in model.kind
    for cached in (20, 330):
        reader = Reader(model, model.new_cache())
        reader.prefill(TEXT[:cached])
        single = torch.cat([reader.read(TEXT[: cached + at + 1], 1).clone() for at in range(MAX_WIDTH)])
        for width in range(2, MAX_WIDTH + 1):
            reader.rewind(cached)
            assert torch.equal(reader.read(TEXT[: cached + width], width), single[:width]), (cached, width)
            assert len(reader) == cached + width
        reader.rewind(cached)
        # The last rows alone, as after a catch-up.
        assert torch.equal(reader.read(TEXT[: cached + 9], 2), single[7:9])


def test_a_family_says_whether_its_rows_are_exact(family: dict[str, Any], tmp_path: Path) -> None:
    for name, model in zip(("small", "big"), family.values(), strict=True):
        write(model.float(), tmp_path / f"{name}.gguf", "Q8_0", tokenizer())
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "own.yaml").write_text(
        """families:
  exact: {context: 384, models: {small: ./small.gguf, big: {path: ./big.gguf, exact: true}}}
  usual: {context: 384, models: {small: ./small.gguf, big: ./big.gguf}}
  other: {context: 384, models: {big: {path: ./big, exact: true}}}
"""
    )
    with hsd.Engine.load(f"{tmp_path}/own.yaml#exact", data_dir=tmp_path) as engine:
        assert engine.info.exact == {"small": False, "big": True}
        assert not any("nearly as likely" in note for note in engine.info.notes)
        plain = engine.generate("hello there", GREEDY, plan="big").token_ids
        for plan in ("small:3>big", "lookup:2>small:3>big"):
            assert engine.generate("hello there", GREEDY, plan=plan).token_ids == plain
    with hsd.Engine.load(f"{tmp_path}/own.yaml#usual", data_dir=tmp_path) as engine:
        assert engine.info.exact == {"small": False, "big": False}
        assert any("nearly as likely" in note and "exact: true" in note for note in engine.info.notes)
    with pytest.raises(hsd.HsdError, match="no GGUF model"):
        hsd.Engine.load(f"{tmp_path}/own.yaml#other", data_dir=tmp_path)
    assert fit(hsd.load_families(tmp_path / "own.yaml")["exact"])["exact"] == ["big"]
