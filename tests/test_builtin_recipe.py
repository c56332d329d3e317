"""The recipe: a killed run goes on to the same weights, a budget is kept, what is stored is what is drafted for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hsd.builtin import MODELS, WEIGHTS, footprint, ladder, own, stored, tokenizer, train, weights_file
from hsd.builtin.ahead import Workers, _make
from hsd.builtin.budget import RESERVE, Budget
from hsd.builtin.loop import PROBED, Learner, Settings
from hsd.builtin.loop import train as run
from hsd.builtin.mixture import Mixture
from hsd.builtin.models import LADDERS, SHIPPED, Shape, build, parameters, size
from hsd.builtin.optim import Rates
from hsd.builtin.phrasing import doing, keywords
from hsd.builtin.presets import PRESETS, flops
from hsd.builtin.stages import Work, train_tokenizer
from hsd.builtin.stream import Batch, Rounds, Stream
from hsd.config import ModelSpec
from hsd.errors import HsdError
from hsd.loading.source import read_model

NF4_FROM = "150000"  # of the models that take seconds, the target alone is larger


def options(folder: Path, *more: str) -> list[str]:
    paths = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    return [*paths, "--preset", "try", "--nf4-from", NF4_FROM, "--threads", "1", "--device", "cpu", *more]


def exported(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "out" / f"{name}.gguf").read_bytes() for name in MODELS}


@pytest.mark.parametrize(
    "checkpoints", [("target.pt",), pytest.param(("target.pt", "drafts.pt"), marks=pytest.mark.full)]
)
def test_a_run_that_is_killed_ends_in_the_same_family(tmp_path, checkpoints):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train.main(options(whole)) == 0
    for checkpoint in checkpoints:
        child = subprocess.Popen(
            [sys.executable, "-m", "hsd.builtin.train", *options(killed)], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not (killed / "work" / checkpoint).exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (killed / "work" / checkpoint).exists()
    assert not (killed / "out").exists()
    assert train.main(options(killed)) == 0
    assert exported(killed) == exported(whole)
    # What drafts were distilled from is in 4 bits, and what is exported says nearly the same.
    model = AutoModelForCausalLM.from_pretrained(whole / "work" / "stored" / "large")
    assert model.is_quantized and model.config.quantization_config.bnb_4bit_quant_type == "nf4"
    assert AutoModelForCausalLM.from_pretrained(whole / "work" / "family" / "tiny").dtype == torch.bfloat16
    assert not list((whole / "out").glob(".*"))
    ids = torch.arange(6, 60)[None]
    with torch.no_grad():
        ours, theirs = (
            torch.softmax(stored.load(place)(ids).logits, -1)
            for place in (whole / "out" / "large.gguf", whole / "work" / "stored" / "large")
        )
    assert torch.minimum(ours, theirs).sum(-1).mean() > 0.9
    # One draft alone, further, in two calls: the others stay what they are.
    before, more = exported(whole), [*options(whole), "--stage", "more", "--draft-steps", "18"]
    assert train.main([*more, "--only", "large"]) == 1
    assert train.main([*more, "--only", "tiny", "--stop-after", "17"]) == 0
    assert train.main([*more, "--only", "tiny"]) == 0
    assert train.main([*options(whole), "--stage", "export"]) == 0
    assert {name for name, data in exported(whole).items() if data != before[name]} == {"tiny"}


def test_the_loader_of_families_reads_what_is_stored_in_4_bits(tmp_path):
    model = build(LADDERS["try"]["large"], 512, seed=0)
    stored.store(model, tokenizer.train(["a few words"], 300), tmp_path / "m", nf4_from=0)
    mine = stored.load(tmp_path / "m")
    theirs = read_model(ModelSpec("m", str(tmp_path / "m"), quantization="nf4"), "cpu", "float32")
    ids = torch.arange(10)[None]
    assert torch.allclose(mine(ids).logits, theirs(ids).logits, atol=1e-4)
    weight, rounded = model.model.layers[0].mlp.up_proj.weight, mine.model.layers[0].mlp.up_proj.weight
    assert 0.03 < ((weight - rounded).abs().mean() / weight.abs().mean()).item() < 0.2
    assert torch.allclose(model.model.embed_tokens.weight, mine.model.embed_tokens.weight, atol=1e-3)


def test_steps_fit_what_is_left_of_the_budget(tmp_path):
    assert Budget(tmp_path / "spent.json", None).steps(100, 5, 60.0, 0.5) == 100
    budget = Budget(tmp_path / "spent.json", 10)
    assert budget.steps(100, 5, 0.001, 0.5) == 100
    assert budget.steps(1000, 5, 1.0, 0.5) == pytest.approx(600 * (1 - RESERVE) / 2, abs=2)
    assert budget.steps(1000, 5, 1e6, 0.5) == 5
    (tmp_path / "spent.json").write_text('{"spent_s": 300.0}')
    later = Budget(tmp_path / "spent.json", 10)
    assert later.steps(1000, 5, 1.0, 1.0) == pytest.approx(600 * (1 - RESERVE) - 300, abs=2)
    later.tell()
    assert Budget(tmp_path / "spent.json", 10).spent_s >= 300


def learner(shape: Shape = LADDERS["try"]["tiny"]) -> Learner:
    return Learner(build(shape, 512, seed=0), Rates())


def endless(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return np.stack([rng.integers(6, 512, 5000), np.full(5000, 4)]).astype(np.uint16)


def test_a_planned_run_remembers_its_plan(tmp_path):
    asked = []

    def plan(seconds: float) -> int:
        asked.append(seconds)
        return PROBED + 3

    settings = Settings(steps=1000, rows=2, length=32, save_every=5, stop_after=PROBED + 1)
    path = tmp_path / "m.pt"
    assert run({"m": learner()}, Stream(endless), settings, path, plan=plan) == PROBED + 1
    again = Settings(steps=1000, rows=2, length=32, save_every=5)
    assert run({"m": learner()}, Stream(endless), again, path, plan=plan) == PROBED + 3
    assert len(asked) == 1 and 0 < asked[0] < 5


def test_a_step_in_pieces_is_the_same_step(tmp_path):
    weights = []
    for pieces in (1, 2):
        one = learner()
        settings = Settings(steps=3, rows=4, length=16, pieces=pieces, lightest=0.5)
        run({"m": one}, Stream(endless), settings, tmp_path / f"{pieces}.pt")
        weights.append(one.model.model.embed_tokens.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=2e-3)
    ids = torch.arange(12).view(3, 4)
    weighed = Batch(ids, ids + 1, torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0.25, 1]]))
    parts = list(weighed.pieces(3, 0.0))
    assert torch.cat([p.targets for p in parts]).tolist() == [1, 4, 8, 9, 10, 11, 12]
    assert sum(float(p.weights.sum()) for p in parts) == pytest.approx(1)
    assert parts[2].places.tolist() == [0, 1, 2, 3]


def test_rounds_made_by_other_processes_are_the_same_rounds(tmp_path):
    work = Work(tmp_path, None, PRESETS["try"])
    train_tokenizer(work)
    job = [tmp_path / "ahead", None, 0, work.preset.shares, work.spoken_size, tmp_path / "tokenizer"]
    _make(*job, 1)
    mine = Rounds(tmp_path / "mine", lambda number: work.encode(work.mixture.round(number)))
    assert np.array_equal(np.load(tmp_path / "ahead" / "round-0001.npy"), mine(1))


@pytest.mark.full
def test_other_processes_make_rounds_while_one_waits(tmp_path):
    from functools import partial

    work = Work(tmp_path, None, PRESETS["try"])
    train_tokenizer(work)
    job = partial(_make, tmp_path / "r", None, 0, work.preset.shares, work.spoken_size, tmp_path / "tokenizer")
    workers = Workers(job, 2)
    try:
        found = Rounds(tmp_path / "r", lambda number: work.encode(work.mixture.round(number)), workers)
        assert all(found(number).shape[0] == 2 for number in range(3))
    finally:
        workers.close()


def test_the_ladder_for_a_gpu_is_what_the_issue_asks_for():
    sizes = [size(shape) for shape in LADDERS["gpu"].values()]
    assert sizes == [parameters(build(shape, 4096, seed=0)) for shape in LADDERS["gpu"].values()]
    assert sizes[0] < 1e6 and 45e6 <= sizes[-1] <= 50e6
    assert all(2.9 <= b / a <= 6.5 for a, b in pairwise(sizes))
    # bf16 below 5M parameters, 4 bits and a scale per 64 weights above, embeddings in bf16; tokenizers 0.27 MB each
    held = sum(n * 2 if n < stored.NF4_FROM else 4096 * s.width * 2 + (n - 4096 * s.width) * 0.52 for n, s in zip(
        sizes, LADDERS["gpu"].values(), strict=True
    ))  # fmt: skip
    assert held + 4 * 270_000 < 45e6
    assert 4e16 < flops(PRESETS["gpu"])[0] < 5e16


def test_ladders_are_ranked_by_their_best_plan():
    costs = {"a": [0.1] * 16, "b": [0.5] * 16, "c": [3.0] * 16, "big": [10.0] * 16}
    assumed = ladder.Assumed(same=0.965, slope=0.061, lookup=0.1)
    table = assumed.table({"a": 1_000_000, "b": 4_000_000, "c": 16_000_000, "big": 64_000_000})
    assert table["a", "b"] == pytest.approx(0.843) and table["a", "big"] == pytest.approx(0.599)
    found = ladder.ladders(costs, table, 2, smallest="a")
    assert [set(one.drafts) for one in found] and all("a" in one.drafts for one in found)
    assert found[0].ms <= found[-1].ms < found[0].plain_ms == 10.0
    assert len(found[0].single.drafts) == 1 and found[0].single_ms == found[-1].single_ms
    assert [one.ms for one in ladder.distinct(found)] == sorted({one.ms for one in found})


def test_measured_steps_are_there_for_every_width():
    costs = ladder.measure({"m": LADDERS["try"]["tiny"]}, repeats=1)
    assert len(costs["m"]) == 16 and min(costs["m"]) > 0


def test_names_in_a_question_come_back_in_the_command():
    port = next(h for h in own.read_howtos("named") if h.task.wish == "see which process uses port %port%")
    for seed in range(20):
        asked, said = port.play(Random(seed))
        number = next(
            word for word in asked.content.rstrip("?.!,").replace(",", "").split() if word.strip("?.").isdigit()
        )
        assert f"lsof -i :{number.strip('?.')}\n" in said.content
    with pytest.raises(HsdError, match="bad:1"):
        own._check_slots("bad:1", ["%nothing%"])
    assert not [t for turns in Mixture(None).round(0) for t in turns if "%file%" in t.content or "%name%" in t.content]


def test_a_wish_in_other_forms():
    assert doing("remove duplicate lines") == "removing duplicate lines"
    assert doing("stop a service") == "stopping a service" and doing("see the date") == "seeing the date"
    assert keywords("extract a tar archive into another directory") == "extract tar archive another directory"


def test_loading_is_measured_beyond_the_imports(capsys):
    assert footprint.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["parameters"] == sum(size(shape) for shape in LADDERS[SHIPPED].values())
    assert 0 < found["load_s"] < 60 and found["added_mb"] > -1000


@pytest.mark.parametrize("name", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(tmp_path, capsys, name):
    assert train.main(["--work", str(tmp_path / "w"), "--device", name]) == 1
    assert name in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_a_folder_without_a_family_is_one_sentence(tmp_path, capsys):
    assert footprint.main(["--weights", str(tmp_path)]) == 1
    assert MODELS[0] in capsys.readouterr().err
    assert [spec.path for spec in footprint.family_in(WEIGHTS).models] == [str(weights_file(n)) for n in MODELS]
