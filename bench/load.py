"""The client of the benchmarks, a process of its own that knows nothing of payment: ``python -m bench.load``.

It reads tasks from standard input, one line of JSON each, and answers each with one. A task:

- ``port``: of the proxy; ``url``: absolute; ``direct``: the port is the server's own; ``fresh``: append a number
  (from ``first`` on), so that no path comes twice;
- ``connections``: kept alive, each with one request in flight; ``warm``: so many requests each, before it counts;
- ``seconds``, or ``requests`` in all; ``rate``: so many a second in all, instead of as fast as it goes;
- ``pids``: processes whose CPU time is read at both ends of what counts.

What is in flight at the end is waited for, so that every request has an end and all books can agree.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from typing import Any, Final

LIMIT_S: Final = 390
CHUNKED: Final = -1


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; to the nanosecond, where /proc/PID/stat has hundredths."""
    return time.clock_gettime((~pid << 3) | 2)


class Client(asyncio.Protocol):
    """One connection. Answers have a Content-Length, or are chunked and without trailers."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._transport: asyncio.Transport
        self._data = b""
        self._whole = 0  # bytes of the answer, once its header is there; or CHUNKED
        self._status = b""
        self._sent = 0
        self._due = 0.0  # when the next request is to leave, by the loop's clock
        self.warm = 0  # so many are still to come before it counts
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self._run.answers["connection lost"] += 1
            self.ended.set_result(None)
            self._run.is_warm()

    def start(self, due: float) -> None:
        self._due = due
        self.next()

    def next(self) -> None:
        if self._run.every and not self.warm:
            loop = asyncio.get_running_loop()
            self._due += self._run.every
            if (wait := self._due - loop.time()) > 0:
                loop.call_later(wait, self.send)
                return
        self.send()

    def send(self) -> None:
        if not self.warm and not self._run.take_one():
            self.stop()
            return
        self._sent = time.perf_counter_ns()
        self._transport.write(self._run.request())

    def stop(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if not self._whole:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._data[:end].lower() + b"\r\n"
            at = head.find(b"\r\ncontent-length:")
            self._whole = CHUNKED if at < 0 else end + 4 + int(head[at + 17 : head.index(b"\r\n", at + 17)])
            self._status = head[9:12]
        if self._whole == CHUNKED:
            if not self._data.endswith(b"\r\n0\r\n\r\n"):
                return
        elif len(self._data) < self._whole:
            return
        self._data, self._whole = b"", 0
        if self.warm:
            self.warm -= 1
            self._run.warmed[self._status.decode()] += 1
            if not self.warm:
                self._run.is_warm()
                return  # until all are
        else:
            self._run.record(self._status, time.perf_counter_ns() - self._sent)
        self.next()


class Run:
    """One task."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.answers: Counter[str] = Counter()  # by status
        self.warmed: Counter[str] = Counter()
        self.times: list[int] = []  # ns
        connections = task["connections"]
        self.every = connections / task["rate"] if task.get("rate") else 0.0  # seconds, of one connection
        self._left = task.get("requests", sys.maxsize)
        self._until = sys.maxsize
        self._fresh = bool(task.get("fresh"))
        self._number = task.get("first", 0)
        host = task["url"].split("/")[2]
        target = task["url"].partition(host)[2] if task.get("direct") else task["url"]
        self._parts = (f"GET {target}".encode(), f" HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        self._cold = connections
        self._all_warm = asyncio.Event()

    def request(self) -> bytes:
        if not self._fresh:
            return b"".join(self._parts)
        self._number += 1
        return b"%b/%d%b" % (self._parts[0], self._number, self._parts[1])

    def take_one(self) -> bool:
        if self._left <= 0 or time.perf_counter_ns() >= self._until:
            return False
        self._left -= 1
        return True

    def is_warm(self) -> None:
        self._cold -= 1
        if self._cold <= 0:
            self._all_warm.set()

    def record(self, status: bytes, nanoseconds: int) -> None:
        self.answers[status.decode()] += 1
        self.times.append(nanoseconds)

    async def run(self) -> dict[str, Any]:
        task, loop = self.task, asyncio.get_running_loop()
        pids = task.get("pids", [])
        clients = []
        for _ in range(task["connections"]):
            _, client = await loop.create_connection(lambda: Client(self), "127.0.0.1", task["port"])
            clients.append(client)
        warm = task.get("warm", 0)
        if warm:
            for client in clients:
                client.warm = warm
                client.send()
            await self._all_warm.wait()
        before = [cpu_seconds(pid) for pid in pids]
        began, own = time.perf_counter_ns(), time.process_time()
        if "seconds" in task:
            self._until = began + int(task["seconds"] * 1e9)
        for index, client in enumerate(clients):
            client.start(loop.time() + self.every * index / len(clients))
        await asyncio.gather(*(client.ended for client in clients))
        ended = time.perf_counter_ns()
        after = [cpu_seconds(pid) for pid in pids]
        times = sorted(self.times)
        return {
            "answers": self.answers,
            "warmed": self.warmed,
            "seconds": (ended - began) / 1e9,
            "cpu": [late - early for late, early in zip(after, before, strict=True)],
            "own_cpu": time.process_time() - own,
            "p50": _at(times, 0.50),
            "p90": _at(times, 0.90),
            "p99": _at(times, 0.99),
            "most": times[-1] / 1e6 if times else 0.0,
        }


def _at(times: list[int], part: float) -> float:
    """That percentile, in milliseconds."""
    return times[min(len(times) - 1, int(len(times) * part))] / 1e6 if times else 0.0


def main() -> None:
    gc.disable()
    print("{}", flush=True)
    for line in sys.stdin:
        run = asyncio.run(asyncio.wait_for(Run(json.loads(line)).run(), LIMIT_S))
        print(json.dumps(run), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
