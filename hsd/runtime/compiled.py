"""Compiled steps on a CPU: found on disk, attached to a model, and used at the widths where they measure faster.

`CompiledSteps` are what torch's ahead-of-time compiler makes of `StepGraph`, with the weights folded in and packed for
the processor, as a shared library: one for a width of 1, one for widths 2 to 16. They belong to exactly these weights,
this processor, this torch and this number of threads; all of that is in the name of their folder. Where
`hsd.runtime.native` can compute a model, that is faster.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import platform
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsd import kernels
from hsd.runtime import step
from hsd.runtime.artifacts import WORK, Buildable, write
from hsd.runtime.base import MAX_WIDTH
from hsd.runtime.cache import LeanCache
from hsd.runtime.lean import DraftBlock, FastStep, LeanModel

GRAPHS = {"one": (1, 1), "more": (2, MAX_WIDTH)}
"""Name of a compiled step -> the widths that it serves."""

LARGEST = 1 << 30
"""Bytes of weights beyond which a model is not compiled: the packed copy is held beside the eager one."""

_VERSION = 1  # of how they are compiled
_REPEATS = 9
_CLEARLY = 1.1  # a compiled step is given up only where an eager one is faster beyond doubt
_NOTE = "measured.json"
_PLACE = 128  # cached tokens at which the means are compared
_COMPARED = (1, 2, 3, 5, 9, 16)  # widths at which they are; one between goes with the next
_WIDE = (32, 64, 128, 256)  # tokens of a prompt: at once by an eager pass, or in pieces by these steps
_SECONDS = 0.5  # after which no further runs are made at a width: large models take long, and somebody may wait


class Steps(Buildable):
    """Compiled steps of one model: loaded, compared with eager passes, and used where they are faster.

    Args:
        model: a lean model on the CPU with plain matrices.
        folder: where they are kept.
        graphs: name of a function -> the widths that it serves, first and last.
        note: the file in the folder that remembers how they compared.
    """

    means = ""
    """What they are, in a word: part of what measured costs are valid for."""

    def __init__(
        self, model: LeanModel, folder: Path, graphs: Mapping[str, tuple[int, int]], note: str, suffix: str
    ) -> None:
        super().__init__(folder, graphs, suffix)
        self.model = model
        self._graphs = dict(graphs)
        self._note = folder / note
        self._loaded: dict[str, list[FastStep]] = {}
        self._measured: dict[int, list[float]] = {}  # where nothing can be written down

    @abstractmethod
    def load(self, name: str) -> list[FastStep]:
        """The step that lies on disk under this name, in as many ways as it can be used."""

    def draft(self, steps: Mapping[int, FastStep]) -> DraftBlock | None:
        """What drafts whole blocks, if steps of these widths are used; None where nothing does."""
        return None

    def fresh(self) -> bool:
        """Whether some are on disk that this model does not use yet."""
        return any(g not in self._loaded for g in self.found())

    def attach(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Loads what is on disk and lets the model use each at the widths where it is faster than an eager pass.

        The comparison is measured once and remembered beside the step. A file that cannot be loaded, or that computes
        something else, is set aside: the eager pass is always there.

        Args:
            should_stop: asked before every width is compared; what is not compared yet is attached the next time.

        Returns:
            Whether anything was attached.
        """
        before, times = dict(self._loaded), self._times()
        for graph in self.found():
            if graph in self._loaded:
                continue
            widths = self._graphs[graph]
            try:
                runners = self.load(graph)
                for runner in runners if self._compared(widths)[-1] not in times else ():
                    _check(self.model, runner, widths)
            except Exception as error:
                self.set_aside(graph, error)
                continue
            self._loaded[graph] = runners
        if len(self._loaded) == len(before):
            return False
        if not self._compare(should_stop):
            self._loaded = before
            return False
        self.used()
        self._choose()
        self._choose_pieces(should_stop)
        return True

    @staticmethod
    def _compared(widths: tuple[int, int]) -> list[int]:
        return [w for w in _COMPARED if widths[0] <= w <= widths[1]] or [widths[1]]

    def _compare(self, should_stop: Callable[[], bool]) -> bool:
        """Times what has not been timed yet; False if it was stopped."""
        times = self._times()
        for graph, runners in self._loaded.items():
            for width in self._compared(self._graphs[graph]):
                if len(times.get(width, ())) == 1 + len(runners):
                    continue
                if should_stop():
                    return False
                self._note_down(width, compare(self.model, runners, width))
        return True

    def _note_down(self, width: int, ms: list[float]) -> None:
        times = self._measured = {**self._times(), width: ms}
        with contextlib.suppress(OSError):
            write(self._note, json.dumps({str(w): times[w] for w in sorted(times)}))

    def _times(self) -> dict[int, list[float]]:
        """Milliseconds by width of an eager pass and of each way to use a step, as far as they were compared before."""
        try:
            stored = json.loads(self._note.read_text(encoding="utf-8"))
            found = {int(width): [float(ms) for ms in times] for width, times in stored.items() if len(times) > 1}
        except (OSError, ValueError, TypeError, AttributeError):
            found = {}
        return {**found, **self._measured}

    def _choose(self) -> None:
        """The faster of the means at every width."""
        times = self._times()
        steps: dict[int, FastStep] = {}
        for graph, runners in self._loaded.items():
            first, last = self._graphs[graph]
            compared = self._compared((first, last))
            for width in range(first, last + 1):
                eager, *others = times[next(w for w in compared if w >= width)]
                fastest = min(others)
                if fastest < _CLEARLY * eager:
                    steps[width] = runners[others.index(fastest)]
        self.model.use(steps, self.means if steps else "", self.draft(steps))

    def _choose_pieces(self, should_stop: Callable[[], bool]) -> None:
        """Up to which length a prompt is read faster in pieces by these steps than at once by an eager pass."""
        for width in _WIDE:
            if width > self.model.context:
                return
            times = self._times()
            if width not in times and not should_stop():
                self._note_down(width, compare(self.model, [self.model.in_pieces], width))
                times = self._times()
            if width not in times or times[width][1] > times[width][0]:
                return
            self.model.widest = width


class CompiledSteps(Steps):
    """The steps of one model as torch's ahead-of-time compiler makes them.

    Args:
        model: a model for which `refusal` gives None.
        root: folder for the compiled steps of all models.
    """

    means = "compiled"

    def __init__(self, model: LeanModel, root: Path) -> None:
        tensors = model.weights.tensors()
        assert tensors is not None, "see `refusal`"
        super().__init__(model, root / f"{model.name}-{fingerprint(model, tensors)}", GRAPHS, _NOTE, ".pt2")
        self.tensors = tensors

    def spec(self) -> dict[str, Any]:
        """See `Buildable.spec`."""
        return {"shape": asdict(self.model.shape), "context": self.model.context, "tensors": self.tensors}

    def load(self, name: str) -> list[FastStep]:
        """See `Steps.load`."""
        return [_load(self.path(name), self.model)]


def refusal(model: Any) -> str | None:
    """Why a model's steps cannot be compiled, in words; None if they can."""
    if not isinstance(model, LeanModel):
        return "it does not run lean"
    if model.device.type != "cpu":
        return "it is not on the CPU"
    tensors = model.weights.tensors()
    if tensors is None:
        return "its weights are quantized by a library of their own"
    if sum(t.nbytes for t in tensors.values()) > LARGEST:
        return f"its weights are larger than {LARGEST >> 30} GB, and compiled steps hold them twice"
    return None


def prune(root: Path, days: float = 60) -> None:
    """Removes compiled steps that nobody used for so long (another torch, other weights), and what a kill left."""
    for folder in root.iterdir() if root.is_dir() else ():
        limit = 1 if folder.name.startswith(WORK) else days
        if folder.is_dir() and time.time() - folder.stat().st_mtime > limit * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def compare(model: LeanModel, runners: Sequence[FastStep], width: int) -> list[float]:
    """Milliseconds of an eager pass and of these: the shortest of some interleaved runs.

    What is compared here is remembered, so what other programs do meanwhile must not decide: it only ever adds.
    """
    cache = _filled(model, max(0, min(_PLACE, model.context - width)), width)
    ids, end = [1] * width, time.perf_counter() + _SECONDS
    times: list[list[float]] = [[] for _ in range(1 + len(runners))]
    with torch.inference_mode():
        for turn in range(_REPEATS + 1):
            if turn > 1 and time.perf_counter() > end:
                break
            for kept, run in zip(times, (model.eager, *runners), strict=True):
                begun = time.perf_counter()
                run(ids, cache, width)
                if turn:  # the first of each allocates
                    kept.append(1000 * (time.perf_counter() - begun))
    return [round(min(kept), 4) for kept in times]


def load(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """A compiled function of a flat list of tensors.

    `run_single_threaded` is about callers: there is one at a time, and no queue of runners is needed.
    """
    package = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    run: Callable[[list[Tensor]], list[Tensor]] = package.loader.run
    return run


def _load(path: Path, model: LeanModel) -> FastStep:
    run, device = load(path), model.device

    def compiled(ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
        views = cache.views(cache.length + len(ids))
        logits: Tensor = run([torch.tensor(ids, device=device), *views])[0]
        return logits[len(ids) - last :]

    return compiled


def _check(model: LeanModel, runner: FastStep, widths: tuple[int, int]) -> None:
    """Raises unless the logits are those of an eager pass, within the rounding of the model's arithmetic."""
    tolerance = 1e-3 if model.dtype == "float32" else 0.1
    for width in {widths[0], min(5, widths[1]), widths[1]}:
        for place in {0, min(37, model.context - width)}:
            cache = _filled(model, place, width)
            ids = [i % model.vocab for i in range(3, 3 + width)]
            with torch.inference_mode():
                want, got = model.eager(ids, cache, width), runner(ids, cache, width)
            scale = float(want.abs().max().clamp(min=1e-6))
            if not float((want - got).abs().max()) <= tolerance * scale:  # NaN fails too
                raise ValueError(f"a compiled pass over {width} tokens differs from an eager one")


@torch.inference_mode()
def _filled(model: LeanModel, length: int, width: int) -> LeanCache:
    """A cache that holds some text, with room for a pass."""
    cache = model.new_cache()
    if length:
        model.forward([i % model.vocab for i in range(length)], cache, 0)
    cache.reserve(length + width)
    return cache


def fingerprint(model: LeanModel, tensors: dict[str, Tensor]) -> str:
    """What compiled steps are valid for."""
    digest = hashlib.blake2b(repr((model.shape, MAX_WIDTH, environment())).encode(), digest_size=12)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def environment() -> tuple[Any, ...]:
    """What every compiled function is valid for: its source, how it is compiled, torch, threads, processor."""
    return _VERSION, _sources(), torch.__version__, torch.get_num_threads(), _processor()


@functools.cache
def _sources() -> str:
    digest = hashlib.blake2b(digest_size=12)
    for module in (kernels, step):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """The processor's abilities: code that was compiled for more of them would end the program."""
    flags = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"
