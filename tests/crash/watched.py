"""Stand-ins for what cannot be wrapped where it is: LMDB's transactions (C), and `os.write` of the ledger alone.

Imported by the process that forks the payers, they are in place from then on.
"""

from __future__ import annotations

import os
from typing import Any

import store.journal
import store.lmdb_store


class Transaction:
    """A write transaction, on the store's writer thread."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def put(self, key: bytes, value: bytes) -> bool:
        return bool(self._found.put(key, value))

    def commit(self) -> None:
        self._found.commit()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)


class Environment:
    def __init__(self, found: Any) -> None:
        self._found = found

    def begin(self, write: bool = False) -> Any:
        begun = self._found.begin(write=write)
        return Transaction(begun) if write else begun

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)


class Files:
    """`os`, as the ledger sees it."""

    @staticmethod
    def write(fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


_open_environment = vars(store.lmdb_store)["open_environment"]


def _watched_environment(*arguments: Any) -> Any:
    return Environment(_open_environment(*arguments))


def put_in_place() -> None:
    vars(store.lmdb_store)["open_environment"] = _watched_environment
    vars(store.journal)["os"] = Files()
