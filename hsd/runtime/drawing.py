"""Drawing and verifying by the native library: `hsd.kernels.Kernels` in a few microseconds, on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsd.kernels import Kernels
from hsd.runtime.artifacts import Buildable
from hsd.runtime.native import NAME, Library, fingerprint, keep_library
from hsd.verify import verify

_VOCAB = 300  # of the check: whole blocks of 128, and a rest


class NativeKernels(Kernels):
    """See `Kernels`; takes any block, also behind a lookup, and float32 logits.

    Args:
        library: the compiled sources.
    """

    def __init__(self, library: Library) -> None:
        super().__init__()
        c = library.functions
        self._best, self._pick, self._softmax = c.hsd_best, c.hsd_pick, c.hsd_softmax
        self._sure_of, self._verify = c.hsd_sure, c.hsd_verify
        # Where answers are written: one object each, since one reply is decoded at a time.
        self._ids = (ctypes.c_int64 * 1024)()
        self._sure, self._token = ctypes.c_double(), ctypes.c_int64()

    def top(self, logits: Tensor, measured: bool) -> tuple[int, float]:
        """See `Kernels.top`."""
        logits = logits.float()
        at, vocab = logits.data_ptr(), logits.shape[1]
        self._best(at, 1, vocab, vocab, self._ids)
        token = self._ids[0]
        return token, self._sure_of(at, vocab) if measured and token >= 0 else 1.0

    def draw(self, logits: Tensor, scale: float, coin: float, out: Tensor) -> tuple[int, float]:
        """See `Kernels.draw`."""
        logits = logits.float()
        _expect_float32(out)
        sure = self._sure
        token = self._pick(logits.data_ptr(), logits.shape[1], scale, coin, out.data_ptr(), ctypes.byref(sure))
        return token, sure.value

    def rows(self, logits: Tensor, scale: float) -> Tensor | list[int] | None:
        """See `Kernels.rows`."""
        logits = logits.float()
        n, vocab = logits.shape
        if scale:
            out = torch.empty((n, vocab), dtype=torch.float32)
            self._softmax(logits.data_ptr(), n, logits.stride(0), vocab, scale, out.data_ptr())
            return out
        if n > len(self._ids):
            return None
        self._best(logits.data_ptr(), n, logits.stride(0), vocab, self._ids)
        return list(self._ids[:n])

    def takes(self, draft: Sequence[int], q: Tensor | list[int]) -> bool:
        """See `Kernels.takes`."""
        return not isinstance(q, Tensor) or q.dtype == torch.float32

    def judge(
        self, draft: Sequence[int], q: Tensor | list[int], p: Tensor, coins: Sequence[float], rule: str
    ) -> tuple[int, int]:
        """See `Kernels.judge`."""
        n, token = len(draft), self._token
        _expect_float32(p)
        p = p if p.is_contiguous() else p.contiguous()
        if isinstance(q, Tensor):
            q = q if q.is_contiguous() else q.contiguous()
        accepted: int = self._verify(
            rule != "token",
            n,
            (ctypes.c_int64 * n)(*draft),
            q.data_ptr() if isinstance(q, Tensor) else None,
            p.data_ptr(),
            p.shape[1],
            (ctypes.c_double * len(coins))(*coins),
            ctypes.byref(token),
        )
        return accepted, token.value


def _expect_float32(rows: Tensor) -> None:
    """Raises unless rows are what the library takes them for: it would reach into foreign memory."""
    if rows.dtype != torch.float32 or rows.device.type != "cpu":
        raise TypeError(f"rows are {rows.dtype} on {rows.device}, not float32 on the CPU")


class NativeDrawing(Buildable):
    """The native library as what draws and verifies, once it is there.

    Args:
        root: folder for everything that is compiled.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root / f"native-{fingerprint()}", (NAME,), ".so")
        self._attached: Kernels | None = None

    def spec(self) -> dict[str, Any]:
        """See `Buildable.spec`."""
        return {"native": self.suffix, "sources": fingerprint()}

    def failure(self, name: str) -> Path:
        """What fails to draw may still compute steps."""
        return self.folder / f"{name}-drawing.failed"

    def set_aside(self, name: str, error: Exception) -> None:
        """See `Artifacts.set_aside`; the library stays, for steps."""
        keep_library(self, name, error)

    def attach(self) -> Kernels | None:
        """The kernels, once they are there and compute what they should; None until then."""
        if self._attached is None and self.found() and not self.failed():
            try:
                made = NativeKernels(Library(self.path(NAME)))
                _check(made)
            except Exception as error:
                self.set_aside(NAME, error)
                return None
            self.used()
            self._attached = made
        return self._attached


def _check(made: NativeKernels) -> None:
    """Raises unless the library gives what the plain functions give."""
    some = torch.Generator().manual_seed(0)
    logits = 6 * torch.rand((6, _VOCAB), generator=some, dtype=torch.float32)
    plain, out, same = Kernels(), torch.empty((1, _VOCAB), dtype=torch.float32), torch.empty_like(logits[:1])
    rows = torch.softmax(logits, -1)
    torch.testing.assert_close(made.rows(logits, 1.0), rows, atol=1e-6, rtol=1e-4)
    for coin in (0.0, 0.3, 0.999999):
        got, want = (k.draw(logits[:1], 1.25, coin, to) for k, to in ((made, out), (plain, same)))
        torch.testing.assert_close((*got, out), (*want, same), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(made.top(logits[:1], True), plain.top(logits[:1], True), atol=1e-6, rtol=1e-4)
    draft, q = [5, 40, 299, 7, 128], torch.softmax(logits[:5].flip(1), -1)
    for seed in range(20):
        coins = torch.rand(6, dtype=torch.float64, generator=some).tolist()
        for rule in ("block", "token"):
            if made.judge(draft, q, rows, coins, rule) != plain.judge(draft, q, rows, coins, rule):
                raise ValueError(f"a verdict by the {rule} rule differs ({seed})")
            verdict = verify(draft, draft, rows, coins, rule)
            if made.judge(draft, draft, rows, coins, rule) != (verdict.accepted, verdict.token):
                raise ValueError(f"a verdict on looked up tokens by the {rule} rule differs ({seed})")
    if made.rows(logits, 0.0) != logits.argmax(-1).tolist():
        raise ValueError("the likeliest tokens differ")
