"""Models that other programs keep on this computer: where they lie, how they are grouped, what is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models as tiny
import numpy as np
import pytest
from test_loading import tokenizer

import hsd
from chat.own_families import OwnFamilies
from hsd import found as searching
from hsd.bench.llama_cpp import write
from hsd.found import Found, FoundFamily, found_families
from hsd.loading import model_folders as places
from hsd.loading.model_folders import ModelFolder, model_folders

gguf = pytest.importorskip("gguf", reason="writes the files of these tests")

TOKENS = [f"t{i}" for i in range(400)]
LM = "LM Studio"


def put(
    path: Path,
    weights: int = 1000,
    tokens: list[str] | None = None,
    kind: str = "llama",
    context: int = 4096,
    template: bool = True,
    form: str = "F32",
    tensor: str = "token_embd.weight",
    more: Callable[[Any], None] = lambda _: None,
) -> Path:
    """A file with the header of a model, and one tensor with so many weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_context_length(context)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(1)
    if tokens is None or tokens:
        writer.add_token_list(TOKENS if tokens is None else tokens)
    if template:
        writer.add_chat_template("{{ messages }}")
    more(writer)
    if weights:
        values = np.zeros((weights // 32, 32), dtype=np.float32)
        stored = gguf.GGMLQuantizationType[form]
        writer.add_tensor(tensor, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def look(folder: Path, program: str = LM) -> Found:
    return found_families([ModelFolder(program, folder)])


def uses(found: FoundFamily) -> dict[str, str]:
    return {model.name: model.use for model in found.models}


def reasons(found: Found) -> dict[str, str]:
    return {path.name: why for path, _, why in found.left_out}


# ------------------------------------------------------------------------------------------------------ where


@pytest.mark.parametrize(
    ("system", "variables", "program", "expected"),
    [
        ("linux", {}, "LM Studio", ["~/.lmstudio/models", "~/.cache/lm-studio/models"]),
        ("linux", {}, "Ollama", ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]),
        ("darwin", {"OLLAMA_MODELS": "/disk/models"}, "Ollama", ["/disk/models", "~/.ollama/models"]),
        ("linux", {}, "llama.cpp", ["~/.cache/llama.cpp"]),
        ("linux", {"XDG_CACHE_HOME": "/cache"}, "llama.cpp", ["/cache/llama.cpp"]),
        ("darwin", {}, "llama.cpp", ["~/Library/Caches/llama.cpp"]),
        ("win32", {"LOCALAPPDATA": "/local"}, "llama.cpp", ["/local/llama.cpp"]),
        ("linux", {"LLAMA_CACHE": "/mine"}, "llama.cpp", ["/mine"]),
        ("linux", {}, "Hugging Face", ["~/.cache/huggingface/hub"]),
        ("win32", {"HF_HOME": "/hf"}, "Hugging Face", ["/hf/hub"]),
        ("linux", {"HF_HUB_CACHE": "/hub", "HF_HOME": "/hf"}, "Hugging Face", ["/hub"]),
    ],
)
def test_each_program_has_its_folders(
    system: str, variables: dict[str, str], program: str, expected: list[str], tmp_path: Path
) -> None:
    found = [folder.path for folder in model_folders(variables, tmp_path, system) if folder.program == program]
    assert found == [Path(path.replace("~", str(tmp_path))) for path in expected]


def test_lm_studio_is_followed_where_its_home_and_its_downloads_were_moved(tmp_path: Path) -> None:
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/moved\n")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "große Modelle")}))
    found = [folder.path for folder in model_folders({}, tmp_path, "linux") if folder.program == "LM Studio"]
    assert found[:2] == [tmp_path / "große Modelle", tmp_path / "moved" / "models"]
    (tmp_path / "moved" / "settings.json").write_text('{"downloadsFolder": 3')
    assert model_folders({}, tmp_path, "linux")[0].path == tmp_path / "moved" / "models"


# -------------------------------------------------------------------------------------------------------- what


def ollama(home: Path, name: str, blob: str | None, layers: int = 1, kind: str = "model") -> Path:
    """A manifest as Ollama writes it, and where its blob should lie."""
    digest = blob or "0" * 64
    manifest = home / "manifests" / "registry.ollama.ai" / "library" / name.partition(":")[0] / name.partition(":")[2]
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": 1}
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'f' * 64}"}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer] * layers + [template]}))
    return home / "blobs" / f"sha256-{digest}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Folders of all four programs: one vocabulary in four sizes, each program with a model of it, and other files."""
    home = tmp_path / "home"
    put(home / ".lmstudio/models/Ein Verlag/Modell 大/Modell 大-Q4_K_M.gguf", 256_000)
    put(ollama(home / ".ollama/models", "small:1b", "a" * 64), 64_000)
    put(home / ".cache/llama.cpp/owner_repo_tiny-Q8_0.gguf", 16_000)
    blob = put(home / ".cache/huggingface/hub/models--org--name/blobs/whole", 4_000)
    snapshot = home / ".cache/huggingface/hub/models--org--name/snapshots/c0ffee/least.gguf"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(blob)
    second = snapshot.parents[1] / "0ther" / "least.gguf"
    second.parent.mkdir()
    second.symlink_to(blob)
    return home


def everything(home: Path) -> Found:
    return found_families(model_folders({}, home, "linux"))


def test_models_of_four_programs_with_one_vocabulary_are_one_family(home: Path) -> None:
    found = everything(home)
    (family,) = found.families
    assert not found.left_out and not found.notes
    assert uses(family) == {
        "Modell 大-Q4_K_M": "target",
        "small:1b": "draft",
        "owner_repo_tiny-Q8_0": "draft",
        "least": "draft",
    }
    assert family.family.name == "modell-大" and family.family.context == 4096
    assert [m.name for m in family.family.models] == ["0.1m", "0.1m-2", "0.1m-3", "0.3m"]
    assert family.programs == ("LM Studio", "Ollama", "llama.cpp", "Hugging Face")
    assert family.fit.fits and family.size == sum(m.path.stat().st_size for m in family.models)


def test_the_yaml_is_read_back_as_the_family_and_nothing_was_written(home: Path, tmp_path: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        return [(str(p), p.lstat().st_mtime_ns, p.lstat().st_size) for p in sorted(home.rglob("*"))]

    before = state()
    found = everything(home)
    (tmp_path / "own.yaml").write_text(found.yaml(), encoding="utf-8")
    (family,) = hsd.load_families(tmp_path / "own.yaml").values()
    assert [(m.name, m.path) for m in family.models] == [(m.name, m.path) for m in found.families[0].family.models]
    assert all(model.gguf for model in family.models) and hsd.memory_fit(family).fits
    assert state() == before


def test_a_family_that_was_found_answers_as_its_target(tmp_path: Path, own_home: Path) -> None:
    small = tiny.model(seed=1)
    big = tiny.model(seed=2, layers=8)
    store = tmp_path / "ollama"
    blob = ollama(store, "big:4b", "b" * 64)
    blob.parent.mkdir(parents=True)
    write(big, blob, "F32", tokenizer())
    write(small, ollama(store, "small:1b", "c" * 64), "F32", tokenizer())
    (tmp_path / "own.yaml").write_text(look(store, "Ollama").yaml())
    with hsd.Engine.load(f"{tmp_path}/own.yaml", data_dir=own_home) as engine:
        assert len(engine.info.models) == 2 and not engine.info.dropped
        greedy = hsd.SamplingParams(temperature=0, max_tokens=16)
        draft, target = engine.info.models
        plain = engine.generate("hello", greedy, plan=target)
        assert engine.generate("hello", greedy, plan=f"{draft}:3>{target}").token_ids == plain.token_ids


def test_one_token_that_differs_makes_two_groups_and_padding_makes_none(tmp_path: Path) -> None:
    put(tmp_path / "big.gguf", 64_000)
    put(tmp_path / "padded.gguf", 6_400, tokens=[*TOKENS, *(f"[PAD{i}]" for i in range(90))])
    put(tmp_path / "longer.gguf", 1_600, tokens=[*TOKENS, "<picture>"])
    put(tmp_path / "other.gguf", 640, tokens=[*TOKENS[:200], "another", *TOKENS[201:]])
    put(tmp_path / "short.gguf", 320, tokens=TOKENS[:300])
    found = look(tmp_path)
    groups = [set(uses(family)) for family in found.families]
    assert groups == [{"big", "padded", "longer"}, {"other"}, {"short"}]


def test_the_largest_that_fits_is_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "huge.gguf", 8_000_000, context=64)
    put(tmp_path / "large.gguf", 1_000_000, context=64)
    put(tmp_path / "small.gguf", 100_000, context=64)
    monkeypatch.setenv("HSD_MEMORY_GB", "0.02")
    (family,) = look(tmp_path).families
    assert uses(family) == {"huge": "unused", "large": "target", "small": "draft"}
    assert "too large" in reasons(look(tmp_path))["huge.gguf"]
    monkeypatch.setenv("HSD_MEMORY_GB", "0.0001")
    nothing = look(tmp_path)
    assert not nothing.families and len(nothing.left_out) == 3 and not nothing.yaml()


def test_one_file_of_the_same_weights_is_used_and_a_draft_must_be_cheap(tmp_path: Path) -> None:
    put(tmp_path / "big-F32.gguf", 640_000)
    put(tmp_path / "big-Q8_0.gguf", 640_000, form="Q8_0")
    put(tmp_path / "near.gguf", 512_000)
    put(tmp_path / "small-F32.gguf", 64_000)
    put(tmp_path / "small-Q8_0.gguf", 64_000, form="Q8_0")
    put(tmp_path / "small-2.gguf", 48_000)
    put(tmp_path / "short.gguf", 1_600, context=128)
    found = look(tmp_path)
    (family,) = found.families
    used = {name for name, use in uses(family).items() if use != "unused"}
    assert used == {"big-F32", "small-Q8_0", "small-2"} or used == {"big-F32", "small-2"}
    said = reasons(found)
    assert "not smaller" in said["big-Q8_0.gguf"] and "costs too much" in said["near.gguf"]
    assert "made for 128 tokens" in said["short.gguf"] and "of its size" in said["small-F32.gguf"]


def test_fewer_bits_of_the_same_weights_are_a_draft_where_nothing_smaller_is_there(tmp_path: Path) -> None:
    put(tmp_path / "big-F32.gguf", 640_000)
    put(tmp_path / "big-Q8_0.gguf", 640_000, form="Q8_0")
    (family,) = look(tmp_path).families
    assert uses(family) == {"big-F32": "target", "big-Q8_0": "draft"}
    put(tmp_path / "small.gguf", 64_000)
    (family,) = look(tmp_path).families
    assert uses(family)["big-Q8_0"] == "unused" and uses(family)["small"] == "draft"


# --------------------------------------------------------------------------------------------------- left out


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("LoRA adapter", {"more": lambda w: w.add_type("adapter")}),
        ("projector", {"kind": "clip", "more": lambda w: w.add_type("mmproj")}),
        ("embedding model", {"more": lambda w: w.add_pooling_type(gguf.PoolingType.MEAN)}),
        ("writes text from left to right", {"kind": "nomic-bert"}),
        ("writes text from left to right", {"more": lambda w: w.add_causal_attention(False)}),
        ("no vocabulary", {"tokens": []}),
        ("no weights", {"weights": 0}),
        ("only a part", {"tensor": "blk.0.nextn.weight"}),
        ("no chat template", {"template": False}),
    ],
)
def test_what_is_no_chat_model_is_left_out_with_its_reason(said: str, options: dict[str, Any], tmp_path: Path) -> None:
    put(tmp_path / "a.gguf", **options)
    found = look(tmp_path)
    assert not found.families and said in reasons(found)["a.gguf"]
    assert found.values()["left_out"][0]["why"] == reasons(found)["a.gguf"]


def test_split_files_count_once_and_a_missing_part_is_named(tmp_path: Path) -> None:
    def part(at: int) -> Callable[[Any], None]:
        def split(writer: Any) -> None:
            writer.add_uint16("split.no", at)
            writer.add_uint16("split.count", 2)

        return split

    first = put(tmp_path / "two-00001-of-00002.gguf", 6_400, more=part(0))
    second = put(tmp_path / "two-00002-of-00002.gguf", 3_200, tensor="blk.0.ffn.weight", more=part(1))
    (family,) = look(tmp_path).families
    (model,) = family.models
    assert model.name == "two" and model.parameters == 9_600
    assert model.size == first.stat().st_size + second.stat().st_size and family.family.name == "two"
    first.rename(tmp_path / "hidden")
    assert "two-00001-of-00002.gguf is missing" in reasons(look(tmp_path))["two-00002-of-00002.gguf"]
    (tmp_path / "hidden").rename(first)
    second.unlink()
    assert "two-00002-of-00002.gguf is missing" in reasons(look(tmp_path))["two-00001-of-00002.gguf"]


def test_broken_files_links_and_folders_do_not_break_the_search(tmp_path: Path) -> None:
    whole = put(tmp_path / "fine.gguf", 64_000)
    data = whole.read_bytes()
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "head.gguf").write_bytes(data[:300])
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "gone")
    (tmp_path / "itself.gguf").symlink_to(tmp_path / "itself.gguf")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "copy.gguf").hardlink_to(whole)
    os.mkfifo(tmp_path / "pipe.gguf")
    odd = tmp_path / os.fsdecode(b"od\xffd.gguf")
    odd.write_bytes(data)
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    try:
        found = look(tmp_path)
    finally:
        closed.chmod(0o700)
    assert [uses(family) for family in found.families] in ([{"fine": "target"}], [{"copy": "target"}])
    said = reasons(found)
    assert "damaged" in said["head.gguf"] and "cut off" in said["cut.gguf"] and "no GGUF file" in said["text.gguf"]
    assert {"empty.gguf", "nowhere.gguf", "itself.gguf", "pipe.gguf", odd.name} <= set(said)
    if os.geteuid():
        assert "closed cannot be read" in found.notes[0]


def test_manifests_that_are_broken_are_left_out(tmp_path: Path) -> None:
    put(ollama(tmp_path, "good:1b", "a" * 64), 6_400)
    ollama(tmp_path, "missing:1b", "b" * 64)
    ollama(tmp_path, "several:1b", "c" * 64, layers=2)
    ollama(tmp_path, "tensors:1b", "d" * 64, kind="tensor")
    (tmp_path / "manifests/registry.ollama.ai/library/good/bad").write_text("{")
    ollama(tmp_path, "outside:1b", "../../../etc/passwd")
    found = look(tmp_path, "Ollama")
    assert [family.family.title for family in found.families] == ["good:1b (Ollama)"]
    assert sorted(why for _, _, why in found.left_out) == [
        "it lies in several blobs",
        "its blob is missing",
        "its blob is missing",
        "its manifest cannot be read",
        "its manifest names no GGUF file",
    ]


def test_a_folder_with_very_many_files_is_read_in_part_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MOST_ENTRIES", 30)
    monkeypatch.setattr(places, "MOST_FILES", 2)
    for at in range(4):
        put(tmp_path / f"{at}.gguf", 320 * (at + 1), tokens=[str(at)])
    assert len(look(tmp_path).families) == 2 and "more than 2 GGUF files" in look(tmp_path).notes[0]
    for at in range(40):
        (tmp_path / f"{at}.txt").touch()
    assert "more than 30 files" in look(tmp_path).notes[0]


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    file = put(tmp_path / "a.gguf", 6_400)
    look(tmp_path)
    before = searching._described.cache_info().misses
    look(tmp_path)
    assert searching._described.cache_info().misses == before
    put(file, 12_800)
    assert look(tmp_path).families[0].models[0].parameters == 12_800


# ------------------------------------------------------------------------------------------------ where it is used


def test_the_command_prints_yaml_that_can_be_used(home: Path, tmp_path: Path) -> None:
    put(home / ".lmstudio/models/a/mmproj-b.gguf", kind="clip")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("HF_H", "XDG_", "LLAMA_", "OLLAMA_"))}
    command = [sys.executable, "-c", "import hsd.cli; hsd.cli.run()", "families", "--found", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=True, env={**variables, "HOME": str(home)}
    )
    text, _, last = done.stdout.rstrip("\n").rpartition("\n")
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    assert "mmproj-b.gguf (LM Studio): it is a projector" in text
    (family,) = hsd.load_families(tmp_path / "own.yaml").values()
    values = json.loads(last)
    assert len(family.models) == 4 and values["families"][0]["models"].keys() == {m.name for m in family.models}
    assert values["left_out"][0]["program"] == "LM Studio"


def test_a_chosen_family_is_kept_under_a_name_of_its_own(home: Path, tmp_path: Path) -> None:
    (offered,) = everything(home).families
    own = OwnFamilies(tmp_path)
    own.add("modell-大", "builtin:large")
    kept = own.keep(offered)
    assert kept.name == "modell-大-2" and kept.context == 4096
    choice = own.choices()[kept.name]
    assert choice.own and choice.family.target_spec.path == offered.family.target_spec.path
