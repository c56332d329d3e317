"""Where models come from: a hub or a folder, through transformers, bitsandbytes and accelerate.

The same path loads every family, the built-in one too: an estimate of the memory (`estimate`), the files (`hub`,
`cache`), the weights (`source`), and which models may stand together (`family`). A draft that cannot be used is left
out with its reason; only the target is needed.
"""

from __future__ import annotations

from hsd.loading.family import Loaded, assemble, in_memory
from hsd.loading.load import Progress, free_memory, load, settle

__all__ = ["Loaded", "Progress", "assemble", "free_memory", "in_memory", "load", "settle"]
