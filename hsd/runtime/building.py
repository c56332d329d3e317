"""Compiles steps behind the chat: one at a time, in a process of its own, with whatever the processor has left over.

    python -m hsd.runtime.building SPEC OUT GRAPH

compiles one graph of the model that is stored in SPEC. It dies with whoever started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from hsd.runtime.compiled import GRAPHS, WORK, CompiledSteps, write
from hsd.runtime.step import Shape, StepGraph

TIMEOUT = 900.0
"""Seconds after which a compilation is given up: it competes with everything else on the machine."""


def compiler() -> str | None:
    """The C++ compiler that torch would use; None where there is none."""
    named = os.environ.get("CXX")
    if named:
        return shutil.which(named)
    return shutil.which("g++") or shutil.which("clang++")


class Builder:
    """Makes what is missing, target first, on a thread that only waits for the compiling process.

    Args:
        steps: the models' compiled steps, dearest model first.
        timeout: seconds for one graph.
    """

    def __init__(self, steps: Sequence[CompiledSteps], timeout: float = TIMEOUT) -> None:
        self._steps = list(steps)
        self._timeout = timeout
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="hsd-compile", daemon=True)
        self.remaining = sum(len(s.missing()) for s in self._steps)

    def start(self) -> None:
        """Begins, if there is anything to do and a compiler to do it."""
        if self.remaining and compiler():
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether more steps may still appear."""
        return self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until nothing is left to make; whether that is so."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Ends the compilation that runs; what is finished stays."""
        self._closing.set()
        process = self._process
        if process is not None:
            _end(process)
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        for steps in self._steps:
            missing = steps.missing()
            if not missing or self._closing.is_set():
                continue
            work = steps.folder.parent / f"{WORK}{os.getpid()}"
            try:
                steps.folder.mkdir(parents=True, exist_ok=True)
                work.mkdir(exist_ok=True)
                spec = _store(steps, work)
                for graph in missing:
                    if not self._closing.is_set():
                        self._make(steps, graph, spec)
                        self.remaining -= 1
            except OSError:
                return  # a disk that is full or read-only: eager steps it is
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _make(self, steps: CompiledSteps, graph: str, spec: Path) -> None:
        out = steps.path(graph)
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(spec.parent / "cache"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        command = [sys.executable, "-m", "hsd.runtime.building", str(spec), str(out), graph]
        reason = ""
        try:
            with tempfile.TemporaryFile() as errors:
                # stdin stays open as long as this process lives: its end is the child's sign to end too.
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
                if self._closing.is_set():
                    _end(self._process)
                if self._process.wait(self._timeout):
                    errors.seek(0)
                    lines = errors.read().decode(errors="replace").strip().splitlines()
                    reason = lines[-1] if lines else f"ended with status {self._process.returncode}"
        except subprocess.TimeoutExpired:
            assert self._process is not None
            _end(self._process)
            reason = f"not done within {self._timeout:.0f} s"
        except OSError as error:
            reason = str(error)
        finally:
            self._process = None
        if reason and not self._closing.is_set():
            write(steps.failure(graph), reason)


def _store(steps: CompiledSteps, folder: Path) -> Path:
    """The model as the compiling process reads it."""
    spec = folder / "model.pt"
    torch.save({"shape": asdict(steps.model.shape), "context": steps.model.context, "tensors": steps.tensors}, spec)
    return spec


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a compiling process and the compilers that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def build(spec: Path, out: Path, graph: str) -> None:
    """Compiles one graph; the file appears whole or not at all."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    stored = torch.load(spec, weights_only=True)
    shape, tensors, context = Shape(**stored["shape"]), stored["tensors"], stored["context"]
    first, last = GRAPHS[graph]
    width, span = min(first + 3, last), min(257, context)  # sizes that tuning may think of
    layers = sum(name.endswith("_input_norm") for name in tensors)
    like = torch.float32  # what attention computes in on a CPU
    cache = [torch.zeros(span, shape.kv_heads, shape.head_dim, dtype=like) for _ in range(2 * layers)]
    ids = torch.ones(width, dtype=torch.long)
    end = torch.export.Dim("end", min=last, max=context)
    wide = {} if first == last else {0: torch.export.Dim("width", min=first, max=last)}
    sizes = ({} if first == last else wide, [{0: end}] * len(cache))
    module = StepGraph(shape, tensors).eval()
    part = out.with_name(f"{out.stem}-{os.getpid()}.part.pt2")
    with torch.no_grad():
        exported = torch.export.export(module, (ids, cache), dynamic_shapes=sizes)
        # Only torch's own C++ templates for the linear layers: nothing to try out, and so nothing that a busy machine
        # could try out wrongly. What they cannot compute goes the plain way.
        tuned = {
            "max_autotune": True,
            "max_autotune_gemm_backends": "CPP,ATEN",
            "test_configs.autotune_choice_name_regex": "^cpp_|bmm",
        }

        def package(extra: dict[str, object]) -> None:
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(part), inductor_configs={"freezing": True, **extra}
            )

        try:
            package(tuned)
        except Exception:
            package({})
    part.replace(out)


def _stay_behind() -> None:
    """Only time that nobody else wants; and an end when the starter ends."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """The starter holds the other end of stdin: when it is gone, so is this process group."""
    while os.read(0, 1):  # not sys.stdin, whose lock would outlive the interpreter
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _stay_behind()
    build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
