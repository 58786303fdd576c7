"""A paid WebSocket through the real proxy, between a real client and a real server, with a gate that has no money."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.connection import Client
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from proxy_addon.core import frames
from proxy_addon.mitm.gate import Outcome
from proxy_addon.mitm.websocket import Sockets
from tests.unit.mitm.fake_gate import CANARY, FakeGate
from tests.unit.mitm.proxy import Proxy, running_proxy

FIRST = frames.authorization(CANARY)
SMILE = "\U0001f600"


@dataclass
class FakeSocket:
    """Answers each ``need`` of the server with a frame: at once, or later from a task."""

    later: bool = False
    outgoing: deque[str] = field(default_factory=lambda: deque([FIRST]))
    stopped: frames.Close | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    heard_texts: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    wake: Callable[[], None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def heard(self, text: str) -> str | bool:
        self.heard_texts.append(text)
        if text == "need":
            if self.later:
                self.tasks.append(asyncio.get_running_loop().create_task(self._pay()))
            else:
                self.outgoing.append(FIRST)
        elif text == "over":
            self.stopped = frames.close(1000)
        elif text.startswith("wrapped "):
            return text.removeprefix("wrapped ")
        else:
            return True
        return False

    async def _pay(self) -> None:
        await asyncio.sleep(0.01)
        assert self.wake is not None
        self.outgoing.append(FIRST)
        self.wake()

    def finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.ended.set()


class FakeSocketGate:
    def __init__(self) -> None:
        self.socket: FakeSocket | None = FakeSocket()
        self.answer: http.Response | None = None
        self.fails = False
        self.drops: list[str] = []
        self.gone: list[str] = []

    def pays_for(self, flow: http.HTTPFlow) -> bool:
        return "upgrade" in flow.request.headers

    async def prepare(self, flow: http.HTTPFlow) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError(CANARY)
        flow.response = self.answer

    def of(self, flow: http.HTTPFlow) -> FakeSocket | None:
        return self.socket

    def dropped(self, flow: http.HTTPFlow) -> None:
        self.drops.append(flow.id)

    def client_gone(self, client_id: str) -> None:
        self.gone.append(client_id)

    def shut(self) -> None: ...


class Wire:
    """The addon's half, and what another addon sees of it."""

    def __init__(self) -> None:
        self.sockets: Sockets | None = None
        self.flows: list[http.HTTPFlow] = []
        self.ended = asyncio.Event()

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        assert self.sockets is not None
        return self.sockets.before_upgrade(flow)

    def websocket_start(self, flow: http.HTTPFlow) -> None:
        self.flows.append(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.ended.set()

    def client_disconnected(self, client: Client) -> None:
        assert self.sockets is not None
        self.sockets.gate.client_gone(client.id)


Handler = Callable[[ServerConnection], Awaitable[None]]


@dataclass
class World:
    proxy: Proxy
    gate: FakeSocketGate
    wire: Wire
    http_gate: FakeGate
    confdir: Path

    @contextlib.asynccontextmanager
    async def connected(
        self, handler: Handler, *, server: dict[str, Any] | None = None, **client: Any
    ) -> AsyncIterator[ClientConnection]:
        async with serve(handler, "127.0.0.1", 0, **(server or {})) as running:
            port = next(iter(running.sockets)).getsockname()[1]
            url = f"ws://127.0.0.1:{port}/ws"
            async with connect(url, proxy=self.proxy.url, **client) as socket:
                yield socket

    @property
    def socket(self) -> FakeSocket:
        assert self.gate.socket is not None
        return self.gate.socket

    def messages(self) -> list[bytes]:
        """What other addons find on the flow."""
        (flow,) = self.wire.flows
        assert flow.websocket is not None
        return [one.content for one in flow.websocket.messages]


@pytest.fixture
async def world(confdir: Path) -> AsyncIterator[World]:
    wire, gate, http_gate = Wire(), FakeSocketGate(), FakeGate()
    async with running_proxy(confdir, http_gate, extra=(wire,)) as proxy:
        assert proxy.replay is not None
        wire.sockets = proxy.replay.paying.sockets = Sockets(gate, proxy.master.addons)
        yield World(proxy, gate, wire, http_gate, confdir)
    assert CANARY not in proxy.log.text()


async def paid(socket: ServerConnection) -> None:
    assert await socket.recv() == FIRST


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("later", [False, True], ids=["at-once", "later"])
async def test_frames_go_to_the_server_and_data_to_the_client(
    world: World, later: bool, watched: bool
) -> None:
    world.http_gate.watch = lambda flow: watched
    world.gate.socket = FakeSocket(later=later)

    async def handler(socket: ServerConnection) -> None:
        await paid(socket)  # before anything of the client's
        await socket.send("wrapped one")
        for _ in range(3):
            await socket.send("need")
            assert await socket.recv() == FIRST
        await socket.send("two")
        assert await socket.recv() == "from the client"
        await socket.send("over")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1000

    async with world.connected(handler) as socket:
        assert await socket.recv() == "one"
        assert await socket.recv() == "two"
        await socket.send("from the client")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1000
    assert world.messages() == [b"one", b"two", b"from the client"]
    assert world.socket.outcomes[0] is Outcome.CUT
    (flow,) = world.wire.flows
    assert CANARY not in json.dumps(flow.get_state(), default=repr)
    assert flow.websocket is not None
    assert not any(one.dropped for one in flow.websocket.messages)


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_everything_else_passes(world: World, compression: Any) -> None:
    """Binary messages, empty ones, fragments, pings and pongs both ways, as large as they come."""
    large = (SMILE + "é") * 50_000
    pongs: list[bytes] = []

    async def handler(socket: ServerConnection) -> None:
        await paid(socket)
        async for message in socket:
            await socket.send(message)
            if message == b"ping":
                await (await socket.ping(b"from-server"))
                pongs.append(b"from-server")

    async with world.connected(
        handler,
        server={"compression": compression, "max_size": None, "ping_interval": None},
        compression=compression,
        max_size=None,
        ping_interval=None,
    ) as socket:
        for message in (b"\x00\xff binary", b"", "", "text", large, large.encode(), b"ping"):
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(["frag", "ments ", SMILE])
        assert await socket.recv() == f"fragments {SMILE}"
        await socket.send([b"\x80", b"", b"\x81" * 70_000])
        assert await socket.recv() == b"\x80" + b"\x81" * 70_000
        await socket.send(f"wrapped {large}")
        assert await socket.recv() == large
        await (await socket.ping(b"from-client"))
    assert pongs == [b"from-server"]
    assert b"\x00\xff binary" not in [text.encode() for text in world.socket.heard_texts]


async def test_fragments_keep_their_cuts(world: World) -> None:
    """A server may send a message in pieces, with a ping between them.

    Uncompressed: in a compressed message wsproto loses its way at the ping, with or without us.
    """

    async def handler(socket: ServerConnection) -> None:
        await paid(socket)

        async def pieces() -> AsyncIterator[str]:
            yield "first "
            await socket.ping(b"between")
            yield "second"

        await socket.send(pieces())
        await socket.recv()

    async with world.connected(handler, server={"compression": None}) as socket:
        assert [piece async for piece in socket.recv_streaming() if piece] == ["first ", "second"]
        await socket.send("seen")


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "away"), (4321, "own"), (1008, "é")])
@pytest.mark.parametrize("by_client", [True, False])
async def test_close_codes_pass(world: World, code: int, reason: str, by_client: bool) -> None:
    seen: list[tuple[int | None, str | None]] = []

    async def handler(socket: ServerConnection) -> None:
        await paid(socket)
        if not by_client:
            await socket.close(code, reason)
            return
        await socket.wait_closed()
        seen.append((socket.close_code, socket.close_reason))

    async with world.connected(handler) as socket:
        if by_client:
            await socket.close(code, reason)
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (code, reason)
    await asyncio.wait_for(world.socket.ended.wait(), 30)
    if by_client:
        assert seen == [(code, reason)]


async def test_the_gate_stops_it_from_a_task(world: World) -> None:
    closed: list[tuple[int | None, str | None]] = []

    async def handler(socket: ServerConnection) -> None:
        await paid(socket)
        await socket.send("ready")
        await socket.wait_closed()
        closed.append((socket.close_code, socket.close_reason))

    async with world.connected(handler) as socket:
        assert await socket.recv() == "ready"
        world.socket.stopped = frames.close(1008, "no more")
        assert world.socket.wake is not None
        world.socket.wake()
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (1008, "no more")
    await asyncio.wait_for(world.socket.ended.wait(), 30)
    await asyncio.wait_for(world.wire.ended.wait(), 30)
    assert closed == [(1008, "no more")]
    world.socket.wake()  # too late, and nobody minds
    await asyncio.sleep(0)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_broken_connection_ends_it(world: World, side: str) -> None:
    async def handler(socket: ServerConnection) -> None:
        await paid(socket)
        await socket.send("ready")
        if side == "server":
            socket.transport.abort()
        with contextlib.suppress(ConnectionClosed):
            await socket.recv()

    async with world.connected(handler) as socket:
        assert await socket.recv() == "ready"
        if side == "client":
            socket.transport.abort()
        await socket.wait_closed()
    await asyncio.wait_for(world.socket.ended.wait(), 30)


async def test_another_addon_may_change_and_drop_what_the_client_gets(world: World) -> None:
    def websocket_message(flow: http.HTTPFlow) -> None:
        assert flow.websocket is not None
        message = flow.websocket.messages[-1]
        if message.content == b"drop":
            message.drop()  # type: ignore[no-untyped-call]
        elif message.content == b"change":
            message.content = b"changed"

    world.wire.websocket_message = websocket_message  # type: ignore[attr-defined]

    async def handler(socket: ServerConnection) -> None:
        await paid(socket)
        for word in ("drop", "change", "keep"):
            await socket.send(f"wrapped {word}")
        await socket.recv()

    async with world.connected(handler) as socket:
        assert [await socket.recv(), await socket.recv()] == ["changed", "keep"]
        await socket.send("seen")


async def test_a_402_for_the_handshake(world: World) -> None:
    world.gate.answer = http.Response.make(402, b"pay me", {"www-authenticate": "Payment x"})

    async def never(socket: ServerConnection) -> None:
        raise AssertionError("upgraded")

    with pytest.raises(InvalidStatus) as refused:
        async with world.connected(never):
            pass
    assert refused.value.response.status_code == 402
    assert refused.value.response.body == b"pay me"


@pytest.mark.parametrize("fails", [True, False], ids=["gate-fails", "not-paid-for"])
async def test_unpaid_it_is_mitmproxys_own(world: World, fails: bool) -> None:
    world.gate.fails, world.gate.socket = fails, None

    async def handler(socket: ServerConnection) -> None:
        await socket.send("need")
        await socket.send("wrapped x")
        await socket.recv()

    async with world.connected(handler) as socket:
        assert [await socket.recv(), await socket.recv()] == ["need", "wrapped x"]
        await socket.send("bye")
    assert len(world.gate.drops) == fails


async def test_nothing_is_paid_where_every_byte_is_logged(world: World) -> None:
    world.proxy.master.options.update(proxy_debug=True)  # type: ignore[no-untyped-call]
    world.gate.answer = http.Response.make(402)

    async def handler(socket: ServerConnection) -> None:
        await socket.send("wrapped x")
        await socket.recv()

    async with world.connected(handler) as socket:
        assert await socket.recv() == "wrapped x"
        await socket.send("bye")
