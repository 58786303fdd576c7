"""F10: what counts as under way when the proxy is told to stop, and what becomes of what begins after that."""

from __future__ import annotations

import asyncio

import pytest

from proxy_addon.mitm.draining import Draining
from proxy_addon.mitm.gate import Outcome
from tests.unit.mitm.clients import raw
from tests.unit.mitm.fake_gate import FakeGate
from tests.unit.mitm.servers import Exchange, Exchange2
from tests.unit.mitm.wires import WIRES, Line, Wiring

BOTH = pytest.mark.parametrize("wiring", [WIRES[0], WIRES[2]], ids=lambda wire: wire.name, indirect=True)


class Slow:
    """An upstream whose answers end when the test says so."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, x: Exchange | Exchange2) -> None:
        await x.body()
        await x.begin(200)
        await x.data(b"first ")
        self.begun.set()
        await self.go.wait()
        await x.data(b"last")
        await x.end()


def under_way(draining: Draining, line: Line) -> int:
    return draining.under_way(line.proxy.master.addons)


@BOTH
async def test_an_answer_is_waited_for(wiring: Wiring, gate: FakeGate) -> None:
    draining, slow = Draining(), Slow()
    async with wiring.line(slow, gate, extra=(draining,)) as line:
        client = asyncio.create_task(line.curl("/"))
        await slow.begun.wait()
        assert under_way(draining, line) == 1
        stopping = asyncio.create_task(draining.drain(line.proxy.master.addons, 60))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        slow.go.set()
        await stopping
        got = await client
        assert (got.code, b"last" in got.body) == (0, True)
        await draining.drain(line.proxy.master.addons, 60)  # once is enough


@BOTH
async def test_but_not_for_ever(wiring: Wiring, gate: FakeGate, caplog: pytest.LogCaptureFixture) -> None:
    draining, slow = Draining(), Slow()
    async with wiring.line(slow, gate, extra=(draining,)) as line:
        client = asyncio.create_task(line.curl("/"))
        await slow.begun.wait()
        await draining.drain(line.proxy.master.addons, 0.01)
        assert "1 answers are cut off" in caplog.text
        assert (await client).code != 0
        await gate.all_finished()
        assert gate.tickets[0].outcome is Outcome.CUT
        slow.go.set()


async def test_a_second_signal_ends_the_waiting(plain_wiring: Wiring, gate: FakeGate) -> None:
    draining, slow = Draining(), Slow()
    async with plain_wiring.line(slow, gate, extra=(draining,)) as line:
        client = asyncio.create_task(line.curl("/"))
        await slow.begun.wait()
        stopping = asyncio.create_task(draining.drain(line.proxy.master.addons, 3600))
        await asyncio.sleep(0)
        draining.hurry()
        await stopping
        slow.go.set()
        await client


@BOTH
async def test_a_client_that_left_is_not_waited_for(wiring: Wiring, gate: FakeGate) -> None:
    draining, slow = Draining(), Slow()
    async with wiring.line(slow, gate, extra=(draining,)) as line:
        client = asyncio.create_task(line.curl("/"))
        await slow.begun.wait()
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        await draining.drain(line.proxy.master.addons, 3600)
        assert under_way(draining, line) == 0
        slow.go.set()


async def test_an_upstream_that_breaks_off_is_not_waited_for(plain_wiring: Wiring, gate: FakeGate) -> None:
    async def breaking(x: Exchange | Exchange2) -> None:
        await x.begin(200)
        await x.data(b"first ")
        x.close()

    draining = Draining()
    async with plain_wiring.line(breaking, gate, extra=(draining,)) as line:
        await line.curl("/")
        await draining.drain(line.proxy.master.addons, 3600)
        assert under_way(draining, line) == 0


async def test_what_begins_meanwhile_is_refused_and_never_sent(plain_wiring: Wiring, gate: FakeGate) -> None:
    """On a connection that was there before; a new one finds nobody."""
    draining, slow = Draining(), Slow()

    async def serve(x: Exchange | Exchange2) -> None:
        await x.body()
        await (slow(x) if x.request.path == "/slow" else x.respond(200, b"served"))

    async with plain_wiring.line(serve, gate, extra=(draining,)) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.proxy.port)
        url, port = line.upstream.url("/"), line.upstream.port

        async def ask(method: str, body: bytes = b"") -> bytes:
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            writer.write(f"{method} {url} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{length}\r\n".encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            found = next(one for one in head.lower().split(b"\r\n") if one.startswith(b"content-length"))
            await reader.readexactly(int(found.partition(b":")[2]))
            return head

        assert b" 200 " in await ask("GET")
        client = asyncio.create_task(line.curl("/slow"))
        await slow.begun.wait()
        stopping = asyncio.create_task(draining.drain(line.proxy.master.addons, 60))
        await asyncio.sleep(0)
        head = await ask("POST", b"x" * 1000)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in head.lower()
        assert b"connection: close" in head.lower()
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await raw(line.proxy.port, b"")
        slow.go.set()
        await stopping
        assert (await client).code == 0
        assert [one.path for one in line.upstream.requests] == ["/", "/slow"]
        assert len(gate.tickets) == 2


async def test_idle_connections_are_closed(plain_wiring: Wiring, gate: FakeGate) -> None:
    draining = Draining()

    async def serve(x: Exchange | Exchange2) -> None:
        await x.respond(200, b"served")

    async with plain_wiring.line(serve, gate, extra=(draining,)) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.proxy.port)
        url = line.upstream.url("/")
        writer.write(f"GET {url} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(b"served"))
        await draining.drain(line.proxy.master.addons, 3600)
        assert await reader.read() == b""
        writer.close()
        proxyserver = line.proxy.master.addons.get("proxyserver")  # type: ignore[no-untyped-call]
        assert not proxyserver.connections
