"""Paid WebSockets whose server asks for too much, lies, floods, or says nothing (A3, A4, A10, F7)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tests.hostile.attack import HONEST, NOTHING, Attack, Bound, Stage, expect
from tests.hostile.peer import PRICE, Line, Peer
from tests.hostile.wire import Request, answer

PATH: Final = "/ws"
LIMITS: Final = {
    "max_price": "0.05",
    "max_per_day": "0.4",
    "max_deposit": "0.4",
    "max_stream_step": "0.02",
    "max_stream_per_second": "0.4",
    "max_per_stream": "0.11",
    "websocket_paths": [PATH],
}
STEP: Final = 20_000
DEPOSIT: Final = 400_000
FOREIGN: Final = "0x" + "ab" * 32
STREAM: Final = Bound("max_per_stream")
WORDS: Final = ["one", "two"]
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Wire:
    """The server's side of one connection, upgraded."""

    def __init__(self, peer: Peer, line: Line, request: Request) -> None:
        self.peer, self.line, self._upgrade = peer, line, request
        self._ws = Connection(ConnectionType.SERVER)
        self._heard: list[Event] = []
        self.first: Request | None = None  # with the first voucher

    async def accept(self) -> None:
        key = self._upgrade.get("sec-websocket-key") or ""
        found = base64.b64encode(hashlib.sha1(key.encode() + _MAGIC).digest()).decode()
        fields = (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", found))
        await self.line.send(answer(101, headers=fields, length=False))

    async def send(self, event: Event) -> None:
        if self._ws.state is ConnectionState.OPEN:
            await self.line.send(self._ws.send(event))

    async def text(self, text: str) -> None:
        await self.send(TextMessage(text))

    async def frame(self, name: str, data: object, **more: Any) -> None:
        await self.text(json.dumps({"mpp": name, "data": data, **more}))

    async def voucher(self, seconds: float = 60.0) -> Request | None:
        """The next credential that comes in a frame; None if none comes in time, or the other side has left."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    text = await self._next()
                    if text is None:
                        return None
                    frame = json.loads(text)
                    if frame.get("mpp") == "authorization":
                        return self._note(frame["authorization"])
        except TimeoutError:
            return None

    def _note(self, credential: str) -> Request:
        """As if it had come with a request: so the peer writes it down."""
        found = Request("FRAME", PATH, (("Authorization", credential),), b"", 0, b"")
        self.peer.requests.append(found)
        self.peer._note(found)
        self.peer.land(found)
        self.first = self.first or found
        return found

    async def _next(self) -> str | None:
        text = ""
        while self._ws.state is not ConnectionState.CLOSED:
            for index, event in enumerate(self._heard):
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        del self._heard[: index + 1]
                        return text
                if isinstance(event, CloseConnection):
                    return None
            self._heard.clear()
            data = await self.line.reader.read(65_536)
            if not data:
                return None
            try:
                self._ws.receive_data(data)
            except RemoteProtocolError:
                return None
            self._heard += self._ws.events()
        return None

    def receipt(self, request: Request, **changes: object) -> dict[str, object]:
        amount = request.payload["cumulativeAmount"]
        told = {
            "method": "tempo",
            "status": "success",
            "timestamp": "2026-01-01T00:00:00Z",
            "reference": request.payload["channelId"],
            "channelId": request.payload["channelId"],
            "acceptedCumulative": amount,
            "spent": amount,
        }
        return {**told, **changes}

    def need(self, required: object, **changes: object) -> dict[str, object]:
        assert self.first is not None
        return {
            "channelId": self.first.payload["channelId"],
            "requiredCumulative": str(required),
            "acceptedCumulative": self.first.payload["cumulativeAmount"],
            "deposit": str(DEPOSIT),
            **changes,
        }

    @property
    def highest(self) -> int:
        assert self.first is not None
        return self.peer.vouchers[self.first.payload["channelId"]].amount


Say = Callable[[Wire], Awaitable[None]]


async def sockets(
    peer: Peer, request: Request, line: Line, *, say: Say, price: int = PRICE, takes: bool = True
) -> None:
    """Upgrades whoever asks, waits for money, and (if it `takes`) says that it has it."""
    if (request.get("upgrade") or "").lower() != "websocket":
        if request.action == "topUp":
            peer.land(request)
            await line.send(answer(204, length=False))
            return
        challenge = peer.challenge(price, unitType="token", suggestedDeposit=str(DEPOSIT))
        await line.send(peer.refusal(challenge=challenge))
        return
    wire = Wire(peer, line, request)
    await wire.accept()
    first = await wire.voucher()
    if first is not None:
        if takes:
            await wire.frame("payment-receipt", wire.receipt(first))
        with contextlib.suppress(LocalProtocolError):  # the other side has closed it
            await say(wire)
    line.cut()


# -- what it says


async def words(wire: Wire) -> None:
    for word in WORDS:
        await wire.frame("message", word)


async def asks(wire: Wire, *, to: object, **changes: object) -> None:
    await wire.frame("message", "one")
    await wire.frame("payment-need-voucher", wire.need(to, **changes))
    await wire.voucher(1.0)
    await wire.frame("message", "two")
    await wire.send(CloseConnection(1000))


async def greedy(wire: Wire, *, to: int) -> None:
    await wire.frame("payment-need-voucher", wire.need(to))
    await wire.voucher()


async def steps(wire: Wire, *, step: int, receipts: bool = True) -> None:
    """Asks for a step, has it, asks for the next; never says a word for it."""
    for _ in range(100):
        await wire.frame("payment-need-voucher", wire.need(wire.highest + step))
        paid = await wire.voucher(60.0 if receipts else 5.0)
        if paid is None:
            return
        if receipts:
            await wire.frame("payment-receipt", wire.receipt(paid))


async def floods(wire: Wire, *, step: int, **changes: object) -> None:
    base = wire.highest
    for index in range(10_000):
        await wire.frame("payment-need-voucher", wire.need(base + step * (index + 1), **changes))
    if changes:
        await words(wire)
        await wire.send(CloseConnection(1000))
    else:
        while (paid := await wire.voucher()) is not None:
            await wire.frame("payment-receipt", wire.receipt(paid))


async def takes_and_leaves(wire: Wire) -> None:
    """Nothing is said for the money, not even goodbye."""


async def raises_and_leaves(wire: Wire) -> None:
    await wire.frame("payment-need-voucher", wire.need(wire.highest + STEP))
    await wire.voucher()


async def refuses(wire: Wire) -> None:
    await wire.frame("payment-error", None, status=402, message="no\r\n\x1b[2J" + "x" * 5_000)
    await wire.send(CloseConnection(1008, "no"))


async def lies(wire: Wire, **changes: object) -> None:
    """Honest, but for its receipts."""
    assert wire.first is not None
    for word in WORDS:
        await wire.frame("message", word)
        await wire.frame("payment-receipt", wire.receipt(wire.first, **changes))
    wire.peer.delivered += PRICE
    await wire.frame("payment-close-ready", wire.receipt(wire.first, **changes))
    await wire.voucher(0.5)


async def babbles(wire: Wire) -> None:
    """Frames that only clients send, that nobody knows, that cannot be read; none of it is for the client."""
    for text in (
        '{"mpp":"authorization","authorization":"Payment x"}',
        '{"mpp":"payment-close-request"}',
        '{"mpp":"payment-never-heard-of","data":1}',
        '{"mpp":"payment-need-voucher","data":' + "[" * 5_000,
        '{"mpp":"payment-receipt","data":{"status":' + "9" * 5_000 + "}}",
        '{"mpp":"payment-need-voucher","data":{"channelId":null}}',
        *('{"mpp":"payment-need-voucher"}' for _ in range(3_000)),
    ):
        await wire.text(text)
    await words(wire)
    await wire.send(CloseConnection(1000))


async def fragments(wire: Wire) -> None:
    """A frame of ours in pieces, a ping between each two of them."""
    text = json.dumps({"mpp": "payment-need-voucher", "data": wire.need(wire.highest + STEP)})
    for index, character in enumerate(text):
        await wire.send(Ping(b"p"))
        await wire.send(TextMessage(character, message_finished=index == len(text) - 1))
    await wire.voucher()
    await words(wire)
    await wire.send(CloseConnection(1000))


async def heavy(wire: Wire, *, kind: type[Message[Any]], head: str = "") -> None:
    """A message without end."""
    fill = "x" * 65_536
    piece = kind(data=fill if kind is TextMessage else fill.encode(), message_finished=False)
    if head:
        await wire.send(TextMessage(head, message_finished=False))
    for _ in range(100_000):
        await wire.send(piece)
        if wire.line.writer.is_closing() or wire.line.reader.at_eof():
            return
        await asyncio.sleep(0)


async def splinters(wire: Wire) -> None:
    """A message of nothing, in pieces without end."""
    empty = wire._ws.send(TextMessage("", message_finished=False))
    more = wire._ws.send(TextMessage("", message_finished=False)) * 1_000
    await wire.line.send(empty)
    for _ in range(2_000):
        await wire.line.send(more)
        if wire.line.writer.is_closing() or wire.line.reader.at_eof():
            return
        await asyncio.sleep(0)


async def silent(wire: Wire) -> None:
    await wire.voucher(20.0)


# -- what the client sees


def client_sees(
    stage: Stage, *, code: int | None = 1000, messages: list[str] | None = None, count: int = 1
) -> None:
    for _ in range(count):
        heard = stage.converse(PATH)
        expect(messages is None or heard.messages == messages, f"{heard}")
        expect(code is None or heard.code == code, f"the client's connection ended with {heard}")
        expect(not heard.silent, f"the client waited in vain: {heard}")
        stage.settled()


WHOLE = partial(client_sees, messages=WORDS)
STOPPED = partial(client_sees, code=1008)
TOO_BIG = partial(client_sees, code=1009, messages=[])
ENDED = partial(client_sees, code=None)
"""However it ended, it ended."""


def told_the_price(stage: Stage) -> None:
    heard = stage.converse(PATH)
    expect(heard.status == 402, f"{heard}")
    expect(not stage.credentials, "it was paid")


def waits(stage: Stage) -> None:
    """The silence is the server's; the client may wait for it as long as it likes."""
    heard = stage.converse(PATH, seconds=1.0)
    expect(not heard.messages, f"{heard}")
    stage.settled()


def not_in_the_log(stage: Stage) -> None:
    WHOLE(stage)
    told = stage.told(stage.peer.authority)
    expect(0 < len(told) <= 100, f"one connection made us log {len(told)} lines")


def refused(stage: Stage) -> None:
    ENDED(stage)
    expect("\x1b[2J" not in stage.world.proxy.log, "a terminal escape of the server's is in the log")


GREED: Mapping[str, int] = {
    "to the deposit": DEPOSIT,
    "one unit over a step": PRICE + STEP + 1,
    "to 2^95": 2**95,
}
LIES: Mapping[str, Mapping[str, Any]] = {
    "nothing was spent": {"spent": "0"},
    "2^95 was spent": {"spent": str(2**95)},
    "2^256 was accepted": {"acceptedCumulative": str(2**256)},
    "more was accepted than signed": {"acceptedCumulative": str(10 * PRICE)},
    "another channel": {"channelId": FOREIGN, "reference": FOREIGN},
}


def attacks() -> Iterator[Attack]:
    def attack(
        name: str, say: Say, play: Callable[[Stage], None], bound: Bound, row: str = "A3", **more: Any
    ) -> Attack:
        limits = {**LIMITS, **more.pop("limits", {})}
        script = partial(sockets, say=say, **more.pop("script", {}))
        return Attack(f"WebSocket: {name}", row, script, play, bound, limits=limits, **more)

    for name, to in GREED.items():
        quick = to == DEPOSIT
        yield attack(f"a need {name}", partial(greedy, to=to), STOPPED, Bound("max_price"), quick=quick)
    for nonsense in ("-1", "1.5", "all", str(2**256)):
        say = partial(asks, to=nonsense)
        yield attack(f"a need to {nonsense[:9]}", say, WHOLE, Bound("max_price"))
    yield attack(
        "steps for nothing, until the stream's end", partial(steps, step=STEP), STOPPED, STREAM, exact=True
    )
    yield attack(
        "steps for nothing, connection after connection, until the day's end",
        partial(steps, step=STEP),
        partial(ENDED, count=6),
        Bound("max_per_day"),
    )
    yield attack(
        "vouchers without a receipt",
        partial(steps, step=STEP, receipts=False),
        ENDED,
        STREAM,
        limits={"max_per_stream": "0.05"},
    )
    yield attack(
        "10,000 needs of a step more each", partial(floods, step=STEP), STOPPED, Bound("max_per_stream")
    )
    yield attack(
        "10,000 needs of a foreign channel",
        partial(floods, step=PRICE, channelId=FOREIGN),
        not_in_the_log,
        Bound("max_price"),
        quick=True,
    )
    yield attack("closed after the first voucher", takes_and_leaves, ENDED, Bound("max_price"), quick=True)
    yield attack(
        "closed after the first voucher, until the day's end",
        takes_and_leaves,
        partial(ENDED, count=12),
        Bound("max_per_day"),
        limits={"max_per_day": "0.1"},
    )
    yield attack(
        "closed after a step", raises_and_leaves, partial(ENDED, count=2), Bound("max_per_stream", 2)
    )
    yield attack("the voucher is refused", refuses, refused, Bound("max_price"), script={"takes": False})
    yield attack("an answer to the voucher never comes", silent, waits, Bound("max_price"), "F7")
    yield attack(
        "no receipt, and then words", words, ENDED, Bound("max_price"), "F7", script={"takes": False}
    )
    for name, changes in LIES.items():
        yield attack(
            f"a receipt that says {name}",
            partial(lies, **changes),
            partial(ENDED, messages=WORDS, count=3),
            Bound("max_price"),
            "A4",
            quick=name.startswith("2^95"),
        )
    yield attack("frames that nobody should send", babbles, not_in_the_log, Bound("max_price"), "A10")
    yield attack("a need in 250 pieces, pings between", fragments, WHOLE, STREAM, "A10")
    yield attack("text without end", partial(heavy, kind=TextMessage), TOO_BIG, Bound("max_price"), "A10")
    yield attack("bytes without end", partial(heavy, kind=BytesMessage), TOO_BIG, Bound("max_price"), "A10")
    yield attack(
        "a payment frame without end",
        partial(heavy, kind=TextMessage, head='{"mpp":"payment-need-voucher","data":"'),
        TOO_BIG,
        Bound("max_price"),
        "A10",
        quick=True,
    )
    yield attack("pieces without end", splinters, TOO_BIG, Bound("max_price"), "A10")
    yield attack("a price over the limit", words, told_the_price, NOTHING, "A1", script={"price": 50_001})
    yield attack("an honest one", honest, partial(WHOLE, count=2), HONEST)


async def honest(wire: Wire) -> None:
    assert wire.first is not None
    await words(wire)
    wire.peer.delivered = wire.peer.highest
    await wire.frame("payment-close-ready", wire.receipt(wire.first))
    await wire.voucher(5.0)


ATTACKS = tuple(attacks())
