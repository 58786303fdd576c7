"""The same contract without durability: for tests, and for a shadow mode that pays nobody.

Several `MemoryBackend` on one `SharedMemory` act as several processes on one store.
"""

from __future__ import annotations

import asyncio
import secrets
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import TypeVar

from store import marker
from store.codec import encode_int
from store.contract import StoreUnavailable, Transaction
from store.group import Outcome, Piece, failed, run_group, settle
from store.overlay import Snapshot

T = TypeVar("T")


class SharedMemory:
    """What the processes of one store have in common. All of them live on one event loop."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self.owners: set[str] = set()
        self.before_commit: Callable[[], None] | None = None
        """Called before each commit; what it raises fails the commit (a full disk, for a test)."""
        self.apply(
            {
                marker.FORMAT_KEY: b"%d" % marker.FORMAT,
                marker.STORE_ID_KEY: secrets.token_hex(16).encode(),
                marker.COMMITS_KEY: encode_int(0),
            }
        )

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for index in range(bisect_left(self._keys, prefix), len(self._keys)):
            key = self._keys[index]
            if not key.startswith(prefix):
                return
            yield key, self._values[key]

    def apply(self, changes: dict[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            if value is None:
                if self._values.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if key not in self._values:
                    insort(self._keys, key)
                self._values[key] = value


class MemoryBackend:
    """`contract.Backend` in memory. What is handed in during one turn of the loop shares a commit."""

    def __init__(self, shared: SharedMemory | None = None) -> None:
        self.shared = SharedMemory() if shared is None else shared
        self._owner_id = secrets.token_hex(16)
        self.shared.owners.add(self._owner_id)
        self._waiting: list[Piece] = []
        self._closed = ""  # why, once it is

    @property
    def owner_id(self) -> str:
        return self._owner_id

    def alive(self, owner_id: str) -> bool:
        return owner_id in self.shared.owners

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        self._check_open()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._commit)
        self._waiting.append(Piece(work, done, loop))
        return await done

    async def view(self, work: Callable[[Transaction], T]) -> T:
        self._check_open()
        snapshot = Snapshot(self.shared)
        try:
            return work(snapshot)
        finally:
            snapshot.close()

    async def close(self) -> None:
        if not self._closed:
            self._closed = "it is closed"
            self._commit()
            self.shared.owners.discard(self._owner_id)

    def kill(self, *, landed: bool = False) -> None:
        """Die as by kill -9: the owner is no longer alive, nothing more is done.

        What had been handed in is lost, or (`landed`) committed unheard. Whoever waits for it waits for ever,
        as in a process that is gone: cancel their tasks.
        """
        if landed and not self._closed:
            self._run(self._waiting)
        self._waiting.clear()
        self._closed = "its process was killed"
        self.shared.owners.discard(self._owner_id)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the store in memory cannot be used: {self._closed}")

    def _commit(self) -> None:
        group, self._waiting = self._waiting, []
        if group:
            settle(self._run(group))

    def _run(self, group: list[Piece]) -> list[Outcome]:
        run = run_group(self.shared, group)
        if not run.changes:
            return run.outcomes
        try:
            if self.shared.before_commit is not None:
                self.shared.before_commit()
        except Exception as error:
            return failed(run.outcomes, f"the store in memory failed to commit: {error}", error)
        self.shared.apply(run.changes)
        return run.outcomes
