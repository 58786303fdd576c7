"""Hosts that no rule names: their answers come as they are sent, however long they take, or are."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.proxies import Proxy, bursar, rule
from tests.e2e.scripted import Gate, Handler, Request, Upstream
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

MIB = 2**20


@pytest.fixture(scope="module")
def stranger(devnet: Devnet) -> Iterator[Upstream]:
    with Upstream(devnet) as upstream:
        yield upstream


@pytest.fixture(scope="module", params=["bursar run", "mitmdump"])
def proxy(request: pytest.FixtureRequest, make_home: MakeHome, make_proxy: MakeProxy) -> Iterator[Proxy]:
    home = make_home(policy={"max_per_day": "1", "max_lifetime": "1", "hosts": [rule("paid.example.com")]})
    launched = (
        make_proxy(home)
        if request.param == "mitmdump"
        else Proxy(home, bursar(home, "run", "--listen", "127.0.0.1:0"))
    )
    with launched as running:
        yield running


def begins(content_type: str, first: bytes, gate: Gate) -> Handler:
    """The first part is sent; the last one only when the client has the first."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode() + b"%x\r\n%b\r\n" % (len(first), first))
        await writer.drain()
        await gate.passed()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    return handler


def read_until(line: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    got = b""
    while not enough(got):
        part = line.recv(65536)
        assert part, got[-100:]
        got += part
    return got


def ask(proxy: Proxy, url: str) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
    authority = url.split("/")[2]
    line.sendall(f"GET {url} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    return line


def test_events_come_one_by_one(proxy: Proxy, stranger: Upstream) -> None:
    gate = Gate()
    stranger.routes["/events"] = begins("text/event-stream; charset=utf-8", b"data: one\n\n", gate)
    with ask(proxy, f"{stranger.url}/events") as line:
        got = read_until(line, lambda got: b"data: one" in got)
        assert b"last" not in got
        gate.open()
        read_until(line, lambda got: b"last" in got)


def test_a_large_body_comes_as_it_is_sent(proxy: Proxy, stranger: Upstream) -> None:
    if "proxy_addon.cli.main" not in proxy.command:
        pytest.skip("under plain mitmdump that is mitmproxy's option stream_large_bodies, which is off")
    gate = Gate()
    stranger.routes["/large"] = begins("application/octet-stream", bytes(2 * MIB), gate)
    with ask(proxy, f"{stranger.url}/large") as line:
        read_until(line, lambda got: len(got) > MIB)
        gate.open()
        read_until(line, lambda got: b"last" in got)
