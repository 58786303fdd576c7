"""The upstream of the benchmarks, a process of its own: ``python -m bench.upstream``.

It prints one line of JSON with its addresses, and ends when its standard input does. Paths:

- ``/paid``: costs `PRICE`; ``/paid/...`` too, so that a path can be new;
- ``/free``: the same answer for nothing;
- ``/checked``: for nothing, but at the seller's whole cost of checking a voucher: what `/paid` is compared with;
- ``/blob?n=``: paid, so many bytes; ``/free-blob?n=`` for nothing;
- ``/upload``: paid, takes a body of any size;
- ``/events?n=&gap=``: paid, an event stream, each event with the moment at which it was written (monotonic ns),
  `gap` ms apart; ``/free-events`` for nothing; ``/meter?n=&gap=``: each event costs, and waits for a voucher;
- ``/-/stats``, ``/-/fund?address=&amount=``, ``/-/forget``, ``/-/reset``: for the harness.

Hand-written HTTP/1.1, since a library's parser costs as much as what is measured. It believes its clients.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from bench.metered import Meter
from bench.seller import PRICE, Fields, Seller
from proxy_addon.demo.payload import PaymentProblem
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.methods.abi import parse_address

_CREDENTIAL: Final = re.compile(rb"\r\n(?:payment-)?authorization: *(payment [^\r\n]+)", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_BODY: Final = b'{"symbol":"BENCH","bid":"41.99","ask":"42.01","size":"100","at":"2026-01-01T00:00:00Z"}\n'
_JSON: Final[Fields] = (("Content-Type", "application/json"),)
_PIECE: Final = bytes(64 * 1024)
_REASONS: Final = {200: "OK", 204: "No Content", 402: "Payment Required", 404: "Not Found", 410: "Gone"}


class Upstream:
    """What all connections share."""

    def __init__(self) -> None:
        self.seller = Seller()
        self.meter = Meter(self.seller)
        self.counts: Counter[str] = Counter()

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self.counts["requests"],
            "paid": self.counts["paid"],
            "refused": self.counts["refused"],
            "opened": self.seller.opened,
            "by_payer": self.seller.books(),
        }

    def manage(self, action: str, query: dict[str, str]) -> bytes:
        match action:
            case "stats":
                return orjson.dumps(self.stats())
            case "fund":
                address = parse_address(query["address"], "address")
                self.seller.chain.fund(address, int(query["amount"]))
            case "forget":
                self.seller.forget_challenges()
            case "reset":
                self.counts.clear()
            case _:
                return b'{"error":"no such action"}'
        return b"{}"


class Connection(asyncio.Protocol):
    """One connection, one request at a time: nobody pipelines."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.transport: asyncio.Transport
        self._data = b""
        self._left = 0  # bytes of a body that are still to come
        self._then: Callable[[], None] | None = None  # what answers once the body has come
        self._chunked = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._then is not None:
            self._body(data)
            return
        self._data = self._data + data if self._data else data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head, rest = self._data[: end + 2], self._data[end + 4 :]
        self._data = b""
        method, target, _ = head.split(b" ", 2)
        path, _, query = target.partition(b"?")
        found = _CREDENTIAL.search(head)
        credential = found[1].decode("latin-1") if found else None
        if method == b"GET":
            self._respond(path, query, credential)
            return
        self._then = lambda: self._respond(
            path, query, credential, managing=method == b"HEAD" or path == b"/meter"
        )
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else 0
        self._chunked = _CHUNKED.search(head) is not None
        self._body(rest)

    def _body(self, data: bytes) -> None:
        """Takes what comes of a body and forgets it. The end of a chunked one is looked for at a piece's end only."""
        assert self._then is not None
        if self._chunked:
            self._data = (self._data + data)[-5:]
            if self._data != b"0\r\n\r\n":
                return
            self._data = b""
        else:
            self._left -= len(data)
            if self._left > 0:
                return
        then, self._then = self._then, None
        then()

    # -- answers

    def _respond(self, path: bytes, query: bytes, credential: str | None, *, managing: bool = False) -> None:
        if path.startswith(b"/-/"):
            asked = dict(parse_qsl(query.decode()))
            self._send(200, _JSON, self.upstream.manage(path[3:].decode(), asked))
            return
        counts = self.upstream.counts
        counts["requests"] += 1
        match path:
            case b"/free":
                self._send(200, _JSON, _BODY)
            case b"/checked":
                self.upstream.seller.check_a_sample()
                self._send(200, _JSON, _BODY)
            case b"/free-blob":
                self._task = asyncio.ensure_future(self._blob(_numbers(query)["n"], ()))
            case b"/free-events":
                self._task = asyncio.ensure_future(self._events(_numbers(query), ()))
            case b"/meter":
                self._sell_metered(_numbers(query), credential, managing=managing)
            case _:
                self._sell(path, query, credential, managing=managing)

    def _sell(self, path: bytes, query: bytes, credential: str | None, *, managing: bool) -> None:
        try:
            if credential is None:
                raise PaymentProblem("payment-required", f"a request costs {PRICE} base units")
            receipt = self.upstream.seller.take(credential, content=not managing)
        except PaymentProblem as problem:
            self._refuse(problem)
            return
        paid = (("Payment-Receipt", receipt), ("Cache-Control", "private"))
        self.upstream.counts["paid"] += 1
        if managing:
            self._send(204, paid, b"")
        elif path == b"/blob":
            self._task = asyncio.ensure_future(self._blob(_numbers(query)["n"], paid))
        elif path == b"/events":
            self._task = asyncio.ensure_future(self._events(_numbers(query), paid))
        else:
            self._send(200, _JSON + paid, _BODY)

    def _refuse(self, problem: PaymentProblem) -> None:
        self.upstream.counts["refused"] += 1
        self._send(*self.upstream.seller.refuse(problem))

    def _send(self, status: int, fields: Fields, body: bytes) -> None:
        length = (("Content-Length", str(len(body))),) if status != 204 else ()
        self.transport.write(_head(status, fields + length) + body)

    async def _blob(self, size: int, fields: Fields) -> None:
        self.transport.write(_head(200, (*fields, ("Content-Length", str(size)))))
        for start in range(0, size, len(_PIECE)):
            await self._writable.wait()
            self.transport.write(_PIECE[: size - start])

    async def _events(self, asked: dict[str, int], fields: Fields) -> None:
        self._begin_stream(fields)
        for number in range(asked["n"]):
            if number:
                await asyncio.sleep(asked["gap"] / 1000)
            self._event(b"data: %d %d\n\n" % (number, time.monotonic_ns()))
        self.transport.write(b"0\r\n\r\n")

    def _sell_metered(self, asked: dict[str, int], credential: str | None, *, managing: bool) -> None:
        try:
            if credential is None:
                raise PaymentProblem("payment-required", f"an event costs {PRICE} base units")
            stream = self.upstream.meter.take(credential, managing=managing)
        except PaymentProblem as problem:
            self._refuse(problem)
            return
        if managing:
            self._send(204, (("Payment-Receipt", self.upstream.meter.receipt(stream)),), b"")
            return
        self._begin_stream((("Cache-Control", "no-cache"),))
        run = self.upstream.meter.run(stream, asked["n"], asked["gap"], self._event)

        async def whole() -> None:
            await run
            self.transport.write(b"0\r\n\r\n")

        self._task = asyncio.ensure_future(whole())

    def _begin_stream(self, fields: Fields) -> None:
        kind = (("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
        self.transport.write(_head(200, fields + kind))

    def _event(self, event: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))


def _head(status: int, fields: Fields) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\n{lines}\r\n".encode("latin-1")


def _numbers(query: bytes) -> dict[str, int]:
    return {"n": 1, "gap": 0} | {name: int(value) for name, value in parse_qsl(query.decode())}


async def main() -> None:
    upstream = Upstream()
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: Connection(upstream), "127.0.0.1", 0, backlog=2048) for _ in "ab"
    ]
    paid, other = (server.sockets[0].getsockname()[1] for server in servers)
    async with RpcServer(upstream.seller.chain) as rpc:
        ready = {
            "port": paid,
            "unlisted_port": other,
            "rpc": rpc.url,
            "chain_id": upstream.seller.chain.chain_id,
        }
        print(json.dumps(ready), flush=True)
        await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(main())
