"""Families that a person added: a models.yaml of their own in the data folder, written here and read by the library."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import hsd
from chat.disk import storable

FILE = "models.yaml"
QUANTIZATIONS = ("none", "nf4", "int8")
_HEAD = "# Families that were added in the chat; docs/models.md explains every key. Edit it as you like.\n"


@dataclass(frozen=True, slots=True)
class Choice:
    """A family that can be loaded. `reference` is what `hsd.Engine.load` and `--family` take for it."""

    family: hsd.Family
    reference: str
    own: bool


class OwnFamilies:
    """The families of the program's models.yaml, and those of the person's own.

    Args:
        folder: where the own file is, or will be.
        config: another file in the place of the program's.
    """

    def __init__(self, folder: Path, config: str | None = None) -> None:
        self.path, self._config = folder / FILE, config
        self._writing = threading.Lock()

    def choices(self) -> dict[str, Choice]:
        """All families by name, the program's first. Raises ConfigError where a file is broken."""
        found = {n: Choice(f, n, own=False) for n, f in hsd.load_families(self._config).items()}
        for name, family in self._own().items():
            found.setdefault(name, Choice(family, f"{self.path}#{name}", own=True))
        return found

    def add(
        self, name: str, target: str, drafts: str = "", target_quantization: str = "none", quantization: str = "none"
    ) -> hsd.Family:
        """Write a family into the own file; the family as the library reads it.

        Args:
            name: what it is called.
            target: hub name or folder of the target.
            drafts: one per line, cheapest first: a hub name or folder, or `name: hub name`.
            target_quantization, quantization: of the target, and of the drafts.

        Raises:
            ConfigError: something impossible, in a sentence; nothing has been written then.
            StoreError: the file cannot be written.
        """
        name = name.strip()
        if not re.fullmatch(r"[\w.+-]+", name):
            raise hsd.ConfigError(
                f"{name!r} cannot be the name of a family." if name else "The family has no name.",
                "Use letters, digits, '.', '+', '_' and '-', no spaces.",
            )
        target, drafts = storable(target), storable(drafts)
        models: dict[str, Any] = {}
        for line in filter(None, map(str.strip, re.split(r"\r\n?|\n", drafts))):
            _put(models, line, quantization)
        if not target.strip():
            raise hsd.ConfigError("The family has no target.", "Name the model whose words the reply is made of.")
        _put(models, target.strip(), target_quantization)
        with self._writing:
            if name in self.choices():
                raise hsd.ConfigError(f"There is a family '{name}' already.", "Choose another name.")
            return self._write(name, {"models": models})

    def keep(self, found: hsd.FoundFamily) -> hsd.Family:
        """Write a family that was found on this computer into the own file, under a name that is free.

        Raises:
            ConfigError: a file of families is broken.
            StoreError: the file cannot be written.
        """
        with self._writing:
            taken, name, at = self.choices(), found.family.name, 2
            while name in taken:
                name, at = f"{found.family.name}-{at}", at + 1
            return self._write(name, found.entry())

    def _own(self) -> dict[str, hsd.Family]:
        return hsd.load_families(self.path) if self.path.exists() else {}

    def _write(self, name: str, entry: Mapping[str, Any]) -> hsd.Family:
        before = self._own()
        try:
            text = decoded(self.path.read_bytes()) if before else _HEAD + "families:\n"
            block = yaml.safe_dump({name: entry}, sort_keys=False, allow_unicode=True)
            # What is there stays as it was written, comments included.
            added = text.rstrip("\n") + "\n" + "".join(f"  {line}\n" for line in block.splitlines())
            family = self._checked(added, name, set(before))
            if family is None:
                everything = {"families": {**yaml.safe_load(text)["families"], name: entry}}
                family = self._checked(yaml.safe_dump(everything, sort_keys=False, allow_unicode=True), name, None)
        except OSError as error:
            raise hsd.StoreError(
                f"{self.path} cannot be written: {error.strerror or error}.", "Make room, or see who may write there."
            ) from error
        assert family is not None
        return family

    def _checked(self, text: str, name: str, before: set[str] | None) -> hsd.Family | None:
        """Put the text in the place of the file if the library reads it; None where its form does not fit `before`."""
        handle, draft = tempfile.mkstemp(dir=self.path.parent, prefix=".models-", suffix=".yaml")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            try:
                read = hsd.load_families(draft)
            except hsd.ConfigError as error:
                if before is not None and _not_yaml(text):
                    return None
                plain = Path(draft).name
                raise hsd.ConfigError(error.message.replace(plain, FILE), error.hint.replace(plain, FILE)) from None
            if before is not None and set(read) != before | {name}:
                return None
            os.replace(draft, self.path)
            return read[name]
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)


def _put(models: dict[str, Any], line: str, quantization: str) -> None:
    """Add a model, `path` or `name: path`. Raises ConfigError: a folder without a model, or a name used twice."""
    name, _, path = (part.strip() for part in line.rpartition(": "))
    last = path.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    name = name or re.sub(r"[^a-z0-9._+-]+", "-", last.lower())
    full = os.path.expanduser(path)
    if path.startswith((".", "/", "~")) and not os.path.isfile(f"{full}/config.json") and not os.path.isfile(full):
        raise hsd.ConfigError(
            f"There is no model in {path}.", "Give a folder that holds a config.json, a .gguf file, or a hub name."
        )
    if path.startswith((".", "~")):
        # The library would look for it beside the file; whoever types it here means the folder they are in.
        path = os.path.realpath(os.path.expanduser(path))
    if name in models:
        raise hsd.ConfigError(
            f"Two models of the family are called '{name}'.", f"Write a name before one of them, like 'small: {path}'."
        )
    models[name] = {"path": path} if quantization == "none" else {"path": path, "quantization": quantization}


def decoded(data: bytes) -> str:
    """The text of a file that the library has read: UTF-8, or UTF-16 where its first bytes say so.

    It is written as UTF-8, whatever it was.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if marked else "utf-8-sig").replace("\r\n", "\n")


def _not_yaml(text: str) -> bool:
    try:
        return not isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return True
