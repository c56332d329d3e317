"""Kinds of GGUF models: experts, states, hybrids and sliding windows decode with drafts as they decode plainly."""

from __future__ import annotations

from pathlib import Path

import gguf_tiny
import pytest
from test_loading import tokenizer

import hsd
from hsd import gguf
from hsd.loading.shapes import of_gguf
from hsd.runtime import LlamaCppModel, Reader
from hsd.runtime.base import MAX_WIDTH
from hsd.runtime.llama_cpp.library import library

pytest.importorskip("gguf", reason="writes the files of these tests")
TEXT = [(37 * i) % 250 for i in range(200)]
SEEDS = {"experts": 0, "recurrent": 3, "hybrid": 2, "window": 3}
"""Of the weights. With these no two tokens of the replies here are nearly as likely, which rounding could exchange."""
GREEDY = hsd.SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and a draft of every kind, and a family of each; the hybrid's second draft has experts."""
    root, families = tmp_path_factory.mktemp("kinds"), ""
    for kind in gguf_tiny.KINDS:
        gguf_tiny.write(kind, root / f"{kind}.gguf", tokenizer(), SEEDS[kind])
        gguf_tiny.write(kind, root / f"{kind}-draft.gguf", tokenizer(), SEEDS[kind], noise=0.1)
        families += f"  {kind}: {{context: 256, models: {{small: ./{kind}-draft.gguf, big: ./{kind}.gguf}}}}\n"
    families += "  beside: {context: 256, models: {small: ./experts.gguf, big: ./hybrid.gguf}}\n"
    (root / "models.yaml").write_text(f"families:\n{families}")
    return root


def loaded(folder: Path, kind: str) -> LlamaCppModel:
    return LlamaCppModel(kind, folder / f"{kind}.gguf", 256, library())


@pytest.mark.parametrize("kind", gguf_tiny.KINDS)
def test_a_cache_that_was_cut_goes_on_as_a_fresh_one(kind: str, folder: Path) -> None:
    model = loaded(folder, kind)
    assert model.states == (kind in ("recurrent", "hybrid")) and model.cuttable == (kind != "recurrent")
    for back in (1, 5, 7, 8, 9, 17, 40, 100):
        reader, fresh = Reader(model, model.new_cache()), Reader(model, model.new_cache())
        reader.prefill(TEXT[:110])
        reader.read(TEXT[:118], 8)
        reader.rewind(118 - back)
        # States are there within the last pass; everywhere else the text is read again.
        assert len(reader) == (118 - back if not model.states or (model.cuttable and back < 8) else 0)
        got = reader.read(TEXT[: 119 - back], 1).clone()
        wanted = fresh.read(TEXT[: 119 - back], 1)
        assert (got - wanted).abs().max() < 0.002 * wanted.abs().max(), back


def test_a_hybrid_keeps_its_states_over_copies_and_other_conversations(folder: Path) -> None:
    model = loaded(folder, "hybrid")
    assert library().llama_n_rs_seq(model._context) >= MAX_WIDTH
    reader, other = Reader(model, model.new_cache()), Reader(model, model.new_cache())
    wanted = other.read(TEXT[:54], 1).clone()
    reader.prefill(TEXT[:50])
    reader.read(TEXT[:66], 16)
    reader.rewind(53)
    copy = reader.copy(53)
    assert len(reader) == len(copy) == 53
    assert (copy.read(TEXT[:54], 1) - wanted).abs().max() < 1e-3
    assert (reader.read(TEXT[:54], 1) - wanted).abs().max() < 1e-3
    reader.rewind(52)  # behind the last pass, and saved since
    assert len(reader) == 0


def test_a_sliding_window_is_whole_after_another_conversation(folder: Path) -> None:
    model = loaded(folder, "window")
    reader, fresh = Reader(model, model.new_cache()), Reader(model, model.new_cache())
    reader.prefill(TEXT[:70])
    wanted = fresh.read(TEXT[:31], 1).clone()  # puts the first one away
    for length in (69, 53, 30):  # by a block, by a window, by an edit
        reader.rewind(length)
        fresh.rewind(10)
        assert len(reader) == length
        got = reader.read(TEXT[: length + 1], 1).clone()
        assert (got - fresh.read(TEXT[: length + 1], 1)).abs().max() < 0.002 * wanted.abs().max(), length


def test_a_prompt_of_a_hybrid_that_is_stopped_leaves_nothing_of_it(folder: Path) -> None:
    model = loaded(folder, "hybrid")
    reader, fresh, asked = Reader(model, model.new_cache()), Reader(model, model.new_cache()), [0]
    reader.prefill(TEXT[:20])

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 5

    assert not reader.prefill(TEXT, stop) and len(reader) == 0
    got = reader.read(TEXT[:21], 1).clone()
    assert (got - fresh.read(TEXT[:21], 1)).abs().max() < 1e-3


def test_states_are_part_of_the_estimate(folder: Path) -> None:
    shapes = {kind: of_gguf([gguf.header(folder / f"{kind}.gguf")]) for kind in gguf_tiny.KINDS}
    hybrid, recurrent = shapes["hybrid"], shapes["recurrent"]
    # Two of four layers: 3 columns of 64 channels and a state of 32 by 16, in float32.
    assert hybrid.attending == 2 and hybrid.states == 18 * 2 * 4 * (3 * 64 + 32 * 16)
    assert recurrent.attending == 0 and recurrent.states == 2 * 4 * (3 * 64 + 64 * 8)
    assert shapes["experts"].attending is None and shapes["window"].states == 0


@pytest.mark.parametrize(
    ("name", "plans"),
    [
        ("experts", ("small:3>big", "lookup:2>big", "lookup:2>small:3>big")),
        ("window", ("small:3>big", "lookup:2>big", "lookup:2>small:3>big")),
        ("beside", ("small:3>big", "lookup:2>big", "lookup:2>small:6>big", "small:20>big")),
        ("hybrid", ("lookup:2>big",)),
        ("recurrent", ()),
    ],
)
def test_every_plan_gives_the_ids_of_plain_decoding(
    name: str, plans: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    with hsd.Engine.load(f"{folder}/models.yaml#{name}", data_dir=tmp_path) as engine:
        prompts = ("hello there", "a b c d a b c d a b c", "hello there, an edit of what was asked before")
        for prompt in prompts:
            plain = engine.generate(prompt, GREEDY, plan="big")
            for plan in plans:
                assert engine.generate(prompt, GREEDY, plan=plan).token_ids == plain.token_ids, plan
        if name in ("hybrid", "recurrent"):
            assert engine.info.models == ("big",)
            assert "cannot be cut back after a rejection (a recurrent or hybrid model)" in engine.info.dropped[0].reason
        if name == "recurrent":
            assert any("'big' decodes plainly" in note for note in engine.info.notes)
            assert engine.generate("hello there", GREEDY).stats.plan == "big"
            with pytest.raises(hsd.HsdError, match="decodes plainly"):
                engine.generate("hello there", GREEDY, plan="lookup:2>big")
