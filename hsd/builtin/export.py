"""Put the family into GGUF files, as it ships: `python -m hsd.builtin.export FOLDER`. The last step of the recipe."""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from hsd.bench.llama_cpp import write
from hsd.builtin import MODELS, WEIGHTS, stored, tokenizer
from hsd.errors import HsdError
from hsd.runtime.llama_cpp.library import Parameters, library

FORMATS: dict[str, str] = {"tiny": "Q8_0", "small": "Q8_0", "medium": "IQ4_NL", "large": "IQ4_NL"}
"""Model -> format. `docs/log.md` says what others cost, and how far their tokens are from those of training.

In all of these the logits of a row do not depend on how many rows a pass has, so a plan never changes a greedy reply.
"""

_KINDS = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "IQ4_NL": 25}  # llama_ftype
_THREADS, _KIND = 0, 4  # offsets of fields of `llama_model_quantize_params`
_USUAL = 9  # llama_ftype in the parameters that the library gives, older versions; 7 in newer ones


def export(place: Path, file: Path, form: str) -> None:
    """Writes one model as a GGUF file, whole or not at all.

    Args:
        place: a folder that `stored.store` wrote, or a GGUF file.
        file: the file to write.
        form: one of `FORMATS`' values, or "F32".

    Raises:
        HsdError: `gguf` or llama.cpp's library is missing, or the library refuses the format.
    """
    if importlib.util.find_spec("gguf") is None:
        raise HsdError("Writing GGUF files needs the package gguf.", "Try: pip install gguf")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".export-") as folder:
        whole, small = Path(folder) / "whole.gguf", Path(folder) / file.name
        write(stored.load(place), whole, "F32", tokenizer.load(place))
        _quantize(whole, small, form)
        small.chmod(0o644)
        small.rename(file)


def _quantize(whole: Path, small: Path, form: str) -> None:
    """By llama.cpp's own quantizer, which takes a wider format for tensors whose rows a format does not divide."""
    if form == "F32":
        whole.rename(small)
        return
    lib = library()
    functions = ctypes.CDLL(str(lib.found.library))
    functions.llama_model_quantize_default_params.restype = Parameters
    parameters = functions.llama_model_quantize_default_params()
    if parameters.words(2)[1] not in (7, _USUAL):
        raise HsdError(f"The library of {lib.found.origin} quantizes by settings that are not known.", "Try another.")
    parameters.write("i", _THREADS, os.cpu_count() or 1)
    parameters.write("i", _KIND, _KINDS[form])
    lib.said()
    if functions.llama_model_quantize(os.fsencode(whole), os.fsencode(small), ctypes.byref(parameters)):
        raise HsdError(f"llama.cpp cannot write {small.name} as {form}: {lib.said() or 'it does not say why'}.")


def main(arguments: list[str] | None = None) -> int:
    """Write all models of a family. Returns the exit status."""
    p = argparse.ArgumentParser(prog="python -m hsd.builtin.export", description=__doc__)
    p.add_argument("family", type=Path, help="folder with the models, as training wrote them")
    p.add_argument("--out", type=Path, default=WEIGHTS, help="where the files are written")
    p.add_argument("--form", choices=_KINDS, help="one format for all, instead of those that ship")
    a = p.parse_args(arguments)
    try:
        for name in MODELS:
            file = a.out / f"{name}.gguf"
            export(stored.place_of(a.family, name), file, a.form or FORMATS[name])
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    except HsdError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
