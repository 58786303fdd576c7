"""The durable store: LMDB, shared by the processes of one machine.

All writes of this process go through one thread, which takes whatever waits, runs it in one LMDB transaction
and syncs once (group commit). Writers of several processes take turns at LMDB's own lock. Reads run at once,
where they are asked for: a point read is some microseconds on a memory map, less than a change of threads.

- A write transaction begins and ends on the writer thread; elsewhere, LMDB's lock would never be let go.
- The map grows there too, between transactions, while no read is running (`_remap`).
- One environment per process and directory (`_engines`): LMDB's file locks belong to the process. Whoever opens
  the same directory again (mitmdump reloads a touched script) shares it, as an owner of its own.
- A forked child has neither the thread nor the locks: there every call is refused.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import lmdb

from store.contract import StoreError, StoreUnavailable, Transaction
from store.group import Outcome, Piece, failed, run_group, settle
from store.lmdb_env import PAGE, Reader, explained, open_environment
from store.overlay import Snapshot
from store.owner_locks import OwnerLock
from store.private_files import private_directory

T = TypeVar("T")

MAP_SIZE: Final = 64 * 2**20
MAX_MAP_SIZE: Final = 64 * 2**30
"""Far above what a wallet's records need (100,000 channels are some 200 MiB): reached, something is wrong."""

_MAX_GROUP: Final = 1024


class _Barrier(NamedTuple):
    passed: threading.Event
    stop: bool


class _Engine:
    """The environment of one directory in this process, with its writer thread."""

    def __init__(self, directory: Path, map_size: int, max_map_size: int) -> None:
        self.directory = directory
        self.users = 0
        self.broken = ""  # why nothing works any more, once that is so
        self._max_map_size = max_map_size // PAGE * PAGE
        self._env = open_environment(directory, map_size)
        self._remap = threading.Lock()  # held by whoever reads outside the writer thread, or moves the map
        self._queue: queue.SimpleQueue[Piece | _Barrier] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=f"store {directory.name}", daemon=True)
        self._thread.start()

    def hand_in(self, piece: Piece) -> None:
        self._queue.put(piece)

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Raises `lmdb.MapResizedError` when only the writer thread can go on."""
        with self._remap:
            try:
                txn = self._env.begin()
            except lmdb.ReadersFullError:
                self._env.reader_check()  # the slots of processes that have died
                txn = self._env.begin()
            snapshot = Snapshot(Reader(txn, self.directory))
            try:
                return work(snapshot)
            finally:
                snapshot.close()
                txn.abort()

    def copy(self, target: Path, meanwhile: Callable[[], T]) -> T:
        """The whole store, as it is at one moment, into the directory `target`.

        `meanwhile` is called in that moment, in which no process writes; what it returns is returned. Only the
        moment stops writers, the copying does not.
        """
        with self._remap:
            writing = self._env.begin(write=True)  # ends in this thread, too
            try:
                snapshot = self._env.begin()
                found = meanwhile()
            finally:
                writing.abort()
            try:
                self._env.copy(os.fspath(target), compact=True, txn=snapshot)
            finally:
                snapshot.abort()
        return found

    def drain(self, *, stop: bool = False) -> None:
        """Wait until all that was handed in has its outcome."""
        barrier = _Barrier(threading.Event(), stop)
        self._queue.put(barrier)
        barrier.passed.wait()

    def stop(self) -> None:
        """Finish what was handed in and close the environment."""
        self.drain(stop=True)
        self._thread.join()
        with self._remap:
            self.broken = "it is closed"
            self._env.close()

    def _write(self) -> None:
        stopping = False
        while not stopping:
            group = [self._queue.get()]
            while len(group) < _MAX_GROUP and not self._queue.empty():  # nobody else takes from it
                group.append(self._queue.get())
            pieces = [item for item in group if isinstance(item, Piece)]
            if pieces:
                _announce(self._commit(pieces))
            for item in group:
                if isinstance(item, _Barrier):
                    stopping |= item.stop
                    item.passed.set()

    def _commit(self, group: list[Piece]) -> list[Outcome]:
        outcomes = [Outcome(piece, None, None) for piece in group]
        try:
            while True:
                try:
                    return self._attempt(group, outcomes)
                except lmdb.MapFullError as error:  # at a put, or as late as the commit
                    self._grow(error)
                except lmdb.MapResizedError:  # another process has grown it
                    with self._remap:
                        self._env.set_mapsize(0)
        except Exception as error:
            failure = error if isinstance(error, StoreError) else explained(error, self.directory)
            if isinstance(error, lmdb.PanicError):
                self.broken = str(failure)
            return failed(outcomes, str(failure), error)

    def _attempt(self, group: list[Piece], outcomes: list[Outcome]) -> list[Outcome]:
        """One commit of the whole group; leaves in `outcomes` what the work did even if the commit fails."""
        txn = self._env.begin(write=True)
        try:
            run = run_group(Reader(txn, self.directory), group)
            outcomes[:] = run.outcomes
            if run.changes:
                for key in sorted(run.changes):
                    value = run.changes[key]
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, value)
                txn.commit()  # synced: from here on it is durable
        finally:
            txn.abort()  # nothing, after a commit
        return outcomes

    def _grow(self, full: lmdb.MapFullError) -> None:
        with self._remap:
            self._env.reader_check()  # pages kept for a reader that has died are free again
            before = self._env.info()["map_size"]
            self._env.set_mapsize(0)  # what another process may have made of it
            if self._env.info()["map_size"] > before:
                return
            size = min(before * 2, self._max_map_size)
            if size <= before:
                raise explained(full, self.directory) from full
            self._env.set_mapsize(size)


def _announce(outcomes: list[Outcome]) -> None:
    """Wake the callers, each on its loop, with one call per loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.piece.loop, []).append(outcome)
    for loop, found in by_loop.items():
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:  # that loop is closed: nobody waits there
            continue


_engines: dict[tuple[int, int], _Engine] = {}
_engines_lock = threading.Lock()
_handles: weakref.WeakSet[LmdbBackend] = weakref.WeakSet()
_inherited: list[object] = []  # of a parent process; kept, because closing them would disturb it


class LmdbBackend:
    """`contract.Backend` on LMDB. Made by `open`; belongs to the event loop that uses it."""

    def __init__(self, engine: _Engine, key: tuple[int, int], lock: OwnerLock) -> None:
        self._engine = engine
        self._key = key
        self._lock = lock
        self._closing: asyncio.Future[None] | None = None
        _handles.add(self)

    @classmethod
    async def open(
        cls, directory: Path, *, map_size: int = MAP_SIZE, max_map_size: int = MAX_MAP_SIZE
    ) -> Self:
        """The store in `directory`, which is made (mode 0700) if it is missing.

        The map begins with `map_size` bytes and doubles when needed, up to `max_map_size`. Raises
        `StoreUnavailable` with the way out, or `UnknownVersion` for a store of another format.
        """
        opening = asyncio.get_running_loop().run_in_executor(
            None, cls._open, directory, map_size, max_map_size
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_abandon)
            raise

    @classmethod
    def _open(cls, directory: Path, map_size: int, max_map_size: int) -> Self:
        directory = directory.absolute()
        found = private_directory(directory)
        key = (found.st_dev, found.st_ino)
        with _engines_lock:
            engine = _engines.get(key)
            if engine is None:
                engine = _engines[key] = _Engine(directory, map_size, max_map_size)
            engine.users += 1
        try:
            return cls(engine, key, OwnerLock(directory))
        except BaseException:
            _leave(engine, key)
            raise

    @property
    def owner_id(self) -> str:
        return self._lock.owner_id

    def alive(self, owner_id: str) -> bool:
        return self._lock.alive(owner_id)

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        self._check_open()
        return await self._hand_in(work)

    async def view(self, work: Callable[[Transaction], T]) -> T:
        self._check_open()
        try:
            return self._engine.read(work)
        except lmdb.MapResizedError:  # another process has grown the map, and only the writer may move ours
            return await self._hand_in(lambda transaction: work(Snapshot(transaction)))
        except lmdb.Error as error:
            raise explained(error, self._engine.directory) from error

    async def copy(self, target: Path, meanwhile: Callable[[], T]) -> T:
        """A copy of the store in the new, private directory `target`, while it is in use; see `_Engine.copy`.

        Durable when this returns. Raises `StoreUnavailable`; then what is in `target` is of no use.
        """
        self._check_open()
        await self._hand_in(lambda txn: None)  # the writer thread learns if another process has grown the map
        try:
            return await asyncio.to_thread(self._engine.copy, target, meanwhile)
        except (lmdb.Error, OSError) as error:
            raise StoreUnavailable(f"the store could not be copied to {target}: {error}") from error

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().run_in_executor(None, self._let_go)
        await asyncio.shield(self._closing)

    def _check_open(self) -> None:
        if self._closing is not None:
            raise StoreUnavailable(f"the store in {self._engine.directory} is closed")
        if self._engine.broken:
            raise StoreUnavailable(self._engine.broken)

    async def _hand_in(self, work: Callable[[Transaction], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._engine.hand_in(Piece(work, done, loop))
        return await done

    def _let_go(self) -> None:
        _leave(self._engine, self._key)
        self._lock.release()


def _leave(engine: _Engine, key: tuple[int, int]) -> None:
    with _engines_lock:
        engine.users -= 1
        if not engine.users:
            del _engines[key]
            engine.stop()
            return
    engine.drain()


def _abandon(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()._let_go()


def _forget_in_child() -> None:
    global _engines_lock  # noqa: PLW0603 - the one thing that a child must make anew
    _engines_lock = threading.Lock()  # some other thread of the parent may have held it
    _inherited.extend(_engines.values())
    for engine in _engines.values():
        engine.broken = f"the store in {engine.directory} was opened before this process was forked; spawn it"
    _engines.clear()
    for backend in _handles:
        backend._lock.forget()


os.register_at_fork(after_in_child=_forget_in_child)
