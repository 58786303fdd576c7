"""The hostile model's scene: real gates, tills and desks on a real store in memory, a liar for each origin, crashes.

Every `step` does one thing: a client begins, an answer comes (any answer, in any order), time passes, a process dies.
After each of them `check` holds everything against what money.md calls the invariants, and what the liars could
settle against the limits of the config, to the unit.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import orjson
from mitmproxy import connection, http

from proxy_addon import config, config_tables
from proxy_addon.audit import Audit
from proxy_addon.chain import ChainClient
from proxy_addon.core.errors import OutcomeUnknown
from proxy_addon.demo.chain import PATH_USD, SimulatedChain
from proxy_addon.demo.http1 import Request
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.mitm.gate import BodyFilter, Deliver, Outcome, Outgoing
from proxy_addon.outbound import Answer, Outbound
from proxy_addon.payer.gate import PaymentGate
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.streams import MeteredStream, StreamFilter
from proxy_addon.payer.ticket import PayTicket
from proxy_addon.rpc_answers import result_of
from proxy_addon.signer import Signer
from store import account
from store.amounts import parse_units
from store.channels import ChannelStore
from store.codec import decode_channel, decode_int
from store.journal import Journal
from store.lifecycle import ChannelStatus
from store.memory_store import MemoryBackend, SharedMemory
from store.records import Channel
from tests.hostile.liar import KINDS, Liar

RPC: Final = "https://rpc.example"
START: Final = 20_000 * 86_400.0 + 80_000.0  # Unix seconds; the day ends in an hour and a half
TEMPERS: Final = (0.0, 0.5, 0.8, 0.95)
MOST_SENT: Final = 17
MOST_CLIENTS: Final = 8
MOST_TURNS: Final = 20_000
EMPTY: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
CLIENT: Final = ("127.0.0.1", 9)

_CHANNEL, _COUNTER = b"c/", b"b/"
_MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A disk adds nothing: nothing here ends while it writes."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when it is told to."""

    moment = 0.0

    def time(self) -> float:
        return self.moment

    @property
    def busy(self) -> bool:
        return bool(self._ready)  # type: ignore[attr-defined]


class Watched(SharedMemory):
    """Tells what was written since it was last asked: only that is looked at again."""

    def __init__(self) -> None:
        self.touched: set[bytes] = set()
        super().__init__()

    def apply(self, changes: dict[bytes, bytes | None]) -> None:
        super().apply(changes)
        self.touched.update(changes)


@dataclass(frozen=True)
class Limits:
    """One origin's, in base units."""

    price: int
    deposit: int
    step: int
    stream: int
    counters: Mapping[str, int]  # by family


class Broken(AssertionError):
    """An invariant does not hold, or a liar has more than the limits allow."""


def must(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


@dataclass(eq=False)
class Exchange:
    """A request on its way, whose answer somebody waits for."""

    liar: Liar
    house: House
    payload: Mapping[str, Any]
    ticket: PayTicket
    reply: asyncio.Future[Reply]


@dataclass
class Reply:
    """`response` None: the connection broke; again tells whether the layer would send it once more."""

    response: http.Response | None
    body: bytes = b""
    again: bool = False
    ends: Outcome = Outcome.COMPLETE


@dataclass(eq=False)
class Errand:
    """A request of our own: a voucher beside a stream, a top-up, a probe."""

    liar: Liar
    house: House
    payload: Mapping[str, Any]
    method: str
    reply: asyncio.Future[Answer]


@dataclass(eq=False)
class Stream:
    """A metered answer that flows."""

    exchange: Exchange
    filter: BodyFilter
    over: asyncio.Future[Outcome]
    began_with: int = 0

    def __post_init__(self) -> None:
        self.began_with = self._metered._total

    @property
    def _metered(self) -> MeteredStream:
        assert isinstance(self.filter, StreamFilter)
        return self.filter._stream

    @property
    def grown(self) -> int:
        """What was authorised for it beyond its request (base units)."""
        return self._metered._total - self.began_with

    @property
    def busy(self) -> bool:
        return self._metered._busy


class NearChain(ChainClient):
    """Without a connection: what the endpoint would answer is asked of it directly."""

    def __init__(self, scene: Scene) -> None:
        super().__init__([RPC], scene.chain.chain_id)
        self._rpc = scene.rpc

    async def _post(self, url: str, method: str, params: list[Any]) -> object:
        body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        found = await self._rpc.handler(Request("POST", "/", {}, {}, body))
        assert isinstance(found.body, bytes)
        await asyncio.sleep(0)
        return result_of(found.body)


class Errands:
    """In the place of `Outbound`."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.house: House | None = None

    async def send(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        assert self.house is not None
        liar = self._scene.liar_of(url)
        payload = liar.note(tuple(headers.items()))
        self._scene.sent(liar, payload)
        errand = Errand(liar, self.house, payload, method, self._scene.loop.create_future())
        self._scene.errands.append(errand)
        return await asyncio.shield(errand.reply)

    async def aclose(self) -> None:
        pass


class House:
    """One process of ours."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.backend = MemoryBackend(scene.shared)
        self.store = ChannelStore(self.backend)
        self.alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}  # in their order, which a seed repeats
        chain = NearChain(scene)
        errands = Errands(scene)
        errands.house = self
        self.parts = Parts(
            store=self.store,
            signer=scene.signer,
            chains={f"eip155:{scene.chain.chain_id}": chain},
            audit=Audit(Journal(scene.ledger, self.backend.owner_id, scene.boot), scene.now),
            ledger=scene.ledger,
            now=scene.now,
            token=scene.settings.token,
            outbound=cast(Outbound, errands),
            salt=lambda: scene.random.randbytes(32),
            ticks=scene.now,
        )
        self.gate = PaymentGate(self.parts, scene.settings.spend_policy())

    @property
    def idle(self) -> bool:
        return not self.tasks

    async def die(self, *, landed: bool) -> None:
        """As by kill -9. Who waits for the store waits for ever."""
        self.alive = False
        self.backend.kill(landed=landed)
        mine = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not mine and (task in self.tasks or task.get_name().startswith("bursar")):
                task.cancel()
        self.parts.audit.journal.close()


@dataclass
class Scene:
    """`limits` of the config are drawn from the seed, too."""

    seed: int
    loop: VirtualLoop
    random: Random = field(init=False)
    exchanges: list[Exchange] = field(default_factory=list)
    errands: list[Errand] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    active: list[PayTicket] = field(default_factory=list)  # of the process that lives
    requests: int = 0
    charged: int = 0  # to requests that have ended, base units
    left: list[PayTicket] = field(default_factory=list)  # whose clients left: a raise for them may still come
    done: Counter[str] = field(default_factory=Counter)
    boot: str = "boot-0"
    forgiven: int = 0  # what requests that died with their process may have had, base units

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.directory = Path(tempfile.mkdtemp(prefix="bursar-scene-", dir=_MEMORY))
        self.ledger = self.directory / "ledger"
        self.chain = SimulatedChain(clock=self.seconds)
        self.rpc = RpcServer(self.chain)
        self.shared = Watched()
        self.signer = Signer(self.random.randbytes(32))
        self.chain.fund(self.signer.address, 10**12)
        self.liars = [
            Liar(
                self.chain,
                f"http://127.0.0.1:{port}",
                self._payees(),
                self.random,
                self.random.choice(TEMPERS),
            )
            for port in (8_001, 8_002)
        ]
        self.settings = self._settings()
        self.limits = {
            liar.origin: _limits(host, self.settings)
            for liar, host in zip(self.liars, self.settings.policy.hosts, strict=True)
        }
        self.client = connection.Client(peername=CLIENT, sockname=("127.0.0.1", 8), timestamp_start=0)
        self.server = connection.Server(address=None)
        self.records: dict[str, Channel] = {}
        self.counters: dict[str, int] = {}
        self._sums: Counter[str] = (
            Counter()
        )  # of the families of counters; of what is authorised and did not fail
        self._checked: dict[int, Channel] = {}  # tills' channels, as last looked at
        self._settleable: dict[str, tuple[tuple[int, int], int]] = {}
        self.house = House(self)

    # -- what is given

    def seconds(self) -> float:
        return START + self.loop.moment

    def now(self) -> int:
        return int(self.seconds() * 1000)

    def _payees(self) -> tuple[str, ...]:
        return tuple("0x" + self.random.randbytes(20).hex() for _ in range(3))

    def _settings(self) -> config.Settings:
        choice = self.random.choice
        ahead = choice(("0", "0", "0.05"))
        self.ahead = ahead != "0"
        hosts: list[dict[str, Any]] = [
            {
                "host": liar.origin.partition("://")[2],
                "max_price": choice(("0.05", "0.05", "0.035", "0.02", "0.01")),
                "max_per_day": choice(("0.25", "3", "9")),
                "max_deposit": choice(("2", "1", "0.3", "0.06")),
                "max_opens_per_day": choice((2, 12, 30)),
                "max_deposits_per_day": choice(("0.3", "5", "20")),
                "max_channels_per_scope": choice((1, 4, 8, 8)),
                "authorise_ahead": ahead,
                "reserve": choice(("0", "0.02", "1")),
                "max_stream_step": choice(("0.02", "0.05")),
                "max_stream_per_second": choice(("0.03", "1")),
                "max_per_stream": choice(("0.1", "0.04")),
                "pin_payee": choice((False, False, True)),
                "breaker_failures": choice((3, 1_000_000, 1_000_000)),
                "breaker_max_undelivered": choice(("0.05", "1000000", "1000000")),
                "breaker_retry_after_s": choice((1, 60)),
            }
            for liar in self.liars
        ]
        token = {"address": PATH_USD, "symbol": "USD", "decimals": 6}
        return config.parse(
            {
                "policy": {
                    "max_per_day": choice(("0.5", "12", "12")),
                    "max_lifetime": choice(("0.9", "50", "50")),
                    "hosts": hosts,
                },
                "limits": {
                    "attempts_per_minute": choice((30, 6_000, 6_000, 6_000)),
                    "in_flight_per_origin": choice((3, 64, 64, 64)),
                },
                "chains": {f"eip155:{self.chain.chain_id}": {"rpc": [RPC], "tokens": [token]}},
            },
            "the scene",
        )

    def liar_of(self, url: str) -> Liar:
        return next(one for one in self.liars if url.startswith(one.origin))

    # -- a client

    async def _client(self, house: House, liar: Liar, method: str, path: str) -> None:
        flow = http.HTTPFlow(self.client, self.server)
        flow.request = _request(method, liar.origin + path)
        ticket = house.gate.consider(flow)
        assert isinstance(ticket, PayTicket)
        ticket.body_sha256 = EMPTY
        self.requests += 1
        self.active.append(ticket)
        outcome = Outcome.NOT_SENT
        try:
            outgoing = house.gate.prepare_now(ticket)
            if outgoing is None:
                outgoing = await house.gate.prepare(ticket)
            outcome = await self._through(house, liar, ticket, outgoing)
        except asyncio.CancelledError:
            outcome = Outcome.LOST if ticket.attempt is not None else Outcome.NOT_SENT
            ticket.client_left = True
            raise
        finally:
            if house.alive:
                house.gate.finished(ticket, outcome)
                self.active.remove(ticket)
                if ticket.client_left:
                    self.left.append(ticket)
                else:
                    self.charged += ticket.tries.new_money

    async def _through(self, house: House, liar: Liar, ticket: PayTicket, outgoing: Outgoing) -> Outcome:
        for _ in range(MOST_SENT):
            payload = liar.note(outgoing.sets)
            self.sent(liar, payload)
            exchange = Exchange(liar, house, payload, ticket, self.loop.create_future())
            self.exchanges.append(exchange)
            try:
                reply = await exchange.reply
            finally:
                if exchange in self.exchanges:
                    self.exchanges.remove(exchange)
            if reply.response is None:
                again = await house.gate.lost(ticket) if reply.again and ticket.repeatable_method else None
                if again is None:
                    return Outcome.LOST
                outgoing = again
                continue
            if not house.gate.wants(ticket, reply.response):
                body = house.gate.received(ticket, reply.response)
                if body is None:
                    return reply.ends
                stream = Stream(exchange, body, self.loop.create_future())
                self.streams.append(stream)
                try:
                    return await stream.over
                finally:
                    if stream in self.streams:
                        self.streams.remove(stream)
                        self.charged += stream.grown
                        # A raise that is on its way when a stream ends is nobody's: free for the next request.
                        self.forgiven += self.limits[liar.origin].step if stream.busy else 0
            decision = await house.gate.answered(ticket, reply.response, reply.body)
            if isinstance(decision, Deliver):
                return Outcome.COMPLETE
            outgoing = decision.outgoing
        raise Broken(f"one request was sent {MOST_SENT} times")

    # -- steps

    async def step(self, name: str) -> None:
        """One thing happens, and everything that follows from it at once."""
        self.done[name] += 1
        self.done["steps"] += 1
        await getattr(self, name)()
        await self.quiet()
        self.check()

    async def quiet(self) -> None:
        for _ in range(MOST_TURNS):
            await asyncio.sleep(0)
            if not self.loop.busy:
                return
        raise Broken("it works for ever, and no time passes")

    async def client_begins(self) -> None:
        if len(self.house.tasks) >= MOST_CLIENTS:
            await self.answer()
            return
        for _ in range(1 if self.random.random() < 0.85 else self.random.randrange(2, 5)):
            liar = self.liars[0] if self.random.random() < 0.75 else self.liars[1]
            method = self.random.choice(("GET", "GET", "GET", "POST", "HEAD"))
            path = self.random.choice(("/a", "/a", "/b", "/s"))
            task = asyncio.Task(self._client(self.house, liar, method, path), loop=self.loop, name="client")
            self.house.tasks[task] = None
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.house.tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = self.failure or error

    failure: BaseException | None = None

    async def answer(self) -> None:
        """Some request that is on its way gets some answer."""
        waiting = [one for one in self.exchanges if not one.reply.done()]
        if not waiting:
            if self.house.tasks:
                await self.time_passes()
            else:
                await self.client_begins()
            return
        exchange = self.random.choice(waiting)
        liar, payload, draw = exchange.liar, exchange.payload, self.random.random
        if payload.get("action") == "open" and draw() < 0.9:
            liar.land(payload)
        exchange.reply.set_result(self._reply(liar, payload, draw()))

    def _reply(self, liar: Liar, payload: Mapping[str, Any], at: float) -> Reply:
        if not payload and at < 0.9:
            response, body = liar.refusal("payment-required")
            return Reply(response, body)
        if at < 0.5 + liar.temper / 3:
            return Reply(liar.served(payload, stream=False))
        if at < 0.6 + liar.temper / 3:
            return Reply(liar.served(payload, stream=True))
        if at < 0.95:
            response, body = liar.refusal(self.random.choice(KINDS))
            return Reply(response, body)
        if at < 0.96:
            response, body = liar.refusal(self.random.choice(KINDS), 410)
            return Reply(response, body)
        if at < 0.98:
            return Reply(liar.served(payload, stream=False), ends=Outcome.CUT)
        return Reply(None, again=at < 0.99)

    async def errand_answered(self) -> None:
        waiting = [one for one in self.errands if not one.reply.done()]
        if not waiting:
            await self.answer()
            return
        errand = self.random.choice(waiting)
        self.errands.remove(errand)
        draw = self.random.random
        if errand.payload.get("action") == "topUp" and draw() < 0.7:
            errand.liar.land(errand.payload)
        if draw() < 0.15:
            errand.reply.set_exception(OutcomeUnknown("no answer"))
            errand.reply.exception()
        elif draw() < 0.75:
            fields = [("payment-receipt", errand.liar.receipt(errand.payload))] if draw() < 0.8 else []
            errand.reply.set_result(Answer(self.random.choice((200, 204, 204, 307)), tuple(fields), b""))
        else:
            response, body = errand.liar.refusal(
                self.random.choice(KINDS), self.random.choice((402, 402, 410, 500))
            )
            fields = [(name.lower(), value) for name, value in response.headers.items(multi=True)]  # type: ignore[no-untyped-call]
            errand.reply.set_result(
                Answer(response.status_code, tuple(fields), b"" if draw() < 0.7 else body)
            )

    async def stream_flows(self) -> None:
        flowing = [one for one in self.streams if not one.over.done()]
        if not flowing:
            await self.answer()
            return
        stream = self.random.choice(flowing)
        liar, payload, at = stream.exchange.liar, stream.exchange.payload, self.random.random()
        if stream.filter.stopped is not None:
            stream.over.set_result(Outcome.CUT)
        elif at < 0.5:
            out = stream.filter.feed(liar.need(payload.get("channelId", "0x" + "cd" * 32)))
            must(b"payment-" not in out, "a payment event reached the client")
        elif at < 0.75:
            stream.filter.feed(b"data: x\n\n")
        elif at < 0.85:
            out = stream.filter.feed(liar.last_words(payload)) + stream.filter.end()
            must(b"payment-" not in out, "a payment event reached the client")
            stream.over.set_result(Outcome.COMPLETE)
        else:
            stream.over.set_result(Outcome.COMPLETE if at < 0.92 else Outcome.CUT)

    async def client_leaves(self) -> None:
        if self.house.tasks:
            self.random.choice(tuple(self.house.tasks)).cancel()

    async def time_passes(self) -> None:
        self.loop.moment += self.random.choice((0.001, 0.02, 0.3, 1.0, 2.0, 5.0, 40.0))

    async def long_after(self) -> None:
        self.loop.moment += self.random.choice((70.0, 400.0, 4_000.0, 86_400.0))

    async def something_lands(self) -> None:
        self.random.choice(self.liars).land_something()

    async def idle_for_a_while(self) -> None:
        await self.house.gate.release_idle(self.random.choice((0, 3_000)))

    async def crash(self) -> None:
        """kill -9, at any await; a torn line; sometimes the whole machine."""
        house = self.house
        fate = self.random.random()
        path = house.parts.audit.journal.path
        # Requests that were about to have their raise when it died: the record may have it, they do not.
        for ticket in self.active:
            self.charged += ticket.tries.new_money
            self.forgiven += self.limits[str(ticket.origin)].price - ticket.tries.new_money
        for stream in self.streams:
            self.charged += stream.grown
            self.forgiven += self.limits[stream.exchange.liar.origin].step if stream.busy else 0
        self.active.clear()
        await house.die(landed=fate < 0.5)
        self.exchanges.clear()
        self.streams.clear()
        for errand in self.errands:
            errand.reply.cancel()
        self.errands.clear()
        await self.quiet()
        if fate > 0.8:
            self.boot = f"boot-{self.done['crash']}"
            data = path.read_bytes()
            path.write_bytes(data[: self.random.randrange(len(data) + 1)])
            self._read()  # without a ledger, vouchers may have carried all that was reserved
            self.forgiven += sum(record.reserved for record in self.records.values())
        self.house = House(self)

    # -- what must hold

    def sent(self, liar: Liar, payload: Mapping[str, Any]) -> None:
        """A voucher is leaving: what it is for is on record already, and within its deposit."""
        if "cumulativeAmount" not in payload:
            return
        self._read()
        record = self.records.get(payload["channelId"])
        must(record is not None, "a voucher of a channel that is on no record")
        assert record is not None
        amount = int(payload["cumulativeAmount"])
        self.done["vouchers"] += 1
        must(amount <= record.authorised <= record.ceiling, f"invariant 1: {amount} left, {record}")
        must(record.scope.origin == liar.origin, "a voucher went to another origin than its channel's")

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure
        if FAILURES.found:
            raise Broken("something failed inside") from FAILURES.found.pop()
        self._read()
        sums = self._sums
        alive = sums["authorised"]
        must(sums["host-day/"] == alive, "invariant 3: host-day")
        must(sums["total-day/"] == alive, "invariant 3: total-day")
        must(sums["lifetime/"] + sums["refunded/"] == alive, "invariant 3: lifetime")
        for desk in self.house.gate._offers.desks:
            for till in desk.tills:
                if self._checked.get(id(till)) is not till.channel:
                    self._checked[id(till)] = till.channel
                    account.check(till.channel)
                    must(till.channel.accepted <= till.channel.issued, "more accepted than signed")
        self._of_liars()
        self._of_requests()

    def _read(self) -> None:
        """What was written since the last time, held against what holds for it alone."""
        for key in self.shared.touched:
            value = self.shared.get(key)
            if value is None:
                continue
            if key.startswith(_CHANNEL):
                self._channel(decode_channel(value))
            elif key.startswith(_COUNTER):
                self._counter(key[len(_COUNTER) :].decode(), decode_int(value))
        self.shared.touched.clear()

    def _channel(self, record: Channel) -> None:
        account.check(record)
        before = self.records.get(record.channel_id)
        if before is not None:
            must(record.authorised >= before.authorised, "invariant 3: authorised fell")
            must(record.issued >= before.issued, "what vouchers carried fell")
        self.records[record.channel_id] = record
        alive, was = _alive(record), 0 if before is None else _alive(before)
        self._sums["authorised"] += alive - was
        if alive:
            alive -= record.reserved
        if before is not None and was:
            was -= before.reserved
        self._sums["issued"] += alive - was

    def _counter(self, key: str, used: int) -> None:
        family, _, rest = key.partition("/")
        self._sums[family + "/"] += used - self.counters.get(key, 0)
        self.counters[key] = used
        must(used >= 0, f"{key} is at {used}")
        for origin, limits in self.limits.items():
            limit = limits.counters.get(family)
            if limit is not None and (family in _OF_ALL or rest.endswith(origin.partition("://")[2])):
                must(used <= limit, f"{key} is at {used}, over its limit of {limit}")

    def _of_liars(self) -> None:
        """What each could settle is what its budgets say at most, and within each deposit."""
        for liar in self.liars:
            stamp = (liar.highest, len(self.chain.transactions))
            known = self._settleable.get(liar.origin)
            if known is not None and known[0] == stamp:
                continue
            host, limits = liar.origin.partition("://")[2], self.limits[liar.origin]
            days = sum(
                used
                for key, used in self.counters.items()
                if key.startswith("host-day/") and key.endswith(host)
            )
            most = 0
            for book in liar.books.values():
                deposit = self.chain.channel(book.channel).deposit
                must(deposit <= limits.deposit, f"a deposit of {deposit}, over max_deposit {limits.deposit}")
                must(not deposit or book.highest <= deposit, "a voucher over the deposit")
                most += min(book.highest, deposit)
            must(most <= days, f"{liar.origin} could settle {most}, its budgets say {days}")
            self._settleable[liar.origin] = (stamp, most)

    def _of_requests(self) -> None:
        """Each request within its own limit; and no voucher carries a unit that nobody was charged with."""
        for ticket in self.active:
            spent, limit = ticket.tries.new_money, self.limits[str(ticket.origin)].price
            must(spent <= limit, f"{spent} for one request, over max_price {limit}")
        for stream in self.streams:
            total, limit = stream._metered._total, self.limits[stream.exchange.liar.origin].stream
            must(total <= limit or not stream.grown, f"{total} for one stream, over max_per_stream {limit}")
        if not self.ahead:
            fresh = sum(one.tries.new_money for one in (*self.active, *self.left))
            fresh += sum(one.grown for one in self.streams)
            left = sum(liar.highest for liar in self.liars)
            issued = max(left, self._sums["issued"])
            must(
                issued <= self.charged + fresh + self.forgiven,
                f"vouchers carried {issued}, all requests together were charged {self.charged + fresh}",
            )

    # -- the end

    async def rest(self) -> None:
        """Everybody leaves; all openings are decided; the gate closes; the books are what the store says."""
        for task in tuple(self.house.tasks):
            task.cancel()
        for errand in self.errands:
            if not errand.reply.done():
                errand.reply.set_exception(OutcomeUnknown("the end"))
                errand.reply.exception()
        self.errands.clear()
        await self.quiet()
        for _ in range(40):
            self.loop.moment += 5.0
            await self.quiet()
        self.check()
        await self.house.gate.close()
        await self.quiet()
        self.check()
        must(not self.house.tasks, "a client still waits")
        # One that a process left by dying is folded by whoever claims it next.
        holds = [
            one
            for one in self.records.values()
            if one.holds and one.owner in (None, self.house.store.owner_id)
        ]
        must(not holds, f"holds that nobody will end: {holds}")

    def summary(self) -> Counter[str]:
        """What happened, for whoever wants to know that something did."""
        found = Counter(self.done)
        found["requests"] = self.requests
        for liar in self.liars:
            found["vouchers' units"] += liar.highest
            found["channels"] += len(liar.books)
        return found

    async def close(self) -> None:
        if self.house.alive:
            await self.house.die(landed=False)
        await self.quiet()
        shutil.rmtree(self.directory, ignore_errors=True)


@functools.cache
def _made(method: str, url: str) -> http.Request:
    return http.Request.make(method, url)


def _request(method: str, url: str) -> http.Request:
    """As `Request.make`, which costs as much as the rest of a step."""
    found = object.__new__(http.Request)
    found.data = copy.copy(_made(method, url).data)
    found.data.headers = found.data.headers.copy()
    return found


_OF_ALL: Final = frozenset({"total-day", "lifetime"})


def _alive(record: Channel) -> int:
    return 0 if record.status is ChannelStatus.FAILED else record.authorised


def _limits(host: config_tables.Host, settings: config.Settings) -> Limits:
    def units(text: str | None) -> int:
        assert text is not None
        return parse_units(text, 6)

    return Limits(
        price=units(host.max_price),
        deposit=units(host.max_deposit),
        step=units(host.max_stream_step),
        stream=units(host.max_per_stream),
        counters={
            "host-day": units(host.max_per_day),
            "total-day": units(settings.policy.max_per_day),
            "lifetime": units(settings.policy.max_lifetime),
            "opens": host.max_opens_per_day,
            "deposits": units(host.max_deposits_per_day),
        },
    )


ACTIONS: Final[Mapping[str, int]] = {
    "client_begins": 240,
    "answer": 480,
    "errand_answered": 70,
    "stream_flows": 90,
    "client_leaves": 12,
    "time_passes": 70,
    "long_after": 5,
    "something_lands": 12,
    "idle_for_a_while": 8,
    "crash": 3,
}


class _Failures(logging.Handler):
    """What failed inside: nothing may, whatever a server says."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(record.exc_info[1])


FAILURES: Final = _Failures()


@contextmanager
def listening() -> Iterator[None]:
    """To what fails inside; nothing else is formatted, which costs more than all the rest."""
    log = logging.getLogger("bursar")
    before = log.level, log.propagate
    log.setLevel(logging.ERROR)
    log.propagate = False
    log.addHandler(FAILURES)
    try:
        yield
    finally:
        log.removeHandler(FAILURES)
        log.level, log.propagate = before
        FAILURES.found.clear()
