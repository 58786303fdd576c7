"""The seal: what notices that an older copy of the store was put back. It lies beside the key, not in the store.

For each store that was used with the key it remembers the store's id and stamp (`lineage`) and how many commits it
had seen: a lower bound, written in the background at most once a second, after each start and at the end. So it
costs no payment a sync, and a copy that is older than a second is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from store.contract import StoreUnavailable
from store.lineage import Backup, Stamp, Standing
from store.private_files import check_private_file

log: Final = logging.getLogger("bursar")

VERSION: Final = 1
EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the seal remembers of one store."""

    store: str
    stamp: str
    commits: int  # at least so many
    directory: str  # where it was


def why_old(sealed: Sequence[Sealed], standing: Standing, directory: str) -> str | None:
    """Why this store is not the last one that was used with the key, if it is not.

    A store that the seal has not heard of is taken for a new one, unless another was in its place.
    """
    if standing.commits is None:  # it counts none: nothing can be said
        return None
    same = next((one for one in sealed if one.store == standing.store_id), None)
    if (backup := standing.backup) is not None and not _is_last(backup, standing, same):
        taken = _utc(backup.taken_at)
        return f"the store in {directory} is a backup, taken at {taken}: what was paid since is not in it"
    if same is None:
        if any(one.directory == directory for one in sealed):
            return (
                f"the store in {directory} is not the one that was there when this wallet was last used:"
                " that one's channels, and what they have spent, are not known in it"
            )
        return None
    stamp = standing.stamp or Stamp("")
    if same.stamp == stamp.former:  # it was reconciled, and a crash came before the seal had heard of that
        return None
    if same.stamp != stamp.current:
        return f"the store in {directory} is a copy from before an older one was put back and reconciled"
    if standing.commits < same.commits:
        return (
            f"the store in {directory} is an older copy: it has seen {standing.commits} commits, and this wallet"
            f" was used with at least {same.commits}. Vouchers that it does not know of may have left"
        )
    return None


def _is_last(backup: Backup, standing: Standing, same: Sealed | None) -> bool:
    """Nobody used the store when the backup was taken, and nobody has written since: the first thing that a process
    does is a commit, which the seal knows of before anything is paid."""
    return (
        same is not None
        and not backup.in_use
        and standing.stamp is not None
        and same.stamp == standing.stamp.current
        and same.commits == backup.commits
    )


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def read(path: Path) -> list[Sealed]:
    """What the seal remembers; nothing if there is none. Raises `StoreUnavailable` if it makes no sense."""
    check_private_file(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnavailable(f"the seal {path} cannot be read: {error.strerror}") from error
    try:
        return _parse(orjson.loads(data))
    except (ValueError, TypeError, KeyError):
        raise StoreUnavailable(
            f"the seal {path} is damaged, or of a newer bursar: whether the store is the last one cannot be told."
            " If you know that it is, remove the seal"
        ) from None


def write(path: Path, one: Sealed) -> None:
    """Remember `one`, durably; never fewer commits of the same stamp. Raises ``OSError``, `StoreUnavailable`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        known = {sealed.store: sealed for sealed in read(path)}
        before = known.get(one.store)
        if before is not None and before.stamp == one.stamp:
            if before.commits >= one.commits and before.directory == one.directory:
                return
            one = Sealed(one.store, one.stamp, max(before.commits, one.commits), one.directory)
        others = [sealed for sealed in known.values() if sealed.store != one.store]
        # A store that is no longer where it was has been moved, or another was reconciled in its place.
        kept = [sealed for sealed in others if sealed.directory != one.directory]
        _replace(
            path, orjson.dumps({"version": VERSION, "stores": [asdict(sealed) for sealed in (*kept, one)]})
        )


class Keeper:
    """Keeps the seal of an open store up to date."""

    def __init__(self, path: Path, sealed: Sealed) -> None:
        self._path = path
        self._sealed = sealed
        self._commits = sealed.commits
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._complained = False

    def note(self, commits: int) -> None:
        """The store has seen so many commits; called on the event loop after each."""
        self._commits = max(self._commits, commits)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._later)

    def _later(self) -> None:
        self._timer = None
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._write)

    async def close(self) -> None:
        """Write it down for the last time."""
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is not None:
            await self._writing
        await self.write()

    async def write(self) -> None:
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        sealed = self._sealed
        try:
            write(self._path, Sealed(sealed.store, sealed.stamp, self._commits, sealed.directory))
        except (OSError, StoreUnavailable) as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "bursar: the seal %s cannot be written (%s): an older copy of the store that is put back would"
                    " not be noticed; name another file as [store].seal",
                    self._path,
                    error,
                )


def _parse(document: Any) -> list[Sealed]:
    if document["version"] != VERSION:
        raise ValueError("another version")
    found = [
        Sealed(_text(one["store"]), _text(one["stamp"]), _count(one["commits"]), _text(one["directory"]))
        for one in document["stores"]
    ]
    if len({one.store for one in found}) != len(found):
        raise ValueError("a store twice")
    return found


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError("text was expected")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a number was expected")
    return value


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(
        path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, data: bytes) -> None:
    """All of it or nothing, also across a power cut."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
