"""Ids, special tokens and templates of GGUF files are those that transformers makes of the same files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf_tiny
import pytest

from hsd.loading.gguf_models import gguf_tokenizer
from hsd.runtime import LlamaCppModel
from hsd.runtime.llama_cpp.library import library

pytest.importorskip("gguf", reason="writes the files of these tests")
REAL = os.environ.get("HSD_REAL_MODELS", "")
HERE = Path(__file__).parent
TEXTS = (
    *("Hello, wörld! 你好 🦜\n\tdef f(x):\n\t\treturn x**2  # 12345", " a  b\n\n\nc", "   leading", "trailing   "),
    *("\n\n\n", "\t\t x", "1234567890 3.14159 1,000,000", "don't we'll I'M HE'S", "if (a&&b||!c){return a[0]->x;}"),
    *(
        "<|im_start|>user\nhi<|im_end|>\n",
        "<|endoftext|>",
        "<|im_end",
        "🏳️‍🌈👩‍👩‍👧 e\u0301 é ﬁ Ａ",
        "\r\nwin\r\n",
        "a" * 300,
    ),
    *("العربية हिन्दी ภาษาไทย 한국어 日本語", "\u00a0nbsp\u3000wide\u200bzero", "x\x00y", "\r\nwin\r\n", ""),
    *(HERE.joinpath("gguf_tiny.py").read_text(encoding="utf-8")[at : at + 300] for at in range(0, 3000, 300)),
)
USER = {"role": "user", "content": " a question\n"}
TALKS: tuple[list[dict[str, str]], ...] = (
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, {"role": "assistant", "content": "Hello  "}, USER],
)
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def both(file: Path) -> tuple[Any, Any]:
    """Our tokenizer of a file, and transformers'."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    return gguf_tokenizer(LlamaCppModel("any", file, 64, library())), theirs


def compare(ours: Any, theirs: Any, texts: tuple[str, ...] = TEXTS) -> None:
    for text in texts:
        for split in (False, True):
            got = ours.encode(text, add_special_tokens=False, split_special_tokens=split)
            assert got == theirs.encode(text, add_special_tokens=False, split_special_tokens=split), text
            assert ours.decode(got) == text
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.eos_token_id, ours.bos_token_id) == (theirs.eos_token_id, theirs.bos_token_id)
    # transformers keeps of the control tokens only those that have a role.
    assert set(theirs.all_special_ids) <= set(ours.all_special_ids)
    for talk in TALKS:
        for more in ({}, {"add_generation_prompt": True}, {"tools": [TOOL]}):
            written = [used.apply_chat_template(talk, tokenize=False, **more) for used in (ours, theirs)]
            assert written[0] == written[1]


def test_a_file_that_both_can_load_gives_the_same_ids_and_templates(tmp_path: Path) -> None:
    made = gguf_tiny.byte_level()
    gguf_tiny.write("dense", tmp_path / "tiny.gguf", made)
    ours, theirs = both(tmp_path / "tiny.gguf")
    compare(ours, theirs)
    compare(ours, made)
    assert set(ours.all_special_ids) == set(made.all_special_ids)


@pytest.mark.full
@pytest.mark.parametrize("name", ["SmolLM2-135M", "0.5B", "1.5B"])
def test_real_files_give_the_same_ids_and_templates(name: str) -> None:
    file = next(Path(REAL).glob(f"*{name}*.gguf"), None) if REAL else None
    if file is None:
        pytest.skip("HSD_REAL_MODELS names no folder with this model")
    compare(*both(file))
