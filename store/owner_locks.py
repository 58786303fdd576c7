"""Which process is alive: each open store holds a lock on a file of its own, for as long as it lives.

``owners/<id>.lock`` carries an exclusive `flock`, which the kernel drops when the process ends, by whatever means.
Ids are random and never used again, so a missing file means that its owner is gone. Who asks takes the lock in
shared mode: two who ask at once do not take each other for the owner.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import Final

from store.contract import StoreUnavailable
from store.private_files import private_directory

DIRECTORY: Final = "owners"
_SUFFIX: Final = ".lock"
_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
_ATTEMPTS: Final = 100


class OwnerLock:
    """The lock of this process (of one open store in it)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / DIRECTORY
        private_directory(self._directory)
        self.owner_id, self._fd = self._take()
        self._path = self._path_of(self.owner_id)
        self._released = False
        self._clean_up()

    def _path_of(self, owner_id: str) -> Path:
        return self._directory / (owner_id + _SUFFIX)

    def _take(self) -> tuple[str, int]:
        for _ in range(_ATTEMPTS):
            owner_id = secrets.token_hex(16)
            path = self._path_of(owner_id)
            fd = -1
            try:
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(fd, b"%d\n" % os.getpid())  # for people; nothing reads it
                if os.fstat(fd).st_nlink:
                    return owner_id, fd
                os.close(fd)  # who cleans up was quicker than the lock: another id
            except BlockingIOError:
                os.close(fd)
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                raise StoreUnavailable(
                    f"store: no lock could be taken in {self._directory}: {error.strerror}; it must be a local,"
                    " writable directory with some space left"
                ) from error
        raise StoreUnavailable(f"store: no lock could be taken in {self._directory}: every new file vanishes")

    def alive(self, owner_id: str) -> bool:
        """Does that owner still hold its lock? Raises `StoreUnavailable` when that cannot be told."""
        if owner_id == self.owner_id:
            return not self._released
        if not _ID.match(owner_id):
            return False  # no id of this kind of store: nothing here can hold it
        try:
            return self._held(self._path_of(owner_id), remove=False)
        except FileNotFoundError:
            self._check_own_file()
            return False
        except OSError as error:
            raise StoreUnavailable(
                f"store: whether owner {owner_id} is alive cannot be told ({self._directory}: {error.strerror})"
            ) from error

    def release(self) -> None:
        """Let go, once. From here on `alive` says no, here and in every other process."""
        if self._released:
            return
        self._released = True
        self._path.unlink(missing_ok=True)
        os.close(self._fd)

    def forget(self) -> None:
        """In a forked child: close the copy of the descriptor, which else kept the lock beyond the parent."""
        self._released = True
        os.close(self._fd)

    def _check_own_file(self) -> None:
        if not self._released and not self._path.exists():
            raise StoreUnavailable(
                f"store: the lock files in {self._directory} were removed while bursar runs, so it cannot be told"
                " which process has which channel; stop all that use this store, then start them again"
            )

    def _clean_up(self) -> None:
        """Remove the files of owners that are gone. Only tidiness: whatever cannot be removed stays."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return
        for name in names:
            if name.endswith(_SUFFIX) and name != self._path.name:
                try:
                    self._held(self._directory / name, remove=True)
                except OSError:
                    continue

    @staticmethod
    def _held(path: Path, *, remove: bool) -> bool:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            if remove:  # while its lock is ours, so that a new owner sees that its file is gone
                path.unlink(missing_ok=True)
            return False
        finally:
            os.close(fd)
