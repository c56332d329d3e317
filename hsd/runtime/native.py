"""Steps of our own in C++ on a CPU: `native.cpp`, compiled once per machine, for every model it can compute.

torch's kernels for one or a few rows read weights at less than half the speed that the memory has (`docs/log.md`). The
library reads each weight once for up to 16 new tokens, in place and unpacked. So it needs no copy of a model and no
compilation per model, and a pass over five tokens costs little more than one over one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsd.runtime.base import MAX_WIDTH
from hsd.runtime.cache import LeanCache
from hsd.runtime.compiled import Steps, write
from hsd.runtime.lean import FastStep, LeanModel
from hsd.runtime.step import Layer, Linear, Product

SOURCE = Path(__file__).with_name("native.cpp")
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16")
"""What the processor must be able to do; with `amx_tile` and `amx_bf16` it is done by the matrix unit."""

FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-w"),
    # Sums are contracted where the source says so and nowhere else: lanes must not depend on how a loop was compiled.
    *("-ffp-contract=off", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mavx2"),
)
_DIGEST = 16  # bytes of a checksum behind the library
_WIDEST_HEAD = 512
_MOST_THREADS = 64
_LAYER = (
    *("input_norm", "qkv", "qkv_bias", "q_norm", "k_norm", "out", "out_bias"),
    *("post_norm", "gate_up", "gate_up_bias", "down", "down_bias"),
)
_SIZES = (*("width", "layers", "heads", "kv_heads", "head_dim", "inner", "vocab", "context", "threads", "tiles"),)


class _Layer(ctypes.Structure):
    """`Layer` of the source."""

    _fields_ = [(name, ctypes.c_void_p) for name in _LAYER]


class _Model(ctypes.Structure):
    """`Model` of the source."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "head", "head_bias", "cos", "sin")),
        ("layer", ctypes.POINTER(_Layer)),
    ]


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
    shape, sizes = model.shape, _sizes(model)
    matrices = (sizes["width"], sizes["inner"], sizes["vocab"], shape.heads * shape.head_dim)
    heads = shape.head_dim % 16 == 0 and shape.head_dim <= _WIDEST_HEAD
    return heads and not any(n % 32 for n in matrices) and model.weights.embedding.shape[0] >= model.vocab


class Library:
    """The compiled `native.cpp`.

    Args:
        path: of the shared library.

    Raises:
        OSError: it is none, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        if _digest(data[:-_DIGEST]) != data[-_DIGEST:]:
            raise OSError(f"{path.name} is damaged")  # loading what ends too early would end this program
        # It has no OpenMP of its own: it finds torch's, and so shares torch's threads instead of competing with them.
        self._c = ctypes.CDLL(str(path))
        self._c.hsd_scratch.restype = ctypes.c_size_t
        pointer, whole = ctypes.c_void_p, ctypes.c_int
        self._c.hsd_step.argtypes = [pointer, pointer, whole, ctypes.c_int64, pointer, whole, pointer, pointer]
        self.tiles = abilities().issuperset(("amx_tile", "amx_bf16")) and self._c.hsd_tiles() == 0

    def step(self, model: LeanModel, *, tiles: bool | None = None) -> FastStep:
        """The model's step, for widths 1 to 16. Its logits lie in one buffer: they hold until the next call.

        Args:
            model: one for which `refusal` gives None.
            tiles: whether to use the matrix unit; default where there is one.
        """
        described, kept = _described(model, self.tiles if tiles is None else tiles)
        reference = ctypes.byref(described)
        scratch = torch.zeros(self._c.hsd_scratch(reference) + 64, dtype=torch.uint8)
        aligned = scratch.data_ptr() + -scratch.data_ptr() % 64
        logits = torch.empty((MAX_WIDTH, model.vocab), dtype=torch.float32)
        out, run, kinds = logits.data_ptr(), self._c.hsd_step, [ctypes.c_int64 * n for n in range(MAX_WIDTH + 1)]

        def native(ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
            width = len(ids)
            # `kept` and `scratch` are named so that they live as long as the step.
            if run(reference, kinds[width](*ids), width, cache.length, cache.addresses(), last, out, aligned):
                raise IndexError(f"a token id is none of the {kept[0]} that the model knows ({scratch.numel()} bytes)")
            return logits[:last]

        return native


class NativeSteps(Steps):
    """The library's steps of one model; all models share the library.

    Args:
        model: a model for which `refusal` gives None.
        root: folder for everything that is compiled.
    """

    means = "native"

    def __init__(self, model: LeanModel, root: Path) -> None:
        described = {**_sizes(model), "threads": torch.get_num_threads(), "unit": sorted(abilities())}
        key = hashlib.blake2b(repr(described).encode(), digest_size=6).hexdigest()
        self._key = f"{model.name}-{key}"
        folder = root / f"native-{fingerprint()}"
        super().__init__(model, folder, {"step": (1, MAX_WIDTH)}, f"measured-{self._key}.json", ".so")

    def failure(self, name: str) -> Path:
        """One model that it fails for does not take it from the others."""
        return self.folder / f"{name}-{self._key}.failed"

    def set_aside(self, name: str, error: Exception) -> None:
        """See `Artifacts.set_aside`; the library stays for other models."""
        with contextlib.suppress(OSError):
            write(self.failure(name), f"{type(error).__name__}: {error}")

    def found(self) -> list[str]:
        """See `Artifacts.found`."""
        return [n for n in super().found() if not self.failure(n).exists()]

    def spec(self) -> dict[str, Any]:
        """See `Artifacts.spec`."""
        return {"native": self.suffix}

    def load(self, name: str) -> FastStep:
        """See `Steps.load`."""
        return Library(self.path(name)).step(self.model)


def compile_to(path: Path, compiler: str) -> None:
    """Compiles the source.

    Raises:
        RuntimeError: the compiler refused, with what it said first.
    """
    part = path.with_suffix(".part.o")
    try:
        for command in ((*FLAGS, "-c", str(SOURCE), "-o", str(part)), ("-shared", str(part), "-o", str(path))):
            done = subprocess.run([compiler, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                raise RuntimeError(next((line for line in lines if "error" in line), lines[0]))
        data = path.read_bytes()
        path.write_bytes(data + _digest(data))  # loaders ignore what stands behind the end
    finally:
        part.unlink(missing_ok=True)


@functools.cache
def fingerprint() -> str:
    """What a compiled library is valid for: the source and how it is compiled; processors are asked at run time."""
    return hashlib.blake2b(SOURCE.read_bytes() + repr(FLAGS).encode(), digest_size=12).hexdigest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _sizes(model: LeanModel) -> dict[str, int]:
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


def _described(model: LeanModel, tiles: bool) -> tuple[_Model, tuple[object, ...]]:
    """A model as the library sees it, and what has to live as long as that."""
    weights = model.weights
    layers = (_Layer * len(weights.layers))()
    for made, layer in zip(layers, weights.layers, strict=True):
        for name in ("input_norm", "q_norm", "k_norm", "post_norm"):
            setattr(made, name, _address(getattr(layer, name)))
        for name in ("qkv", "out", "gate_up", "down"):
            product = _matrix(getattr(layer, name))
            setattr(made, name, product.weight.data_ptr())
            setattr(made, f"{name}_bias", _address(product.bias))
    head = _matrix(weights.head)
    parts = {
        "embedding": weights.embedding,
        "norm": weights.norm,
        "head": head.weight,
        "head_bias": head.bias,
        "cos": weights.cos,
        "sin": weights.sin,
    }
    addresses = {name: _address(tensor) for name, tensor in parts.items()}
    sizes = {**_sizes(model), "threads": min(torch.get_num_threads(), _MOST_THREADS), "tiles": int(tiles)}
    return _Model(**sizes, eps=model.shape.eps, **addresses, layer=layers), (model.vocab, model.weights, layers)
