"""Standard input and output of a program, so that printing cannot fail."""

from __future__ import annotations

import os
import sys


def open_output() -> None:
    """Let printing fail neither for letters that the terminal does not have, nor where there is no output at all."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed at the start; the next file that is opened would get its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
