"""What survives the kill: the chain, the server that is paid, and a note of every voucher and opening they ever saw.

The chain and the server's checks are those of the demo. A request's `fate` makes the server one of those that
there are: it loses answers, forgets channels, broadcasts late or never. It stays honest: what it charged, it
charged for a voucher that it had.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import orjson
from coincurve import PrivateKey

from proxy_addon.core.headers import format_challenge
from proxy_addon.core.messages import PROBLEM_BASE, is_payment_credential, parse_credential
from proxy_addon.demo import reserve
from proxy_addon.demo.chain import CHAIN_ID, SimulatedChain
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE, PaidApi, Route
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.methods.abi import keccak256, to_bytes, to_hex
from proxy_addon.methods.tempo_session.calls import channel_id, parse_descriptor, parse_open
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_session.voucher import V2
from proxy_addon.methods.tempo_tx import address_of, decode
from tests.crash.jobs import SOCKET_PATH, FrameAsk, HttpAnswer, HttpAsk, Report, Said, Totals
from tests.crash.socket_seller import Line
from tests.crash.wire import frames, pack
from tests.crash.zygote import Child

FUNDS = 1_000_000_000
PRICES = (*(1 << power for power in range(13)), 100, 700, 3000, 5000)
"""Of further routes, ``/costs/N``."""
DEPOSIT = 6 * PRICE
"""Small, so that top-ups are frequent."""
EXPIRED_S = 30
"""No transaction of ours is valid for so long."""
LATE_LOOKS = 3
"""So often may the payer look before what was broadcast late is there."""


Listener = Callable[[Any], Awaitable[object]]


class World:
    """One wallet's surroundings, through all of its processes."""

    def __init__(self, seed: str, *, deposit: int = DEPOSIT) -> None:
        self.random = random.Random(f"world {seed}")
        self.key = self.random.randbytes(32)
        self.payer = to_hex(address_of(PrivateKey(self.key).public_key))
        self.chain = SimulatedChain()
        self.rpc = RpcServer(self.chain)
        self.api = PaidApi(self.chain, key=self.random.randbytes(32), suggested_deposit=deposit)
        self.api.routes["/sse"] = Route(PRICE, _event_stream)
        quote = self.api.routes["/quote"].handler
        self.api.routes[SOCKET_PATH] = Route(PRICE, quote)
        self.api.routes |= {f"/costs/{price}": Route(price, quote) for price in PRICES}
        self.chain.fund(self.payer, FUNDS)
        self.chain.fund(self.api.payee.address, FUNDS)
        self.vouchers: dict[str, int] = {}  # by channel: the highest that arrived, whatever became of it
        self.openings: dict[str, str] = {}  # by channel: the transaction
        self.lines: list[Line] = []  # WebSockets on which a credential was taken
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []  # what must not arrive at all
        self.late: list[Request] = []  # what the server will deal with later
        self.patience = 0

    # -- one process of the payer

    async def serve(self, child: Child, listener: Listener, *, frame: int = 0, jitter: float = 0.0) -> None:
        """Answer one process until it is gone and all that it had sent is dealt with. `listener` gets what it says.

        With its `frame`-th question it is killed; `jitter` (seconds) is how late requests and answers may be.
        """
        tasks: set[asyncio.Task[None]] = set()
        streams: set[str] = set()  # channels
        lines: dict[int, Line] = {}
        async for number, body in frames(child.reader):
            frame -= 1
            if frame == 0:
                child.kill()
            if isinstance(body, FrameAsk) or (isinstance(body, HttpAsk) and body.host == "api"):
                self.note_in(body, lines)  # in the order of arrival
            if isinstance(body, tuple) and body[0] == "hang-up-socket" and body[1] in lines:
                lines[body[1]].hang_up()
            answering = self._answer(child, number, body, listener, streams, lines, jitter)
            task = asyncio.create_task(answering)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.gather(*tasks)
        child.writer.close()
        for channel in streams:  # nobody told the server that its client has gone
            while self._tick(channel):
                pass
        for line in lines.values():
            line.hang_up()

    async def _answer(
        self,
        child: Child,
        number: int,
        body: Any,
        listener: Listener,
        streams: set[str],
        lines: dict[int, Line],
        jitter: float,
    ) -> None:
        match body:
            case HttpAsk():
                late = jitter if body.host == "api" else 0.0
                await asyncio.sleep(self.random.random() * late)
                answer: Any = await self._http(body, streams)
                await asyncio.sleep(self.random.random() * late)
            case FrameAsk():
                await asyncio.sleep(self.random.random() * jitter)
                answer = await self.take_frame(body, lines)
                await asyncio.sleep(self.random.random() * jitter)
            case ("listen", socket, units):
                answer = lines[socket].next(units)
            case ("hang-up-socket", _):
                answer = None
            case ("tick", channel):
                answer = self._stream_event(channel)
            case ("hang-up", channel):
                streams.discard(channel)
                answer = self._last_event(channel)
            case ("warp", seconds):
                self.chain.warp(seconds)
                answer = None
            case _:
                answer = await listener(body)
        if not (child.writer.is_closing() or child.reader.at_eof()):  # else nobody is there to read it
            child.writer.write(pack(number, answer))

    # -- what arrives

    def note(self, headers: Mapping[str, str]) -> None:
        """Vouchers and openings count from the moment that they are here, whether anybody likes them or not."""
        payload = _payload(headers)
        if not payload:
            return
        self.seen[str(payload.get("action"))] += 1
        channel = str(payload["channelId"])
        descriptor = parse_descriptor(payload["descriptor"])
        if channel_id(descriptor, escrow=RESERVE, chain_id=CHAIN_ID) != channel:
            self.wrong.append(f"{channel} is not the id of its descriptor")
        if "cumulativeAmount" in payload:
            amount = int(payload["cumulativeAmount"])
            digest = V2.digest(chain_id=CHAIN_ID, escrow=RESERVE, channel_id=channel, amount=amount)
            signer = reserve.voucher_signer(descriptor)
            if not reserve.signed_by(signer, digest, to_bytes(str(payload["signature"]))):
                self.wrong.append(f"a voucher of {amount} for {channel} that {signer} has not signed")
            self.vouchers[channel] = max(amount, self.vouchers.get(channel, 0))
        if payload.get("action") == "open":
            raw = str(payload["transaction"])
            call = parse_open(decode(to_bytes(raw)).transaction.calls[0].data)
            if call.salt != descriptor["salt"]:
                self.wrong.append(f"the opening of {channel} is of another channel")
            self.openings[channel] = raw

    def note_in(self, body: HttpAsk | FrameAsk, lines: Mapping[int, Line]) -> None:
        """And a WebSocket has its channel to itself."""
        self.note(body.headers)
        payload = _payload(body.headers)
        if payload.get("action") != "voucher" or (isinstance(body, HttpAsk) and body.method == "HEAD"):
            return
        mine = lines.get(body.socket) if isinstance(body, FrameAsk) else None
        for line in lines.values():
            if line is not mine and not line.gone and line.channel_id == payload["channelId"]:
                self.wrong.append(f"{line.channel_id} pays for something else beside a WebSocket")

    async def _http(self, ask: HttpAsk, streams: set[str]) -> HttpAnswer | None:
        """None: no answer ever comes."""
        request = Request(ask.method, ask.path, ask.query, ask.headers, ask.body)
        if ask.host == "rpc":
            await self._look()
            return _plain(await self.rpc.handler(request))
        answer = await self._dealt_with(request, ask.fate)
        payload = _payload(ask.headers)
        if ask.path == "/sse" and answer is not None and answer.status == 200 and payload:
            streams.add(str(payload["channelId"]))
            fields = (one for one in answer.headers if one[0] != "Payment-Receipt")
            return HttpAnswer(200, tuple(fields), b"")  # a stream has it at its end
        return answer

    async def take_frame(self, ask: FrameAsk, lines: dict[int, Line]) -> Said:
        """A credential in a frame is taken like one of a request that only manages its channel."""
        line = lines.setdefault(ask.socket, Line(self.api.payee, self.random))
        if ask.fate == "deaf":
            return Said(needs=True)
        answer = await self._dealt_with(Request("POST", SOCKET_PATH, {}, ask.headers, b""), ask.fate)
        if line.take(_payload(ask.headers)) and line not in self.lines:
            self.lines.append(line)
        if answer is None:
            line.hang_up()
            return Said(cut=True)
        return line.receive() if answer.status == 204 else line.refuse(answer.status)

    async def _dealt_with(self, request: Request, fate: str | None) -> HttpAnswer | None:
        answer = await self._sold(request, fate or "")
        raw = _payload(request.headers).get("transaction")
        if raw is not None and request not in self.late and not self._landed(str(raw)):
            self.chain.warp(EXPIRED_S)  # it was dropped; the world goes on until nobody takes it any more
        return answer

    async def _sold(self, request: Request, fate: str) -> HttpAnswer | None:
        match fate.partition(":"):
            case ["lost-before", _, _]:
                return None
            case ["lost-after", _, _]:
                await self.api.handler(request)
                return None
            case ["error-before", _, _]:
                return HttpAnswer(500, (), b"no")
            case ["error-after", _, _]:
                await self.api.handler(request)
                return HttpAnswer(500, (), b"no")
            case ["late", _, _]:
                self.late.append(request)
                self.patience = LATE_LOOKS
                return HttpAnswer(500, (), b"no")
            case ["refuse", _, kind]:
                return self._refusal(402, kind)
            case ["gone", _, _]:
                return self._refusal(410, "session/channel-not-found")
            case _:
                return _plain(await self.api.handler(request))

    def _landed(self, raw: str) -> bool:
        return to_hex(keccak256(to_bytes(raw))) in self.chain.transactions

    def _refusal(self, status: int, kind: str) -> HttpAnswer:
        challenge = self.api.payee.challenges.make(PRICE)
        body = {"type": PROBLEM_BASE + kind, "title": kind, "status": status}
        fields = (
            ("www-authenticate", format_challenge(challenge.echo())),
            ("content-type", "application/problem+json"),
        )
        return HttpAnswer(status, fields, orjson.dumps(body))

    # -- streams

    def _tick(self, channel: str) -> bool:
        account = self.api.payee.accounts[channel]
        if account.available < PRICE:
            return False
        account.spent += PRICE
        account.units += 1
        return True

    def _stream_event(self, channel: str) -> bytes:
        """The next event of a stream: a unit's data, or what the server needs before it goes on."""
        if self._tick(channel):
            return b"data: unit\n\n"
        account = self.api.payee.accounts[channel]
        need = {
            "channelId": channel,
            "requiredCumulative": str(account.spent + PRICE),
            "acceptedCumulative": str(account.accepted),
            "deposit": str(account.deposit),
        }
        return b"event: payment-need-voucher\ndata: " + orjson.dumps(need) + b"\n\n"

    def _last_event(self, channel: str) -> bytes:
        """Most servers end a stream with a receipt."""
        if self.random.random() < 0.3:
            return b""
        account = self.api.payee.accounts[channel]
        receipt = {
            "method": "tempo",
            "intent": "session",
            "status": "success",
            "timestamp": "2026-01-01T00:00:00Z",
            "reference": channel,
            "challengeId": "c",
            "channelId": channel,
            "acceptedCumulative": str(account.accepted),
            "spent": str(account.spent),
            "units": account.units,
        }
        return b"event: payment-receipt\ndata: " + orjson.dumps(receipt) + b"\n\n"

    # -- transactions that are on their way for long

    async def _look(self) -> None:
        if self.late:
            self.patience -= 1
            if self.patience <= 0:
                await self.deal_with_late()

    async def deal_with_late(self) -> None:
        late, self.late = self.late, []
        for request in late:
            await self.api.handler(request)

    async def decide(self, report: Report) -> None:
        """Between two processes of the payer: what is pending lands after all, or never will."""
        if self.random.random() < 0.5:
            await self.deal_with_late()
        self.late.clear()
        if any(
            channel.pending is not None and channel.pending.tx_hash not in self.chain.transactions
            for channel in report.channels
        ):
            self.chain.warp(EXPIRED_S)

    @property
    def captured(self) -> Mapping[str, int]:
        """By channel that was closed: what the payee got, by the chain."""
        return {name: words[0] for name, words in self._events(reserve.CLOSED)}

    @property
    def totals(self) -> Totals:
        """What the payer ever moved, by the chain."""
        closed = [words for _, words in self._events(reserve.CLOSED)]
        mined = self.chain.transactions.values()
        return Totals(
            deposited=sum(words[-1] for _, words in self._events(reserve.OPENED))
            + sum(words[0] for _, words in self._events(reserve.TOPPED_UP)),
            captured=sum(words[0] for words in closed),
            refunded=sum(words[1] for words in closed),
            fees=sum(one.fee for one in mined if one.sender == self.payer),
        )

    def _events(self, signature: str) -> Iterator[tuple[str, list[int]]]:
        """Of the payer's channels: the channel, and the words of the event's data."""
        topics = [to_hex(keccak256(signature.encode())), None, _topic(self.payer)]
        for _, _, event in self.chain.logs(RESERVE, topics, 0, self.chain.head().number):
            data = event.data
            yield (
                event.topics[1],
                [int.from_bytes(data[at : at + 32], "big") for at in range(0, len(data), 32)],
            )

    @property
    def on_chain(self) -> Mapping[str, int]:
        """Every channel that the payer ever opened, with the deposit that is in it now."""
        found = self.chain.logs(RESERVE, [None, None, _topic(self.payer)], 0, self.chain.head().number)
        names = {event.topics[1] for _, _, event in found}
        return {name: self.chain.channel(name).deposit for name in names}


def _payload(headers: Mapping[str, str]) -> Mapping[str, Any]:
    """Of the credential, if there is one."""
    for name in ("authorization", "payment-authorization"):
        value = headers.get(name, "")
        if is_payment_credential(value):
            return parse_credential(value).payload
    return {}


def _topic(address: str) -> str:
    return "0x" + "00" * 12 + address[2:]


def _plain(response: Response) -> HttpAnswer:
    assert isinstance(response.body, bytes)
    return HttpAnswer(response.status, tuple(response.headers), response.body)


async def _event_stream(request: Request) -> Response:
    return Response(200, (("Content-Type", "text/event-stream"),), b"")
