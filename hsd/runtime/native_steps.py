"""The native library's steps of one model, and the blocks that it drafts for itself."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hsd.planning.stopping import EDGES
from hsd.runtime.base import LONGEST_BLOCK, MAX_WIDTH, Drafting
from hsd.runtime.cache import LeanCache
from hsd.runtime.compiled import Steps
from hsd.runtime.layout import Block, Judged
from hsd.runtime.lean import DraftBlock, FastStep, LeanModel
from hsd.runtime.native import (
    NAME,
    Library,
    abilities,
    described,
    fingerprint,
    keep_library,
    packed,
    sizes,
)

_IDS = [ctypes.c_int64 * n for n in range(MAX_WIDTH + 1)]
_COINS = [ctypes.c_double * n for n in range(MAX_WIDTH + 2)]


class NativeStep:
    """A model's passes over 1 to 16 tokens (a `FastStep`), and blocks that it drafts for itself.

    Logits lie in one buffer: they hold until the next call.

    Args:
        library: what computes them.
        model: one for which `native.refusal` gives None.
        tiles: whether to use the matrix unit; default where there is one.
        small: whether to read packed weights, see `native.packed`. What it computes is the same.
    """

    def __init__(self, library: Library, model: LeanModel, tiles: bool | None = None, *, small: bool = False) -> None:
        seen, self._alive = described(model, library.tiles if tiles is None else tiles, small)
        self._model = ctypes.byref(seen)
        functions = self.functions = library.functions
        self._step, self._draft, self._judge = functions.hsd_step, functions.hsd_draft, functions.hsd_judge
        self._scratch = torch.zeros(functions.hsd_scratch(self._model) + 64, dtype=torch.uint8)
        self._at = self._scratch.data_ptr() + -self._scratch.data_ptr() % 64
        self.addresses = ctypes.addressof(seen), self._at  # of the model and of what it writes to meanwhile
        self._logits = torch.empty((MAX_WIDTH, model.vocab), dtype=torch.float32)
        self._out = self._logits.data_ptr()
        self._vocab = model.vocab
        self._how: Drafting | None = None
        self._block = Block()
        self._held: tuple[Any, ...] = ()
        self._judged = Judged()
        self._best = (ctypes.c_int64 * (MAX_WIDTH + 1))()

    def __call__(self, ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
        """See `FastStep`."""
        width, given = len(ids), _IDS[len(ids)](*ids)
        if self._step(self._model, given, width, cache.length, cache.addresses(), last, self._out, self._at):
            raise self._unknown()
        return self._logits[:last]

    def draft(
        self,
        ids: Sequence[int],
        cache: LeanCache,
        most: int,
        coins: Sequence[float],
        rows: Tensor | None,
        how: Drafting,
    ) -> tuple[list[int], list[float]]:
        """See `LeanModel.draft`."""
        if how is not self._how:
            self._block, self._held = described_drafting(how)
            self._how = how
        block, (tokens, seconds, tossed) = self._block, self._held[:3]
        tossed[:most] = coins[:most]
        block.most = most
        block.rows = None if rows is None else rows.data_ptr()
        count = self._draft(
            *(self._model, _IDS[len(ids)](*ids), len(ids), cache.length, cache.addresses()),
            *(self._out, self._at, ctypes.byref(block)),
        )
        if count == -1:
            raise self._unknown()
        return [-1] if count < 0 else tokens[:count], seconds[: max(count, 1)]

    def judge(
        self,
        ids: Sequence[int],
        cache: LeanCache,
        below: Tensor | Sequence[int],
        coins: Sequence[float],
        rule: str,
        rows: Tensor | None,
        how: Drafting,
    ) -> tuple[int, int, list[int], float]:
        """See `LeanModel.judge`."""
        judged, count, width = self._judged, len(coins) - 1, len(ids)
        given, tossed = _IDS[width](*ids), _COINS[count + 1](*coins)
        judged.scale, judged.vocab, judged.block_wise, judged.count = how.scale, how.vocab, rule != "token", count
        judged.draft = ctypes.addressof(given) + 8 * (width - count)
        judged.q = below.data_ptr() if isinstance(below, Tensor) else None
        judged.coins, judged.best = ctypes.addressof(tossed), ctypes.addressof(self._best)
        judged.rows = None if rows is None else rows.data_ptr()
        accepted = self._judge(
            *(self._model, given, width, cache.length, cache.addresses()),
            *(self._out, self._at, ctypes.byref(judged)),
        )
        if accepted < 0:
            raise self._unknown()
        best = self._best[: count + 1] if rows is None else []
        return accepted, judged.token, best, judged.seconds

    def _unknown(self) -> IndexError:
        return IndexError(f"a token id is none of the {self._vocab} that the model knows")


def described_drafting(how: Drafting) -> tuple[Block, tuple[Any, ...]]:
    """Settings as the library reads them, and what has to live as long: tokens, seconds, coins, and all else."""
    arrays: dict[str, Any] = {
        "tokens": (ctypes.c_int64 * LONGEST_BLOCK)(),
        "seconds": (ctypes.c_double * LONGEST_BLOCK)(),
        "coins": (ctypes.c_double * LONGEST_BLOCK)(),
        "ends": (ctypes.c_int64 * len(how.ends))(*how.ends),
    }
    block = Block(scale=how.scale, vocab=how.vocab, end_count=len(how.ends), by_value=how.stop is not None)
    if how.stop is not None:
        chances = how.stop.calibration
        block.mean, block.token_ms, block.draft_ms = chances.mean, how.stop.token_ms, how.stop.draft_ms
        block.edge_count = len(EDGES)
        arrays["edges"] = (ctypes.c_double * len(EDGES))(*EDGES)
        arrays["survival"] = (ctypes.c_double * len(chances.survival))(*chances.survival)
    for name, array in arrays.items():
        setattr(block, name, ctypes.addressof(array))
    return block, tuple(arrays.values())


class NativeSteps(Steps):
    """The library's steps of one model; all models share the library.

    Args:
        model: a model for which `native.refusal` gives None.
        root: folder for everything that is compiled.
    """

    means = "native"

    def __init__(self, model: LeanModel, root: Path) -> None:
        parts = list(model.weights.tensors() or ())  # which biases and norms there are
        valid_for = (sizes(model), model.shape, parts, packed(model), torch.get_num_threads(), sorted(abilities()))
        key = hashlib.blake2b(repr(valid_for).encode(), digest_size=6).hexdigest()
        self._key = f"{model.name}-{key}"
        folder = root / f"native-{fingerprint()}"
        super().__init__(model, folder, {NAME: (1, MAX_WIDTH)}, f"measured-{self._key}.json", ".so")

    def failure(self, name: str) -> Path:
        """One model that it fails for does not take it from the others."""
        return self.folder / f"{name}-{self._key}.failed"

    def set_aside(self, name: str, error: Exception) -> None:
        """See `Artifacts.set_aside`; the library stays for other models."""
        keep_library(self, name, error)

    def found(self) -> list[str]:
        """See `Artifacts.found`."""
        return [n for n in super().found() if not self.failure(n).exists()]

    def spec(self) -> dict[str, Any]:
        """See `Buildable.spec`."""
        return {"native": self.suffix, "sources": fingerprint()}

    def load(self, name: str) -> list[FastStep]:
        """See `Steps.load`: over the weights in bfloat16, and packed where they are stored so."""
        library = Library(self.path(name))
        kinds = (False, True) if packed(self.model) else (False,)
        return [NativeStep(library, self.model, small=small) for small in kinds]

    def draft(self, steps: Mapping[int, FastStep]) -> DraftBlock | None:
        """See `Steps.draft`: by the library where it computes passes over one token and over a few."""
        found = steps.get(1)
        return found.draft if isinstance(found, NativeStep) and isinstance(steps.get(3), NativeStep) else None
