"""What the program needs of its environment: no proxy before itself, a folder of its own, output that cannot fail."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hsd

_NO_PROXY = ("no_proxy", "NO_PROXY")  # programs differ in which of the two they read first


@contextlib.contextmanager
def direct(host: str, outside: bool) -> Iterator[None]:
    """While it lasts, httpx reaches this machine without a proxy, and does not fail over settings it cannot read.

    Gradio makes clients of httpx when it is imported. What is asked later, the Hub above all, goes through the proxies
    that the person set.

    Args:
        host: where the server listens.
        outside: others are asked meanwhile, through the proxies if they can be used.
    """
    before = {name: os.environ.get(name) for name in _NO_PROXY}
    hosts = "*"
    if outside and _proxies_can_be_used():
        named = next((value for value in before.values() if value), "")
        hosts = ",".join(filter(None, (named, host.strip("[]"), "localhost", "127.0.0.1", "::1")))
    os.environ.update(dict.fromkeys(_NO_PROXY, hosts))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _proxies_can_be_used() -> bool:
    import httpx

    try:
        httpx.Client().close()
    except Exception:  # SOCKS without its package, a scheme or a host that is none: each has its own error
        return False
    return True


def temporary_folder(data: Path) -> tempfile.TemporaryDirectory[str]:
    """A fresh folder for Gradio's files, which only this user may enter; it goes with the object, or with the program.

    Gradio's own is one folder for all users of a machine: the second user may not write there.

    Args:
        data: taken where the system has no folder for temporary files that can be written to.

    Raises:
        StoreError: no folder can be made.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        tempfile.tempdir = os.environ["TMPDIR"] = str(data)
    for parent in (os.environ.get("GRADIO_TEMP_DIR"), None, data):
        with contextlib.suppress(OSError):
            made = tempfile.TemporaryDirectory(prefix="hsd-chat-", dir=parent or None, ignore_cleanup_errors=True)
            os.environ["GRADIO_TEMP_DIR"] = made.name
            return made
    raise hsd.StoreError(f"No temporary folder can be made, not even in {data}.", "Set TMPDIR to a folder with room.")


def say(text: str) -> None:
    """Print a line. A terminal or a pipe that is gone ends nothing: there are conversations to be stored."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            # What was not written would be tried again, and fail again, when the program ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
