"""Servers that close, flood, dawdle and refuse; a gate that fails; clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import h2.errors  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import pytest
from mitmproxy import http

from proxy_addon.mitm.gate import NOTHING, Again, Deliver, Outcome, Outgoing
from proxy_addon.mitm.paying import Limits
from tests.unit.mitm.clients import Tunnel, raw
from tests.unit.mitm.fake_gate import CANARY, PAY, FakeGate, FakeTicket
from tests.unit.mitm.proxy import running_proxy
from tests.unit.mitm.servers import Exchange, Exchange2, Gone, h2_server, server_tls
from tests.unit.mitm.test_replay import paid_for, shop
from tests.unit.mitm.wires import Wiring

# -- connections that close --------------------------------------------------------------------------------


async def test_a_connection_closed_after_the_402(wiring: Wiring, gate: FakeGate) -> None:
    async def closing(x: Exchange | Exchange2) -> None:
        await shop(x)
        if not x.request.paid:
            if isinstance(x, Exchange2):
                await x.goaway(x.request.stream)
            x.close()

    async with wiring.line(closing, gate) as line:
        for arguments, body in (((), b""), (("-d", "x"), b"x")):
            got = await line.curl("/", *arguments)
            assert (got.status, got.body) == (200, paid_for(body))
        assert [r.paid for r in line.upstream.requests] == [False, True] * 2


@pytest.mark.parametrize(("method", "again"), [("GET", 1), ("GET", 0), ("POST", 0)])
async def test_keep_alive_race(plain_wiring: Wiring, gate: FakeGate, method: str, again: int) -> None:
    """The server closes a used connection just as the credential leaves: unknown whether it has seen it."""

    async def racing(x: Exchange | Exchange2) -> None:
        if x.request.connection == 1 and len(x.upstream.requests) == 2:
            await x.body()
            x.close()
        else:
            await shop(x)

    gate.now = PAY
    if not again:
        gate.after_loss = None  # and a POST is not even asked for
    async with plain_wiring.line(racing, gate) as line:
        got = await line.curl("/", "-X", method, line.upstream.url("/first"))
        assert [(r.connection, r.path) for r in line.upstream.requests] == [
            (1, "/first"),
            (1, "/"),
            *[(2, "/")] * again,
        ]
        # Its outcome is unknown, so what goes out again is a new payment.
        paid_with = [r.get("authorization") for r in line.upstream.requests]
        assert paid_with == [CANARY, CANARY, *[CANARY + "-2"] * again]
        assert got.status == (200 if again else 502)
    outcome = Outcome.COMPLETE if again else Outcome.LOST
    assert [t.outcome for t in gate.tickets] == [Outcome.COMPLETE, outcome]
    assert [t.calls.count("prepare_now") for t in gate.tickets] == [1, 1]
    assert [t.calls.count("lost") for t in gate.tickets] == [0, int(method == "GET")]


async def test_the_connection_closes_while_the_gate_prepares(wiring: Wiring, gate: FakeGate) -> None:
    """Nothing has left on it, so there is nothing to be lost: the credential goes out on another one."""
    exchanges: list[Exchange | Exchange2] = []

    async def prepare(ticket: FakeTicket) -> Outgoing:
        if ticket.number == 1:
            exchanges[0].close()
            await asyncio.sleep(0.2)  # until the proxy has seen it
        return PAY

    async def remembering(x: Exchange | Exchange2) -> None:
        exchanges.append(x)
        await shop(x)

    gate.now, gate.in_time = None, prepare
    async with wiring.line(remembering, gate) as line:
        got = await line.curl("/", "-d", "x", line.upstream.url("/first"))
        assert (got.status, got.body) == (200, paid_for(b"x") * 2)
        assert [r.connection for r in line.upstream.requests] == [1, 2]
    assert [t.outcome for t in gate.tickets] == [Outcome.COMPLETE] * 2


async def test_a_new_connection_that_closes_is_not_tried_again(wiring: Wiring, gate: FakeGate) -> None:
    async def closing(x: Exchange | Exchange2) -> None:
        await x.body()
        x.close()

    gate.now = PAY
    async with wiring.line(closing, gate) as line:
        got = await line.curl("/")
        assert got.status == 502
        assert len(line.upstream.requests) == 1
    assert gate.tickets[0].outcome is Outcome.LOST
    assert not gate.tickets[0].client_left


async def test_an_answer_that_is_cut(wiring: Wiring, gate: FakeGate) -> None:
    async def cutting(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.begin(200)
        await x.data(b"some")
        x.close()

    async with wiring.line(cutting, gate) as line:
        got = await line.curl("/")
        assert got.code != 0
    assert gate.tickets[0].outcome is Outcome.CUT
    assert not gate.tickets[0].client_left


@pytest.mark.parametrize("again", [True, False])
async def test_a_402_that_is_cut(wiring: Wiring, gate: FakeGate, again: bool) -> None:
    async def cutting(x: Exchange | Exchange2) -> None:
        await x.body()
        if x.request.paid:
            await x.respond(200, b"ok")
        else:
            await x.begin(402)
            await x.data(b"some")
            x.close()

    gate.verdict = lambda ticket, n: Again(PAY) if again else Deliver()
    async with wiring.line(cutting, gate) as line:
        got = await line.curl("/")
        if again:
            assert (got.status, got.body) == (200, b"ok")
        else:
            assert got.code != 0
            assert got.body.endswith(b"some") or got.body.endswith(b"some\r\n")
    assert gate.tickets[0].bodies == [None]
    assert gate.tickets[0].outcome is (Outcome.COMPLETE if again else Outcome.CUT)


async def test_no_server(wiring: Wiring, gate: FakeGate) -> None:
    async with wiring.line(shop, gate, connection_strategy="lazy") as line:
        line.upstream.port = 1  # nobody is there
        got = await line.curl("/")
        assert got.status == 502
    assert gate.tickets[0].outcome is Outcome.NOT_SENT
    assert "prepare_now" not in gate.tickets[0].calls


async def test_the_server_has_gone_when_it_would_be_paid(plain_wiring: Wiring, gate: FakeGate) -> None:
    async def verdict(ticket: FakeTicket) -> Again:
        server.close()
        return Again(PAY)

    gate.verdict = lambda ticket, n: verdict(ticket)

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 402 Pay\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    async with plain_wiring.line(shop, gate) as line:
        line.upstream.port = server.sockets[0].getsockname()[1]
        got = await line.curl("/")
        assert got.status == 502
    assert gate.tickets[0].outcome is Outcome.NOT_SENT


# -- HTTP/2 says what it has not done ----------------------------------------------------------------------


@pytest.mark.parametrize("refusals", [1, 2])
async def test_a_refused_stream_was_not_processed(h2_wiring: Wiring, gate: FakeGate, refusals: int) -> None:
    async def refusing(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange2)
        await x.body()
        if len(x.upstream.requests) <= refusals:
            await x.rst(h2.errors.ErrorCodes.REFUSED_STREAM)
        else:
            await shop(x)

    gate.now = PAY
    async with h2_wiring.line(refusing, gate) as line:
        got = await line.curl("/", "-d", "x")
        assert got.status == (200 if refusals == 1 else 502)
        assert len(line.upstream.requests) == 2
        assert line.upstream.connections == 1
    assert gate.tickets[0].outcome is (Outcome.COMPLETE if refusals == 1 else Outcome.NOT_SENT)


async def test_another_reset_is_a_loss(h2_wiring: Wiring, gate: FakeGate) -> None:
    async def resetting(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange2)
        await x.body()
        await x.rst(h2.errors.ErrorCodes.INTERNAL_ERROR)

    async with h2_wiring.line(resetting, gate) as line:
        assert (await line.curl("/")).status == 502
        assert len(line.upstream.requests) == 1
    assert gate.tickets[0].outcome is Outcome.LOST
    assert not gate.tickets[0].client_left


@pytest.mark.parametrize(("below", "again"), [(2, True), (0, False)])
async def test_goaway(h2_wiring: Wiring, gate: FakeGate, below: int, again: bool) -> None:
    """A stream above the last one that the server names was not processed; the others may have been."""

    async def leaving(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange2)
        await x.body()
        if x.request.connection == 1 and x.request.path == "/":
            await x.goaway(x.request.stream - below)
        else:
            await shop(x)

    gate.now = PAY
    async with h2_wiring.line(leaving, gate) as line:
        got = await line.curl("/", "-d", "x", line.upstream.url("/first"))
        assert got.status == (200 if again else 502)
        assert [r.connection for r in line.upstream.requests] == ([1, 1, 2] if again else [1, 1])
    assert gate.tickets[1].outcome is (Outcome.COMPLETE if again else Outcome.LOST)


# -- answers too long, too slow, malformed -----------------------------------------------------------------


@pytest.mark.parametrize("again", [True, False])
async def test_a_402_longer_than_the_limit(wiring: Wiring, gate: FakeGate, again: bool) -> None:
    text = b"0123456789abcdef" * 20_000  # 320 KB

    async def verbose(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.respond(200 if x.request.paid else 402, text)

    gate.verdict = lambda ticket, n: Again(PAY) if again else Deliver()
    async with wiring.line(verbose, gate) as line:
        got = await line.curl("/", line.upstream.url("/"))
        assert (got.status, got.body) == (200 if again else 402, text * 2)
    assert gate.tickets[0].bodies == [None]
    assert gate.tickets[0].outcome is Outcome.COMPLETE


@pytest.mark.parametrize("again", [True, False])
async def test_an_endless_402(wiring: Wiring, gate: FakeGate, again: bool) -> None:
    dropped = asyncio.Event()

    async def endless(x: Exchange | Exchange2) -> None:
        await x.body()
        if x.request.paid:
            await x.respond(200, b"ok")
            return
        await x.begin(402)
        try:
            while True:
                await x.data(b"x" * 16_384)
        finally:
            dropped.set()

    async def verdict(ticket: FakeTicket) -> Again | Deliver:
        await asyncio.sleep(0.2)  # time for it to flood
        return Again(PAY) if again else Deliver()

    gate.verdict = lambda ticket, n: verdict(ticket)
    async with wiring.line(endless, gate, Limits(answer_flood=200_000)) as line:
        got = await line.curl("/")
        if again:
            assert (got.status, got.body) == (200, b"ok")
        else:
            assert got.code != 0  # it began and was cut off
        await asyncio.wait_for(dropped.wait(), 30)
    assert gate.tickets[0].bodies == [None]
    assert gate.tickets[0].outcome is (Outcome.COMPLETE if again else Outcome.CUT)


@pytest.mark.parametrize("again", [True, False])
async def test_a_slow_402(wiring: Wiring, gate: FakeGate, again: bool) -> None:
    go_on = asyncio.Event()

    async def slow(x: Exchange | Exchange2) -> None:
        await x.body()
        if x.request.paid:
            await x.respond(200, b"ok")
            return
        await x.begin(402)
        await x.data(b"wait")
        await go_on.wait()
        await x.data(b"ed")
        await x.end()

    def verdict(ticket: FakeTicket, n: int) -> Again | Deliver:
        go_on.set()
        return Again(PAY) if again else Deliver()

    gate.verdict = verdict
    async with wiring.line(slow, gate, Limits(answer_seconds=0.3)) as line:
        got = await line.curl("/")
        if again:
            assert (got.status, got.body) == (200, b"ok")
        else:
            assert got.status == 402
            assert got.body in (b"waited", b"4\r\nwait\r\n2\r\ned\r\n0\r\n\r\n")
    assert gate.tickets[0].bodies == [None]
    assert gate.tickets[0].outcome is Outcome.COMPLETE


async def test_a_402_that_mitmproxy_refuses(plain_wiring: Wiring, gate: FakeGate) -> None:
    async def smuggling(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange)
        x.write(b"HTTP/1.1 402 Pay\r\nContent-Length: 0\r\nBad Name: x\r\n\r\n")
        await x.gone()

    async with plain_wiring.line(smuggling, gate) as line:
        assert (await line.curl("/")).status == 502
    assert "wants" not in gate.tickets[0].calls
    assert gate.tickets[0].outcome is Outcome.CUT


# -- a gate that fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("consider", 402),
        ("prepare_now", 402),
        ("prepare", 402),
        ("wants", 402),
        ("answered", 402),
        ("received", 200),
        ("finished", 200),
    ],
)
async def test_a_gate_that_raises(wiring: Wiring, gate: FakeGate, method: str, status: int) -> None:
    """Fail closed on money, open on traffic; and the log says where, not what."""

    async def nothing(ticket: FakeTicket) -> Outgoing:
        return NOTHING

    gate.fail[method] = RuntimeError(f"secret {CANARY}")
    if method == "prepare":
        gate.now, gate.in_time = None, nothing
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "-d", "x")
        assert got.status == status
        assert got.body == (b"pay first" if status == 402 else paid_for(b"x"))
        assert [r.paid for r in line.upstream.requests] == ([False] if status == 402 else [False, True])
        assert "RuntimeError at " in line.proxy.log.text()
        assert "c4n4ry" not in line.proxy.log.text()
        if method == "consider":
            gate.tickets.clear()


@pytest.mark.parametrize("method", ["prepare", "answered"])
async def test_a_gate_that_hangs(wiring: Wiring, gate: FakeGate, method: str) -> None:
    async def hang(ticket: FakeTicket) -> Outgoing:
        await asyncio.Event().wait()
        raise AssertionError

    if method == "prepare":
        gate.now, gate.in_time = None, hang
    else:
        gate.verdict = lambda ticket, n: hang(ticket)  # type: ignore[assignment,return-value]
    async with wiring.line(shop, gate, Limits(hook_seconds=0.2)) as line:
        got = await line.curl("/", "-d", "x")
        assert (got.status, got.body) == (402, b"pay first")
        assert [r.paid for r in line.upstream.requests] == [False]
        assert "TimeoutError" in line.proxy.log.text()
    assert gate.tickets[0].outcome is Outcome.COMPLETE


async def test_a_stream_callable_that_raises_does_not_hang_the_client(wiring: Wiring, gate: FakeGate) -> None:
    def broken(data: bytes) -> bytes:
        raise RuntimeError(CANARY)

    def receive(response: http.Response) -> None:
        response.stream = broken

    gate.receive = receive
    gate.now = PAY
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/")
        assert got.code != 0
        assert "Serving a watched request failed: RuntimeError at" in line.proxy.log.text()
        assert "c4n4ry" not in line.proxy.log.text()
        assert len(line.proxy.flows.errors) == 1
    assert gate.tickets[0].outcome is Outcome.CUT


# -- other addons ------------------------------------------------------------------------------------------


async def test_an_addon_kills_the_request(plain_wiring: Wiring, gate: FakeGate) -> None:
    class Killer:
        def request(self, flow: http.HTTPFlow) -> None:
            flow.kill()  # type: ignore[no-untyped-call]

    async with plain_wiring.line(shop, gate, extra=(Killer(),)) as line:
        assert (await line.curl("/")).code != 0
        assert not line.upstream.requests
    assert gate.tickets[0].calls == ["consider", "finished"]
    assert gate.tickets[0].outcome is Outcome.NOT_SENT


async def test_an_addon_answers_itself(plain_wiring: Wiring, gate: FakeGate) -> None:
    class Answering:
        def request(self, flow: http.HTTPFlow) -> None:
            flow.response = http.Response.make(402, b"mine")

    async with plain_wiring.line(shop, gate, extra=(Answering(),)) as line:
        got = await line.curl("/")
        assert (got.status, got.body) == (402, b"mine")
    assert gate.tickets[0].calls == ["consider", "finished"]
    assert gate.tickets[0].outcome is Outcome.NOT_SENT


async def test_an_addon_sends_the_request_elsewhere(plain_wiring: Wiring, gate: FakeGate) -> None:
    """The ticket was given for another URL: it ends, and the gate is asked anew."""

    class Redirecting:
        def request(self, flow: http.HTTPFlow) -> None:
            flow.request.path = "/other"

    seen: list[str] = []
    gate.watch = lambda flow: not seen.append(flow.request.path)  # type: ignore[func-returns-value]
    async with plain_wiring.line(shop, gate, extra=(Redirecting(),)) as line:
        assert (await line.curl("/", "-d", "x")).status == 200
        assert [r.path for r in line.upstream.requests] == ["/other", "/other"]
    assert seen == ["/", "/other"]
    assert [t.outcome for t in gate.tickets] == [Outcome.NOT_SENT, Outcome.COMPLETE]


# -- clients that leave ------------------------------------------------------------------------------------

Stage = Callable[
    [FakeGate, asyncio.Event, asyncio.Event], tuple[Callable[..., Awaitable[None]], Outcome, int]
]


def leaving(stage: str, gate: FakeGate, reached: asyncio.Event) -> Callable[..., Awaitable[None]]:
    """A server, and a gate, of which one signals that `stage` is reached, and then waits."""

    async def stop_here() -> None:
        reached.set()
        await asyncio.sleep(0.3)  # meanwhile the client leaves

    async def prepare(ticket: FakeTicket) -> Outgoing:
        await stop_here()
        return PAY

    async def verdict(ticket: FakeTicket) -> Again:
        await stop_here()
        return Again(PAY)

    if stage == "preparing":
        gate.now, gate.in_time = None, prepare
    if stage == "deciding":
        gate.verdict = lambda ticket, n: verdict(ticket)

    async def serve(x: Exchange | Exchange2) -> None:
        await x.body()
        if not x.request.paid:
            if stage == "waiting":
                await stop_here()
            await x.begin(402)
            await x.data(b"pay")
            if stage == "draining":
                await stop_here()
            await x.end()
        else:
            if stage == "paid":
                await stop_here()
            await x.begin(200)
            await x.data(b"some")
            if stage == "receiving":
                await stop_here()
            await x.end()

    async def suppressed(x: Exchange | Exchange2) -> None:
        with contextlib.suppress(Gone, ConnectionError, h2.exceptions.ProtocolError):
            await serve(x)

    return suppressed


STAGES = [
    ("preparing", Outcome.NOT_SENT, []),
    ("waiting", Outcome.LOST, [False]),
    ("draining", Outcome.CUT, [False]),
    ("deciding", Outcome.NOT_SENT, [False]),
    ("paid", Outcome.LOST, [False, True]),
    ("receiving", Outcome.CUT, [False, True]),
]


@pytest.mark.parametrize(("stage", "outcome", "sent"), STAGES)
async def test_the_client_leaves_h1(
    plain_wiring: Wiring, gate: FakeGate, stage: str, outcome: Outcome, sent: list[bool]
) -> None:
    reached = asyncio.Event()
    async with plain_wiring.line(leaving(stage, gate, reached), gate) as line:
        _, writer = await asyncio.open_connection("127.0.0.1", line.proxy.port)
        writer.write(f"GET {line.upstream.url('/')} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.wait_for(reached.wait(), 30)
        writer.close()
        await gate.all_finished()
        await asyncio.sleep(0.1)
        assert [r.paid for r in line.upstream.requests] == sent
        assert not line.proxy.replay or not len(line.proxy.replay.paying)
    assert gate.tickets[0].outcome is outcome
    assert gate.tickets[0].client_left


@pytest.mark.parametrize(("stage", "outcome", "sent"), STAGES)
async def test_the_client_leaves_h2(
    h2_wiring: Wiring, gate: FakeGate, stage: str, outcome: Outcome, sent: list[bool]
) -> None:
    reached = asyncio.Event()
    async with h2_wiring.line(leaving(stage, gate, reached), gate) as line:
        tunnel = await Tunnel.open(line.proxy.port, "127.0.0.1", line.upstream.port)
        answer = tunnel.request("GET", "/")
        await asyncio.wait_for(reached.wait(), 30)
        tunnel.reset(answer)
        await gate.all_finished()
        await asyncio.sleep(0.1)
        assert [r.paid for r in line.upstream.requests] == sent
        assert gate.tickets[0].outcome is outcome
        assert gate.tickets[0].client_left
        # The connection is still good for others.
        gate.now, gate.verdict = PAY, gate.pay_once
        other = await tunnel.done(tunnel.request("GET", "/other"))
        assert other.status == 200
        await tunnel.close()


async def test_a_client_that_half_closes_is_gone_for_mitmproxy(plain_wiring: Wiring, gate: FakeGate) -> None:
    async with plain_wiring.line(shop, gate) as line:
        request = f"GET {line.upstream.url('/')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await raw(line.proxy.port, request.encode())
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_request_that_waits_for_a_free_stream_has_not_left(
    confdir: Path, pem: Path, gate: FakeGate, leaves: bool
) -> None:
    """mitmproxy queues what exceeds the server's stream limit, and would send it even for a client that has gone."""
    release = asyncio.Event()

    async def one_at_a_time(x: Exchange | Exchange2) -> None:
        if x.request.path == "/first":
            await release.wait()
        await shop(x)

    gate.now = PAY
    async with (
        h2_server(one_at_a_time, server_tls(pem, "h2"), max_streams=1) as up,
        running_proxy(confdir, gate) as proxy,
    ):
        tunnel = await Tunnel.open(proxy.port, "127.0.0.1", up.port)
        first = tunnel.request("GET", "/first")
        await up.until(lambda: up.requests)
        second = tunnel.request("POST", "/second", end=False)
        await tunnel.send(second, b"abc", end=True)
        await gate.until(lambda: len(gate.tickets) == 2 and "prepare_now" in gate.tickets[1].calls)
        if leaves:
            tunnel.reset(second)
            await gate.until(lambda: gate.tickets[1].outcome)
        release.set()
        assert (await tunnel.done(first)).status == 200
        third = await tunnel.done(tunnel.request("GET", "/third"))
        assert third.status == 200
        if not leaves:
            assert (await tunnel.done(second)).body == paid_for(b"abc")
        assert [r.path for r in up.requests] == ["/first", *([] if leaves else ["/second"]), "/third"]
        await tunnel.close()
    assert gate.tickets[1].outcome is (Outcome.NOT_SENT if leaves else Outcome.COMPLETE)


async def test_nothing_leaves_once_the_proxy_has_ended(wiring: Wiring, gate: FakeGate) -> None:
    """What the gate was told at the end stays true."""
    release = asyncio.Event()

    async def prepare(ticket: FakeTicket) -> Outgoing:
        await release.wait()
        return PAY

    gate.now, gate.in_time = None, prepare
    async with wiring.line(shop, gate) as line:
        client = asyncio.ensure_future(line.curl("/", "-d", "x"))
        await gate.until(lambda: gate.tickets and "prepare" in gate.tickets[0].calls)
        assert line.proxy.replay
        line.proxy.replay.paying.close()
        assert gate.tickets[0].outcome is Outcome.NOT_SENT
        release.set()
        assert (await client).code != 0
        assert not line.upstream.requests
