"""Request bodies that are long, slow, or answered before their end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Any

import pytest
from mitmproxy import http

from proxy_addon.mitm.gate import Again, Deliver, Outcome
from proxy_addon.mitm.paying import Limits
from tests.unit.mitm.clients import Tunnel
from tests.unit.mitm.fake_gate import PAY, FakeGate, FakeTicket
from tests.unit.mitm.servers import Exchange, Exchange2
from tests.unit.mitm.test_replay import BIG, paid_for, shop
from tests.unit.mitm.wires import Line, Wiring

PART = BIG[: 1 << 20]


class Uploader:
    """A client that sends a body in parts, when the test says so; on either protocol."""

    def __init__(self, line: Line) -> None:
        self.line = line

    async def start(self) -> None:
        up, proxy = self.line.upstream, self.line.proxy
        if self.line.wire.server == "h2":
            self.tunnel = await Tunnel.open(proxy.port, "127.0.0.1", up.port)
            self.answer = self.tunnel.request("POST", "/", end=False)
        else:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            head = f"POST {up.url('/')} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            self.writer.write(head.encode())

    async def send(self, data: bytes) -> None:
        if self.line.wire.server == "h2":
            await self.tunnel.send(self.answer, data)
        else:
            self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await self.writer.drain()

    def end(self) -> None:
        if self.line.wire.server == "h2":
            self.tunnel.end(self.answer)
        else:
            self.writer.write(b"0\r\n\r\n")

    async def head(self) -> int:
        if self.line.wire.server == "h2":
            await self.tunnel.until(lambda: self.answer.headers)
            assert self.answer.status
            return self.answer.status
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 30)
        return int(head.split(b" ")[1])

    async def body(self, size: int) -> bytes:
        if self.line.wire.server == "h2":
            await self.tunnel.until(lambda: len(self.answer.body) >= size)
            return self.answer.body
        return await asyncio.wait_for(self.reader.readexactly(size), 30)

    async def close(self) -> None:
        if self.line.wire.server == "h2":
            await self.tunnel.close()
        else:
            self.writer.close()


@pytest.fixture(params=["plain", "h2"])
def either(request: pytest.FixtureRequest, plain_wiring: Wiring, h2_wiring: Wiring) -> Wiring:
    return plain_wiring if request.param == "plain" else h2_wiring


async def early(x: Exchange | Exchange2) -> None:
    """Answers 402 after the first bytes, without reading on; takes all of a paid upload."""
    if x.request.paid:
        await shop(x)
    else:
        await x.chunk()
        await x.respond(402, b"pay first")
        await x.gone()


async def test_the_replay_of_an_early_402_does_not_wait_for_the_upload(
    either: Wiring, gate: FakeGate
) -> None:
    async with either.line(early, gate) as line:
        client = Uploader(line)
        await client.start()
        await client.send(PART)
        await line.upstream.until(lambda: len(line.upstream.requests) == 2)
        second = line.upstream.requests[1]
        await line.upstream.until(lambda: len(second.body) == len(PART))  # before the client goes on
        await client.send(PART)
        client.end()
        assert await client.head() == 200
        assert await client.body(len(paid_for(b""))) == paid_for(PART + PART)
        await client.close()
    ticket = gate.tickets[0]
    assert ticket.outcome is Outcome.COMPLETE
    assert dict(ticket.digests)["answered"] is None
    assert ticket.body_sha256 == hashlib.sha256(PART + PART).hexdigest()


async def test_an_early_402_is_delivered_early_and_the_upload_goes_on(either: Wiring, gate: FakeGate) -> None:
    async def reads_on(x: Exchange | Exchange2) -> None:
        await x.chunk()
        await x.respond(402, b"pay first")
        await x.body()

    gate.verdict = lambda ticket, n: Deliver()
    async with either.line(reads_on, gate) as line:
        client = Uploader(line)
        await client.start()
        await client.send(PART)
        assert await client.head() == 402
        assert await client.body(9) == b"pay first"
        await client.send(PART)
        client.end()
        await line.upstream.until(lambda: line.upstream.requests[0].complete)
        assert line.upstream.requests[0].body == PART + PART
        await client.close()


async def test_what_comes_in_while_the_gate_decides_is_kept(either: Wiring, gate: FakeGate) -> None:
    sent = asyncio.Event()

    async def verdict(ticket: FakeTicket) -> Again:
        await sent.wait()
        return Again(PAY)

    async def reads_on(x: Exchange | Exchange2) -> None:
        if x.request.paid:
            await shop(x)
        else:
            while len(x.request.body) < len(PART):
                await x.chunk()
            await x.respond(402, b"pay first")
            await x.body()

    gate.verdict = lambda ticket, n: verdict(ticket)
    async with either.line(reads_on, gate) as line:
        client = Uploader(line)
        await client.start()
        await client.send(PART)
        await gate.until(lambda: gate.tickets and "answered" in gate.tickets[0].calls)
        for _ in range(4):
            await client.send(PART)
        client.end()
        sent.set()
        assert await client.head() == 200
        assert await client.body(len(paid_for(b""))) == paid_for(PART * 5)
        assert len(line.upstream.requests[0].body) == len(
            PART
        )  # a server that has answered gets no more of it
        await client.close()


async def test_a_server_that_has_begun_to_answer_gets_no_more(either: Wiring, gate: FakeGate) -> None:
    begun, more = asyncio.Event(), asyncio.Event()

    async def slow(x: Exchange | Exchange2) -> None:
        if x.request.paid:
            await shop(x)
            return
        while len(x.request.body) < len(PART):
            await x.chunk()
        await x.begin(402)
        await x.data(b"pay")
        begun.set()
        await more.wait()
        await x.end()
        await x.body()

    async with either.line(slow, gate) as line:
        client = Uploader(line)
        await client.start()
        await client.send(PART)
        await begun.wait()
        await asyncio.sleep(0.1)  # until the proxy has the answer's header
        await client.send(PART)
        await asyncio.sleep(0.1)
        more.set()
        client.end()
        assert await client.head() == 200
        assert await client.body(len(paid_for(b""))) == paid_for(PART * 2)
        assert len(line.upstream.requests[0].body) == len(PART)
        await client.close()


async def test_the_client_leaves_during_its_upload(either: Wiring, gate: FakeGate) -> None:
    async def reading(x: Exchange | Exchange2) -> None:
        await x.body()

    async with either.line(reading, gate) as line:
        client = Uploader(line)
        await client.start()
        await client.send(PART)
        await line.upstream.until(lambda: line.upstream.requests and line.upstream.requests[0].body)
        await client.close()
        await gate.all_finished()
        assert len(line.upstream.requests) == 1
        assert not line.upstream.requests[0].complete
    assert gate.tickets[0].outcome is Outcome.LOST


@pytest.mark.parametrize("watches", [True, False])
async def test_a_body_over_the_cap_goes_through_but_only_once(
    wiring: Wiring, gate: FakeGate, watches: bool
) -> None:
    gate.watches_body = watches
    async with wiring.line(shop, gate, Limits(repeatable_body=1 << 20)) as line:
        got = await line.curl("/", "--data-binary", "@-", stdin=BIG)
        assert (got.status, got.body) == (402, b"pay first")
        assert [r.body == BIG for r in line.upstream.requests] == [True]
        assert "over 1048576 bytes, repeatable_body" in line.proxy.log.text()
    assert "answered" not in gate.tickets[0].calls
    assert gate.tickets[0].body_sha256 == hashlib.sha256(BIG).hexdigest()
    assert gate.tickets[0].outcome is Outcome.COMPLETE


async def test_another_addon_transforms_the_stream(wiring: Wiring, gate: FakeGate) -> None:
    """What it made of the body is what is repeated: it is asked once."""

    class Upper:
        def requestheaders(self, flow: http.HTTPFlow) -> None:
            flow.request.stream = lambda data: [data.upper()]

    async with wiring.line(shop, gate, extra=(Upper(),)) as line:
        got = await line.curl("/", "--data-binary", "@-", stdin=b"abc" * 100_000)
        assert (got.status, got.body) == (200, paid_for(b"ABC" * 100_000))


@pytest.mark.parametrize("options", [{"stream_large_bodies": "1k"}, {"body_size_limit": "9m"}])
async def test_mitmproxys_own_size_options(wiring: Wiring, gate: FakeGate, options: dict[str, Any]) -> None:
    async with wiring.line(shop, gate, **options) as line:
        got = await line.curl("/", "--data-binary", "@-", stdin=BIG)
        assert (got.status, got.body) == (200, paid_for(BIG))
        assert [r.body == BIG for r in line.upstream.requests] == [True, True]


async def test_the_body_size_limit_holds_for_bodies_of_unknown_length(
    plain_wiring: Wiring, gate: FakeGate
) -> None:
    async with plain_wiring.line(shop, gate, body_size_limit="1m") as line:
        client = Uploader(line)
        await client.start()
        await client.send(BIG)
        assert await client.head() == 413
        await client.close()
        assert not line.upstream.requests
    assert gate.tickets[0].outcome is Outcome.NOT_SENT


async def test_a_server_that_opens_its_window_slowly(h2_wiring: Wiring, gate: FakeGate) -> None:
    """h2 flow control has no echo in mitmproxy's layers: what does not fit waits on disk, and all arrives."""
    gate.now = PAY

    async def slow(x: Exchange | Exchange2) -> None:
        for _ in range(20):
            await x.chunk()
            await asyncio.sleep(0.01)
        await shop(x)

    async with h2_wiring.line(slow, gate) as line:
        got = await line.curl("/", "-T", "-", stdin=BIG)
        assert (got.status, got.body) == (200, paid_for(BIG))


async def test_the_server_leaves_during_a_paid_upload(either: Wiring, gate: FakeGate) -> None:
    gate.now = PAY

    async def leaves(x: Exchange | Exchange2) -> None:
        await x.chunk()
        x.close()

    async with either.line(leaves, gate) as line:
        client = Uploader(line)
        await client.start()
        with contextlib.suppress(ConnectionError):  # the proxy answers 502 and closes, as ever
            for _ in range(8):  # more than any buffer between takes
                await client.send(PART)
            client.end()
        await gate.all_finished()
        assert len(line.upstream.requests) == 1
        await client.close()
    assert gate.tickets[0].outcome is Outcome.LOST
