"""A backup of a store that is in use: all of it as of one moment, with the ledger up to the same moment.

The directory that comes out has the layout of a store, and is put in a store's place. It carries a mark: unless
nobody used the store when it was taken, and nobody has since, it is in doubt when it is opened (`seal`).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from store import lineage
from store.commits import Commits
from store.contract import StoreUnavailable
from store.ledger_files import SUFFIX
from store.lineage import Backup
from store.lmdb_env import write_into_copy
from store.lmdb_store import LmdbBackend

VERSION: Final = 1
MARKER: Final = "backup.json"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """What a backup holds."""

    directory: Path
    store_id: str
    commits: int
    taken_at: int  # ms
    in_use: bool  # some process was at work
    files: int  # of the ledger
    size: int  # bytes, all together


async def take_backup(backend: LmdbBackend, directory: Path, ledger: Path, target: Path, now: int) -> Taken:
    """Copy the store in `directory` with its `ledger` to `target`, which must be new or empty.

    `target` is there, whole and durable, when this returns; else it is as it was. Payments go on meanwhile. Raises
    `StoreUnavailable`.
    """
    _check_target(target, directory)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        partial.mkdir(mode=0o700, parents=True)
        sizes = await backend.copy(partial, lambda: _sizes(ledger))
        (partial / "data.mdb").chmod(0o600)
        taken = await _mark(partial, target, sizes, now)
        for path, size in sizes.items():
            _copy(path, partial / ledger.name / path.name, size)
        _write(partial / MARKER, _marker(taken))
        for path in (partial / "data.mdb", partial / ledger.name, partial):
            _sync(path)
        partial.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise StoreUnavailable(f"the backup {target} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return taken


def _check_target(target: Path, directory: Path) -> None:
    if directory == target or directory in target.parents:
        raise StoreUnavailable(
            f"the backup {target} would be in the store that it is of; name another directory"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreUnavailable(f"the backup {target} exists already; name a new or an empty directory")


def _sizes(ledger: Path) -> dict[Path, int]:
    """How long each file of the ledger is, while nobody commits: no line is about money that is not in the store."""
    return (
        {path: path.stat().st_size for path in sorted(ledger.glob(f"*{SUFFIX}"))} if ledger.is_dir() else {}
    )


async def _mark(partial: Path, target: Path, sizes: Mapping[Path, int], now: int) -> Taken:
    """Read what the copy is, and write into it that it is one."""
    backend = await LmdbBackend.open(partial)
    try:
        commits = Commits(backend)
        standing = await commits.standing()
        in_use = any(not anchor.closed for anchor in (await commits.anchors()).values())
    finally:
        await backend.close()
    shutil.rmtree(partial / "owners")
    (partial / "lock.mdb").unlink()
    number = standing.commits or 0
    write_into_copy(partial, lineage.BACKUP_KEY, lineage.encode_backup(Backup(now, number, in_use)))
    size = sum(sizes.values()) + (partial / "data.mdb").stat().st_size
    return Taken(target, standing.store_id, number, now, in_use, len(sizes), size)


def _copy(source: Path, target: Path, size: int) -> None:
    """The first `size` bytes of a file that may be growing."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as written, source.open("rb") as read:
        while size and (data := read.read(min(size, _CHUNK))):
            written.write(data)
            size -= len(data)
        written.flush()
        os.fsync(written.fileno())


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _marker(taken: Taken) -> bytes:
    """For people, and for programs that look after backups; nothing of ours reads it."""
    found = {
        "version": VERSION,
        "store": taken.store_id,
        "commits": taken.commits,
        "taken_at": taken.taken_at,
        "in_use": taken.in_use,
        "ledger_files": taken.files,
    }
    return orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _sync(path: Path) -> None:
    if not path.exists():
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
