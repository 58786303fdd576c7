"""An answer whose body goes through the gate's filter."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from proxy_addon.mitm.gate import Outcome
from tests.unit.mitm.clients import Tunnel
from tests.unit.mitm.fake_gate import PAY, FakeGate
from tests.unit.mitm.servers import Exchange, Exchange2
from tests.unit.mitm.wires import Wiring


class Lines:
    """Takes out lines that begin with "#"; holds back what is not a whole line yet."""

    def __init__(self) -> None:
        self.held = b""
        self.waiting = False
        self.stopped: bytes | None = None
        self.taken: list[bytes] = []
        self.heard = asyncio.Event()

    def feed(self, data: bytes) -> bytes:
        *lines, self.held = (self.held + data).split(b"\n")
        self.taken += [line for line in lines if line.startswith(b"#")]
        if self.taken:
            self.heard.set()
        return b"".join(line + b"\n" for line in lines if not line.startswith(b"#"))

    def end(self) -> bytes:
        held, self.held = self.held, b""
        return held


@pytest.fixture
def lines(gate: FakeGate) -> Lines:
    made = Lines()
    gate.body_filter = lambda: made
    gate.now = PAY
    return made


PARTS = [b"one\n#ours", b"\ntw", b"o\n", b"#and ours\n", b"the rest"]
CLEAN = b"one\ntwo\nthe rest"


async def send(x: Exchange | Exchange2, parts: list[bytes], how: str) -> None:
    await x.body()
    headers = [("Content-Type", "text/event-stream")]
    if how == "gzip":
        parts = [gzip.compress(b"".join(parts))]
        headers.append(("Content-Encoding", "gzip"))
    if how == "length":
        await x.respond(200, b"".join(parts), headers)
        return
    await x.begin(200, headers)
    for part in parts:
        await x.data(part)
        await asyncio.sleep(0.01)
    await x.end()


@pytest.mark.parametrize("how", ["chunked", "length", "gzip"])
async def test_what_is_the_gates_does_not_reach_the_client(
    wiring: Wiring, gate: FakeGate, lines: Lines, how: str
) -> None:
    async with wiring.line(lambda x: send(x, PARTS, how), gate) as line:
        # Two of them: the framing must leave the connections in order.
        got = await line.curl("/", "--no-raw", line.upstream.url("/"))
        assert got.status == 200
        assert got.body == CLEAN * 2
        assert b"content-encoding" not in got.last_head.lower()
    assert lines.taken == [b"#ours", b"#and ours"] * 2
    assert [t.outcome for t in gate.tickets] == [Outcome.COMPLETE] * 2


async def test_an_unknown_encoding_passes_as_it_is(wiring: Wiring, gate: FakeGate, lines: Lines) -> None:
    async def odd(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.respond(200, b"#x\n", [("Content-Encoding", "snappy")])

    async with wiring.line(odd, gate) as line:
        got = await line.curl("/")
        assert got.body == b"#x\n"
        assert b"snappy" in got.last_head
        assert "unknown encoding 'snappy'" in line.proxy.log.text()


async def test_a_body_that_cannot_be_decoded_ends(wiring: Wiring, gate: FakeGate, lines: Lines) -> None:
    async def broken(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.respond(200, b"this is no gzip", [("Content-Encoding", "gzip")])

    async with wiring.line(broken, gate) as line:
        got = await line.curl("/")
        assert got.code != 0
    assert gate.tickets[0].outcome is Outcome.CUT


async def test_what_was_held_back_comes_before_a_cut(wiring: Wiring, gate: FakeGate, lines: Lines) -> None:
    async def cutting(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.begin(200)
        await x.data(b"one\nhalf a li")
        x.close()

    async with wiring.line(cutting, gate) as line:
        got = await line.curl("/", "--no-raw")
        assert got.code != 0
        assert got.body == b"one\nhalf a li"
    assert gate.tickets[0].outcome is Outcome.CUT


@pytest.mark.parametrize("last", [b"", b"no more\n"])
async def test_the_gate_ends_an_answer(wiring: Wiring, gate: FakeGate, lines: Lines, last: bytes) -> None:
    """The server waits for a voucher that will not come; the client gets a clean end."""
    dropped = asyncio.Event()

    async def waits(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.begin(200)
        await x.data(b"one\n#pay\n")
        await x.gone()
        dropped.set()

    async def stop() -> None:
        await lines.heard.wait()
        lines.waiting = True
        await asyncio.sleep(0.1)
        lines.stopped = last

    lines.waiting = True
    async with wiring.line(waits, gate) as line:
        stopping = asyncio.ensure_future(stop())
        got = await line.curl("/", "--no-raw")
        assert (got.status, got.body) == (200, b"one\n" + last)
        await asyncio.wait_for(dropped.wait(), 30)
        await stopping
    assert gate.tickets[0].outcome is Outcome.CUT


@pytest.mark.parametrize("fails", [False, True])
async def test_trailers_are_the_gates_too(h2_wiring: Wiring, gate: FakeGate, fails: bool) -> None:
    gate.now = PAY
    if fails:
        gate.fail["trailers"] = RuntimeError("x")

    async def grpc(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange2)
        await x.body()
        await x.begin(200)
        await x.data(b"x")
        await x.end([("payment-receipt", "r"), *([("grpc-status", "0")] if x.request.path == "/g" else [])])

    async with h2_wiring.line(grpc, gate) as line:
        tunnel = await Tunnel.open(line.proxy.port, "127.0.0.1", line.upstream.port)
        for path, trailers in (("/g", [("grpc-status", "0")]), ("/", [])):
            answer = await tunnel.done(tunnel.request("GET", path))
            assert (answer.status, answer.body, answer.ended) == (200, b"x", True)
            assert fails or answer.trailers == trailers
        await tunnel.close()
