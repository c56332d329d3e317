"""Layers of GGUF models on a GPU that llama.cpp sees; Vulkan's software driver is one, if it is asked for.

`GGML_VK_VISIBLE_DEVICES=0 pytest tests/test_gguf_gpu.py` takes the first Vulkan device, also one in software.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hsd import gguf
from hsd.loading.gguf_models import _layers_that_fit
from hsd.runtime import LlamaCppModel, Reader
from hsd.runtime.llama_cpp.library import Device, library

pytestmark = pytest.mark.full
REAL = os.environ.get("HSD_REAL_MODELS", "")
TEXT = [(37 * i) % 250 for i in range(250)]


@pytest.fixture(scope="module")
def file() -> Path:
    """A small real model: tiny random ones have shapes that a software driver crashes with."""
    found = next(Path(REAL).glob("SmolLM2*.gguf"), None) if REAL else None
    if found is None:
        pytest.skip("HSD_REAL_MODELS names no folder with SmolLM2")
    return found


def gpu() -> Any:
    found = next((device for device in library().devices if device.kind == "gpu"), None)
    if found is None:
        pytest.skip("llama.cpp sees no GPU; GGML_VK_VISIBLE_DEVICES=0 takes Vulkan's first device")
    return found


def reply(reader: Reader, prompt: list[int]) -> list[int]:
    """16 tokens, greedily, behind what the reader can keep of the last prompt."""
    reader.rewind(0)
    ids = list(prompt)
    for _ in range(16):
        ids.append(int(reader.read(ids, 1)[0].argmax()))
    # A block that is cut away again, as a rejected draft.
    again = reader.read([*ids, 1, 2, 3], 4)
    reader.rewind(len(ids))
    assert again.isfinite().all() and len(reader) == len(ids)
    return ids[len(prompt) :]


def test_layers_on_the_gpu_give_the_replies_of_the_processor(file: Path) -> None:
    gpu()
    prompts = [[(seed * 31 + at * 7) % 250 for at in range(12)] for seed in range(20)]
    replies = dict[int, list[list[int]]]()
    for layers in (0, -1, 1):
        model = LlamaCppModel("big", file, 256, library(), gpu_layers=layers)
        assert model.cuttable and ("cpu" in model.kind) == (not layers)
        reader = Reader(model, model.new_cache())
        replies[layers] = [reply(reader, prompt) for prompt in prompts]
    for layers in (-1, 1):
        differ = sum(a != b for a, b in zip(replies[0], replies[layers], strict=True))
        print(f"gpu_layers {layers}: {differ} of {len(prompts)} replies differ from the processor's")
        # Sums of other order: near-ties may fall the other way.
        assert differ <= len(prompts) // 4


def test_a_prompt_that_is_stopped_on_the_gpu_leaves_nothing_of_its_last_piece(file: Path) -> None:
    gpu()
    model = LlamaCppModel("big", file, 256, library(), gpu_layers=-1)
    reader, fresh, asked = Reader(model, model.new_cache()), Reader(model, model.new_cache()), [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 3

    assert not reader.prefill(TEXT, stop) and 0 < len(reader) < len(TEXT)
    got = reader.read(TEXT[: len(reader) + 1], 1).clone()
    wanted = fresh.read(TEXT[: len(reader)], 1)
    assert (got - wanted).abs().max() < 0.01 * wanted.abs().max()


def test_layers_are_chosen_by_what_is_free(file: Path) -> None:
    class Used:
        def __init__(self, *devices: Device) -> None:
            self.devices = devices

    headers = [gguf.header(file)]
    processor, whole = Device("CPU", "", "cpu", 1 << 34, 1 << 34), sum(t.size for t in headers[0].tensors)
    used: Any = Used(processor)
    assert _layers_that_fit(used, headers, 256) == 0
    used = Used(processor, Device("Vulkan0", "", "gpu", 4 * whole, 4 * whole))
    assert _layers_that_fit(used, headers, 256) == -1
    used = Used(processor, Device("Vulkan0", "", "gpu", whole // 2, whole))
    assert 0 <= _layers_that_fit(used, headers, 256) < headers[0].get("block_count")
