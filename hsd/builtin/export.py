"""Write the trained family in `save_pretrained` layout, bfloat16, one folder a model."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import GenerationConfig

from hsd.builtin.stages import Work


def export(work: Work, out: Path, names: Iterable[str]) -> None:
    """Write models with the shared tokenizer to `out`/name, each folder whole or not at all."""
    for name in names:
        model = work.trained(name).to(torch.bfloat16)
        config = model.config
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        partial = out / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        work.tokenizer.save_pretrained(partial)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone
        shutil.rmtree(out / name, ignore_errors=True)
        partial.rename(out / name)
