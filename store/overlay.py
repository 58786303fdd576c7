"""What a piece of work sees and changes, apart from the store's own data until it is known to have succeeded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from store.contract import StoreError

MAX_KEY: Final = 511


class Base(Protocol):
    """One consistent state of the store, to read from."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]: ...


def checked(key: bytes) -> bytes:
    if not 0 < len(key) <= MAX_KEY:
        raise ValueError(f"a key of {len(key)} bytes ({key[:40]!r}…): 1 to {MAX_KEY} are allowed")
    return key


class Snapshot:
    """A `contract.Transaction` that only reads."""

    __slots__ = ("_base", "_open")

    def __init__(self, base: Base) -> None:
        self._base = base
        self._open = True

    def close(self) -> None:
        """From now on every use is an error: the data beneath has moved on."""
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(
                "a transaction was used after its work had ended; read all that you need within it"
            )

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._base.get(checked(key))

    def put(self, key: bytes, value: bytes) -> None:
        raise StoreError(f"a view only reads, and {key[:40]!r} was to be put; use transact")

    def delete(self, key: bytes) -> None:
        raise StoreError(f"a view only reads, and {key[:40]!r} was to be deleted; use transact")

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        return self._guarded(self._base.scan(prefix))

    def _guarded(self, pairs: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        while True:
            self._check_open()
            pair = next(pairs, None)
            if pair is None:
                return
            yield pair


class Overlay(Snapshot):
    """A `contract.Transaction` that keeps its changes to itself; whoever runs the work writes them down after it.

    So work that raises leaves nothing, whatever else shares its commit. A scan shows what was there when it
    was asked for: the work may put and delete while it walks.
    """

    __slots__ = ("changes",)

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.changes: dict[bytes, bytes | None] = {}  # None: deleted

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        if key in self.changes:
            return self.changes[key]
        return self._base.get(checked(key))

    def put(self, key: bytes, value: bytes) -> None:
        self._check_open()
        if not isinstance(value, bytes):
            raise TypeError(f"{checked(key)[:40]!r}: a value must be bytes, not {type(value).__name__}")
        self.changes[checked(key)] = value

    def delete(self, key: bytes) -> None:
        self._check_open()
        self.changes[checked(key)] = None

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        changed = {key: value for key, value in self.changes.items() if key.startswith(prefix)}
        return self._guarded(_merged(self._base.scan(prefix), changed))


def _merged(
    stored: Iterator[tuple[bytes, bytes]], changed: dict[bytes, bytes | None]
) -> Iterator[tuple[bytes, bytes]]:
    puts = iter(sorted((key, value) for key, value in changed.items() if value is not None))
    put = next(puts, None)
    for key, value in stored:
        while put is not None and put[0] < key:
            yield put
            put = next(puts, None)
        if key not in changed:
            yield key, value
    while put is not None:
        yield put
        put = next(puts, None)
