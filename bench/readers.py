"""Readers of streams and of large bodies, a process of its own: ``python -m bench.readers``.

Like `bench.load`: tasks come as lines of JSON and are answered with one. `what` says which:

- ``events``: ``streams`` readers at once of an event stream at ``url`` through ``port``. Each event holds the moment
  at which it was written; the answer has how late they were (ms): of first events, and of all. With ``direct``,
  ``port`` is the server's own.
- ``hold``: opens ``streams`` and answers once each has its first event; the streams stay until ``drop``.
- ``download`` / ``upload``: one body, read or sent and forgotten; ``size`` is that of the upload.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

LIMIT_S: Final = 390
_EVENT: Final = re.compile(rb"data: (\d+) (\d+)\n\n")
_PIECE: Final = bytes(256 * 1024)


class Reader:
    """One stream."""

    def __init__(self) -> None:
        self.late: list[float] = []  # ms, by event
        self.began = asyncio.Event()
        self.seconds = 0.0

    async def read(self, port: int, url: str, *, direct: bool = False) -> None:
        started = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(_head("GET", url, direct=direct))
            await _status(reader, 200)
            rest = b""
            while True:
                data = await reader.read(65_536)
                now = time.monotonic_ns()
                rest += data
                found = list(_EVENT.finditer(rest))
                for event in found:
                    self.late.append((now - int(event[2])) / 1e6)
                    self.began.set()
                if found:
                    rest = rest[found[-1].end() :]
                if rest.endswith(b"0\r\n\r\n") or not data:
                    break
            self.seconds = time.monotonic() - started
        finally:
            self.began.set()
            writer.close()


class Readers:
    """What one process holds."""

    def __init__(self) -> None:
        self._held: list[asyncio.Task[None]] = []

    async def do(self, task: dict[str, Any]) -> dict[str, Any]:
        match task["what"]:
            case "events":
                readers = [Reader() for _ in range(task["streams"])]
                port, url, direct = task["port"], task["url"], task.get("direct", False)
                await asyncio.gather(*(one.read(port, url, direct=direct) for one in readers))
                return _told(readers)
            case "hold":
                return await self._hold(task)
            case "drop":
                for held in self._held:
                    held.cancel()
                await asyncio.gather(*self._held, return_exceptions=True)
                self._held.clear()
                return {}
            case "download":
                return {"bytes": await _download(task["port"], task["url"])}
            case "upload":
                return {"status": await _upload(task["port"], task["url"], task["size"])}
            case other:
                raise ValueError(f"no task is named {other}")

    async def _hold(self, task: dict[str, Any]) -> dict[str, Any]:
        readers = [Reader() for _ in range(task["streams"])]
        few = asyncio.Semaphore(16)  # at a time: each waits for its first event

        async def start(reader: Reader) -> None:
            async with few:
                self._held.append(asyncio.ensure_future(reader.read(task["port"], task["url"])))
                await reader.began.wait()

        await asyncio.gather(*(start(one) for one in readers))
        return {"open": sum(1 for one in self._held if not one.done())}


def _told(readers: list[Reader]) -> dict[str, Any]:
    first = sorted(one.late[0] for one in readers if one.late)
    every = sorted(late for one in readers for late in one.late)
    return {
        "events": len(every),
        "streams": len(first),
        "first_p50": _at(first, 0.5),
        "first_most": _at(first, 1.0),
        "p50": _at(every, 0.5),
        "p99": _at(every, 0.99),
        "most": _at(every, 1.0),
        "seconds": max(one.seconds for one in readers),
    }


def _at(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def _head(method: str, url: str, size: int | None = None, *, direct: bool = False) -> bytes:
    length = "" if size is None else f"Content-Length: {size}\r\n"
    host = urlsplit(url).netloc
    target = url.partition(host)[2] if direct else url
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n".encode()


async def _status(reader: asyncio.StreamReader, expected: int | None = None) -> tuple[int, int]:
    """Status and length of the answer that begins."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if expected is not None and status != expected:
        raise ValueError(f"expected {expected}, got {head!r}")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return status, int(length[1]) if length else 0


async def _download(port: int, url: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_head("GET", url))
        _, size = await _status(reader, 200)
        got = 0
        while got < size and (data := await reader.read(1 << 20)):
            got += len(data)
        return got
    finally:
        writer.close()


async def _upload(port: int, url: str, size: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_head("POST", url, size))
        answer = asyncio.ensure_future(_status(reader))
        try:
            for start in range(0, size, len(_PIECE)):
                if answer.done():
                    break  # it has been answered already
                writer.write(_PIECE[: size - start])
                await writer.drain()
        except ConnectionError:
            pass  # the answer may have come all the same
        return (await answer)[0]
    finally:
        writer.close()


async def main() -> None:
    loop, readers = asyncio.get_running_loop(), Readers()
    print("{}", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        async with asyncio.timeout(LIMIT_S):
            print(json.dumps(await readers.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
