"""Drawing and verifying as compiled functions on a CPU: `hsd.kernels` for one vocabulary.

A draft's step is so short that a dozen numpy calls behind it cost half as much again: after a pass over the weights
nothing of an interpreter's library is left in the processor's caches. One small function is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hsd import kernels
from hsd.kernels import LONGEST, Kernels
from hsd.runtime.artifacts import Buildable
from hsd.runtime.compiled import environment, load

NAMES = ("pick", "best", "block_wise", "token_wise")
SHORTEST = 2
"""Shortest block that the compiled rules take."""


class CompiledKernels(Buildable):
    """The compiled kernels for one vocabulary.

    Args:
        vocab: token ids that may appear.
        root: folder for everything that is compiled.
    """

    def __init__(self, vocab: int, root: Path) -> None:
        key = hashlib.blake2b(repr((vocab, environment())).encode(), digest_size=12).hexdigest()
        super().__init__(root / f"kernels-{key}", NAMES)
        self._vocab = vocab
        self._attached: Kernels | None = None

    def spec(self) -> dict[str, Any]:
        """See `Buildable.spec`."""
        return {"vocab": self._vocab}

    def attach(self) -> Kernels | None:
        """The kernels, once all of them are there and compute what they should; None until then."""
        if self._attached is None and len(self.found()) == len(self.names):
            loaded: dict[str, Callable[..., Tensor]] = {}
            for name in self.names:
                try:
                    loaded[name] = _call(load(self.path(name)))
                    _check(name, loaded[name], self._vocab)
                except Exception as error:
                    self.set_aside(name, error)
                    return None
            self.used()
            self._attached = Kernels(**loaded, shortest=SHORTEST)
        return self._attached


def export_kernel(name: str, vocab: int) -> torch.export.ExportedProgram:
    """One kernel as a graph."""
    length = torch.export.Dim("length", min=SHORTEST, max=LONGEST)
    sizes: Any = None
    if name.endswith("wise"):
        sizes = (({0: length}, {0: length}, {0: length + 1}, {0: length + 1}),)
    return torch.export.export(_Module(getattr(kernels, name)), _example(name, vocab), dynamic_shapes=sizes)


class _Module(nn.Module):
    """A function as what `torch.export` takes."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        """The function itself."""
        return self._function(*arguments)


def _example(name: str, vocab: int) -> tuple[Tensor, ...]:
    """Arguments of a kernel, of a shape that it may be called with."""
    some = torch.Generator().manual_seed(0)
    rows = torch.softmax(3 * torch.rand((6, vocab), generator=some), -1)
    if name == "best":
        return (rows[:1].log(),)
    if name == "pick":
        return rows[:1].log(), torch.tensor([1.25, 0.3], dtype=torch.float64), torch.zeros(1, vocab)
    draft = torch.randint(0, vocab, (5,), generator=some)
    q = torch.softmax(3 * torch.rand((5, vocab), generator=some), -1)
    return draft, q, rows, torch.rand(6, dtype=torch.float64, generator=some)


def _call(run: Callable[[list[Tensor]], list[Tensor]]) -> Callable[..., Tensor]:
    return lambda *arguments: run(list(arguments))[0]


def _check(name: str, function: Callable[..., Tensor], vocab: int) -> None:
    """Raises unless the compiled kernel gives what the plain one gives."""
    mine, theirs = _example(name, vocab), _example(name, vocab)
    got, want = function(*mine), getattr(kernels, name)(*theirs)
    for a, b in zip((got, *mine), (want, *theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
