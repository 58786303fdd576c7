"""Opening an LMDB environment so that nothing it meets on the disk can end the process, and what its errors mean.

LMDB reads and locks through memory maps: a data file that is shorter than its own index says, or a lock file
that a full disk cannot hold, would be a SIGBUS. Both are met here, before the map is touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import lmdb

from store import marker, owner_locks
from store.codec import encode_int
from store.contract import StoreError, StoreUnavailable
from store.lmdb_pages import Damaged, check_pages
from store.private_files import check_private_file

PAGE: Final = 65_536
"""Map sizes are multiples of this: a page of any machine."""

_MAX_READERS: Final = 126
_LOCK_FILE_BYTES: Final = 16_384  # twice what that many readers take


class Reader:
    """One LMDB transaction as an `overlay.Base`."""

    __slots__ = ("_directory", "_txn")

    def __init__(self, txn: lmdb.Transaction, directory: Path) -> None:
        self._txn = txn
        self._directory = directory

    def get(self, key: bytes) -> bytes | None:
        try:
            return cast("bytes | None", self._txn.get(key))  # bytes, for the transaction is without buffers
        except lmdb.Error as error:
            raise explained(error, self._directory) from error

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            with self._txn.cursor() as cursor:
                if not (cursor.set_range(prefix) if prefix else cursor.first()):
                    return
                for key, value in cast(Iterator[tuple[bytes, bytes]], cursor.iternext()):
                    if not key.startswith(prefix):
                        return
                    yield key, value
        except lmdb.Error as error:
            raise explained(error, self._directory) from error


def open_environment(directory: Path, map_size: int) -> lmdb.Environment:
    """The environment in `directory`, marked as ours. Raises a `StoreError` that says what to do."""
    for name in ("data.mdb", "lock.mdb"):
        check_private_file(directory / name)
    _refuse_lost(directory)
    _reserve_lock_file(directory)
    try:
        env = lmdb.open(
            os.fspath(directory),
            map_size=-(-max(map_size, PAGE) // PAGE) * PAGE,
            mode=0o600,
            create=False,
            sync=True,
            metasync=True,
            writemap=False,
            max_readers=_MAX_READERS,
            max_spare_txns=1,
        )
    except (lmdb.Error, OSError) as error:
        raise explained(error, directory) from error
    try:
        env.reader_check()
        _refuse_truncated(env, directory)
        _mark(env, directory)
        _keep_names(directory)
    except lmdb.Error as error:
        env.close()
        raise explained(error, directory) from error
    except BaseException:
        env.close()
        raise
    return env


def _keep_names(directory: Path) -> None:
    """After a power cut the files are found by their names: a sync of a file need not take its directory along."""
    for one in (directory, directory.parent):
        with contextlib.suppress(OSError):  # not ours to read, or a file system that knows no such thing
            fd = os.open(one, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def write_into_copy(directory: Path, key: bytes, value: bytes) -> None:
    """Put one key into a copy that nobody has opened. Durable when this returns; raises `StoreUnavailable`."""
    try:
        with lmdb.open(os.fspath(directory), create=False, lock=False) as env, env.begin(write=True) as txn:
            txn.put(key, value)
    except lmdb.Error as error:
        raise explained(error, directory) from error


def explained(error: Exception, directory: Path) -> StoreUnavailable:
    """What an LMDB error means for whoever runs this, and the way out."""
    where = f"the store in {directory}"
    match error:
        case lmdb.DiskError():
            text = f"{where} could not be written: the disk is full. Make room, then go on; nothing was lost"
        case lmdb.MapFullError():
            text = (
                f"{where} has reached its largest size. Move it to a machine where it may grow, or allow more"
            )
        case lmdb.PanicError():
            text = f"{where} failed while writing its index. Check the disk, then start bursar again"
        case lmdb.InvalidError() | lmdb.VersionMismatchError():
            text = f"{where} is not one: data.mdb is of another kind or version. Name another directory"
        case lmdb.CorruptedError() | lmdb.PageNotFoundError():
            text = f"{where} is damaged. Check the disk, then put back a copy, or recover deposits from the chain"
        case lmdb.ReadersFullError():
            text = f"{where} is read by too many processes at once (over {_MAX_READERS}). Stop some of them"
        case lmdb.ReadonlyError() | lmdb.LockError():
            text = f"{where} cannot be locked or written. Check the modes and mount of the directory"
        case _:
            text = f"{where} cannot be used. Check its disk and modes"
    return StoreUnavailable(f"{text} ({error})")


def _reserve_lock_file(directory: Path) -> None:
    """Give the lock file its blocks before LMDB maps it."""
    path = directory / "lock.mdb"
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:  # not on this system
        return
    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_blocks * 512 < _LOCK_FILE_BYTES:
                reserve(fd, 0, _LOCK_FILE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreUnavailable(
            f"the store in {directory} cannot make its lock file: {error.strerror}; it needs some room in a"
            " directory that this user may write"
        ) from error


def _refuse_lost(directory: Path) -> None:
    """Raise `StoreUnavailable` where LMDB would begin anew in a store that was in use, and forget its deposits."""
    if not (directory / owner_locks.DIRECTORY).exists():  # made only once a store has been marked, durably
        return
    data = directory / "data.mdb"
    if not data.exists() or not data.stat().st_size:
        raise StoreUnavailable(
            f"the store in {directory} was in use, and its {data.name} is missing or empty. Put back a copy of it. To"
            " begin anew, name another directory: deposits in this store's channels are then found on the chain only"
        )


def _refuse_truncated(env: lmdb.Environment, directory: Path) -> None:
    """Raise `StoreUnavailable` if pages that are in use are not in the file."""
    path = directory / "data.mdb"
    if path.stat().st_size >= _indexed_bytes(env):
        return
    with env.begin(write=True):  # so that no other process writes meanwhile
        try:
            check_pages(path)
        except Damaged as error:
            raise StoreUnavailable(
                f"the store in {directory} is damaged: its data file was cut short ({error}). It was left as it is."
                " Put back a whole copy, or recover deposits from the chain"
            ) from error


def _indexed_bytes(env: lmdb.Environment) -> int:
    return int((env.info()["last_pgno"] + 1) * env.stat()["psize"])


def _mark(env: lmdb.Environment, directory: Path) -> None:
    """Check the format mark; give a new, empty environment one."""
    while True:
        try:
            with env.begin() as txn:
                found = Reader(txn, directory).get(marker.FORMAT_KEY)
            if found is None:
                with env.begin(write=True) as txn:
                    _mark_new(txn, directory)
                    found = Reader(txn, directory).get(marker.FORMAT_KEY) or b""
        except lmdb.MapResizedError:  # another process has grown it since we opened it
            env.set_mapsize(0)
        else:
            return marker.check_format(found, str(directory))


def _mark_new(txn: lmdb.Transaction, directory: Path) -> None:
    if txn.get(marker.FORMAT_KEY) is not None:  # another process was quicker
        return
    with txn.cursor() as cursor:
        if cursor.first():
            raise StoreError(
                f"{directory} holds an LMDB database that is no store of bursar; name another one"
            )
    txn.put(marker.FORMAT_KEY, b"%d" % marker.FORMAT)
    txn.put(marker.STORE_ID_KEY, secrets.token_hex(16).encode())
    txn.put(marker.COMMITS_KEY, encode_int(0))
