"""`llama-server` of llama.cpp as a peer: processes on loopback, each with settings of its own, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsd.errors import LoadError
from hsd.runtime.llama_cpp.library import candidates

_NAMES = ("llama-server", "llama-server.exe")
_START = 180.0  # seconds until a server must answer
_REPLY = 900.0  # seconds until a reply must be there
_END = 10.0


def find_server() -> Path | None:
    """The program beside the library that is used here, else the one on the PATH; None if there is none."""
    try:
        builds = list(candidates())
    except LoadError:
        builds = []
    for build in builds:
        for folder in (build.library.parent, build.library.parent.parent / "bin", build.backends):
            for name in _NAMES:
                if (folder / name).is_file():
                    return folder / name
    found = shutil.which(_NAMES[0])
    return Path(found) if found else None


def options(server: Path) -> str:
    """What `llama-server --help` prints. Raises LoadError where it does not run."""
    try:
        done = subprocess.run([server, "--help"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise LoadError(f"{server} does not run here: {error}.", "Install another build of llama.cpp.") from None
    return done.stdout


def kinds_of_drafting(said: str) -> tuple[str, ...]:
    """Kinds that `--spec-type` takes, from the text of `--help`; none for builds that lack the option."""
    found = re.search(r"--spec-type\s+([a-z0-9,\-]+)", said)
    return tuple(found[1].split(",")) if found else ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply of a server.

    Args:
        ids: tokens of the reply.
        tokens: how many of them its clock saw: it starts behind the first one, which the prompt's pass gave.
        seconds: of these.
        prompt_tokens, prompt_seconds: reading the prompt.
        proposed, accepted: drafted tokens.
    """

    ids: tuple[int, ...]
    tokens: int
    seconds: float
    prompt_tokens: int
    prompt_seconds: float
    proposed: int = 0
    accepted: int = 0


class Server:
    """A running `llama-server`.

    Args:
        program: the program.
        arguments: its settings beside the address.

    Raises:
        LoadError: it ended or did not answer; the sentence holds what it said last.
    """

    def __init__(self, program: Path, arguments: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        command = [str(program), *arguments, "--host", "127.0.0.1", "--port", str(port)]
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, env=_environment(program)
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def complete(
        self, ids: Sequence[int], tokens: int, temperature: float, seed: int, ignore_end: bool = False
    ) -> Answer:
        """A reply to a prompt of token ids, which is read anew. No filter but the temperature.

        Args:
            ignore_end: the model cannot end it.

        Raises:
            LoadError: the server failed.
        """
        body = {
            "prompt": list(ids),
            "n_predict": tokens,
            "temperature": temperature,
            "seed": seed,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "cache_prompt": False,
            "ignore_eos": ignore_end,
            "return_tokens": True,
        }
        got = self._ask("/completion", body, _REPLY)
        times = got["timings"]
        return Answer(
            tuple(got.get("tokens", ())),
            max(int(times["predicted_n"]) - 1, 0),
            float(times["predicted_ms"]) / 1000,
            int(times["prompt_n"]),
            float(times["prompt_ms"]) / 1000,
            int(times.get("draft_n", 0)),
            int(times.get("draft_n_accepted", 0)),
        )

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _wait(self) -> None:
        end = time.monotonic() + _START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise LoadError(f"llama-server ended at once: {self._said()}.", "Try it by hand with this model.")
            try:
                if self._ask("/health", None, 5.0).get("status") == "ok":
                    return
            except (LoadError, OSError):
                pass
            time.sleep(0.1)
        raise LoadError(f"llama-server did not answer within {_START:.0f} s.", "Try it by hand with this model.")

    def _ask(self, path: str, body: Mapping[str, Any] | None, timeout: float) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return dict(json.load(answer))
        except (OSError, ValueError, urllib.error.URLError) as error:
            ended = self._process.poll()
            why = str(error) if ended is None else f"it ended with {ended}: {self._said()}"
            raise LoadError(f"llama-server failed: {why}.", "Try it by hand with this model.") from None

    def _said(self) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip().rstrip(".") if lines else "it said nothing"


def _environment(program: Path) -> dict[str, str]:
    """libllama first among the libraries of the process.

    The wheel's libllama brings a libstdc++ of its own and the server's library uses the system's. Where the server's
    comes first, the second vocabulary that is loaded (a draft's) ends the process: "free(): invalid pointer".
    """
    held = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else a failing server asks a debugger, which takes seconds
    if sys.platform != "linux":
        return held
    for folder in (program.parent.parent / "lib", program.parent):
        library = next((folder / name for name in ("libllama.so.0", "libllama.so") if (folder / name).is_file()), None)
        if library:
            return held | {"LD_PRELOAD": " ".join(filter(None, (str(library), held.get("LD_PRELOAD"))))}
    return held


class Servers:
    """Servers by name, started when they are asked; the one that was not used for longest makes room.

    Args:
        program: see `Server`.
        settings: name -> arguments.
        most: how many may run at once.
    """

    def __init__(self, program: Path, settings: Mapping[str, Sequence[str]], most: int) -> None:
        self._program, self._settings, self._most = program, settings, max(most, 1)
        self._running: OrderedDict[str, Server] = OrderedDict()

    def __getitem__(self, name: str) -> Server:
        """The running server. Raises LoadError where it does not start."""
        if name not in self._running:
            while len(self._running) >= self._most:
                self._running.popitem(last=False)[1].close()
            self._running[name] = Server(self._program, self._settings[name])
        self._running.move_to_end(name)
        return self._running[name]

    def drop(self, name: str) -> None:
        """Ends one, if it runs."""
        if name in self._running:
            self._running.pop(name).close()

    def close(self) -> None:
        """Ends all."""
        while self._running:
            self._running.popitem()[1].close()
