"""Tries a GGUF file in a process of its own: a damaged one can end the process that loads it.

The process loads the model, splits a word, reads it in one pass, and ends. It imports no torch: this file runs as a
script, and takes `library.py` from beside it. What passed is remembered with its size, its time and the library.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_LONGEST = 1800  # seconds; a large file on a slow disk takes minutes
_MOST = 500  # files that are remembered
_WORD = b"Hello"


def passed(path: Path, layers: int, library: Any, memory: Path) -> str | None:
    """Tries a file unless it passed before.

    Args:
        path: the GGUF file, the first of them where it is split.
        layers: how many go to the GPU; -1 is all.
        library: see `library.Library`.
        memory: a JSON file with what passed; it is made if it is missing.

    Returns:
        Why the file cannot be used, in words; None if it can.
    """
    try:
        status = path.stat()
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    found = library.found
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {found.library} {library.version} {layers}"
    known = _read(memory)
    if key in known:
        return None
    job = {"model": str(path), "layers": layers, "origin": found.origin, "library": str(found.library)}
    job |= {"before": [str(file) for file in found.before], "backends": str(found.backends)}
    why = _try(job)
    if why is None:
        _write(memory, [*known, key][-_MOST:])
    return why


def _try(job: dict[str, Any]) -> str | None:
    command = [sys.executable, "-I", str(Path(__file__)), json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired:
        return f"llama.cpp did not come to an end with it in {_LONGEST // 60} minutes"
    except OSError as error:
        return f"no process can be started to try it ({error.strerror or error})"
    if done.returncode == 0:
        return None
    told = done.stdout.strip().splitlines()
    if done.returncode == 1 and told:
        return told[-1]
    name = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
    said = [line.strip() for line in done.stderr.splitlines() if "ASSERT" in line or "rror" in line]
    return f"llama.cpp crashed when it was tried ({name}{f': {said[-1][:160]}' if said else ''})"


def _read(memory: Path) -> list[str]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, str)] if isinstance(found, list) else []


def _write(memory: Path, known: list[str]) -> None:
    fresh = memory.with_name(f"{memory.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # it is tried again the next time
        fresh.write_text(json.dumps(known), encoding="utf-8")
        fresh.replace(memory)


# What the process does


def _main(job: dict[str, Any]) -> str | None:
    """Loads and reads. Returns what is wrong, None if nothing is."""
    module = _module()
    found = module.Found(job["origin"], Path(job["library"]), tuple(map(Path, job["before"])), Path(job["backends"]))
    lib = module.Library(found)
    parameters = lib.llama_model_default_params()
    parameters.write("i", module.N_GPU_LAYERS, job["layers"] if job["layers"] >= 0 else 1 << 20)
    model = lib.llama_model_load_from_file(os.fsencode(job["model"]), parameters)
    if not model:
        return lib.said() or "llama.cpp does not say why"
    if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
        return "it holds no model that writes text from left to right"
    parameters = lib.llama_context_default_params()
    parameters.write("I", 0, 64)
    context = lib.llama_init_from_model(model, parameters)
    if not context:
        return lib.said() or "there is no memory for it"
    vocab = lib.llama_model_get_vocab(model)
    ids = (ctypes.c_int32 * 32)()
    count = lib.llama_tokenize(vocab, _WORD, len(_WORD), ids, 32, False, False) if lib.llama_vocab_type(vocab) else 0
    tokens = list(ids[: max(count, 0)]) or [0, 1]
    return _finite(lib, context, tokens, lib.llama_vocab_n_tokens(vocab))


def _finite(lib: Any, context: int, tokens: list[int], vocab: int) -> str | None:
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    for at, token in enumerate(tokens):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, at == len(tokens) - 1
        batch.seq_id[at][0] = 0
    batch.n_tokens = len(tokens)
    if status := lib.llama_decode(context, batch):
        return f"llama.cpp cannot read with it ({status}): {lib.said() or 'it does not say why'}"
    row = (ctypes.c_float * vocab).from_address(lib.llama_get_logits_ith(context, len(tokens) - 1))
    return None if all(map(math.isfinite, row)) else "its weights are damaged: it computes no finite numbers"


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("library", Path(__file__).with_name("library.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["library"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    wrong = _main(json.loads(sys.argv[1]))
    if wrong:
        print(" ".join(wrong.split()).rstrip("."))
    sys.stdout.flush()
    os._exit(1 if wrong else 0)  # the library's own end comes in no known order
