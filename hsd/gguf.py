"""What a GGUF file says of itself, by its header alone: settings, tokens, and which tensors it holds.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. Reads no weights.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsd.errors import LoadError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST = 10_000_000  # entries of a header; a damaged file can claim any number
_LONG = 64  # arrays with more entries are read only when they are asked for

# ggml_type -> weights per block, bytes per block
_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)},
    **{23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17)},
}
_PADDING = ("[PAD", "<unused", "<|unused", "<pad")
_BLOB = re.compile(r"sha256[-:][0-9a-f]{64}")
_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the file. `kind`: ggml_type; `size`: bytes, 0 where this program does not know the type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    size: int

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        count = 1
        for side in self.shape:
            count *= side
        return count


class Header:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        values: key -> value; of long arrays only the number of entries, see `array`.
        tensors: in the file's order.

    Raises:
        LoadError: it is no GGUF file, of a version that is not known, or cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self._arrays: dict[str, int] = {}
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.tensors = self._read(_Cursor(data))
        except (OSError, ValueError) as error:
            raise LoadError(f"{path} cannot be read: {error}.", "Check the path.") from error
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError, RecursionError) as error:
            raise LoadError(f"{path.name} is cut off or damaged in its header.", "Download it again.") from error

    def get(self, key: str, default: Any = None) -> Any:
        """A setting of the model's kind ("context_length" is "llama.context_length" in a Llama), or a whole key."""
        return self.values.get(f"{self.architecture}.{key}", self.values.get(key, default))

    @property
    def architecture(self) -> str:
        """The kind of model, as llama.cpp names it."""
        return str(self.values.get("general.architecture", ""))

    @property
    def positions(self) -> int:
        """Longest sequence that the model was made for; 0 where nothing is said."""
        return int(self.get("context_length", 0))

    def array(self, key: str) -> list[Any]:
        """An array of any length; empty where there is none."""
        if key not in self._arrays:
            return list(self.values.get(key, ()))
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data, self._arrays[key]).array(keep=True)

    def vocabulary(self, count: int | None = None) -> tuple[int, str]:
        """How many tokens there are, without padding at the end, and a digest of the first `count`, or of all.

        Two models agree on their first n tokens exactly if these digests are equal. Tokens are not decoded, so this
        takes a tenth of the time of `array`.
        """
        key = "tokenizer.ggml.tokens"
        if key not in self._arrays:
            return 0, ""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, self._arrays[key])
            kind, entries = cursor.take("I"), cursor.take("Q")
            if kind != _STRING or entries > _MOST:
                return 0, ""
            begin, ends = cursor.at, cursor.ends(entries)
            starts = [begin, *ends]
            while ends and is_padding(data[starts[len(ends) - 1] + 8 : ends[-1]].decode("utf-8", "replace")):
                ends.pop()
            used = len(ends) if count is None else min(count, len(ends))
            return len(ends), hashlib.sha256(data[begin : ends[used - 1] if used else begin]).hexdigest()

    def _read(self, cursor: _Cursor) -> tuple[Tensor, ...]:
        if cursor.take("4s") != b"GGUF":
            raise LoadError(f"{self.path.name} is no GGUF file.", "Choose another.")
        version = cursor.take("I")
        if version not in (2, 3):
            raise LoadError(
                f"{self.path.name} is GGUF of version {version}, and versions 2 and 3 are known.", "Convert it anew."
            )
        tensors, settings = cursor.take("Q"), cursor.take("Q")
        if tensors > _MOST or settings > _MOST:
            raise struct.error("impossible counts")
        for _ in range(settings):
            key, kind = cursor.text(), cursor.take("I")
            if kind == _ARRAY:
                begin = cursor.at
                self.values[key] = cursor.array(keep=False)
                self._arrays[key] = begin
            else:
                self.values[key] = cursor.value(kind)
        return tuple(self._tensor(cursor) for _ in range(tensors))

    @staticmethod
    def _tensor(cursor: _Cursor) -> Tensor:
        name = cursor.text()
        shape = tuple(cursor.take("Q") for _ in range(cursor.take("I")))
        kind, _ = cursor.take("I"), cursor.take("Q")
        weights = functools.reduce(lambda a, b: a * b, shape, 1)
        block, size = _BLOCKS.get(kind, (1, 0))
        return Tensor(name, shape, kind, weights // block * size)


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap, at: int = 0) -> None:
        self._data, self.at = data, at

    def take(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self._data, self.at)[0]
        self.at += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        size = self.take("Q")
        self.at += size
        if self.at > len(self._data):
            raise struct.error("a text ends behind the file")
        return self._data[self.at - size : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind not in _SCALARS:
            raise struct.error(f"a value of kind {kind}")
        return self.take(_SCALARS[kind])

    def array(self, keep: bool) -> Any:
        """The entries; only their number where there are many and they are not to be kept."""
        kind, count = self.take("I"), self.take("Q")
        if count > _MOST:
            raise struct.error("an impossible count")
        if kind in _SCALARS:
            form = f"<{count}{_SCALARS[kind]}"
            begin, self.at = self.at, self.at + struct.calcsize(form)
            return list(struct.unpack_from(form, self._data, begin)) if keep or count <= _LONG else int(count)
        if keep or count <= _LONG:
            return [self.array(keep) if kind == _ARRAY else self.value(kind) for _ in range(count)]
        self.ends(count)
        return int(count)

    def ends(self, count: int) -> list[int]:
        """Passes over so many texts; where each of them ends. A header has hundreds of thousands."""
        data, at, ends, size_at = self._data, self.at, [], struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + size_at(data, at)[0]
            ends.append(at)
        if at > len(data):
            raise struct.error("a text ends behind the file")
        self.at = at
        return ends


def is_padding(token: str) -> bool:
    """Whether a token only fills a vocabulary up: models of one series are filled to different lengths."""
    return token.startswith(_PADDING)


def is_gguf(name: str) -> bool:
    """Whether a file's name says that it is a GGUF model: by its suffix, or as one of Ollama's, which have none."""
    return name.lower().endswith(".gguf") or _BLOB.fullmatch(name) is not None


@functools.lru_cache(maxsize=64)
def _cached(path: Path, size: int, changed: float) -> Header:
    return Header(path)


def header(path: Path) -> Header:
    """The header of a file, kept as long as the file does not change. Raises LoadError, see `Header`."""
    try:
        status = path.stat()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    return _cached(path, status.st_size, status.st_mtime)


def gguf_files(names: Iterable[str], pattern: str | None = None) -> list[str]:
    """GGUF models among files: their names, of a split one the first. Encoders of pictures are left out."""
    found = [n for n in sorted(names) if n.lower().endswith(".gguf") and "mmproj" not in n.lower()]
    found = [n for n in found if pattern is None or fnmatch.fnmatch(n.lower(), pattern.lower())]
    return [n for n in found if not re.search(r"-\d{5}-of-\d{5}\.gguf$", n, re.I) or "-00001-of-" in n]


def missing_parts(file: Path) -> list[str]:
    """Files of a split GGUF model that are not beside its first one."""
    split = re.match(r"(.+)-00001-of-(\d{5})\.gguf$", file.name, re.I)
    names = [f"{split[1]}-{at:05}-of-{split[2]}.gguf" for at in range(1, int(split[2]) + 1)] if split else []
    return [name for name in names if not (file.parent / name).is_file()]


def parts(path: Path) -> list[Path]:
    """All files of a model, in order: the file alone, or those of a model that is split.

    Raises:
        LoadError: some of them are missing.
    """
    missing = missing_parts(path)
    if missing:
        raise LoadError(f"{path.name} is one of several files, and {missing[0]} is missing.", "Download it too.")
    split = _SPLIT.match(path.name)
    return sorted(path.parent.glob(f"{split['stem']}-*-of-{split['count']}.gguf")) if split else [path]
