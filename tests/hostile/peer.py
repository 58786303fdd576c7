"""The hostile peer: a TCP server that sells like an honest one until its script says otherwise.

It writes down every voucher and every opening that reaches it, whatever it answers. In the end it `cashes`: it
broadcasts the openings that it kept back, and settles the highest voucher of each channel on the chain, with the real
checks. What the chain then pays it, less what it delivered at the advertised price, is what it has *taken*.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from proxy_addon.core.headers import format_challenge
from proxy_addon.core.messages import PROBLEM_BASE, Challenge, format_receipt
from proxy_addon.demo import reserve
from proxy_addon.demo.chain import SimulatedChain, TransactionRefused
from proxy_addon.demo.payee import Payee
from proxy_addon.demo.payload import PaymentProblem
from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.tempo_session.calls import channel_id, parse_descriptor
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_session.voucher import V2
from tests.hostile.wire import Fields, Request, answer, b64, read_request

PRICE: Final = 10_000  # base units
GOODS: Final = b"the goods"
PAID: Final = (("Content-Type", "text/plain"), ("Cache-Control", "private"))

Script = Callable[["Peer", Request, "Line"], Awaitable[None]]


@dataclass
class Line:
    """The connection a request came on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def drip(self, data: bytes, pause: float) -> None:
        """Byte by byte, for ever or until nobody listens."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await asyncio.sleep(pause)

    def cut(self, *, reset: bool = False) -> None:
        """End the connection, whatever has been said on it."""
        if reset:
            self.writer.transport.abort()
        else:
            self.writer.close()

    async def gone(self) -> None:
        """Wait until the other side leaves."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass


@dataclass(frozen=True)
class Voucher:
    """The highest that was seen of a channel, its signature checked."""

    channel: str
    descriptor: Mapping[str, str]
    amount: int
    signature: bytes


@dataclass
class Peer:
    """One origin. `terms` are those of `Payee`."""

    chain: SimulatedChain
    name: str
    script: Script
    terms: Mapping[str, Any] = field(default_factory=dict)
    context: ssl.SSLContext | None = None
    port: int = 0

    def __post_init__(self) -> None:
        self.payee = Payee(
            self.chain, clock=self.chain.clock, **({"suggested_deposit": 200_000} | dict(self.terms))
        )
        self.other = Payee(self.chain, clock=self.chain.clock)  # somebody else's wallet, also in its hands
        for one in (self.payee, self.other):
            self.chain.fund(one.address, 10_000_000)
        self.requests: list[Request] = []
        self.vouchers: dict[str, Voucher] = {}
        self.openings: dict[str, str] = {}  # raw transactions by channel
        self.offered: set[str] = set()  # channels of all openings, also those that it let lie
        self.forged: list[str] = []  # what came as a voucher and is none: never
        self.delivered = 0  # base units
        self.memory: dict[str, Any] = {}  # the script's
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the server

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.context, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._serve(Line(reader, writer), self.connections)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, line: Line, connection: int) -> None:
        while not line.writer.is_closing():
            request = await read_request(line.reader, connection)
            if request is None:
                return
            self.requests.append(request)
            self._note(request)
            await self.script(self, request, line)

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://{self.authority}"

    # -- what it could cash

    def _note(self, request: Request) -> None:
        payload = request.payload
        if payload.get("action") == "open":
            self.openings[payload["channelId"]] = payload["transaction"]
            self.offered.add(payload["channelId"])
        if "signature" in payload:
            try:
                self._keep(payload)
            except (KeyError, ValueError) as error:
                self.forged.append(f"{error}: {json.dumps(payload)[:300]}")

    def _keep(self, payload: Mapping[str, Any]) -> None:
        channel, amount = payload["channelId"], int(payload["cumulativeAmount"])
        descriptor = parse_descriptor(payload["descriptor"])
        signature = to_bytes(payload["signature"])
        if channel_id(descriptor, escrow=RESERVE, chain_id=self.chain.chain_id) != channel:
            raise ValueError("the descriptor is not that of channelId")
        digest = V2.digest(chain_id=self.chain.chain_id, escrow=RESERVE, channel_id=channel, amount=amount)
        if not reserve.signed_by(reserve.voucher_signer(descriptor), digest, signature):
            raise ValueError("not signed by the payer")
        best = self.vouchers.get(channel)
        if best is None or amount > best.amount:
            self.vouchers[channel] = Voucher(channel, descriptor, amount, signature)

    @property
    def highest(self) -> int:
        """The sum of the highest vouchers of all channels."""
        return sum(one.amount for one in self.vouchers.values())

    def cash(self) -> int:
        """Settle everything, now. What the chain has paid, over all channels (base units).

        Payees that we have no key of may be its accomplices: what they could settle counts as paid.
        """
        for channel, raw in self.openings.items():
            if not self.chain.channel(channel).deposit:
                self.broadcast(raw)
        return sum(self._cash(one) for one in self.vouchers.values())

    def _cash(self, voucher: Voucher) -> int:
        state = self.chain.channel(voucher.channel)
        if not state.deposit:
            return 0
        assert voucher.amount <= state.deposit, f"a voucher over the deposit: {voucher} {state}"
        owners = (one for one in (self.payee, self.other) if one.address == voucher.descriptor["payee"])
        owner = next(owners, None)
        if owner is None:
            return voucher.amount
        if state.settled < voucher.amount:
            owner._transact(reserve.encode_settle(voucher.descriptor, voucher.amount, voucher.signature))
        settled = self.chain.channel(voucher.channel).settled
        assert settled == voucher.amount, f"the chain paid {settled} for {voucher}"
        return settled

    def land(self, request: Request) -> None:
        """Bring the transaction that came with it to the chain, if there is one."""
        if request.action in ("open", "topUp"):
            self.broadcast(request.payload["transaction"])

    def broadcast(self, raw: str) -> bool:
        try:
            mined = self.chain.transactions.get(self.chain.send(to_bytes(raw)))
        except TransactionRefused:
            return False
        return mined is not None and mined.succeeded

    # -- what it says

    def challenge(self, price: int = PRICE, *, payee: Payee | None = None, **changes: Any) -> Challenge:
        """A challenge that `sell` will know again, unless `changes` replace members of its request.

        `details` among them replaces members of methodDetails; None takes one out. `params` replaces the
        challenge's own parameters.
        """
        made = (payee or self.payee).challenges.make(price)
        params = changes.pop("params", {})
        if not changes and not params:
            return made
        request = dict(made.request_json)
        details = {**request["methodDetails"], **changes.pop("details", {})}
        request = {**request, "methodDetails": _without_none(details), **changes}
        return Challenge(**{**made.echo(), "request": b64(_without_none(request)), **params})

    def refusal(
        self,
        kind: str | None = "payment-required",
        status: int = 402,
        *,
        challenge: Challenge | None = None,
        challenged: bool = True,
        headers: Fields = (),
        **problem: Any,
    ) -> bytes:
        """An answer that asks for money, with a fresh challenge."""
        fields = [("Cache-Control", "no-store")]
        if challenged:
            fields.append(("WWW-Authenticate", format_challenge((challenge or self.challenge()).echo())))
        fields += headers
        if kind is None:
            return answer(status, b"pay", fields)
        fields.append(("Content-Type", "application/problem+json"))
        content = {"type": PROBLEM_BASE + kind, "title": "Pay", "status": status, **problem}
        return answer(status, json.dumps(content).encode(), fields)

    def take(self, request: Request, price: int = PRICE) -> tuple[Fields, bool]:
        """Take the payment as an honest payee does: the receipt's field, and whether content is due.

        Raises `PaymentProblem`.
        """
        assert request.authorization is not None
        taken = self.payee.take(request.authorization, price, content=_is_content(request))
        return (("Payment-Receipt", format_receipt(taken.receipt)),), taken.serve

    def sell(
        self, request: Request, price: int = PRICE, body: bytes = GOODS, headers: Fields = PAID
    ) -> bytes:
        """What an honest server answers."""
        if request.authorization is None:
            return self.refusal(challenge=self.challenge(price))
        try:
            receipt, serve = self.take(request, price)
        except PaymentProblem as problem:
            return self.refusal(problem.kind, problem.status, challenge=self.challenge(price))
        if not serve:
            return answer(204, b"", receipt, length=False)
        self.delivered += price
        return answer(200, body, [*headers, *receipt])

    def receipt(self, request: Request, **changes: Any) -> tuple[str, str]:
        """A receipt by our own word."""
        payload = request.payload
        content = {
            "method": "tempo",
            "intent": "session",
            "status": "success",
            "timestamp": "2026-01-01T00:00:00Z",
            "reference": payload.get("channelId"),
            "challengeId": "c1",
            "channelId": payload.get("channelId"),
            "acceptedCumulative": payload.get("cumulativeAmount"),
            "spent": payload.get("cumulativeAmount"),
            "units": 1,
            **changes,
        }
        return ("Payment-Receipt", b64(_without_none(content)))


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _is_content(request: Request) -> bool:
    if request.method == "HEAD":
        return False
    return request.method != "POST" or "?" in request.target or bool(request.body)


async def honest(peer: Peer, request: Request, line: Line) -> None:
    await line.send(peer.sell(request))
