"""Steps of our own in C++ on a CPU: the folder `cpp`, compiled once per machine, for every model it can compute.

torch's kernels for one or a few rows read weights at less than half the speed that the memory has (`docs/log.md`). The
library reads each weight once for up to 16 new tokens, in place. So it needs no compilation per model and, but for
small ones where there is no matrix unit, no copy, and with that unit a pass over five tokens costs little more than one
over one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsd.runtime import layout
from hsd.runtime.artifacts import Artifacts, write
from hsd.runtime.lean import LeanModel
from hsd.runtime.step import Layer, Linear, Product

SOURCES = Path(__file__).with_name("cpp")
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16")
"""What the processor must be able to do; with `amx_tile` and `amx_bf16` it is done by the matrix unit."""

_TILES = ("amx_tile", "amx_bf16")
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-w"),
    # Sums are contracted where the source says so and nowhere else: lanes must not depend on how a loop was compiled.
    *("-ffp-contract=off", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mavx2"),
)
NAME = "native"
"""Of the library."""

_DIGEST = 16  # bytes of a checksum behind the library
_WIDEST_HEAD = 512
_TURNED = 64 << 20  # bytes of weights that are held a second time, turned, where there is no matrix unit
_MOST_THREADS = 64
_P, _I, _F, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double
_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # result, arguments
    "hsd_scratch": (ctypes.c_size_t, _P),
    "hsd_step": (ctypes.c_int, _P, _P, ctypes.c_int, _I, _P, ctypes.c_int, _P, _P),
    "hsd_best": (None, _P, _I, _I, _I, _P),
    "hsd_sure": (_D, _P, _I),
    "hsd_pick": (_I, _P, _I, _F, _D, _P, _P),
    "hsd_softmax": (None, _P, _I, _I, _I, _F, _P),
    "hsd_judge": (_I, _P, _P, ctypes.c_int, _I, _P, _P, _P, _P),
    "hsd_draft": (_I, _P, _P, ctypes.c_int, _I, _P, _P, _P, _P),
    "hsd_round": (ctypes.c_int, _P),
    "hsd_verify": (_I, ctypes.c_int, _I, _P, _P, _P, _I, _P, _P),
}


@functools.cache
def abilities() -> frozenset[str]:
    """The processor's flags, as Linux names them; none elsewhere."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def means() -> str:
    """What would compute the steps of a bfloat16 model here, in words."""
    if not abilities().issuperset(NEEDED):
        return "none: this processor has no AVX512-BF16; torch compiles steps instead"
    return "by the matrix unit (AMX)" if abilities().issuperset(_TILES) else "by AVX512-BF16"


def refusal(model: LeanModel) -> str | None:
    """Why a lean model's steps cannot be computed by the library, in words; None if they can."""
    if model.device.type != "cpu":
        return "it is not on the CPU"
    if not abilities().issuperset(NEEDED):
        return "this processor has no products of bfloat16"
    tensors = model.weights.tensors()
    if tensors is None:
        return "its weights are quantized by a library of their own"
    if any(t.dtype != torch.bfloat16 or not t.is_contiguous() for n, t in tensors.items() if n not in ("cos", "sin")):
        return "its weights are not bfloat16"
    return None if _fits(model) else "its sizes are no multiples of 32"


def _fits(model: LeanModel) -> bool:
    shape, numbers = model.shape, sizes(model)
    matrices = (numbers["width"], numbers["inner"], numbers["vocab"], shape.heads * shape.head_dim)
    heads = shape.head_dim % 16 == 0 and shape.head_dim <= _WIDEST_HEAD
    return heads and not any(n % 32 for n in matrices) and model.weights.embedding.shape[0] >= model.vocab


class DamagedError(OSError):
    """A library that is not what was made: it is thrown away and made anew."""


def keep_library(part: Artifacts, name: str, error: Exception) -> None:
    """Notes why a part cannot use the library, which stays for the others; a damaged one goes, and is made anew."""
    with contextlib.suppress(OSError):
        if isinstance(error, DamagedError):
            part.path(name).unlink(missing_ok=True)
        else:
            write(part.failure(name), f"{type(error).__name__}: {error}")


class Library:
    """The compiled sources: steps, draws and verdicts.

    Args:
        path: of the shared library.

    Raises:
        OSError: it is none, or was made from other sources.
        DamagedError: what lies there is not what was made.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        if _digest(data[:-_DIGEST]) != data[-_DIGEST:]:
            raise DamagedError(f"{path.name} is damaged")  # loading what ends too early would end this program
        # It has no OpenMP of its own: it finds torch's, and so shares torch's threads instead of competing with them.
        self.functions = ctypes.CDLL(str(path))
        mine = (ctypes.c_int64 * len(layout.LAYOUT))(*map(ctypes.sizeof, layout.LAYOUT))
        if not hasattr(self.functions, "hsd_layout") or not self.functions.hsd_layout(mine, len(mine)):
            raise OSError(f"{path.name} was made from other sources than this program's")
        for name, (result, *kinds) in _FUNCTIONS.items():
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, kinds
        self.tiles = abilities().issuperset(_TILES) and self.functions.hsd_tiles() == 0


def compile_to(path: Path, compiler: str) -> None:
    """Compiles the sources.

    Raises:
        RuntimeError: the compiler refused, with what it said first.
    """
    sources = sorted(SOURCES.glob("*.cpp"))
    parts = [path.with_suffix(f".{source.stem}.o") for source in sources]
    # Linked without OpenMP: see `Library`.
    commands = [(*FLAGS, "-c", str(source), "-o", str(part)) for source, part in zip(sources, parts, strict=True)]
    try:
        for command in (*commands, ("-shared", *map(str, parts), "-o", str(path))):
            done = subprocess.run([compiler, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))
        data = path.read_bytes()
        path.write_bytes(data + _digest(data))  # loaders ignore what stands behind the end
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def compiler() -> str | None:
    """GNU's C++ compiler, whose OpenMP is the one that torch brings: `g++`, or what CXX names; None if it is none."""
    path = shutil.which(os.environ.get("CXX") or "g++")
    return path if path and _is_gnu(path) else None


@functools.cache
def _is_gnu(path: str) -> bool:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "Free Software Foundation" in said


@functools.cache
def fingerprint() -> str:
    """What a compiled library is valid for: its sources and how they are compiled; processors are asked at run time."""
    text = b"".join(source.read_bytes() for source in sorted(SOURCES.iterdir()))
    return hashlib.blake2b(text + repr(FLAGS).encode(), digest_size=12).hexdigest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def sizes(model: LeanModel) -> dict[str, int]:
    """What the library must know of a model's shape."""
    shape, weights = model.shape, model.weights
    return {
        "width": weights.embedding.shape[1],
        "layers": len(weights.layers),
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "inner": _inner(weights.layers),
        "vocab": model.vocab,
        "context": model.context,
    }


def _inner(layers: Sequence[Layer]) -> int:
    return sum(_matrix(layer.gate_up).weight.shape[0] for layer in layers[:1]) // 2


def _matrix(linear: Linear) -> Product:
    assert isinstance(linear, Product), "see `refusal`"
    return linear


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def packed(model: LeanModel) -> bool:
    """Whether all products of its layers are there in 4 bits, or all in 8, too."""
    products = [getattr(layer, name) for layer in model.weights.layers for name in layout.PRODUCTS]
    kinds = {type(product.packed) if isinstance(product, Product) else None for product in products}
    return len(kinds) == 1 and not kinds & {None, type(None)}


def described(model: LeanModel, tiles: bool, small: bool = False) -> tuple[layout.Model, tuple[object, ...]]:
    """A model as the library sees it, and what has to live as long as that.

    Args:
        tiles: whether to use the matrix unit.
        small: whether to read the packed weights, see `packed`.
    """
    weights = model.weights
    layers = (layout.Layer * len(weights.layers))()
    table, bits = None, 0
    copies: list[Tensor] | None = [] if not tiles and _turns(model) else None

    def whole(weight: Tensor) -> layout.Matrix:
        if copies is None:
            return layout.Matrix(whole=weight.data_ptr())
        copies.append(turned(weight))
        return layout.Matrix(whole=copies[-1].data_ptr())

    for made, layer in zip(layers, weights.layers, strict=True):
        for name in layout.NORMS:
            setattr(made, name, _address(getattr(layer, name)))
        for name in layout.PRODUCTS:
            product = _matrix(getattr(layer, name))
            setattr(made, f"{name}_bias", _address(product.bias))
            if small and product.packed:
                table, bits = product.packed.table, product.packed.bits
                matrix = layout.Matrix(codes=product.packed.codes.data_ptr(), scales=product.packed.scales.data_ptr())
            else:
                matrix = whole(product.weight)
            setattr(made, name, matrix)
    head = _matrix(weights.head)
    parts = {
        "embedding": weights.embedding,
        "norm": weights.norm,
        "head_bias": head.bias,
        "table": table,
        "cos": weights.cos,
        "sin": weights.sin,
    }
    addresses = {name: _address(tensor) for name, tensor in parts.items()}
    how = {"threads": min(torch.get_num_threads(), _MOST_THREADS), "tiles": int(tiles), "bits": bits}
    how |= {"turned": int(copies is not None)}
    last = whole(head.weight)
    seen = layout.Model(**sizes(model), **how, eps=model.shape.eps, head=last, **addresses, layer=layers)
    return seen, (model.vocab, model.weights, layers, copies)


def _turns(model: LeanModel) -> bool:
    """Whether the weights of a model are turned where there is no matrix unit: not if they are packed too, because both
    kinds have to give the same bits, and not those of a large model, of which that would be a second copy."""
    products = [_matrix(getattr(layer, name)) for layer in model.weights.layers for name in layout.PRODUCTS]
    held = sum(product.weight.nbytes for product in [*products, _matrix(model.weights.head)])
    return held <= _TURNED and not any(product.packed for product in products)


def turned(weight: Tensor) -> Tensor:
    """A weight (out, in) as (out / 16, in / 2, 16, 2): pairs of columns of 16 rows side by side.

    Rows beyond a multiple of 16 are left out: only a head has any, for ids that no text has.
    """
    blocks, pairs = weight.shape[0] // 16, weight.shape[1] // 2
    return weight[: 16 * blocks].view(blocks, 16, pairs, 2).permute(0, 2, 1, 3).contiguous()
