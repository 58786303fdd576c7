"""What the client gets and what the server sees, on every wire, against a real proxy."""

from __future__ import annotations

import asyncio
import functools
import hashlib

import pytest

from proxy_addon.mitm.gate import Again, Deliver, Outcome, Outgoing
from tests.unit.mitm.clients import Tunnel
from tests.unit.mitm.fake_gate import CANARY, PAY, FakeGate, FakeTicket
from tests.unit.mitm.servers import Exchange, Exchange2
from tests.unit.mitm.wires import Wiring

BIG = bytes(range(256)) * 20_480  # 5 MiB


async def shop(x: Exchange | Exchange2) -> None:
    body = await x.body()
    if x.request.paid:
        digest = hashlib.sha256(body).hexdigest().encode()
        await x.respond(200, b"paid for " + digest, [("Payment-Receipt", "r1"), ("X-Kept", "1")])
    else:
        await x.respond(402, b"pay first", [("WWW-Authenticate", 'Payment id="x"')])


def paid_for(body: bytes) -> bytes:
    return b"paid for " + hashlib.sha256(body).hexdigest().encode()


async def test_a_402_becomes_the_answer(wiring: Wiring, gate: FakeGate) -> None:
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/a?b=c", "-H", "X-Mine: 1")
        assert (got.status, got.body) == (200, paid_for(b""))
        assert b"x-kept: 1" in got.head.lower()
        assert b"receipt" not in got.head.lower()
        first, second = line.upstream.requests
        assert (first.paid, second.paid) == (False, True)
        assert (second.method, second.path, second.get("x-mine")) == ("GET", "/a?b=c", "1")
        assert second.get("idempotency-key") == "key-1"
        assert line.upstream.connections == (2 if wiring.wire.name == "h2-h1" else 1)
    ticket = gate.tickets[0]
    assert ticket.outcome is Outcome.COMPLETE
    assert ticket.calls == ["consider", "prepare_now", "wants", "answered", "wants", "received", "finished"]
    assert ticket.bodies == [b"pay first"]


async def test_warm_requests_are_one_upstream_request_each_on_one_connection(
    wiring: Wiring, gate: FakeGate
) -> None:
    gate.now = PAY
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/a", line.upstream.url("/b"), line.upstream.url("/c"))
        assert got.body == paid_for(b"") * 3
        assert [r.path for r in line.upstream.requests] == ["/b", "/c", "/a"]
        assert all(r.paid for r in line.upstream.requests)
        if wiring.wire.name != "h2-h1":  # mitmproxy: one request per connection there
            assert line.upstream.connections == 1
    assert [t.outcome for t in gate.tickets] == [Outcome.COMPLETE] * 3


async def test_the_gate_may_take_its_time_before_the_first_request(wiring: Wiring, gate: FakeGate) -> None:
    async def signing(ticket: FakeTicket) -> Outgoing:
        await asyncio.sleep(0.05)
        return PAY

    gate.now, gate.in_time = None, signing
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "-d", "x=1")
        assert (got.status, got.body) == (200, paid_for(b"x=1"))
        assert [r.paid for r in line.upstream.requests] == [True]
        assert line.upstream.requests[0].get("content-length") == "3"
    assert ("prepare", hashlib.sha256(b"x=1").hexdigest()) in gate.tickets[0].digests


async def test_head(wiring: Wiring, gate: FakeGate) -> None:
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "--head")
        assert got.status == 200
        assert got.body == got.head  # with --head, curl shows the header: nothing is after it
        assert [(r.method, r.paid) for r in line.upstream.requests] == [("HEAD", False), ("HEAD", True)]


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, len(BIG)])
async def test_bodies_are_repeated_byte_for_byte(wiring: Wiring, gate: FakeGate, size: int) -> None:
    body = BIG[:size]
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "--data-binary", "@-", stdin=body)
        assert (got.status, got.body) == (200, paid_for(body))
        assert [r.body == body for r in line.upstream.requests] == [True, True]
        # An unsafe method gets a connection of its own for the replay; h2 needs none.
        assert line.upstream.connections == (1 if wiring.wire.server == "h2" else 2)
    assert gate.tickets[0].body_sha256 == hashlib.sha256(body).hexdigest()


async def test_a_chunked_upload_is_streamed_and_repeated(wiring: Wiring, gate: FakeGate) -> None:
    if wiring.wire.name == "h2-h1":
        pytest.skip("mitmproxy sends no length to an h1 server for an h2 client that gave none")
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "-T", "-", "-H", "Expect:", stdin=BIG)
        assert (got.status, got.body) == (200, paid_for(BIG))
        assert [r.body == BIG for r in line.upstream.requests] == [True, True]
    assert gate.tickets[0].body_sha256 == hashlib.sha256(BIG).hexdigest()


async def test_expect_100_continue(wiring: Wiring, gate: FakeGate) -> None:
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "--data-binary", "@-", "-H", "Expect: 100-continue", stdin=BIG)
        assert (got.status, got.body) == (200, paid_for(BIG))
        assert [r.get("expect") for r in line.upstream.requests] == [None, None]


async def test_a_watched_body_is_known_before_anything_leaves(wiring: Wiring, gate: FakeGate) -> None:
    gate.watches_body = True
    gate.now = PAY
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "--data-binary", "@-", stdin=BIG)
        assert (got.status, got.body) == (200, paid_for(BIG))
        assert len(line.upstream.requests) == 1
    assert ("prepare_now", hashlib.sha256(BIG).hexdigest()) in gate.tickets[0].digests


async def test_several_agains(wiring: Wiring, gate: FakeGate) -> None:
    async def stubborn(x: Exchange | Exchange2) -> None:
        await x.body()
        tries = len(x.upstream.requests)
        await x.respond(200 if tries == 4 else 402, b"answer %d" % tries)

    gate.verdict = lambda ticket, n: Again(Outgoing(sets=(("Authorization", f"Payment {n}"),)), fresh=n == 2)
    async with wiring.line(stubborn, gate) as line:
        got = await line.curl("/")
        assert (got.status, got.body) == (200, b"answer 4")
        sent = [r.get("authorization") for r in line.upstream.requests]
        assert sent == [None, "Payment 1", "Payment 2", "Payment 3"]
        used = [r.connection for r in line.upstream.requests]
        if wiring.wire.server == "h2":
            assert used == [1, 1, 2, 1]
        elif wiring.wire.client == "--http1.1":
            assert used == [1, 1, 2, 2]
    assert gate.tickets[0].bodies == [b"answer 1", b"answer 2", b"answer 3"]


async def test_the_second_402_is_delivered(wiring: Wiring, gate: FakeGate) -> None:
    async def never(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.respond(402, b"no %d" % len(x.upstream.requests))

    async with wiring.line(never, gate) as line:
        got = await line.curl("/", "-d", "x")
        assert (got.status, got.body) == (402, b"no 2")
        assert len(line.upstream.requests) == 2
    assert gate.tickets[0].outcome is Outcome.COMPLETE


async def test_deliver_may_add_a_field(wiring: Wiring, gate: FakeGate) -> None:
    gate.verdict = lambda ticket, n: Deliver(adds=(("bursar-reason", "over max_price"),))
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/")
        assert (got.status, got.body) == (402, b"pay first")
        assert b"bursar-reason: over max_price" in got.head


async def test_answers_are_streamed(wiring: Wiring, gate: FakeGate) -> None:
    """The first byte is with the client before the last one has left the server."""
    first_seen = asyncio.Event()

    async def slow(x: Exchange | Exchange2) -> None:
        await x.body()
        if not x.request.paid:
            await x.respond(402, b"pay")
            return
        await x.begin(200, [("Content-Type", "text/event-stream")])
        await x.data(b"data: 1\n\n")
        await first_seen.wait()
        await x.data(b"data: 2\n\n")
        await x.end()

    async with wiring.line(slow, gate) as line:
        process = await asyncio.create_subprocess_exec(
            *("curl", "-q", "-sSNk", "--noproxy", "", "--proxy", line.proxy.url, wiring.wire.client),
            line.upstream.url("/"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        assert await asyncio.wait_for(process.stdout.readexactly(9), 30) == b"data: 1\n\n"
        assert gate.tickets[0].outcome is None
        first_seen.set()
        assert await process.stdout.read() == b"data: 2\n\n"
        await process.wait()
    assert gate.tickets[0].outcome is Outcome.COMPLETE


@pytest.mark.parametrize("watched", [True, False])
async def test_other_addons_see_one_flow_without_anything_of_ours(
    wiring: Wiring, gate: FakeGate, watched: bool
) -> None:
    gate.watch = lambda flow: watched
    async with wiring.line(shop, gate) as line:
        got = await line.curl("/", "-d", "x=1")
        assert got.status == (200 if watched else 402)
        (flow,) = line.proxy.flows.responses
        assert line.proxy.flows.heads == [got.status]
        assert not line.proxy.flows.errors
        assert CANARY not in repr(flow.get_state())
        assert "authorization" not in flow.request.headers
        assert flow.request.content == b"x=1"
    assert len(gate.tickets) == watched


async def test_no_content(wiring: Wiring, gate: FakeGate) -> None:
    async def empty(x: Exchange | Exchange2) -> None:
        await x.body()
        if isinstance(x, Exchange2):
            await x.begin(204 if x.request.paid else 402, end=True)
        elif x.request.paid:
            x.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            x.write(b"HTTP/1.1 402 Payment Required\r\nContent-Length: 0\r\n\r\n")

    async with wiring.line(empty, gate) as line:
        got = await line.curl("/", line.upstream.url("/2"))
        assert (got.status, got.body) == (204, b"")
        assert [r.paid for r in line.upstream.requests] == [False, True, False, True]
    assert gate.tickets[0].bodies == [b""]


async def test_two_streams_of_one_h2_connection_are_paid_side_by_side(
    h2_wiring: Wiring, gate: FakeGate
) -> None:
    both = asyncio.Event()

    async def verdict(ticket: FakeTicket) -> Again:
        if len([t for t in gate.tickets if "answered" in t.calls]) == 2:
            both.set()
        await both.wait()
        return Again(PAY)

    gate.verdict = lambda ticket, n: verdict(ticket)
    async with h2_wiring.line(shop, gate) as line:
        tunnel = await Tunnel.open(line.proxy.port, "127.0.0.1", line.upstream.port)
        one = tunnel.request("POST", "/1", end=False)
        two = tunnel.request("GET", "/2")
        await tunnel.send(one, b"abc", end=True)
        for answer, body in ((one, b"abc"), (two, b"")):
            await tunnel.done(answer)
            assert (answer.status, answer.body) == (200, paid_for(body))
        assert line.upstream.connections == 1
        await tunnel.close()


async def test_trailers_both_ways_and_again_in_the_replay(h2_wiring: Wiring, gate: FakeGate) -> None:
    async def grpc(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange2)
        await x.body()
        await x.begin(200 if x.request.paid else 402)
        await x.data(b"x")
        await x.end([("grpc-status", "0")])

    verdicts: list[tuple[Again | Deliver, int]] = [(Again(PAY), 200), (Deliver(), 402)]
    for verdict, status in verdicts:
        gate.verdict = functools.partial(lambda chosen, ticket, n: chosen, verdict)
        async with h2_wiring.line(grpc, gate) as line:
            tunnel = await Tunnel.open(line.proxy.port, "127.0.0.1", line.upstream.port)
            answer = tunnel.request("POST", "/", end=False)
            await tunnel.send(answer, b"abc")
            tunnel.end(answer, [("x-check", "1")])
            await tunnel.done(answer)
            assert (answer.status, answer.body, answer.trailers) == (status, b"x", [("grpc-status", "0")])
            assert [r.body for r in line.upstream.requests] == [b"abc"] * (2 if status == 200 else 1)
            await tunnel.close()
