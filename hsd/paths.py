"""Where the project keeps what it stores."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from hsd.errors import StoreError


def data_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """Folder of `stats.db` and `chat.db`, made if it is missing.

    Args:
        path: the folder to use; None is `$HSD_HOME`, or else the platform's user data folder.

    Raises:
        StoreError: the folder cannot be made.
    """
    folder = Path(path or os.environ.get("HSD_HOME") or platformdirs.user_data_dir("hsd", appauthor=False))
    folder = folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The data folder {folder} cannot be made: {error.strerror or error}.",
            "Set HSD_HOME to a folder you may write to.",
        ) from error
    return folder
