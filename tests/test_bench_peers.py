"""The benchmark beside `llama-server`: every setting has its turn, one that does not run is said and left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_gguf_lossless import SMOL, real, write_family

import hsd
from hsd.bench import BenchRequest, gguf_steps, llama_server, peers, steps
from hsd.bench.peer_prompts import KINDS, MEASURED

SERVER = llama_server.find_server()
needs_server = pytest.mark.skipif(SERVER is None, reason="there is no llama-server here")


def test_there_are_prompts_to_measure_and_others_to_learn_from() -> None:
    assert len({text for texts in KINDS.values() for text in texts}) == 52
    assert all(len(texts) > MEASURED for texts in KINDS.values())


@needs_server
def test_kinds_of_drafting_are_those_that_the_program_names() -> None:
    kinds = llama_server.kinds_of_drafting(llama_server.options(SERVER))
    assert {"draft-simple", "ngram-simple"} <= set(kinds)
    assert llama_server.kinds_of_drafting("an older program") == ()
    settings = peers._arguments({"small": Path("s.gguf"), "big": Path("b.gguf")}, "big", kinds, 512, False)
    assert len(settings) >= 5 and all("b.gguf" in arguments for arguments in settings.values())
    assert sum("s.gguf" in arguments for arguments in settings.values()) == 2


@needs_server
def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(hsd.LoadError, match="llama-server ended at once"):
        llama_server.Server(SERVER, ["-m", str(tmp_path / "no.gguf"), "--device", "none"])


def test_a_family_without_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("families: {f: {context: 64, models: {big: org/name}}}")
    with pytest.raises(hsd.ConfigError, match="no GGUF model"):
        peers.run(BenchRequest(f"{tmp_path}/own.yaml#f"))


def test_a_run_that_was_cut_off_goes_on_and_settings_that_fail_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny family's tokenizer is none that `llama-server` knows: it refuses the files, and the rest goes on."""
    kinds = {"say": ("say one", "say two", "say three")}
    for name, value in (("TEMPERATURES", (0.0,)), ("KINDS", kinds), ("MEASURED", 2)):
        monkeypatch.setattr(peers, name, value)  # fewer and shorter ones
    held = cell(peers.PLAIN, 32, 1e-6, ids=[])
    (tmp_path / "peers-tiny-32.journal").write_text(json.dumps({f"say|0|0|{peers.PLAIN}": held}) + "\n")
    said: list[str] = []
    found = peers.run(BenchRequest(write_family(tmp_path), quick=True, out=tmp_path, tell=said.append))
    json.dumps(found)
    figures = found["figures"]["T=0"]["say"]
    assert figures["over_plain"][peers.PLAIN] == 1 and figures["prompts"] == 2 and found["learnt_from"] == 4
    # Of two replies by plain decoding one is that of the earlier run, which others cannot equal.
    assert figures["same_ids_as_plain"][f"{peers.OURS}lookup:3>small:5>big"] == 1
    assert any(line.startswith("1 replies of an earlier run") for line in said)
    ours = len(figures["tokens_per_second"])
    assert ours == 6 and sum("is left out from here on" in line for line in said) == (0 if SERVER is None else 9)
    assert len((tmp_path / "peers-tiny-32.journal").read_text().splitlines()) == found["replies"] == 2 * ours


def cell(name: str, tokens: int, seconds: float, **more: Any) -> dict[str, Any]:
    common = {"kind": "chat", "prompt": 0, "temperature": 0.0, "prompt_tokens": 10, "prompt_seconds": 0.5, "ids": [1]}
    return {**common, "name": name, "tokens": tokens, "seconds": seconds, **more}


def test_figures_are_tokens_over_seconds_and_ratios_of_them() -> None:
    server = f"{peers.PEER}plain"
    cells = [
        cell(peers.PLAIN, 100, 10.0),
        cell(peers.PLAIN, 20, 2.0, prompt=1),
        cell(peers.AUTO, 120, 6.0, plan="a:3>b"),
        cell(server, 95, 5.0, ids=[2]),
    ]
    chat = peers._figures(cells)["chat"]
    assert chat["tokens_per_second"] == pytest.approx({peers.PLAIN: 10, peers.AUTO: 20, server: 19})
    assert chat["over_plain"][peers.AUTO] == pytest.approx(2) and chat["best"] == peers.AUTO
    assert chat["over_best_of_llama_server"][peers.AUTO] == pytest.approx(20 / 19)
    assert chat["same_ids_as_plain"] == {peers.PLAIN: 2, peers.AUTO: 1, server: 0}
    assert chat["plans_of_auto"] == {"a:3>b": 1} and chat["prompt_tokens_per_second"][server] == 20


def test_steps_of_gguf_models_are_measured_beside_a_bare_loop_that_gives_the_same_ids(tmp_path: Path) -> None:
    said: list[str] = []
    found = steps.run(BenchRequest(write_family(tmp_path, 1024), device="cpu", quick=True, tell=said.append))
    json.dumps(found)
    assert set(found["models"]) == {"small", "big"}
    for model in found["models"].values():
        speeds = model["tokens_per_second"]
        assert model["same_ids"][gguf_steps.BARE] and 0 < model["outside_passes"] < 1
        assert model["ours_over"][gguf_steps.BARE] == pytest.approx(speeds[gguf_steps.OURS] / speeds[gguf_steps.BARE])
    # The server refuses a file whose tokenizer it does not know, and the rest is measured all the same.
    assert sum("llama-server is left out" in line for line in said) == 2


@pytest.mark.full
@needs_server
def test_the_whole_benchmark_runs_on_a_real_model(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        f"families: {{f: {{context: 1024, models: {{small: {real(SMOL)}, big: {real(SMOL)}}}}}}}"
    )
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")
    said: list[str] = []
    ask = BenchRequest(f"{tmp_path}/own.yaml#f", quick=True, out=tmp_path, tell=said.append, minutes=10)
    figures = peers.run(ask)["figures"]["T=0"]
    assert not [line for line in said if "left out" in line]
    assert all(
        name in figures["new code"]["tokens_per_second"] for name in (peers.AUTO, f"{peers.PEER}draft, 3 tokens")
    )
