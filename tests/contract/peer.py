"""A second process on a store: reads commands as JSON lines, answers each with one. See `suite.ProcessContract`."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from store.backends import open_backend
from store.contract import Backend, StoreError, Transaction


def say(value: object) -> None:
    os.write(1, orjson.dumps(value) + b"\n")


async def answer(backend: Backend, command: str, arguments: list[Any]) -> object:
    match command, arguments:
        case "put", [key, value]:
            await backend.transact(lambda txn: txn.put(key.encode(), value.encode()))
            return None
        case "get", [key]:
            found = await backend.view(lambda txn: txn.get(key.encode()))
            return None if found is None else found.decode()
        case "alive", [owner_id]:
            return backend.alive(owner_id)
        case "child", []:
            return start_child()
        case "increment", [count, workers]:
            return await increment(backend, count, workers)
        case "fill", [name, count, size]:
            await fill(backend, name, count, size)
            return None
        case "slow", [key, value, inside, gate]:
            await backend.transact(
                lambda txn: slow(txn, key.encode(), value.encode(), Path(inside), Path(gate))
            )
            return None
        case "load", [first, workers]:
            await load(backend, first, workers)
            return None
        case "close", []:
            await backend.close()
            return None
        case _:
            raise StoreError(f"unknown command {command}")


def start_child() -> int:
    """One that inherits whatever may be inherited."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(["sleep", "30"], stdin=quiet, stdout=quiet, stderr=quiet, close_fds=False).pid


async def increment(backend: Backend, count: int, workers: int) -> list[int]:
    seen: list[int] = []

    def work(txn: Transaction) -> int:
        value = int(txn.get(b"n") or b"0") + 1
        txn.put(b"n", b"%d" % value)
        return value

    async def worker() -> None:
        while len(seen) + workers <= count:
            seen.append(await backend.transact(work))

    await asyncio.gather(*(worker() for _ in range(workers)))
    while len(seen) < count:
        seen.append(await backend.transact(work))
    return seen


async def fill(backend: Backend, name: str, count: int, size: int) -> None:
    """Many keys, some commits each of several pieces of work."""
    keys = iter(range(count))

    def one(index: int) -> Any:
        return lambda txn: txn.put(b"%s/%06d" % (name.encode(), index), b"f" * size)

    async def worker() -> None:
        for index in keys:
            await backend.transact(one(index))

    await asyncio.gather(*(worker() for _ in range(8)))


def slow(txn: Transaction, key: bytes, value: bytes, inside: Path, gate: Path) -> None:
    txn.put(key, value)
    inside.touch()
    while not gate.exists():
        time.sleep(0.005)


async def load(backend: Backend, first: int, workers: int) -> None:
    """For ever: both halves of a pair in one transaction, then its number once that has returned."""
    numbers = itertools.count(first)

    def pair(number: int) -> Any:
        def work(txn: Transaction) -> None:
            txn.put(b"l/%08d" % number, b"left")
            txn.put(b"r/%08d" % number, b"right")

        return work

    async def worker() -> None:
        for number in numbers:
            await backend.transact(pair(number))
            say(number)

    await asyncio.gather(*(worker() for _ in range(workers)))


async def main(spec: str, directory: str, options: str) -> None:
    if spec == "lmdb":  # with a small map, so that it grows
        from store.lmdb_store import LmdbBackend

        backend: Backend = await LmdbBackend.open(Path(directory), **orjson.loads(options))
    else:
        backend = await open_backend(spec, Path(directory))
    say(backend.owner_id)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command, *arguments = orjson.loads(line)
        try:
            say({"ok": await answer(backend, command, arguments)})
        except StoreError as error:
            say({"error": type(error).__name__, "message": str(error)})
    await backend.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
