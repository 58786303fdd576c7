"""An answer that is not paid for reaches the client as it would without us, byte for byte."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from proxy_addon.mitm.gate import Deliver
from tests.unit.mitm.clients import Tunnel, raw
from tests.unit.mitm.fake_gate import FakeGate
from tests.unit.mitm.proxy import running_proxy
from tests.unit.mitm.servers import Exchange, Exchange2, h1_server, h2_server, server_tls

ANSWERS = {
    "length": b"HTTP/1.1 402 Payment Required\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello",
    "empty": b"HTTP/1.1 402 Payment Required\r\nContent-Length: 0\r\n\r\n",
    "odd reason": b"HTTP/1.1 402 Give me  money!\r\nContent-Length: 0\r\n\r\n",
    "no reason": b"HTTP/1.1 402 \r\nContent-Length: 0\r\n\r\n",
    "many fields": (
        b"HTTP/1.1 402 Pay\r\nx-b: 2\r\nSet-Cookie: a=1\r\nX-A: 1\r\nset-cookie: b=2\r\nX-A: 1\r\n"
        b'WWW-Authenticate: Payment id="a"\r\nwww-authenticate: Basic realm="b"\r\n'
        b"Content-Length: 2\r\nX-Empty:\r\n\r\nok"
    ),
    "chunked": (
        b"HTTP/1.1 402 Pay\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\nA;ext=1\r\n0123456789\r\n0\r\n\r\n"
    ),
    "until close": b"HTTP/1.1 402 Pay\r\nConnection: close\r\n\r\nthe rest",
    "1.0": b"HTTP/1.0 402 Pay\r\nContent-Type: text/plain\r\n\r\nold",
    "binary, encoded": b"HTTP/1.1 402 Pay\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x00\xff\x1f\x8b",
    "latin-1": b"HTTP/1.1 402 Pay\r\nX-Name: M\xfcller\r\nContent-Length: 0\r\n\r\n",
    "410": b"HTTP/1.1 410 Gone\r\nContent-Length: 3\r\n\r\nbye",
    "200": b"HTTP/1.1 200 Fine\r\nX-B: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\nyes",
    "no body": b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n',
    "too long": b"HTTP/1.1 402 Pay\r\nContent-Length: 200000\r\n\r\n" + b"0123456789" * 20_000,
}


@pytest.fixture
def refusing(gate: FakeGate) -> FakeGate:
    gate.verdict = lambda ticket, n: Deliver()
    return gate


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_h1(confdir: Path, refusing: FakeGate, name: str, method: str) -> None:
    async def serve(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange)
        await x.body()
        head, _, body = ANSWERS[name].partition(b"\r\n\r\n")
        x.write(head + b"\r\n\r\n" + (b"" if method == "HEAD" else body))
        await x.writer.drain()
        x.close()

    got = []
    for gate in (None, refusing):
        async with h1_server(serve) as up, running_proxy(confdir, gate) as proxy:
            body = b"x=1" if method == "POST" else b""
            head = f"{method} {up.url('/p')} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            got.append(await raw(proxy.port, f"{head}{length}\r\n".encode() + body))
            (request,) = up.requests
            got.append((request.path, request.headers, request.body))  # type: ignore[arg-type]
    assert got[0]
    assert got[:2] == got[2:]


async def plain(x: Exchange2) -> None:
    await x.respond(402, b"hello", [("x-b", "1"), ("set-cookie", "a"), ("x-a", "2"), ("set-cookie", "b")])


async def empty(x: Exchange2) -> None:
    await x.begin(402, [("x-b", "1")], end=True)


async def trailing(x: Exchange2) -> None:
    await x.begin(402)
    await x.data(b"one")
    await x.data(b"two")
    await x.end([("x-trailer", "1")])


@pytest.mark.parametrize("answer", [plain, empty, trailing])
async def test_h2(
    confdir: Path, pem: Path, refusing: FakeGate, answer: Callable[[Exchange2], Awaitable[None]]
) -> None:
    async def serve(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange2)
        await answer(x)

    got = []
    for gate in (None, refusing):
        async with (
            h2_server(serve, server_tls(pem, "h2")) as up,
            running_proxy(confdir, gate) as proxy,
        ):
            tunnel = await Tunnel.open(proxy.port, "127.0.0.1", up.port)
            seen = await tunnel.done(tunnel.request("GET", "/"))
            got.append((seen.headers, seen.body, seen.trailers, seen.ended, up.requests[0].headers))
            await tunnel.close()
    assert got[0] == got[1]
    assert got[0][0][0] == (":status", "402")
