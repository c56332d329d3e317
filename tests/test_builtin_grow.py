"""A larger model begins with what a smaller one has learnt: the same logits at first, and then it learns on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hsd.builtin import grow, stages, stored, train
from hsd.builtin.loop import Learner, Settings
from hsd.builtin.loop import train as run
from hsd.builtin.models import LADDERS, Shape, build, size
from hsd.builtin.optim import Rates
from hsd.builtin.presets import PRESETS, Preset
from hsd.builtin.stages import Work
from hsd.builtin.stream import Stream
from hsd.errors import HsdError

SMALL = Shape(width=64, layers=2, inner=96, head_width=32)
LARGER = {
    "wider": dataclasses.replace(SMALL, inner=160),
    "deeper": dataclasses.replace(SMALL, layers=5),
    "both": dataclasses.replace(SMALL, layers=3, inner=128),
    "same": SMALL,
}


def endless(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return np.stack([rng.integers(6, 512, 5000), np.full(5000, 4)]).astype(np.uint16)


def trained(folder: Path) -> grow.State:
    """A model whose weights have left their random start."""
    learner = Learner(build(SMALL, 512, seed=1), Rates(warmup=1))
    run({"m": learner}, Stream(endless), Settings(steps=3, rows=2, length=32), folder / "small.pt")
    return learner.model.state_dict()


@pytest.mark.parametrize("name", LARGER)
def test_a_grown_model_says_what_the_smaller_one_said_and_then_learns_with_all_it_has(tmp_path, name):
    state = trained(tmp_path)
    small, grown = build(SMALL, 512, seed=0), build(LARGER[name], 512, seed=7)
    small.load_state_dict(state)
    grow.grow(state, SMALL, grown, LARGER[name])
    ids = torch.randint(6, 512, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = small(ids).logits
        assert torch.allclose(grown(ids).logits, before, atol=1e-5 * before.abs().max().item())
    was = {key: value.clone() for key, value in grown.state_dict().items()}
    learner = Learner(grown, Rates(warmup=1))
    run({"m": learner}, Stream(endless), Settings(steps=3, rows=2, length=32), tmp_path / "grown.pt")
    still = [key for key, value in grown.state_dict().items() if (value == was[key]).all(-1).any()]
    assert still == []  # no row of any matrix, new or old, is left as it was: zero on both sides would be


@pytest.mark.parametrize(
    "shape", [Shape(96, 2, 96, 32), Shape(64, 1, 96, 32), Shape(64, 2, 64, 32), Shape(64, 2, 96, 64)]
)
def test_what_cannot_hold_the_smaller_model_is_refused(shape):
    with pytest.raises(HsdError, match="cannot begin with"):
        grow.grow(build(SMALL, 512, seed=0).state_dict(), SMALL, build(shape, 512, seed=0), shape)


def test_every_shape_of_the_ladders_is_known_by_its_weights():
    for ladder in LADDERS.values():
        for shape in ladder.values():
            assert grow.shape_of(build(dataclasses.replace(shape), 512, seed=0).state_dict()) == shape
    with pytest.raises(HsdError, match="No ladder"):
        grow.shape_of(build(SMALL, 512, seed=0).state_dict())


def test_the_grown_ladder_is_of_the_size_the_issue_asks_for_and_fits_the_repository():
    # bf16 below 5M parameters, 4 bits and a scale per 64 weights above, embeddings in bf16; tokenizers 0.27 MB each
    old, new = LADDERS["cpu"], LADDERS["grown"]
    assert {k: v for k, v in old.items() if k != "large"} == {k: v for k, v in new.items() if k != "large"}
    assert 45e6 <= size(new["large"]) <= 50e6
    held = sum(
        n * 2 if n < stored.NF4_FROM else 4096 * s.width * 2 + (n - 4096 * s.width) * 0.52
        for n, s in ((size(s), s) for s in new.values())
    )
    assert held + 4 * 270_000 < 45e6


def test_the_command_grows_a_family_and_a_second_call_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LADDERS, "wider", {**LADDERS["try"], "large": Shape(128, 3, 320, 32)})
    wider: Preset = dataclasses.replace(PRESETS["try"], ladder="wider")
    monkeypatch.setitem(PRESETS, "wider", wider)
    common = ["--threads", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    first, second = tmp_path / "first", tmp_path / "second"
    onward = [*common, "--work", str(second), "--preset", "wider", "--grow-from", str(first)]

    assert train.main([*onward, "--stage", "tokenizer"]) == 1
    assert "--grow-from" in capsys.readouterr().err
    assert train.main([*common, "--work", str(first), "--preset", "try", "--stage", "tokenizer"]) == 0
    assert train.main([*common, "--work", str(first), "--preset", "try", "--stage", "target", "--steps", "16"]) == 0
    before = Work(first, None, PRESETS["try"]).trained("large")

    assert train.main([*onward, "--stage", "tokenizer"]) == 0
    work = Work(second, None, wider, grow_from=first)
    vocabulary = [(folder / "tokenizer" / "tokenizer.json").read_bytes() for folder in (first, second)]
    assert vocabulary[0] == vocabulary[1]
    ids = torch.arange(6, 70)[None]
    with torch.no_grad():
        assert torch.allclose(work.begun("large")(ids).logits, before(ids).logits, atol=1e-4)
    with pytest.raises(HsdError, match=r"drafts\.pt"):
        work.begun("tiny")

    assert train.main([*onward, "--stage", "target", "--steps", "16", "--stop-after", "13"]) == 0
    assert train.main([*onward, "--stage", "target", "--steps", "16"]) == 0
    paused = stages.Work(second, None, wider).trained("large").state_dict()
    whole = tmp_path / "whole"
    at_once = [*common, "--work", str(whole), "--preset", "wider", "--grow-from", str(first)]
    assert train.main([*at_once, "--stage", "tokenizer"]) == 0
    assert train.main([*at_once, "--stage", "target", "--steps", "16"]) == 0
    unbroken = stages.Work(whole, None, wider).trained("large").state_dict()
    assert all(torch.equal(unbroken[key], paused[key]) for key in unbroken)


def test_one_draft_of_a_family_is_trained_on_and_the_others_stay_what_they_are(tmp_path, capsys):
    """Also the target, which would come out otherwise if it were unpacked and packed again."""
    family, out = tmp_path / "family", tmp_path / "out"
    common = ["--threads", "1", "--device", "cpu", "--preset", "try", "--nf4-from", "200000"]
    first = [*common, "--work", str(tmp_path / "first"), "--out", str(family), "--steps", "16", "--draft-steps", "4"]
    assert train.main(first) == 0
    onward = [*common, "--work", str(tmp_path / "second"), "--grow-from", str(family), "--out", str(out)]
    more = ["--only", "small", "--draft-steps", "4"]
    assert train.main([*onward, "--stage", "tokenizer"]) == 0
    assert train.main([*onward, "--stage", "more", *more, "--stop-after", "2"]) == 0
    assert train.main([*onward, "--stage", "more", *more]) == 0
    assert train.main([*onward, "--stage", "export"]) == 0

    def weights(folder: Path) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in folder.glob("*.gguf")}

    before, after = weights(family), weights(out)
    assert {name for name in before if before[name] != after[name]} == {"small"}
    assert len(before) == 4 and stored.load(out / "large.gguf").config.vocab_size == 512

    capsys.readouterr()
    nowhere = [*onward[:-1], str(tmp_path / "none"), "--work", str(tmp_path / "third"), "--grow-from", str(tmp_path)]
    assert train.main([*nowhere, "--stage", "tokenizer"]) == 1
    assert "folder of a family" in capsys.readouterr().err
