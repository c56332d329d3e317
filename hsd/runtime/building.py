"""Compiles steps behind the chat: one at a time, in a process of its own, with whatever the processor has left over.

    python -m hsd.runtime.building SPEC FOLDER NAME…

compiles the named functions of what is stored in SPEC. It dies with whoever started it.
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
from pathlib import Path
from typing import Any

import torch

from hsd.runtime import native
from hsd.runtime.artifacts import WORK, Artifacts, Buildable, write
from hsd.runtime.compiled import GRAPHS
from hsd.runtime.fused import export_kernel
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
    """Makes what is missing, one part after the other, on a thread that only waits for the compiling process.

    Args:
        parts: what is to be made, the most valuable first.
        timeout: seconds for one function.
    """

    def __init__(self, parts: Sequence[Buildable], timeout: float = TIMEOUT) -> None:
        self._parts = list(parts)
        self._timeout = timeout
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="hsd-compile", daemon=True)

    @property
    def remaining(self) -> int:
        """Functions still to be made; parts may share one."""
        return len({part.path(name) for part in self._parts for name in part.missing()})

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
        reasons: dict[Path, str] = {}  # parts may share a file; what could not be made once is not tried again
        for part in self._parts:
            names = [name for name in part.missing() if part.path(name) not in reasons]
            if self._closing.is_set():
                return
            try:
                if names:
                    reason = self._build(part, names)
                    for name in part.missing() if not self._closing.is_set() else ():
                        reasons[part.path(name)] = _reason(part, name) or reason or "the compiling process made no file"
                for name in part.missing() if not self._closing.is_set() else ():
                    write(part.failure(name), reasons[part.path(name)])
            except OSError:
                return  # a disk that is full or read-only: what is there already has to do

    def _build(self, part: Buildable, names: Sequence[str]) -> str:
        """Makes these in a folder of its own; why not, or an empty text."""
        part.folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=WORK, dir=part.folder.parent))
        try:
            return self._make(part, names, _store(part, work), work / "cache")
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _make(self, part: Buildable, names: Sequence[str], spec: Path, cache: Path) -> str:
        """Runs the compiling process; why it did not end well, or an empty text."""
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        command = [sys.executable, "-m", "hsd.runtime.building", str(spec), str(part.folder), *names]
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
                if self._process.wait(self._timeout * len(names)) == 0:
                    return ""
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                return lines[-1] if lines else f"it ended with status {self._process.returncode}"
        except subprocess.TimeoutExpired:
            assert self._process is not None
            _end(self._process)
            return f"not done within {self._timeout * len(names):.0f} s"
        finally:
            self._process = None


def _reason(part: Buildable, name: str) -> str:
    """What the compiling process wrote down, which knows nothing of parts that share a file."""
    path = Artifacts.failure(part, name)
    try:
        text = path.read_text(encoding="utf-8")
        if path != part.failure(name):
            path.unlink()
        return text
    except OSError:
        return ""


def _store(part: Buildable, folder: Path) -> Path:
    """What is to be compiled, as the compiling process reads it."""
    spec = folder / "spec.pt"
    torch.save(part.spec(), spec)
    return spec


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a compiling process and the compilers that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def build(stored: dict[str, Any], out: Path, name: str) -> None:
    """Compiles one function; the file appears whole or not at all."""
    part = out.with_name(f"{out.stem}-{os.getpid()}.part{out.suffix}")

    def package(settings: dict[str, object]) -> None:
        torch._inductor.aoti_compile_and_package(exported, package_path=str(part), inductor_configs=settings)

    if "native" in stored:
        if stored["sources"] != native.fingerprint():
            raise RuntimeError("the program was updated while it ran; start it again")
        native.compile_to(part, native.compiler() or "g++")
        part.replace(out)
        return
    with torch.no_grad():
        if "vocab" in stored:
            exported = export_kernel(name, stored["vocab"])
            package({"cpp.threads": 1})  # two threads would wait for each other longer than they compute
        else:
            exported = _export(stored, name)
            # Only torch's own C++ templates for the linear layers: nothing to try out, and so nothing that a busy
            # machine could try out wrongly. What they cannot compute goes the plain way.
            tuned = {
                "max_autotune": True,
                "max_autotune_gemm_backends": "CPP,ATEN",
                "test_configs.autotune_choice_name_regex": "^cpp_|bmm",
            }
            try:
                package({"freezing": True, **tuned})
            except Exception:
                package({"freezing": True})
    part.replace(out)


def _export(stored: dict[str, Any], graph: str) -> torch.export.ExportedProgram:
    """A step as a graph in which the end of the text, and perhaps the width, are open."""
    shape, tensors, context = Shape(**stored["shape"]), stored["tensors"], stored["context"]
    first, last = GRAPHS[graph]
    width, span = min(first + 3, last), min(257, context)  # sizes that tuning may think of
    layers = sum(name.endswith("_input_norm") for name in tensors)
    like = torch.float32  # what attention computes in on a CPU
    cache = [torch.zeros(span, shape.kv_heads, shape.head_dim, dtype=like) for _ in range(2 * layers)]
    ids = torch.ones(width, dtype=torch.long)
    end = torch.export.Dim("end", min=last, max=context)
    wide = {} if first == last else {0: torch.export.Dim("width", min=first, max=last)}
    return torch.export.export(
        StepGraph(shape, tensors).eval(), (ids, cache), dynamic_shapes=(wide, [{0: end}] * len(cache))
    )


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


def main(spec: Path, folder: Path, names: Sequence[str]) -> None:
    """Compiles all of them; one that fails leaves its reason and does not keep the others from being made."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    stored = torch.load(spec, weights_only=True)
    part = Artifacts(folder, names, stored.get("native", ".pt2"))
    for name in names:
        try:
            build(stored, part.path(name), name)
        except Exception as error:
            text = str(error).strip().splitlines()
            write(part.failure(name), f"{type(error).__name__}: {text[0] if text else ''}")


if __name__ == "__main__":
    _stay_behind()
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
