"""Faster steps for a family, as they become ready: what is on disk at load, what is compiled behind the chat later."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from hsd.kernels import Kernels
from hsd.runtime import native
from hsd.runtime.artifacts import Artifacts
from hsd.runtime.base import LanguageModel
from hsd.runtime.building import Builder, compiler
from hsd.runtime.compiled import CompiledSteps, Steps, prune, refusal
from hsd.runtime.drawing import NativeDrawing
from hsd.runtime.fused import CompiledKernels
from hsd.runtime.graphs import GraphedSteps
from hsd.runtime.lean import LeanModel
from hsd.runtime.native_steps import NativeSteps

OFF = "HSD_COMPILE"
"""Environment variable for tests and for machines with better things to do: 0 keeps steps eager, "native" compiles
nothing but our own library."""


class Upgrades:
    """The faster means of a family's models.

    What is on disk already is adopted at once. A model changes its means between replies only, when `adopt` is called:
    a reply, and the plain decoding that it is compared with, are then of one kind.

    Args:
        models: name -> model, cheapest first.
        folder: where compiled functions are kept; None uses none.
        vocab: token ids that may appear.
    """

    def __init__(self, models: Mapping[str, LanguageModel], folder: Path | None, vocab: int = 0) -> None:
        self._steps: dict[str, Steps] = {}
        self._graphs = {n: GraphedSteps(m) for n, m in models.items() if isinstance(m, LeanModel) and _on_gpu(m)}
        for graphs in self._graphs.values():
            graphs.install()
        self.refused: dict[str, str] = {}
        if folder is None or os.environ.get(OFF) == "0":
            self.refused = dict.fromkeys(models, "compiling is switched off")
        else:
            for name, model in models.items():
                found = _best(model, folder)
                if isinstance(found, Steps):
                    self._steps[name] = found
                else:
                    self.refused[name] = found
            prune(folder)
        self._kernels: NativeDrawing | CompiledKernels | None = None
        target = list(models.values())[-1]
        if folder and self._steps and vocab and target.device.type == "cpu":  # where it is drawn and verified
            self._kernels = NativeDrawing(folder) if native_possible() else CompiledKernels(vocab, folder)
        # On a GPU the plain functions already keep everything there.
        self.kernels = Kernels() if all(map(_on_gpu, models.values())) else None
        self.adopt()
        self._builder = Builder([*list(self._steps.values())[::-1], *([self._kernels] if self._kernels else [])])

    def start(self) -> None:
        """Begins to compile what is missing, the target first, behind everything else."""
        self._builder.start()

    def adopt(self, should_stop: Callable[[], bool] = lambda: False) -> list[str]:
        """Lets models use what has become ready; the names of those that did.

        The first time each is measured: milliseconds of a small model, seconds of a large one. Whoever waits makes
        `should_stop` True; what is not measured then is adopted another time.
        """
        if self._kernels:
            self.kernels = self._kernels.attach()
        return [name for name, steps in self._steps.items() if steps.fresh() and steps.attach(should_stop)]

    def wait(self, tell: Callable[[str], None] = lambda _: None, seconds: float | None = None) -> None:
        """Waits until everything is compiled: a quarter of a minute for our own steps, minutes for torch's, once per
        machine.

        Args:
            tell: told what is going on, if there is anything to wait for.
            seconds: at most so long; None is as long as it takes.
        """
        if self._builder.running:
            tell(f"Compiling steps for this processor ({self._builder.remaining} left); once, a minute or two …")
            self._builder.wait(seconds)

    def close(self) -> None:
        """Ends what is being compiled; finished steps stay for the next start."""
        self._builder.close()

    @property
    def notice(self) -> str | None:
        """What a person should know while it lasts."""
        if not self._builder.running:
            return None
        return (
            f"Faster steps are being compiled for this processor, {self._builder.remaining} left. Until then replies "
            "are slower, and their speed-up is no measure of what will be."
        )

    @property
    def state(self) -> str:
        """In words, for people."""
        if self._graphs:
            eager = [f"{name}: {graphs.failure}" for name, graphs in self._graphs.items() if graphs.failure]
            return f"eager steps where they must be ({'; '.join(eager)})" if eager else "captured steps"
        if self._builder.running:
            return f"steps are being compiled for this processor, {self._builder.remaining} left"
        made: dict[str, Artifacts] = {**self._steps, **({"sampling": self._kernels} if self._kernels else {})}
        failed = [
            f"{name} ({part.failure(one).read_text(encoding='utf-8')})"
            for name, part in made.items()
            for one in part.failed()
        ]
        if failed:
            return f"eager steps where compiling failed: {'; '.join(failed)}"
        if any(part.missing() for part in made.values()):
            return "eager steps" if compiler() else "eager steps: there is no C++ compiler"
        means = {steps.means for steps in self._steps.values()}
        if not means:
            return "eager steps"
        made_of = f"{' and '.join(sorted(means))} steps"
        others = "; ".join(f"{name}: {why}" for name, why in self.refused.items())
        return f"{made_of}, eager ones where they must be ({others})" if others else made_of


def native_possible() -> bool:
    """Whether steps of our own can be computed here, once they are compiled."""
    able = native.abilities().issuperset(native.NEEDED)
    return able and os.environ.get(OFF) != "0" and native.compiler() is not None


def _best(model: LanguageModel, folder: Path) -> Steps | str:
    """Steps of our own where this processor can compute them and they have not failed, else torch's; or why neither."""
    if isinstance(model, LeanModel) and native.refusal(model) is None:
        steps = NativeSteps(model, folder)
        if not steps.failed():
            return steps
    why = "only native steps are wanted" if os.environ.get(OFF) == "native" else refusal(model)
    return CompiledSteps(model, folder) if why is None and isinstance(model, LeanModel) else why or ""


def _on_gpu(model: LanguageModel) -> bool:
    return model.device.type == "cuda"
