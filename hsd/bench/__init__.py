"""Benchmarks: every figure that the project states is printed by something in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsd.engine import Engine

BENCHMARKS = {
    "replies": "plain decoding against the plan that `auto` chooses, interleaved in one run",
    "peers": "a GGUF family beside `llama-server`: four kinds of prompt, all settings of both in turn",
    "steps": "one pass of every model: ours, transformers, llama.cpp where it is installed, and the floor",
    "generate": "plain decoding of a safetensors model against transformers' own `generate`, on a processor",
    "gpu": "captured steps of models of real size on an NVIDIA GPU, and what the engine adds to them",
    "forecast": "what plans were foretold to cost, by the formula and by replay, against what they took",
    "regret": "`auto` against the best fixed plan, and against plain decoding on its worst category",
    "adaptation": "how soon `auto` recovers when the workload turns, and when a draft is replaced by a bad one",
    "families": "families of real size on a GPU, made without a download: memory, load time, divergence",
    "sampling": "what it takes to draw from a row of 151,936 logits, at several settings",
    "map": "where the optimal hierarchy beats the best single draft: arithmetic, no models",
}
"""What `hsd bench WHAT` can run: each is the module `hsd.bench.WHAT` with a function `run(BenchRequest)`."""


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What the command line asks of a benchmark.

    Args:
        family: a family of models.yaml, or `file.yaml#name`.
        config: path of another models.yaml.
        data_dir: folder of the statistics; None is the person's own.
        device: "auto" or a torch device.
        dtype: overrides the file's.
        quick: fewer repeats.
        out: folder for files beside the figures; the figures themselves are written by the command.
        tell: takes lines of text for people.
        minutes: time after which `peers` begins no further round; None is no limit.
    """

    family: str = "builtin"
    config: str | None = None
    data_dir: str | Path | None = None
    device: str = "auto"
    dtype: str | None = None
    quick: bool = False
    out: Path | None = None
    tell: Callable[[str], None] = print
    minutes: float | None = None

    def engine(self) -> Engine:
        """The family, loaded and measured; what is worth knowing of it is told."""
        from hsd.engine import Engine
        from hsd.runtime.graphs import told

        engine = Engine.load(self.family, self.device, self.dtype, self.data_dir, config=self.config)
        self.tell(f"{told(engine.captured)}; {len(engine.info.models)} models on {engine.info.device}")
        for note in (*(f"'{d.model}': {d.reason}" for d in engine.info.dropped), *engine.info.notes):
            self.tell(f"Note: {note}")
        return engine
