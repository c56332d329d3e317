"""Data files of this package: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hsd.errors import HsdError


def rows(path: Path, keys: set[str]) -> list[tuple[str, dict[str, Any]]]:
    """("file:line", object) of every line.

    Args:
        keys: what every object has, no more and no less.
    Raises:
        HsdError: a line is no JSON, or has other keys.
    """
    found = []
    # Not by `splitlines`: JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise HsdError(f"{where} is not JSON: {error.msg}.", "Mend that line.") from error
        if not isinstance(row, dict) or set(row) != keys:
            raise HsdError(
                f"{where} does not have the keys {', '.join(sorted(keys))}.", "docs/builtin.md has the form."
            )
        found.append((where, row))
    return found
