"""Directories and files that nobody but their owner may touch: made so, and refused if they are not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from store.contract import StoreUnavailable


def private_directory(path: Path) -> os.stat_result:
    """Make `path` with mode 0700 if it is missing; raise `StoreUnavailable` unless it is a directory of ours
    that group and others have no access to."""
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise StoreUnavailable(
            f"store {path}: the directory cannot be made or read: {error.strerror}"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise StoreUnavailable(
            f"store {path}: not a directory; name one that is, or one that does not exist yet"
        )
    _check_owner(path, found)
    if found.st_mode & 0o077:
        raise StoreUnavailable(
            f"store {path}: mode {stat.S_IMODE(found.st_mode):04o} lets others in; run: chmod 700 {path}"
        )
    return found


def check_private_file(path: Path) -> None:
    """Raise `StoreUnavailable` if `path` exists and is not a plain file of ours without access for others."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreUnavailable(f"store file {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreUnavailable(f"store file {path} is not a plain file; put the store's own file there")
    _check_owner(path, found)
    if found.st_mode & 0o077:
        raise StoreUnavailable(
            f"store file {path}: mode {stat.S_IMODE(found.st_mode):04o} lets others in; run: chmod 600 {path}"
        )


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise StoreUnavailable(
            f"{path} belongs to user id {found.st_uid} and this process runs as {os.geteuid()};"
            " run as that user, or name another directory"
        )
