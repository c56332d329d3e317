"""Captured steps on an NVIDIA GPU: one graph per width and context bucket, on buffers that the graphs own.

A small model's step on a GPU is mostly the launching of its kernels; a captured graph launches them all at once. It is
bound to addresses, so the conversation that is being read lives in the graphs' own buffers; another one that comes
moves in, and the first moves out into tensors of its own. Passes wider than 16 run eagerly on the same buffers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hsd.runtime.base import MAX_WIDTH, LanguageModel
from hsd.runtime.cache import LeanCache
from hsd.runtime.lean import LeanModel
from hsd.runtime.step import step

SMALLEST_BUCKET = 512
"""Tokens that the first bucket's graphs attend to; every further bucket holds twice as many."""


def capture(models: Mapping[str, LanguageModel]) -> dict[str, GraphedSteps]:
    """Captures the steps of all lean models on a GPU and lets the models use them: name -> steps."""
    found = {name: GraphedSteps(model) for name, model in models.items() if isinstance(model, LeanModel)}
    for steps in found.values():
        steps.install()
    return found


def told(captured: Mapping[str, GraphedSteps]) -> str:
    """How the steps of a family are computed, in words, for people."""
    eager = [f"{name}: {steps.failure}" for name, steps in captured.items() if steps.failure]
    if eager:
        return f"eager steps where they must be ({'; '.join(eager)})"
    return "captured steps" if captured else "steps of the libraries"


class GraphedSteps:
    """The captured steps of one model.

    Args:
        model: a lean model on a GPU.
        capture: whether graphs are captured; without, the same function runs uncaptured (on any device, for tests).
    """

    def __init__(self, model: LeanModel, capture: bool = True) -> None:
        self.model = model
        self.failure: str | None = None
        self._capture = capture
        self._runs: dict[tuple[int, int], tuple[Callable[[], object], Tensor | None]] = {}
        self._resident: weakref.ref[LeanCache] | None = None
        like = model.new_cache()
        like.reserve(model.context)
        self._keys, self._values = like.keys, like.values  # the graphs' own buffers
        self._inputs = torch.zeros((2, MAX_WIDTH), dtype=torch.long, device=model.device)  # ids and positions
        self._pool = torch.cuda.graph_pool_handle() if capture else None

    def install(self) -> None:
        """Captures the first bucket and lets the model use graphs at widths 1 to 16."""
        self.model.use(dict.fromkeys(range(1, MAX_WIDTH + 1), self), "graphs")
        for buffer in (*self._keys, *self._values):
            buffer.zero_()
        self._prepare(self._bucket(1), 0)

    @torch.inference_mode()
    def __call__(self, ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
        """A pass over ids behind the cache; see `hsd.runtime.lean.FastStep`."""
        if self.failure is not None:
            return self.model.eager(ids, cache, last)
        width, start = len(ids), cache.length
        self._move_in(cache)
        bucket = self._bucket(start + width)
        self._prepare(bucket, start)
        if self.failure is not None:
            cache.reserve(start + width)
            return self.model.eager(ids, cache, last)
        # One small copy for both rows; it is staged by the driver and waits for nothing.
        self._inputs[:, :width].copy_(torch.tensor([list(ids), list(range(start, start + width))]), non_blocking=True)
        run, logits = self._runs[width, bucket]
        out = run()
        if logits is None:
            assert isinstance(out, Tensor)
            logits = out
        return logits[width - last :]

    def _bucket(self, end: int) -> int:
        size = SMALLEST_BUCKET
        while size < end:
            size *= 2
        return min(size, self.model.context)

    def _move_in(self, cache: LeanCache) -> None:
        """The cache goes on in the graphs' buffers; whoever was there takes its tokens along."""
        resident = self._resident() if self._resident is not None else None
        if resident is cache:
            return
        if resident is not None:
            resident.leave()
        cache.move(self._keys, self._values)
        for buffer in (*self._keys, *self._values):
            buffer[cache.length :].zero_()  # masked positions weigh nothing, but nothing times NaN is NaN
        self._resident = weakref.ref(cache)

    def _prepare(self, bucket: int, start: int) -> None:
        """Captures every width of a bucket, the largest first, so that smaller ones fit into its memory.

        What the trial runs write lies behind the `start` tokens that count.
        """
        if (1, bucket) in self._runs:
            return
        for width in range(MAX_WIDTH, 0, -1):
            places = torch.arange(start, start + width, device=self.model.device).clamp(max=self.model.context - 1)
            self._inputs[1, :width].copy_(places)
            try:
                self._runs[width, bucket] = self._captured(width, bucket)
            except Exception as error:  # a kernel that cannot be captured, or no memory for it
                self._give_up(error)
                return

    def _captured(self, width: int, bucket: int) -> tuple[Callable[[], object], Tensor | None]:
        def run() -> Tensor:
            return self._step(width, bucket)

        if not self._capture:
            return run, None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose kernels and workspaces at their first call
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = run()
        return graph.replay, logits

    def _step(self, width: int, bucket: int) -> Tensor:
        """The pass as a function of the buffers alone: fixed shapes, positions as data, a mask for what is behind."""
        weights, (ids, places) = self.model.weights, self._inputs[:, :width]
        seen = torch.arange(bucket, device=ids.device) <= places.unsqueeze(1)
        mask = torch.zeros((), dtype=self._keys[0].dtype, device=ids.device).masked_fill(~seen, -torch.inf)
        return step(
            self.model.shape,
            weights,
            ids,
            weights.cos[places],
            weights.sin[places],
            [k[:bucket] for k in self._keys],
            [v[:bucket] for v in self._values],
            mask,
            places,
        )

    def _give_up(self, error: Exception) -> None:
        """From now on this model runs eagerly; the reason is kept for people."""
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.failure = f"its steps cannot be captured: {text}"
        self._runs.clear()
        resident = self._resident() if self._resident is not None else None
        if resident is not None:
            resident.leave()
        self._resident = None
        self._keys, self._values = [], []
        self.model.use({}, "")
