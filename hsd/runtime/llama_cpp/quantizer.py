"""Makes a smaller copy of a GGUF model by llama.cpp's own quantizer.

A program of its own that imports nothing of ours, run as `python quantizer.py JSON`: where the library runs into an
assertion it ends its process, and a process can be stopped at any moment. It prints `done of all` tensors, one line
each; a line that begins with `!` says why there is no copy. When its standard input ends it stops, and takes away what
it has written: the program that started it is gone then.
Source: `llama.h` of llama.cpp, `llama_model_quantize_params`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import struct
import sys
import threading
from collections.abc import Mapping
from typing import Any

FORMATS: Mapping[str, int] = {
    **{"q4_0": 2, "q8_0": 7, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15},
    **{"q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30},
}
"""Formats that need no importance matrix -> llama_ftype."""

_ROOM = 1024  # bytes for a struct whose end is not known
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_TENSOR = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_ERROR = 4


UNABLE = 3
"""Exit status where this build of the library cannot make copies."""


class Unable(Exception):
    """A build of the library without a quantizer, or with one of an unknown layout."""


class _Parameters(ctypes.Structure):
    _fields_ = (("raw", ctypes.c_uint8 * _ROOM),)


def unknown_layout(raw: bytes) -> str:
    """Why defaults are not those of a layout that is known: "" if they are.

    The fields that are written stand at the head: int nthread, int ftype, two ggml_types that are both "none", then
    the flags allow_requantize, quantize_output_tensor, only_copy, pure, keep_split, of which the second is on.
    """
    threads, form, output, embedding = struct.unpack_from("<4i", raw)
    if threads != 0 or form not in (7, 9) or output != embedding or not 30 <= output < 1000:
        return f"its quantizer begins with {(threads, form, output, embedding)}, which is not known here"
    if raw[16:21] != bytes([0, 1, 0, 0, 0]):
        return f"the flags of its quantizer are {list(raw[16:21])}, which is not known here"
    return ""


def make(asked: Mapping[str, Any]) -> str:
    """Makes a copy; why there is none, or "".

    Raises:
        Unable: this build of the library cannot make copies; another one may.

    Args:
        asked: "origin": where the library comes from, in words; "before" and "library": its files in the order of
            loading; "backends": their folder; "source", "copy": files; "form": a llama_ftype; "threads": how many.
    """
    said: list[str] = []

    def hear(level: int, text: bytes | None, _: Any) -> None:
        line = (text or b"").decode("utf-8", "replace").strip()
        found = _TENSOR.match(line)
        if found:
            print(f"{found[1]} of {found[2]}", flush=True)
        elif level == _ERROR and line:
            said.append(line.partition(": ")[2] or line)

    libraries = [ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL) for file in asked["before"]]
    lazy = os.RTLD_LAZY if hasattr(os, "RTLD_LAZY") else 0
    libraries.insert(0, ctypes.CDLL(str(asked["library"]), mode=lazy | ctypes.RTLD_GLOBAL))
    named = {name: next((getattr(lib, name) for lib in libraries if hasattr(lib, name)), None) for name in _NEEDED}
    missing = [name for name, function in named.items() if function is None and name != _BACKENDS]
    if missing:
        raise Unable(f"the library of {asked['origin']} has no {missing[0]}")
    functions: dict[str, Any] = {name: function for name, function in named.items() if function is not None}
    log = _LOG(hear)
    functions["llama_log_set"](log, None)
    if _BACKENDS in functions:
        functions[_BACKENDS](os.fsencode(asked["backends"]))
    functions["llama_backend_init"]()
    functions["llama_model_quantize_default_params"].restype = _Parameters
    parameters = functions["llama_model_quantize_default_params"]()
    wrong = unknown_layout(bytes(parameters.raw))
    if wrong:
        raise Unable(f"the library of {asked['origin']} is not one that this program knows: {wrong}")
    struct.pack_into("<2i", parameters.raw, 0, asked["threads"], asked["form"])
    parameters.raw[16] = 1  # weights that are quantized already may be quantized again
    quantize = functions["llama_model_quantize"]
    quantize.restype, quantize.argtypes = ctypes.c_uint32, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    status = quantize(os.fsencode(asked["source"]), os.fsencode(asked["copy"]), ctypes.byref(parameters))
    return "" if status == 0 else "; ".join(dict.fromkeys(said)) or f"it failed ({status})"


_BACKENDS = "ggml_backend_load_all_from_path"
_NEEDED = (
    "llama_log_set",
    "llama_backend_init",
    "llama_model_quantize_default_params",
    "llama_model_quantize",
    _BACKENDS,
)


def _until_left(copy: str) -> None:
    sys.stdin.buffer.read()
    try:
        os.unlink(copy)
    finally:
        os._exit(1)


def _main() -> int:
    asked = json.loads(sys.argv[1])
    # A terminal that is closed, Ctrl-C and `timeout` reach the whole group. This process ends with the one that
    # started it, and then it takes its file away.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_until_left, args=(asked["copy"],), daemon=True).start()
    status = 1
    try:
        wrong = make(asked)
    except Unable as error:
        wrong, status = str(error), UNABLE
    except OSError as error:
        wrong = str(error)
    if wrong:
        print("!" + " ".join(wrong.split()), flush=True)
    return status if wrong else 0


if __name__ == "__main__":
    os._exit(_main())
