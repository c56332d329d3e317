"""What memory a family wants and what a device has, as values: an estimate before loading, measured afterwards.

Knows no torch and no models; `hsd.loading.estimate` fills these in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """One model's part of the memory, in GB (10⁹ bytes).

    Args:
        name: its name in the family.
        weights_gb: weights as they are stored, with what bitsandbytes keeps beside them.
        cache_gb: keys and values of one conversation as long as the context.
        work_gb: logits of the widest pass and what is computed from them.
        known: False where nothing is known of the model before it is downloaded; it then counts as nothing.
        measured: whether `weights_gb` was measured after loading.
    """

    name: str
    weights_gb: float
    cache_gb: float
    work_gb: float = 0.0
    known: bool = True
    measured: bool = False

    @property
    def total_gb(self) -> float:
        """Weights, cache and work together."""
        return self.weights_gb + self.cache_gb + self.work_gb


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Whether a family fits a device, and what would be left out to make it fit.

    Args:
        family: the family's name.
        device: where it would be loaded, in words.
        fits: whether at least the target fits, after what `dropped` and `context` say.
        verdict: one sentence with the numbers.
        models: what would be loaded, in the family's order.
        dropped: drafts that would be left out -> why.
        context: longest prompt plus reply that fits, in tokens.
        wanted_context: what the file asks for.
        shared_gb: what all models share while they work: reading a prompt, graphs.
        free_gb: free memory of the device, as far as a family may take it.
        total_gb: whole memory of the device.
        download_gb: what is still to be downloaded, about; 0 where everything is on disk or nothing is known.
        seconds_per_token: plain decoding of the target on this processor, about: its weights over the measured
            reading speed; None on a GPU.
        packed: on a processor, whether 4- and 8-bit weights stay packed because they fit in no other way (slower).
    """

    family: str
    device: str
    fits: bool
    verdict: str
    models: tuple[ModelMemory, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    context: int = 0
    wanted_context: int = 0
    shared_gb: float = 0.0
    free_gb: float = 0.0
    total_gb: float = 0.0
    download_gb: float = 0.0
    seconds_per_token: float | None = None
    packed: bool = False

    @property
    def needed_gb(self) -> float:
        """All models, their caches at `context`, and what they share."""
        return self.shared_gb + sum(model.total_gb for model in self.models)
