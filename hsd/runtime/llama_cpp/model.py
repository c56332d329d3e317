"""A GGUF model as a level: llama.cpp reads, this keeps one cache per conversation and rewinds it.

A model has one context of the library with one sequence. The cache that was used last lies in it; those of other
conversations are kept as the bytes that the library writes of a sequence, and written back when they are used again.
That needs neither a context per conversation nor a layout that this program would have to know.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from hsd.errors import LoadError, ModelError
from hsd.runtime.base import MAX_WIDTH, PREFILL_WIDTH
from hsd.runtime.llama_cpp.library import ABORT, INSTALL, N_GPU_LAYERS, PROGRESS, Library, Parameters

_SEQUENCE = 0
_WIDEST = max(MAX_WIDTH, PREFILL_WIDTH)
_ABORTED = 2  # llama_decode: the abort callback said so
_SHORT = 64  # tokens of a prompt that a GPU reads at once
_TRIES = 5  # passes by which a number of threads is measured
_TRYING = 0.15  # seconds of them that are enough

# Offsets in bytes of the fields that are written, all at the head of the structs.
_PROGRESS = 40
_N_CTX, _N_BATCH, _N_UBATCH, _N_RS_SEQ = 0, 4, 8, 16
# Further back, written only where `_knows_attention` recognises the layout.
_FLASH_ATTENTION, _TYPE_K, _TYPE_V = 52, 104, 108
_BFLOAT16 = 30  # ggml_type
_CACHED = (0, 300)  # tokens behind which rows are compared: from 256 on attention is divided otherwise


class LlamaCache:
    """Keys and values of one sequence: in the model's context, or the bytes that were saved of them."""

    def __init__(self, model: LlamaCppModel) -> None:
        self._model = model
        self.length = 0
        self.floor = 0  # of a model with states: the shortest length that its cache can be cut to without reading again
        self.saved: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.saved.nbytes if self.saved is not None else self.length * self._model.bytes_per_token

    def copy(self, length: int) -> LlamaCache:
        new = LlamaCache(self._model)
        if length and (length == self.length or self._model.cuttable):
            new.saved = self.saved.copy() if self.saved is not None else self._model.save(self)
            new.length = self.length
            new.rewind(length)
        return new

    def rewind(self, length: int) -> None:
        if length != self.length:
            self.length = self._model.cut(self, length)


class LlamaCppModel:
    """A `LanguageModel` whose passes are the library's.

    Args:
        name: its name in the family.
        path: the GGUF file, the first of them where it is split.
        context: longest sequence in tokens.
        library: see `library.library`.
        gpu_layers: layers on the GPU; -1 is all of them.
        share: told which part has been read, 0 to 1.
        exact: rows of logits must not depend on how many tokens a pass reads.

    Attributes:
        states: some of its layers keep a state in the place of keys and values (a recurrent or hybrid model). Such a
                cache can be cut within the last pass, or not at all.
        widest: most tokens of a pass that verifies; where rows must be exact, the most for which they were.

    Raises:
        LoadError: the library refuses the file.
    """

    device = torch.device("cpu")  # where its logits are
    single = False

    def __init__(
        self,
        name: str,
        path: Path,
        context: int,
        library: Library,
        gpu_layers: int = 0,
        share: Callable[[float], None] = lambda _: None,
        exact: bool = False,
    ) -> None:
        self.name, self.path = name, path
        self._lib = library
        self._stop: Callable[[], bool] | None = None
        self._owner: weakref.ref[LlamaCache] | None = None
        self._model = self._load(path, gpu_layers, share)
        self._close = weakref.finalize(self, library.llama_model_free, self._model)
        self.vocabulary = library.llama_model_get_vocab(self._model)
        self.vocab: int = library.llama_vocab_n_tokens(self.vocabulary)
        self.trained_context: int = library.llama_model_n_ctx_train(self._model)
        self.parameters: int = library.llama_model_n_params(self._model)
        self.weight_bytes: int = library.llama_model_size(self._model)
        self.gpu_layers, self.exact, self.widest = gpu_layers, exact, _WIDEST
        self.dtype = self._described()
        self.context = min(context, self.trained_context) if self.trained_context > 0 else context
        self.states, self._window = self._keeps_states(), library.llama_model_n_swa(self._model) > 0
        self._context = self._make_context()
        self._close_context = weakref.finalize(self, library.llama_free, self._context)
        self._close_context.atexit = self._close.atexit = False  # the library's own end comes in no known order
        self._memory = library.llama_get_memory(self._context)
        self._batch = library.llama_batch_init(_WIDEST, 0, 1)
        self._tokens, self._positions, self._wanted = self._arrays()
        self._abort = ABORT(lambda _: self._stop is not None and self._stop())
        self.threads = self._choose_threads()
        self.bytes_per_token = self._measure_bytes()
        self.cuttable = self._can_cut()
        if exact:
            self.widest = self._equal_width()
            # States are kept of the last pass alone, and a block would be read in several.
            self.cuttable = self.cuttable and not (self.states and self.widest < MAX_WIDTH)

    @property
    def kind(self) -> str:
        on = "cpu" if not self.gpu_layers else "gpu" if self.gpu_layers < 0 else f"gpu{self.gpu_layers}"
        exact = f"-exact{min(self.widest, MAX_WIDTH)}" if self.exact else ""
        return f"llama.cpp-{self._lib.found.origin}-{self._lib.version}-{on}-{self.threads}{exact}"

    def new_cache(self) -> LlamaCache:
        return LlamaCache(self)

    def forward(self, ids: Sequence[int], cache: LlamaCache, last: int) -> Tensor:
        """See `LanguageModel.forward`."""
        if last and len(ids) > self.widest:
            return self._in_pieces(ids, cache, last)
        self._bring(cache)
        width, lib = len(ids), self._lib
        if cache.length + width > self.context:
            raise ModelError(self.name, f"position {cache.length + width} of {self.context} was asked for.")
        self._tokens[:width] = ids
        if not 0 <= self._tokens[:width].min() <= self._tokens[:width].max() < self.vocab:
            raise IndexError("a token id is none of those that it knows")
        self._positions[:width] = np.arange(cache.length, cache.length + width, dtype=np.int32)
        self._wanted[:width] = 0
        self._wanted[width - last : width] = 1
        self._batch.n_tokens = width
        status = lib.llama_decode(self._context, self._batch)
        if status:
            self._undo(cache)
            if status == _ABORTED:
                return torch.empty((0, self.vocab))
            raise ModelError(self.name, f"llama.cpp failed ({status}): {lib.said() or 'it said nothing'}.")
        # States are kept of the tokens of the last pass alone.
        cache.floor = cache.length + 1
        cache.length += width
        if not last:
            # Otherwise the time of the pass would be that of the next one.
            lib.llama_synchronize(self._context)
            return torch.empty((0, self.vocab))
        begin = lib.llama_get_logits_ith(self._context, width - last)
        kind = ctypes.c_float * (last * self.vocab)
        return torch.from_numpy(np.ctypeslib.as_array(kind.from_address(begin)).reshape(last, self.vocab))

    def _in_pieces(self, ids: Sequence[int], cache: LlamaCache, last: int) -> Tensor:
        """The same in passes over at most `widest` tokens."""
        rows = [torch.empty((0, self.vocab))]
        for begin in range(0, len(ids), self.widest):
            piece = ids[begin : begin + self.widest]
            wanted = max(0, min(len(piece), begin + len(piece) - (len(ids) - last)))
            rows.append(self.forward(piece, cache, wanted).clone())
        return torch.cat(rows)

    def prefill(self, ids: Sequence[int], cache: LlamaCache, stop: Callable[[], bool]) -> bool:
        """Reads a piece of a prompt; `stop` is asked inside the pass on processors, and between short ones on a GPU.

        False if it stopped. Where it stopped inside a pass, nothing of that pass is cached.
        """
        if self.gpu_layers:
            return self._in_short_pieces(ids, cache, stop)
        before, self._stop = cache.length, stop
        # The library asks before every operation of a pass, which costs too much in the short ones.
        self._lib.llama_set_abort_callback(self._context, self._abort, None)
        try:
            self.forward(ids, cache, 0)
        finally:
            self._stop = None
            self._lib.llama_set_abort_callback(self._context, ABORT(), None)
        return cache.length == before + len(ids)

    def _in_short_pieces(self, ids: Sequence[int], cache: LlamaCache, stop: Callable[[], bool]) -> bool:
        """The library does not ask while a GPU computes."""
        for begin in range(0, len(ids), _SHORT):
            if begin and stop():
                return False
            self.forward(ids[begin : begin + _SHORT], cache, 0)
        return True

    def cut(self, cache: LlamaCache, length: int) -> int:
        """Keeps the first `length` tokens of a cache; how many it holds then: none where this cannot be."""
        self._bring(cache)
        # Further back the library says yes, and goes on from a wrong state.
        lost = self.states and length < cache.floor
        if not length or lost or not self.cuttable:
            self._lib.llama_memory_clear(self._memory, True)
            return 0
        if not self._lib.llama_memory_seq_rm(self._memory, _SEQUENCE, length, -1):
            self._lib.llama_memory_clear(self._memory, True)
            return 0
        cache.floor = length  # one cut per pass
        return length

    def save(self, cache: LlamaCache) -> np.ndarray:
        """What a cache in the context holds, as bytes."""
        lib, context = self._lib, self._context
        # Of a sequence the library leaves out what lies before the sliding window, and then it cannot be cut any more.
        size = lib.llama_state_get_size(context) if self._window else lib.llama_state_seq_get_size(context, _SEQUENCE)
        data = np.empty(size, dtype=np.uint8)
        if self._window:
            wrote = lib.llama_state_get_data(context, data.ctypes.data, size)
        else:
            wrote = lib.llama_state_seq_get_data(context, data.ctypes.data, size, _SEQUENCE)
        if not 0 < wrote <= size:
            raise ModelError(self.name, "llama.cpp did not save a conversation.")
        return data[:wrote]

    # Which cache lies in the context

    @property
    def _holder(self) -> LlamaCache | None:
        return self._owner() if self._owner else None

    def _bring(self, cache: LlamaCache) -> None:
        """Puts a cache into the context; the one that lies there is saved, if anybody may still want it."""
        holder = self._holder
        if holder is cache:
            return
        if holder is not None and holder.length:
            holder.saved = self.save(holder)
        self._lib.llama_memory_clear(self._memory, True)
        self._owner = weakref.ref(cache)
        saved, cache.saved = cache.saved, None
        cache.floor = cache.length
        if saved is None:
            return
        if self._window:
            read = self._lib.llama_state_set_data(self._context, saved.ctypes.data, saved.nbytes)
        else:
            read = self._lib.llama_state_seq_set_data(self._context, saved.ctypes.data, saved.nbytes, _SEQUENCE)
        if read != saved.nbytes:
            self._lib.llama_memory_clear(self._memory, True)
            cache.length = 0
            raise ModelError(self.name, "llama.cpp did not bring a conversation back.", "Send it again.")

    def _undo(self, cache: LlamaCache) -> None:
        """After a pass that did not end: what it has written is taken out."""
        before = cache.length
        if not before or self.states or not self._lib.llama_memory_seq_rm(self._memory, _SEQUENCE, before, -1):
            self._lib.llama_memory_clear(self._memory, True)
            cache.length = 0

    # Loading

    def _load(self, path: Path, gpu_layers: int, share: Callable[[float], None]) -> int:
        lib = self._lib
        parameters = lib.llama_model_default_params()
        words = parameters.words(14)
        if any(words[:4]) or any(words[10:]):  # two pointers at the head, and the callback's, which are empty
            raise LoadError(
                f"The library of {lib.found.origin} has parameters of models that this program does not know.",
                f"Try: {INSTALL}",
            )
        parameters.write("i", N_GPU_LAYERS, gpu_layers if gpu_layers >= 0 else 1 << 20)

        def told(part: float, _: Any) -> bool:
            share(part)
            return True

        callback = PROGRESS(told)
        parameters.write("Q", _PROGRESS, ctypes.cast(callback, ctypes.c_void_p).value or 0)
        lib.said()
        model = lib.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise LoadError(
                f"llama.cpp cannot load {path.name}: {lib.said() or 'it does not say why'}.",
                "Download the file again, or install a newer llama.cpp.",
            )
        if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
            lib.llama_model_free(model)
            raise LoadError(f"{path.name} holds no model that writes text from left to right.", "Choose another.")
        return int(model)

    def _make_context(self) -> int:
        lib = self._lib
        parameters = lib.llama_context_default_params()
        for offset, value in ((_N_CTX, self.context), (_N_BATCH, _WIDEST), (_N_UBATCH, _WIDEST)):
            parameters.write("I", offset, value)
        if self.states and lib.rewinds_states:
            parameters.write("I", _N_RS_SEQ, MAX_WIDTH + 1)
        if self.exact and self._knows_attention(parameters):
            # With keys and values of 16-bit floats a pass over one token adds up long texts in another order.
            for offset, value in ((_FLASH_ATTENTION, 1), (_TYPE_K, _BFLOAT16), (_TYPE_V, _BFLOAT16)):
                parameters.write("i", offset, value)
        context = lib.llama_init_from_model(self._model, parameters)
        if not context:
            raise LoadError(
                f"There is no memory for {self.context} tokens of '{self.name}': {lib.said() or 'no reason is given'}.",
                "Choose a shorter context.",
            )
        return int(context)

    def _knows_attention(self, parameters: Parameters) -> bool:
        """Whether the fields for flash attention and the types of keys and values are where they are written.

        Around them stand four enumerations of "as the model says" (-1), five factors of -1.0, and twice float16 (1).
        """
        words, unset, minus = parameters.words(28), 0xFFFFFFFF, 0xBF800000
        return (
            self._lib.rewinds_states
            and words[10:14] == (unset,) * 4
            and words[16:22] == (*(minus,) * 4, 0, minus)
            and words[26:28] == (1, 1)
        )

    def _equal_width(self) -> int:
        """The most tokens that a pass may read and give the rows of passes over one token; 1 where none do.

        Tried with all widths up to `MAX_WIDTH`, behind an empty cache, a short text and a long one.
        """
        text, widest = [at * 7919 % self.vocab for at in range(_CACHED[-1] + MAX_WIDTH)], MAX_WIDTH
        for cached in _CACHED:
            if cached + MAX_WIDTH > self.context:
                break
            cache = self.new_cache()
            for begin in range(0, cached, PREFILL_WIDTH):
                self.forward(text[begin : min(begin + PREFILL_WIDTH, cached)], cache, 0)
            kept = cache.copy(cached) if self.states else cache
            block = text[cached : cached + widest]
            single = torch.cat([self.forward([token], cache, 1).clone() for token in block])
            for width in range(2, widest + 1):
                if self.states:
                    cache = kept.copy(cached)
                else:
                    cache.rewind(cached)
                if not torch.equal(self.forward(block[:width], cache, width), single[:width]):
                    widest = width - 1
                    break
        return widest

    def _keeps_states(self) -> bool:
        kinds = ("llama_model_is_recurrent", "llama_model_is_hybrid")
        return any(getattr(self._lib, kind)(self._model) for kind in kinds if hasattr(self._lib, kind))

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The batch's memory as arrays: token ids, positions, and which logits are wanted."""
        batch = self._batch
        for at in range(_WIDEST):
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = _SEQUENCE
        held = (batch.token, batch.pos, batch.logits)
        tokens, positions, wanted = (np.ctypeslib.as_array(part, shape=(_WIDEST,)) for part in held)
        return tokens, positions, wanted

    def _choose_threads(self) -> int:
        """The number of threads with which narrow passes take least time here; wide ones take all cores."""
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cores = min(cores, len(os.sched_getaffinity(0)))
        if (limit := os.environ.get("OMP_NUM_THREADS", "")).isdigit():  # what a person allows programs like this
            cores = min(cores, max(int(limit), 1))
        tried = sorted({max(1, cores // 2), max(1, cores - 1), cores})
        if len(tried) == 1 or self.gpu_layers < 0:
            self._lib.llama_set_n_threads(self._context, cores, cores)
            return cores
        taken = {}
        for count in tried:
            self._lib.llama_set_n_threads(self._context, count, cores)
            taken[count] = self._narrow_seconds()
        # A thread more must be worth what it takes from other programs.
        best = min(tried, key=lambda count: taken[count] * (1 + 0.02 * count))
        self._lib.llama_set_n_threads(self._context, best, cores)
        return best

    def _narrow_seconds(self) -> float:
        cache, taken = self.new_cache(), []
        self.forward([0], cache, 1)
        for token in range(_TRIES):
            begun = time.perf_counter()
            self.forward([token % self.vocab], cache, 1)
            taken.append(time.perf_counter() - begun)
            if sum(taken) > _TRYING:
                break
        return statistics.median(taken)

    def _measure_bytes(self) -> int:
        """Bytes that the library saves of one token."""
        cache, sizes = self.new_cache(), []
        for token in (0, 1):
            self.forward([token], cache, 0)
            sizes.append(int(self._lib.llama_state_seq_get_size(self._context, _SEQUENCE)))
        return max(sizes[1] - sizes[0], 1)

    def _can_cut(self) -> bool:
        """Reads, cuts and reads again, and compares with reading at once: 18 tokens, of which the last 15 are cut."""
        text = [at % self.vocab for at in range(MAX_WIDTH + 2)]
        self.cuttable = True
        cut, fresh = self.new_cache(), self.new_cache()
        self.forward(text[:2], cut, 1)
        self.forward(text[2:], cut, 1)
        cut.rewind(3)
        if cut.length != 3:
            return False
        after = self.forward([3 % self.vocab], cut, 1).clone()
        self.forward(text[:3], fresh, 1)
        once = self.forward([3 % self.vocab], fresh, 1)
        return bool((after - once).abs().max() <= 0.05 * once.abs().max().clamp(min=1e-6))

    def _described(self) -> str:
        text = ctypes.create_string_buffer(128)
        self._lib.llama_model_desc(self._model, text, 128)
        # "qwen2 1.5B Q4_K - Medium": kind, size, and how the weights are stored.
        words = text.value.decode("utf-8", "replace").split(maxsplit=2)
        return words[2].replace(" - ", "_").lower() if len(words) > 2 else "gguf"
