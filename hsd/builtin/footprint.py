"""What loading a family costs, in seconds and memory beyond the imports: `python -m hsd.builtin.footprint`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import psutil

from hsd.builtin import MODELS, WEIGHTS, stored
from hsd.config import Family, ModelSpec
from hsd.errors import HsdError


def family_in(folder: Path) -> Family:
    """A family of the models that `hsd.builtin.train` put into a folder.

    Raises:
        HsdError: one of them is not there.
    """
    specs = [ModelSpec(name, str(stored.place_of(folder, name).absolute())) for name in MODELS]
    return Family(name="builtin", models=tuple(specs), target=MODELS[-1], context=2048)


def measure(family: Family) -> dict[str, float]:
    """Seconds and MB (10^6 bytes, resident) that loading adds once everything is imported, and after a reading pass.

    The second pass over a short text touches the caches and whatever the runtime prepares when it is first used.
    """
    import bitsandbytes  # noqa: F401  (imported here so that it does not count)
    import transformers.models.llama.modeling_llama  # noqa: F401  (likewise)

    from hsd.loading import load
    from hsd.runtime import Reader

    process = psutil.Process()
    before, begun = process.memory_info().rss, time.perf_counter()
    loaded = load(family)
    seconds, after = time.perf_counter() - begun, process.memory_info().rss
    for model in loaded.models.values():
        Reader(model, model.new_cache()).read(list(range(6, 70)), 1)
    used = process.memory_info().rss
    return {
        "imports_mb": before / 1e6,
        "load_s": seconds,
        "added_mb": (after - before) / 1e6,
        "added_after_a_pass_mb": (used - before) / 1e6,
        "parameters": float(sum(loaded.parameters.values())),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print what loading costs. Returns the exit status."""
    p = argparse.ArgumentParser(prog="python -m hsd.builtin.footprint", description=__doc__)
    p.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the family")
    p.add_argument("--json", action="store_true", help="one JSON object on the last line")
    a = p.parse_args(arguments)
    try:
        found = measure(family_in(a.weights))
    except HsdError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{found['parameters'] / 1e6:.1f}M parameters loaded in {found['load_s']:.2f} s; ", end="")
    print(
        f"{found['added_mb']:.0f} MB more, {found['added_after_a_pass_mb']:.0f} MB after a pass of every model; ",
        end="",
    )
    print(f"before: {found['imports_mb']:.0f} MB")
    if a.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
