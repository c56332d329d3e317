"""The families of models.yaml without a download: each model is built on the meta device from what it publishes."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import models as tiny
import pytest
import torch
import transformers as tf

from hsd import load_families
from hsd.config import Family, find_family
from hsd.loading.estimate import GB, Place, fit
from hsd.loading.family import assemble
from hsd.loading.shapes import counted, published, published_files

ROOT = Path(__file__).parents[1]
BUDGETS = (8, 12, 16, 24, 48, 80)
FAMILIES = {name: family for name, family in load_families(ROOT / "models.yaml").items() if name != "builtin"}
PRESETS = {name: family for name, family in FAMILIES.items() if not family.target_spec.gguf}
GGUF = {name: family for name, family in FAMILIES.items() if family.target_spec.gguf}
GGUF_BUDGETS = (4, 8, 16, 24, 48)

TOKENS = {"qwen3": 151_669, "qwen2": 151_665, "llama": 128_256, "gemma3": 262_145, "gemma3_text": 262_145}
"""Tokens of each series' tokenizer. SmolLM2 is Llama-shaped, with 49,152."""


@functools.cache
def on_meta(name: str) -> torch.nn.Module:
    config = {k: v for k, v in published()[name].items() if k != "parameters"}
    with torch.device("meta"):
        return tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(**config))


@pytest.mark.parametrize("name", published())
def test_a_published_model_has_the_published_number_of_parameters(name):
    built, shape = on_meta(name).num_parameters(), counted(published()[name])
    assert shape is not None and shape.exact
    assert built == shape.parameters + shape.vision, "what is counted is what transformers builds"
    assert built == pytest.approx(published()[name]["parameters"], rel=0.01)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "google/gemma-3-4b-it", "Qwen/Qwen2.5-Coder-7B-Instruct"])
def test_the_parts_of_a_shape_are_those_that_bitsandbytes_tells_apart(name):
    shape, model = counted(published()[name]), on_meta(name)
    assert shape is not None
    language = [(n, m) for n, m in model.named_modules() if "vision" not in n and "lm_head" not in n]
    linear = [m for _, m in language if isinstance(m, torch.nn.Linear)]
    assert shape.linear == sum(m.weight.numel() for m in linear)
    assert shape.rows == sum(m.out_features for m in linear)
    assert shape.embedding == model.get_input_embeddings().weight.numel()


def test_every_preset_is_of_published_models_and_all_series_are_there():
    models = {m.path for f in PRESETS.values() for m in f.models}
    assert models <= set(published())
    targets = {f.target_spec.path for f in PRESETS.values()}
    for wanted in ("Qwen3-32B", "Coder-32B-Instruct", "Llama-3.3-70B", "gemma-3-27b", "SmolLM2-1.7B"):
        assert any(wanted in t for t in targets)
    assert set(published()) - models <= {"Qwen/Qwen2.5-Coder-3B-Instruct"}, "what is published is used"
    for family in PRESETS.values():
        assert family.license and family.title
        sizes = [counted(published()[m.path]).parameters for m in family.models]
        assert sizes == sorted(sizes), f"{family.name} is not listed cheapest first"


@pytest.mark.parametrize("family", PRESETS.values(), ids=PRESETS)
def test_a_ladder_shares_its_vocabulary_and_reaches_its_context(family: Family):
    shapes = {m.name: counted(published()[m.path]) for m in family.models}
    kind = published()[family.target_spec.path]["model_type"]
    tokens = 49_152 if "SmolLM2" in family.target_spec.path else TOKENS[kind]
    for name, shape in shapes.items():
        assert shape is not None and shape.positions >= family.context, f"{name} would be left out: too short"
        # Padded rows may differ inside a series (Qwen2.5: 151,936 and 152,064); all must hold the tokens.
        beyond = tokens - shape.vocab
        assert beyond <= (1 if kind.startswith("gemma3") else 0), f"{name} lacks {beyond} tokens"


@pytest.mark.parametrize("family", PRESETS.values(), ids=PRESETS)
def test_the_stated_memory_is_the_estimate_and_a_budget_that_is_named_fits(family: Family, record_property):
    whole = fit(family, Place("a large GPU", "cuda", 1000 * GB, 1000 * GB))
    assert family.memory_gb == pytest.approx(whole.needed_gb, abs=0.15) and not whole.dropped
    for budget in BUDGETS:
        result = card(family, budget)
        record_property(f"{family.name} in {budget} GB", result.verdict)
        print(f"{family.name:24} {budget:3} GB: {result.verdict}")
        assert not result.fits or result.needed_gb <= 0.95 * budget
    said = re.search(r"GPUs of ([\d and]+) GB", family.title)
    for budget in map(int, re.findall(r"\d+", said[1]) if said else []):
        result = card(family, budget)
        assert result.fits and result.context == family.context and len(result.models) > 1, result.verdict


def card(family: Family, gb: float):
    """A GPU of so many GB, of which 5% are in use."""
    return fit(family, Place(f"a GPU of {gb} GB", "cuda", 0.95 * gb * GB, gb * GB))


def test_every_series_has_a_ladder_for_every_budget():
    for series in ("qwen3", "qwen2.5-coder", "llama3", "gemma3", "smollm2"):
        for budget in BUDGETS:
            fitting = [f for n, f in PRESETS.items() if n.startswith(series) and len(card(f, budget).models) > 1]
            assert any(card(f, budget).fits for f in fitting), f"{series}: nothing for {budget} GB"


def table(families: dict[str, Family], budgets: tuple[int, ...]) -> list[str]:
    """The rows of docs/models.md: what each preset is on each GPU."""
    rows = []
    for name, family in families.items():
        cells = []
        for budget in budgets:
            result = card(family, budget)
            chain = ">".join(m.name for m in result.models)
            shorter = f" ({result.context:,} tokens)" if result.context < family.context else ""
            cells.append(f"{chain}{shorter}" if result.fits else "–")
        rows.append(f"| `{name}` | {family.context:,} | {family.memory_gb:g} | " + " | ".join(cells) + " |")
    return rows


def test_the_table_of_the_documents_is_what_the_estimate_says():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    missing = [row for row in (*table(PRESETS, BUDGETS), *table(GGUF, GGUF_BUDGETS)) if row not in text]
    assert not missing, "docs/models.md lacks these rows:\n" + "\n".join(missing)


def test_a_picture_token_that_drafts_lack_costs_the_family_that_token_alone():
    class Pictures(tiny.ByteTokenizer):
        """As Gemma 3's: one special token behind what the small models have rows for."""

        def __init__(self) -> None:
            super().__init__()
            self.picture = tiny.VOCAB
            self.all_special_ids = [*self.all_special_ids, self.picture]

        def get_vocab(self):
            padding = {f"<pad{i}>": i for i in range(tiny.END + 1, tiny.VOCAB)}
            return {**super().get_vocab(), **padding, "<picture>": self.picture}

    family = find_family("builtin")
    small, large = tiny.model(vocab=tiny.VOCAB), tiny.model(vocab=tiny.VOCAB + 8)
    loaded = assemble(family, {"small": small, "large": large}, Pictures())
    assert list(loaded.models) == ["small", "large"] and loaded.vocab == tiny.VOCAB
    assert any(f"ids {tiny.VOCAB} to {tiny.VOCAB}" in note for note in loaded.notes)
    words = SimpleNamespace(get_vocab=Pictures().get_vocab, all_special_ids=[tiny.END], eos_token_id=tiny.END)
    loaded = assemble(family, {"small": small, "large": large}, words)
    assert list(loaded.models) == ["large"] and "vocabularies differ" in loaded.dropped[0].reason


def test_every_gguf_preset_is_of_files_with_a_published_size_and_all_series_are_there():
    models = {(m.path, m.file) for family in GGUF.values() for m in family.models}
    assert models == {(path, entry["file"]) for path, entry in published_files().items()}
    for series in ("qwen3-", "qwen2.5-coder-", "qwen3.5-", "llama3-", "gemma3-", "gemma4-", "smollm2-"):
        assert any(name.startswith(series) for name in GGUF)
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    unnamed = [path for path, _ in models if f"https://huggingface.co/{path})" not in text]
    assert not unnamed, f"docs/models.md does not say where these are published: {unnamed}"
    for family in GGUF.values():
        sizes = [published_files()[m.path]["bytes"] for m in family.models]
        assert family.license and sizes == sorted(sizes), f"{family.name} is not listed cheapest first"


@pytest.mark.parametrize("family", GGUF.values(), ids=GGUF)
def test_the_stated_memory_of_a_gguf_preset_is_the_estimate_and_a_budget_that_is_named_fits(family: Family):
    whole = fit(family, Place("a large GPU", "cuda", 1000 * GB, 1000 * GB))
    assert family.memory_gb == pytest.approx(whole.needed_gb, abs=0.15) and not whole.dropped
    # Keys and values are in float16, as large on every device.
    files = sum(published_files()[m.path]["bytes"] for m in family.models) / GB
    assert sum(m.weights_gb for m in whole.models) == pytest.approx(files)
    assert whole.download_gb == pytest.approx(files)
    said = re.search(r"GPUs of ([\d and]+) GB", family.title)
    for budget in map(int, re.findall(r"\d+", said[1]) if said else []):
        result = card(family, budget)
        assert result.fits and result.context == family.context, result.verdict
        assert len(result.models) > 1 or len(family.models) == 1, result.verdict


def test_a_large_target_has_a_middle_draft_where_memory_allows():
    for name, middle in (("qwen3-32b-gguf", "8b"), ("qwen2.5-coder-32b-gguf", "7b")):
        result = card(GGUF[name], 48)
        assert middle in {m.name for m in result.models} and len(result.models) == 4


@pytest.mark.parametrize("path", [path for path, entry in published_files().items() if "of" in entry])
def test_the_published_size_of_a_file_is_that_of_its_model(path: str):
    entry = published_files()[path]
    shape = counted(published()[entry["of"]])
    assert shape is not None
    bits = 8 * entry["bytes"] / shape.parameters
    # Rows that 256 does not divide take more bits; Qwen2.5-Coder's small files hold the head a second time.
    low, high = (8.4, 8.7) if "q8_0" in entry["file"].lower() else (4.6, 6.5)
    assert low <= bits <= high * (1.3 if "Coder-0.5B" in path or "Coder-1.5B" in path else 1.0), bits
