"""What nobody expects fails, anywhere in our layers: nobody waits for ever, and nothing is paid by mistake."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.exceptions  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import pytest
from mitmproxy.proxy.layers.http._base import HttpEvent
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from proxy_addon.mitm.answer import Answer
from proxy_addon.mitm.gate import Deliver, Outcome
from tests.unit.mitm.fake_gate import CANARY, PAY, FakeGate, FakeTicket
from tests.unit.mitm.servers import Exchange, Exchange2, Gone
from tests.unit.mitm.test_replay import paid_for, shop
from tests.unit.mitm.test_websocket import World, paid, world
from tests.unit.mitm.wires import WIRES, Wiring

__all__ = ["world"]  # a fixture

CURL_GAVE_UP = 28


@pytest.fixture(
    params=[
        WIRES[0],
        pytest.param(WIRES[1], marks=pytest.mark.long),
        WIRES[2],
        pytest.param(WIRES[3], marks=pytest.mark.long),
    ],
    ids=lambda wire: wire.name,
)
def wiring(request: pytest.FixtureRequest, confdir: Path, pem: Path) -> Wiring:
    return Wiring(request.param, confdir, pem)


@contextlib.contextmanager
def breaking(place: str, times: int) -> Iterator[list[str]]:
    """The first so many calls of `place` raise; who has called it so far."""
    owner, name = place.rsplit(".", 1)
    holder = pkgutil.resolve_name(owner)
    original = vars(holder)[name]
    calls: list[str] = []

    def raising() -> Iterator[None]:
        raise RuntimeError(CANARY)
        yield

    def broken(*args: Any, **named: Any) -> Any:
        calls.append(place)
        if len(calls) > times:
            return original(*args, **named)
        if not inspect.isgeneratorfunction(original):
            raise RuntimeError(CANARY)
        return raising()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, broken)
        yield calls


BEFORE = [
    "layer.PayingStream.__init__",
    "case.Case.__init__",
    "case._subject",
    "sending.is_short",
    "upload.Upload.__init__",
    "uplink.Uplink.__init__",
    "paying.Paying.begun",
]


async def test_before_a_request_is_watched(wiring: Wiring, gate: FakeGate) -> None:
    """Nothing has left: it goes on as if there were no bursar, whole, and its 402 passes."""
    gate.now = PAY
    async with wiring.line(shop, gate) as line:
        assert line.proxy.replay
        for place in BEFORE:
            for sent in (b"", b"x", b"x" * 300_000):
                line.upstream.requests.clear()
                line.proxy.log.lines.clear()
                gate.tickets.clear()
                with breaking(f"proxy_addon.mitm.{place}", 100) as calls:
                    got = await line.curl("/", *(("--data-binary", "@-") if sent else ()), stdin=sent)
                if place == "sending.is_short" and not sent:
                    assert not calls  # it has no body
                    continue
                assert (got.status, got.body) == (402, b"pay first"), (place, got)
                assert [(r.paid, r.body) for r in line.upstream.requests] == [(False, sent)], place
                assert "is not paid for, it goes on without: RuntimeError at" in line.proxy.log.text(), place
                assert "c4n4ry" not in line.proxy.log.text(), place
                assert [t.outcome for t in gate.tickets] in ([], [Outcome.NOT_SENT]), place
                assert not len(line.proxy.replay.paying), place
        assert (await line.curl("/")).status == 200  # and the next one is paid for


async def test_a_connection_without_a_bound(wiring: Wiring, gate: FakeGate) -> None:
    with breaking("proxy_addon.mitm.heads.bound", 100):
        async with wiring.line(shop, gate) as line:
            got = await line.curl("/")
            assert (got.status, got.body) == (200, paid_for(b""))
            assert "A connection's headers have no limit: RuntimeError at" in line.proxy.log.text()


LATER = [
    "sending.SendingStream._ready",
    "sending.SendingStream._prepare",
    "sending.SendingStream._connect",
    "sending.SendingStream._through",
    "sending.SendingStream._upstream",
    "sending.SendingStream._over",
    "stream.PayingStream._watched",
    "stream.PayingStream._answering",
    "stream.PayingStream._wanted",
    "stream.PayingStream._decide",
    "stream.PayingStream._again",
    "stream.PayingStream._receive",
    "stream.PayingStream._passing",
    "answer.Answer.__init__",
    "answer.Answer.take",
    "case.Case.elsewhere",
    "case.Case.wants",
    "case.Case.received",
    "uplink.Uplink.command",
    "uplink.Uplink.attach",
    "uplink.Uplink.keep_head",
    "uplink.Uplink.start",
    "uplink.Uplink.restart",
    "uplink.Uplink.pump",
    "uplink.Uplink.abandon",
    "uplink.Uplink.known_connections",
    "uplink.with_fields",
    "upload.Upload.append",
    "upload.Upload.take",
    "upload.Upload.rewind",
    "upload.Upload.forget",
]
AND_THEN = [
    "stream.PayingStream._progress",
    "sending.SendingStream.finish",
    "sending.SendingStream._release",
    "uplink.Uplink.abandon",
    "upload.Upload.close",
]
"""On the way out of another failure."""


async def test_the_client_is_answered_wherever_it_fails(wiring: Wiring, gate: FakeGate) -> None:
    """The client waits for nothing, the gate hears of the end, and the next request is served."""
    async with wiring.line(shop, gate) as line:
        assert line.proxy.replay
        cases = [(place, None) for place in LATER] + [
            ("stream.PayingStream._wanted", one) for one in AND_THEN
        ]
        for place in cases:
            line.proxy.log.lines.clear()
            gate.tickets.clear()
            with contextlib.ExitStack() as stack:
                calls = [stack.enter_context(breaking(f"proxy_addon.mitm.{one}", 1)) for one in place if one]
                got = await line.curl("/", "--data-binary", "@-", stdin=b"x" * 200_000)
            assert got.code != CURL_GAVE_UP, place
            assert all(calls), place
            if got.code == 0:
                assert got.status in (200, 402, 502), (place, got)
            assert "RuntimeError at" in line.proxy.log.text(), place
            assert "c4n4ry" not in line.proxy.log.text(), place
            await gate.all_finished()
            assert not len(line.proxy.replay.paying), place
            got = await line.curl("/again")
            assert (got.status, got.body) == (200, paid_for(b"")), place


@pytest.mark.parametrize("more", [b"", b"x" * 100_000])
async def test_an_answer_that_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, wiring: Wiring, gate: FakeGate, more: bytes
) -> None:
    """What comes in while the gate decides is taken outside of mitmproxy's own order of things."""
    deciding, come = asyncio.Event(), asyncio.Event()

    async def long(x: Exchange | Exchange2) -> None:
        await x.body()
        await x.begin(402)
        await x.data(b"y" * 80_000)  # more than is waited for
        await deciding.wait()
        with contextlib.suppress(Gone, ConnectionError, h2.exceptions.ProtocolError):
            await x.data(b"z" + more)
            await x.end()

    original = Answer.take

    def take(self: Answer, event: HttpEvent, flood: int) -> None:
        if deciding.is_set():
            come.set()
            raise RuntimeError(CANARY)
        original(self, event, flood)

    async def verdict(ticket: FakeTicket) -> Deliver:
        deciding.set()
        await asyncio.wait_for(come.wait(), 30)
        return Deliver()

    monkeypatch.setattr(Answer, "take", take)
    gate.verdict = lambda ticket, n: verdict(ticket)
    async with wiring.line(long, gate) as line:
        got = await line.curl("/")
        assert got.code not in (0, CURL_GAVE_UP)
        assert "An answer cannot be kept: RuntimeError at" in line.proxy.log.text()
    assert gate.tickets[0].outcome is Outcome.CUT


@pytest.mark.parametrize(
    "place", ["_begun", "_relayed", "_filtered", "_message", "_settle", "_close"], ids=lambda name: name[1:]
)
async def test_a_websocket_that_fails_is_closed(world: World, place: str) -> None:
    async def handler(socket: ServerConnection) -> None:
        if place not in ("_begun", "_settle"):
            await paid(socket)
        await socket.send("over" if place == "_close" else "hello")
        with pytest.raises(ConnectionClosed):
            await socket.recv()

    with breaking(f"proxy_addon.mitm.websocket.PaidWebsocketLayer.{place}", 1) as calls:
        async with asyncio.timeout(30), world.connected(handler) as socket:
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1011
            await world.socket.ended.wait()
    assert calls
    assert "Serving a paid WebSocket failed: RuntimeError at" in world.proxy.log.text()
    assert world.socket.outcomes
