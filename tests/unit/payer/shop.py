"""A shop that can be told to misbehave, and a payer that drives the real `PaymentGate`: no proxy, no client process.

The chain, the shop and its checks are those of the demo; the store, the ledger, the signer and the gate are the
real ones. No socket is opened: requests go to the handlers directly, so that a test decides what overtakes what.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import httpx
from mitmproxy import connection, http

from proxy_addon import config
from proxy_addon.audit import Audit
from proxy_addon.chain import ChainClient
from proxy_addon.core.headers import format_challenge
from proxy_addon.core.messages import (
    PROBLEM_BASE,
    Challenge,
    is_payment_credential,
    parse_credential,
    parse_problem,
)
from proxy_addon.demo.chain import PATH_USD, SimulatedChain
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE, PaidApi
from proxy_addon.demo.payee import Account
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.mitm.gate import Deliver, Outcome, Outgoing
from proxy_addon.mitm.uplink import with_fields
from proxy_addon.outbound import Outbound
from proxy_addon.payer.gate import PaymentGate
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.ticket import PayTicket
from proxy_addon.payer.till import Till
from proxy_addon.signer import Signer
from store import account
from store.channels import ChannelStore
from store.journal import Journal
from store.lifecycle import ChannelStatus
from store.memory_store import MemoryBackend, SharedMemory
from store.records import Channel
from tests.unit.errands import serve_errands

FUNDS: Final = 5_000_000
DEPOSIT: Final = 1_000_000
RPC_HOST: Final = "rpc.example"
RPC: Final = f"https://{RPC_HOST}"
MOST_ATTEMPTS: Final = 17  # what the proxy sends upstream for one request, at the very most


class Body(httpx.AsyncByteStream):
    """On its way, as from a socket: one that is there already cannot be read as it was sent."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


class Clock:
    """Real time, until a test moves it: time passes by `ahead`, and our own clock is wrong by `wrong`. Seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.wrong = 0.0

    def seconds(self) -> float:
        """What everyone else takes for the time."""
        return time.time() + self.ahead

    def ms(self) -> int:
        """What we take for the time."""
        return int((self.seconds() + self.wrong) * 1000)

    def ticks(self) -> int:
        return int((time.monotonic() + self.ahead) * 1000)


@dataclass(frozen=True)
class Sent:
    """One upstream request, and what came back."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    problem: str | None
    payload: Mapping[str, Any] = field(default_factory=dict)  # of its credential
    challenge: Challenge | None = None

    @property
    def action(self) -> str | None:
        return self.payload.get("action")

    @property
    def voucher(self) -> int:
        """Cumulative, in base units."""
        return int(self.payload["cumulativeAmount"])

    @property
    def channel_id(self) -> str:
        return str(self.payload["channelId"])


Script = Callable[[Request, Mapping[str, Any]], Response | None]
"""May answer in the shop's place; is given the payload of the credential, empty without one."""


class Shop:
    """The paying world but for us. `script` sees each request first; `pace` is awaited before and after each, with
    whether it is the answer's way back."""

    url = "http://127.0.0.1:8000"

    def __init__(self, **options: Any) -> None:
        """`options` are those of `PaidApi` and its payee."""
        self.clock = Clock()
        self.chain = SimulatedChain(clock=self.clock.seconds)
        self.rpc = RpcServer(self.chain)
        usual: dict[str, Any] = {"suggested_deposit": DEPOSIT, "clock": self.clock.seconds}
        self.api = PaidApi(self.chain, intercept=self._intercept, **(usual | options))
        self.chain.fund(self.api.payee.address, FUNDS)
        self.script: Script = lambda request, payload: None
        self.pace: Callable[[bool], Awaitable[None]] = _yield

    def client(self) -> httpx.AsyncClient:
        """HTTP without sockets, for our own requests: to the chain at `RPC`, else to the shop."""
        return httpx.AsyncClient(transport=httpx.MockTransport(self._serve))

    async def _serve(self, request: httpx.Request) -> httpx.Response:
        handler = self.rpc.handler if request.url.host == RPC_HOST else self.api.handler
        headers = dict(request.headers.items())
        query = dict(request.url.params.items())
        found = await handler(
            Request(request.method, request.url.path, query, headers, await request.aread())
        )
        assert isinstance(found.body, bytes)
        return httpx.Response(found.status, headers=list(found.headers), stream=Body(found.body))

    async def _intercept(self, request: Request) -> Response | None:
        return self.script(request, _payload(request.headers)[1])

    def refusal(
        self,
        kind: str | None,
        status: int = 402,
        *,
        price: int | None = PRICE,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Response:
        """An answer that asks for money: with a problem of `kind`, and a fresh challenge unless `price` is None."""
        fields = list(headers)
        if price is not None:
            challenge = self.api.payee.challenges.make(price)
            fields.append(("WWW-Authenticate", format_challenge(challenge.echo())))
        if kind is None:
            return Response(status, fields, b"pay")
        body = json.dumps({"type": PROBLEM_BASE + kind, "title": kind, "status": status}).encode()
        return Response(status, [*fields, ("Content-Type", "application/problem+json")], body)

    def refuses_once(self, kind: str | None, status: int = 402, **options: Any) -> None:
        """The next payment is refused, whatever it is; then the shop is itself again."""
        self.refuses(1, kind, status, **options)

    def refuses(self, times: int, kind: str | None, status: int = 402, **options: Any) -> None:
        left = times

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            nonlocal left
            if not payload or not left:
                return None
            left -= 1
            return self.refusal(kind, status, **options)

        self.script = script

    @property
    def accounts(self) -> Mapping[str, Account]:
        return self.api.payee.accounts

    @property
    def account(self) -> Account:
        """The only one."""
        (found,) = self.accounts.values()
        return found

    def forget(self) -> None:
        """As after a restart without a database: no channel is known any more."""
        self.api.payee.accounts.clear()

    async def take(self, request: http.Request) -> http.Response:
        """One request, answered."""
        await self.pace(False)
        path, _, query = request.path.partition("?")
        found = await self.api.handler(
            Request(
                request.method,
                path,
                dict(pair.partition("=")[::2] for pair in query.split("&") if pair),
                _lower(request.headers),
                request.raw_content or b"",
            )
        )
        body = (
            found.body if isinstance(found.body, bytes) else b"".join([chunk async for chunk in found.body])
        )
        await self.pace(True)
        fields = [(name.encode(), value.encode()) for name, value in found.headers]
        return http.Response.make(found.status, body, fields)


async def ticks(number: int) -> None:
    """So many turns of the event loop: time that is the same on every machine."""
    for _ in range(number):
        await asyncio.sleep(0)


class Overtaking:
    """Requests reach the shop, or their answers us, when the test lets them."""

    def __init__(self, shop: Shop, *held: int) -> None:
        """`held` are numbers of passages: each upstream request passes once on its way there, once on its way back."""
        self._passages = iter(range(10_000))
        self._held = {number: asyncio.Event() for number in held}
        self._there = {number: asyncio.Event() for number in held}
        shop.pace = self._pass

    async def _pass(self, returning: bool) -> None:
        number = next(self._passages)
        if number in self._held:
            self._there[number].set()
            await self._held[number].wait()
        else:
            await asyncio.sleep(0)

    async def arrived(self, number: int) -> None:
        """One waits at this passage to be let through."""
        await self._there[number].wait()

    def let(self, number: int) -> None:
        self._held[number].set()

    def let_later(self, seconds: float) -> None:
        """All of them."""
        for held in self._held.values():
            asyncio.get_running_loop().call_later(seconds, held.set)


async def _yield(returning: bool) -> None:
    await asyncio.sleep(0)


def _lower(headers: http.Headers) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in headers.fields}


def _payload(headers: Mapping[str, str]) -> tuple[Challenge | None, Mapping[str, Any]]:
    for name, value in headers.items():
        if name.lower() in ("authorization", "payment-authorization") and is_payment_credential(value):
            credential = parse_credential(value)
            return credential.challenge, credential.payload
    return None, {}


@dataclass(frozen=True)
class Got:
    """What the client got, and what it took."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    sent: Sequence[Sent]
    ticket: PayTicket | None

    @property
    def reason(self) -> str | None:
        """Why it was not paid for."""
        return next((value for name, value in self.headers if name == "Bursar-Reason"), None)

    @property
    def problems(self) -> list[str | None]:
        """Of all answers but the last."""
        return [one.problem for one in self.sent[:-1]]

    @property
    def new_money(self) -> int:
        assert self.ticket is not None
        return self.ticket.tries.new_money


class Payer:
    """One process of ours: a gate on a store. What it sends, and to whom, is on `sent`."""

    def __init__(
        self,
        shop: Shop,
        directory: Path,
        *,
        shared: SharedMemory | None = None,
        key: bytes | None = None,
        funds: int = FUNDS,
        max_day: str = "100",
        **rule: Any,
    ) -> None:
        """`rule` changes the ``[[policy.hosts]]`` table."""
        self.shop = shop
        self.key = key or secrets.token_bytes(32)
        self.signer = Signer(self.key)
        if key is None:
            shop.chain.fund(self.signer.address, funds)
        self.backend = MemoryBackend(shared)
        self.store = ChannelStore(self.backend)
        self.sent: list[Sent] = []
        self.dead = False
        self.honest = True  # are both sides?
        self.settings = _settings(shop, max_day, rule)
        chain_id = shop.chain.chain_id
        chain = ChainClient([RPC], chain_id)
        chain._client = shop.client()
        outbound = Outbound()
        serve_errands(outbound, shop.client())
        self.parts = Parts(
            store=self.store,
            signer=self.signer,
            chains={f"eip155:{chain_id}": chain},
            audit=Audit(Journal(directory / "ledger", self.backend.owner_id, "boot"), shop.clock.ms),
            ledger=directory / "ledger",
            now=shop.clock.ms,
            token=self.settings.token,
            outbound=outbound,
            ticks=shop.clock.ticks,
        )
        self.gate = PaymentGate(self.parts, self.settings.spend_policy(), reason_header=True)

    async def get(self, path: str = "/quote", method: str = "GET", **options: Any) -> Got:
        """One client request, from its header to the end of its answer."""
        return await self.send(method, path, **options)

    async def all(self, count: int, path: str = "/quote") -> list[Got]:
        """So many clients at once."""
        return await asyncio.gather(*(self.get(path) for _ in range(count)))

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        origin: str | None = None,
        ends: Outcome = Outcome.COMPLETE,
        whole: bool = True,
    ) -> Got:
        """What the proxy does with a request, its stream left out; its last answer `ends` like this on the wire.

        `whole`: the end of its body has been seen when it is paid for.
        """
        url = f"{origin or self.shop.url}{path}" + (f"?{urlencode(query)}" if query else "")
        fields = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        request = http.Request.make(method, url, body, fields)
        client = connection.Client(peername=("127.0.0.1", 9), sockname=("127.0.0.1", 8), timestamp_start=0)
        flow = http.HTTPFlow(client, connection.Server(address=None))
        flow.request = request
        ticket = self.gate.consider(flow)
        sent: list[Sent] = []
        if ticket is None:
            return _got(await self._once(request, sent), sent, None)
        assert isinstance(ticket, PayTicket)
        ticket.body_sha256 = hashlib.sha256(body).hexdigest() if whole else None
        outcome = Outcome.LOST
        try:
            outgoing = self.gate.prepare_now(ticket)
            if outgoing is None:
                outgoing = await self.gate.prepare(ticket)
            if ends is Outcome.NOT_SENT:
                outcome = ends
                return _got(http.Response.make(502), sent, ticket)
            response = await self._through(ticket, request, outgoing, sent)
            outcome = ends
        finally:
            self.gate.finished(ticket, outcome)
        return _got(response, sent, ticket)

    async def _through(
        self, ticket: PayTicket, request: http.Request, outgoing: Outgoing, sent: list[Sent]
    ) -> http.Response:
        for _ in range(MOST_ATTEMPTS):
            response = await self._once(with_fields(request, outgoing), sent)
            if not self.gate.wants(ticket, response):
                self.gate.received(ticket, response)
                return response
            decision = await self.gate.answered(ticket, response, response.raw_content)
            if isinstance(decision, Deliver):
                for name, value in decision.adds:
                    response.headers.add(name, value)
                return response
            outgoing = decision.outgoing
        raise AssertionError(f"one request was sent upstream {MOST_ATTEMPTS} times: {sent}")

    async def _once(self, request: http.Request, sent: list[Sent]) -> http.Response:
        headers = _lower(request.headers)
        challenge, payload = _payload(headers)
        if "cumulativeAmount" in payload:  # nothing leaves that is not on record
            record = await self.store.find(payload["channelId"])
            assert record is not None
            assert int(payload["cumulativeAmount"]) <= record.authorised <= record.ceiling
        response = await self.shop.take(request)
        problem = parse_problem(response.headers.get("content-type", ""), response.raw_content or b"")
        kind = problem.kind if problem is not None else None
        path = request.path.partition("?")[0]
        one = Sent(request.method, path, headers, response.status_code, kind, payload, challenge)
        sent.append(one)
        self.sent.append(one)
        return response

    # -- looking inside

    @property
    def tills(self) -> list[Till]:
        return [till for desk in self.gate._offers.desks for till in desk.tills]

    @property
    def till(self) -> Till:
        """The only one."""
        (till,) = self.tills
        return till

    @property
    def signatures(self) -> int:
        return sum(till.signatures for till in self.tills)

    @property
    def commits(self) -> int:
        return sum(till.commits for till in self.tills)

    async def settled(self) -> None:
        """Until the chain has decided on all openings and top-ups."""
        async with asyncio.timeout(20):
            for desk in self.gate._offers.desks:
                while desk.opening is not None:
                    await desk.opening.decided.wait()
                while tasks := list(desk._topping.values()):
                    await asyncio.wait(tasks)
                    await asyncio.sleep(0)  # for what is done when they are done

    async def channels(self, status: ChannelStatus | None = None) -> list[Channel]:
        """As they are on record, the oldest first."""
        return [one for one in await self.store.all() if status in (None, one.status)]

    # -- the end

    async def close(self) -> None:
        """Give everything back, and look whether the books are right: against those of the shop, too, if `honest`."""
        if not self.dead:
            await self.settled()
            await self.gate.close()
        try:
            if not self.dead:
                await self._audit()
        finally:
            for chain in self.parts.chains.values():
                await chain.aclose()
            await self.parts.outbound.aclose()
            await self.store.close()
            self.parts.audit.journal.close()

    async def die(self) -> None:
        """As by kill -9: nothing more is written, and nothing given back."""
        self.backend.kill()
        mine = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not mine and task.get_name().startswith("bursar"):
                task.cancel()
        self.dead = True

    async def _audit(self) -> None:
        channels = await self.channels()
        for channel in channels:
            account.check(channel)
        alive = [channel for channel in channels if channel.status is not ChannelStatus.FAILED]
        authorised = sum(channel.authorised for channel in alive)
        counters = await self.store.counters()
        for families in ("host-day/", "total-day/", ("lifetime/", "refunded/")):
            assert sum(value for key, value in counters.items() if key.startswith(families)) == authorised
        by_id = {channel.channel_id: channel for channel in channels}
        for one in self.sent:
            if "cumulativeAmount" in one.payload:
                assert one.voucher <= by_id[one.channel_id].authorised <= by_id[one.channel_id].ceiling
        for channel_id, book in self.shop.accounts.items() if self.honest else ():
            ours = by_id.get(channel_id)
            if ours is not None and ours.owner is None:  # no other payer's, and no other process's
                assert ours.paid <= book.spent <= ours.paid + ours.uncertain, (ours, book)


def _got(response: http.Response, sent: list[Sent], ticket: PayTicket | None) -> Got:
    headers = [(name.decode(), value.decode()) for name, value in response.headers.fields]
    return Got(response.status_code, headers, response.raw_content or b"", tuple(sent), ticket)


def _settings(shop: Shop, max_day: str, rule: Mapping[str, Any]) -> config.Settings:
    usual: dict[str, Any] = {
        "host": "127.0.0.1",
        "max_price": "0.05",
        "max_per_day": "100",
        "max_deposit": "2",
    }
    token = {"address": PATH_USD, "symbol": "USD", "decimals": 6}
    return config.parse(
        {
            "policy": {"max_per_day": max_day, "max_lifetime": "1000", "hosts": [usual | dict(rule)]},
            "chains": {f"eip155:{shop.chain.chain_id}": {"rpc": [RPC], "tokens": [token]}},
        },
        "the test",
    )
