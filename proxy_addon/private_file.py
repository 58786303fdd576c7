"""Files that hold secrets: their owner's alone, in a directory that is its owner's alone, or not read at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

SIZE_LIMIT: Final = 65_536

Failure = Callable[[str], Exception]


def read_private(path: Path, failure: Failure) -> bytes:
    """The file's bytes, after checking the very file that was opened. Raises what `failure` makes of the reason."""
    if not os.path.lexists(path):
        raise failure(f"there is no file {path}: name the right one in the config; bursar init makes one")
    check_directory(path.parent, failure)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise failure(f"{path} is not a file")
            check_private(path, status, "600", failure)
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > SIZE_LIMIT:
        raise failure(f"{path} has more than {SIZE_LIMIT} bytes: not one of ours")
    return data


def check_directory(path: Path, failure: Failure) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise failure(f"{path} cannot be read: {error.strerror}") from None
    check_private(path, status, "700", failure)


def check_private(path: Path, status: os.stat_result, mode: str, failure: Failure) -> None:
    if status.st_mode & 0o077:
        raise failure(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o}): chmod {mode} {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise failure(f"{path} belongs to another user: chown it to the one who runs the proxy")
