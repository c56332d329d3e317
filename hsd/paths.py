"""Where the project keeps what it stores, readable by its owner alone."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import platformdirs

from hsd.errors import StoreError

BESIDE = ("", "-wal", "-shm", "-journal")
"""Endings of the files that SQLite keeps for one database."""

_HINT = "Name a folder that you may write to, with --data-dir or HSD_HOME."


def data_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """Folder of `stats.db` and `chat.db`, made if it is missing; only its owner may enter it.

    Args:
        path: the folder to use; None is `$HSD_HOME`, or else the platform's user data folder.

    Raises:
        StoreError: the folder cannot be made.
    """
    folder = Path(path or os.environ.get("HSD_HOME") or platformdirs.user_data_dir("hsd", appauthor=False))
    folder = Path(os.path.expanduser(folder))
    if str(folder).startswith("~"):  # it would be made under that name in the current folder
        raise StoreError(f"There is no home folder for {folder}.", _HINT)
    try:
        private_folder(folder)
    except OSError as error:
        taken = "a file, or a link to nothing, has its name" if isinstance(error, FileExistsError) else ""
        why = taken or error.strerror or error
        raise StoreError(f"The data folder {folder} cannot be made: {why}.", _HINT) from error
    return folder


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter (0700), and close one that is there and open to others.

    A folder that cannot be closed is left as it is: it belongs to somebody else, or its file system has no rights. So
    is one that serves other purposes: the home folder and those above it, and folders such as /tmp.

    Raises:
        OSError: the folder cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(OSError, RuntimeError):
        mode, real, home = folder.stat().st_mode, folder.resolve(), Path.home().resolve()
        if mode & 0o077 and not mode & stat.S_ISVTX and real != home and real not in home.parents:
            folder.chmod(0o700)


def private_file(path: str | os.PathLike[str]) -> None:
    """Make a file that only its owner may read (0600) if it is missing, and close one that is there.

    For a database before it is opened: SQLite gives the files beside it the rights of the first. Those that a program
    has left behind are closed too. What cannot be closed is left as it is, as in `private_folder`.
    """
    name = os.path.realpath(path)
    # A file that is there is not opened: closing it would give up the locks that this process holds on the database.
    with suppress(OSError):
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.chmod(name, 0o600)  # whatever the umask is
    for ending in BESIDE:
        with suppress(OSError):
            mode = stat.S_IMODE(os.stat(name + ending).st_mode)
            if mode & 0o077:
                os.chmod(name + ending, mode & 0o700)
