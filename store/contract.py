"""What a store must promise. Small on purpose: the rules about money are not in here but in `channels`.

A third party's store is a class with these methods, named in the config as ``"package.module:Class"`` and
called with the store's directory. It keeps opaque bytes under opaque keys. Whatever passes
``tests/contract`` may be trusted with a wallet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class StoreError(Exception):
    """The store refused or failed; nothing of the call was written. The message names the way out."""


class StoreUnavailable(StoreError):
    """It cannot be opened, read or written (disk full, locked, wrong file modes, closed)."""


class UnknownVersion(StoreError):
    """Bytes that a newer bursar wrote, or damage. They are left as they are, never guessed at."""


class Transaction(Protocol):
    """One consistent view, with what this piece of work has already put. Keys are at most 511 bytes."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key starts with `prefix`, in key order."""


class Backend(Protocol):
    """A transactional key-value store, possibly shared by several processes."""

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` alone and return what it returned, once all it put is **durable**.

        - When this returns, a power cut loses nothing of it.
        - If `work` raises, nothing that it put is kept and its exception is raised here; other work that
          shares its commit is not affected.
        - If the commit fails, every piece of work in it raises `StoreUnavailable` and nothing of it is kept.
        - After a crash inside the call, all of it is there or nothing.
        - `work` sees every commit that returned before it began, of any process, and none that is open.
        - `work` may be run more than once (a map that grows, a conflict): it must depend on the
          transaction alone.
        - If the caller is cancelled, the commit may still happen.
        """

    async def view(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` on a consistent snapshot; what it puts is an error."""

    @property
    def owner_id(self) -> str:
        """This process, for as long as the backend is open; never used again by another."""

    def alive(self, owner_id: str) -> bool:
        """Does that process still hold its lock? False as soon as it has died, by whatever means."""

    async def close(self) -> None:
        """Finish what was handed in, then let go of everything, the owner's lock last. Idempotent."""
