"""What mitmproxy's HTTP/1 leaves out: here with the bytes that hostile peers once hung or filled a proxy with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy_addon.mitm.heads import MOST_BYTES, MOST_INTERIM
from tests.unit.mitm.clients import curl, raw
from tests.unit.mitm.fake_gate import PAY, FakeGate
from tests.unit.mitm.proxy import Proxy, running_proxy

CURL_GAVE_UP = 28
GOODS = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ngoods"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ASKS = b"HTTP/1.1 402 Pay\r\nContent-Length: 3\r\n\r\npay"
NOISE = b"x" * (MOST_BYTES + 70_000)


class Server:
    """Answers each request with the next of these bytes; the last ones again and again."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                answer = self.answers[min(len(self.heads), len(self.answers) - 1)]
                self.heads.append(head)
                if b"transfer-encoding: chunked" in head.lower():
                    self.bodies.append(await reader.readuntil(b"0\r\n\r\n"))
                writer.write(answer)
                await writer.drain()
        writer.close()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextlib.asynccontextmanager
async def between(confdir: Path, gate: FakeGate, *answers: bytes) -> AsyncIterator[tuple[Server, Proxy]]:
    served = Server(*answers)
    listening = await asyncio.start_server(served, "127.0.0.1", 0, limit=2**21)
    served.port = listening.sockets[0].getsockname()[1]
    try:
        async with running_proxy(confdir, gate) as proxy:
            yield served, proxy
    finally:
        listening.close()


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + b"5\r\ngoods\r\n0\r\nX-Trailer: t\r\nPayment-Receipt: r\r\n\r\n",
        CHUNKED + b"5\r\ngoods\r\n0\r\nnonsense\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + GOODS,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * MOST_INTERIM + GOODS,
        b"\r\n" + GOODS,
    ],
    ids=["trailers", "trailers-that-are-none", "continue", "early-hints", "an-empty-line"],
)
async def test_what_is_odd_and_honest_arrives(confdir: Path, gate: FakeGate, answer: bytes) -> None:
    """Once paid for, and as the next answer on the same connections."""
    async with between(confdir, gate, ASKS, answer, answer) as (server, proxy):
        got = await curl(proxy.url, server.url(), server.url("/again"))
        assert got.code == 0
        assert got.body.count(b"goods") == 2
        assert b"Payment-Receipt" not in got.body + got.head
        assert "has crashed" not in proxy.log.text()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 402 Pay\r\nX: " + NOISE,
        b"HTTP/1.1 " + NOISE,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MOST_INTERIM + 1) + ASKS,
        CHUNKED + b"5;" + NOISE,
        CHUNKED + b"5\r\ngoods\r\n0\r\nX: " + NOISE,
    ],
    ids=["a-header", "a-status-line", "interim-answers", "a-chunks-header", "trailers"],
)
async def test_what_has_no_end_is_ended(confdir: Path, gate: FakeGate, answer: bytes) -> None:
    """The server neither goes on nor closes: the client hears of it all the same."""
    gate.now = PAY
    async with between(confdir, gate, answer) as (server, proxy):
        got = await curl(proxy.url, "--max-time", "30", server.url())
        assert got.code != CURL_GAVE_UP
        assert got.code or got.status == 502
        assert len(server.heads) == 1
        assert "has crashed" not in proxy.log.text()


@pytest.mark.parametrize("paid", [True, False])
async def test_no_field_of_the_clients_ends_early(confdir: Path, gate: FakeGate, paid: bool) -> None:
    """What goes on is one line each, however often it is sent (`Uplink.keep_head`)."""
    async with between(confdir, gate, *([ASKS] if paid else []), GOODS) as (server, proxy):
        for value in (b"a\rb", b"a\nb: c", b"a\0b", b"a\r b", b"a\rb: c"):
            server.heads.clear()
            head = f"GET {server.url()} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ".encode() + value
            said = await raw(proxy.port, head + b"\r\nConnection: close\r\n\r\n")
            # Refused, or made one line of.
            assert said.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400")), value
            for seen in server.heads:
                assert b"\0" not in seen
                assert seen.count(b"\r") == seen.count(b"\n") == seen.count(b"\r\n"), (value, seen)
            assert len(server.heads) in ((0, 2) if paid else (0, 1))


@pytest.mark.parametrize(
    ("make", "answered"),
    [
        (lambda url: f"GET {url} HTTP/1.1\r\nHost: x\r\nX: ".encode() + NOISE, False),
        (lambda url: b"GET " + NOISE, False),
        (lambda url: b"\r\n" + f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), True),
        (
            lambda url: (
                f"POST {url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                "1\r\nx\r\n0\r\nX-Trailer: t\r\n\r\n"
            ).encode(),
            True,
        ),
    ],
    ids=["a-header", "a-request-line", "an-empty-line", "trailers"],
)
async def test_a_client_that_is_odd(
    confdir: Path, gate: FakeGate, make: Callable[[str], bytes], answered: bool
) -> None:
    async with between(confdir, gate, GOODS) as (server, proxy):
        said = await raw(proxy.port, make(server.url()))
        assert said.startswith(b"HTTP/1.1 200" if answered else b"HTTP/1.1 400")
        assert len(server.heads) == answered
        assert "has crashed" not in proxy.log.text()
