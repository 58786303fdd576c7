"""One process of the payer, from its start to its kill: the real gate, store, ledger and signer, without mitmproxy.

What it sends goes to `world.World`, over a socket. Waits for the chain are short, and in most lives that do not end
at a point by name a reserve comes with the first commits, so that they see its beginning and its end. Nothing else is
changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import io
import logging
import os
import random
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
from mitmproxy import connection, http

from proxy_addon import config
from proxy_addon.cli import verify
from proxy_addon.cli.lines import read_ledger
from proxy_addon.cli.sums import add_up
from proxy_addon.core import dispatch
from proxy_addon.core.errors import BursarError
from proxy_addon.demo.chain import CHAIN_ID, PATH_USD
from proxy_addon.mitm.gate import Deliver, Outcome, Outgoing
from proxy_addon.mitm.uplink import with_fields
from proxy_addon.payer import by_hand, closing, desk, forcing, opening, topping
from proxy_addon.payer.gate import PaymentGate
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.ticket import PayTicket
from proxy_addon.runtime import Runtime, open_runtime
from store.amounts import format_units
from store.contract import StoreError
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel
from tests.crash import points, sabotage, watched
from tests.crash.jobs import (
    MAIN_PORT,
    MOST_PER_STREAM,
    SOCKET_PATH,
    HttpAnswer,
    HttpAsk,
    Job,
    Report,
    Spend,
    Totals,
)
from tests.crash.socket_life import converse
from tests.crash.wire import Wire
from tests.crash.world import PRICES
from tests.unit.errands import serve_errands

RPC = "http://127.0.0.1:9"
KEY_VARIABLE = "CRASH_WALLET_KEY"
MOST_ATTEMPTS = 17
PATIENCE_S = 15.0
SOCKETS = 0.3  # so many of the first requests after a kill are WebSockets
LIMITS = {
    "host-day/": 50_000_000,
    "total-day/": 200_000_000,
    "lifetime/": 200_000_000,
    "opens/": 1000,
    "deposits/": 200_000_000,
}


def settings_for(directory: Path, spend: Spend | None = None) -> config.Settings:
    """Generous, but for the day's limit of those who spend."""
    host = {
        "host": "127.0.0.1",
        "max_price": "0.05",
        "max_per_day": "50",
        "max_deposit": "0.14" if spend is None else "20",
        "max_opens_per_day": LIMITS["opens/"],
        "max_deposits_per_day": "200" if spend is None else "2000",
        "max_channels_per_scope": 8,
        "max_per_stream": format_units(MOST_PER_STREAM, 6),
        "websocket_paths": [SOCKET_PATH],
    }
    per_day = LIMITS["total-day/"] if spend is None else spend.max_per_day
    return config.parse(
        {
            "wallet": {"private_key_env": KEY_VARIABLE},
            "store": {"directory": str(directory)},
            "policy": {"max_per_day": format_units(per_day, 6), "max_lifetime": "200", "hosts": [host]},
            "chains": {
                f"eip155:{CHAIN_ID}": {
                    "rpc": [RPC],
                    "tokens": [{"address": PATH_USD, "symbol": "USD", "decimals": 6}],
                }
            },
        },
        "the crash harness",
    )


LATER_IMPORTS = (
    *("_sha2" if sys.version_info >= (3, 12) else "_sha256", "concurrent.futures.thread", "encodings.idna"),
    *("lmdb._envid", "proxy_addon.keystore", "tests.crash.acts"),
)


def warm_up() -> None:
    """Before the fork: what else each child would do for the first time."""
    for module in (opening, topping):
        vars(module).update(FIRST_WAIT_S=0.002, LONGEST_WAIT_S=0.01)
    for module in (closing, forcing):
        vars(module).update(POLL_S=0.005, CHAIN_WAIT_S=0.1)
    vars(desk).update(RETRY_S=0.005)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in LATER_IMPORTS:
        importlib.import_module(name)
    watched.put_in_place()
    points.install()


async def live(fd: int, job: Job) -> None:
    """Called in the forked child; it does not return, unless something is wrong with the harness."""
    if sys.version_info >= (3, 12):
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as in mitmproxy 12
    wire = await Wire.on(fd)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: wire.put(("trouble", _waiting())))
    logging.getLogger().addHandler(_Telling(wire))
    points.trap.set(job)
    if job.kill.point is None:  # else an act passes the point, and with a reserve there is less to pass
        chance = random.Random(f"reserve {job.seed}")
        vars(dispatch).update(
            RESERVE_AFTER=chance.choice([1, 1, 2, 8]), RESERVE_PRICES=chance.choice([1, 3, 31])
        )
    if job.sabotage is not None:
        sabotage.commit(job.sabotage)
    life = await Life.start(job, wire)
    try:
        await (life.run() if job.spend is None else life.spend(job.spend))
    except Exception:
        await wire.ask(("trouble", traceback.format_exc()))
    await wire.ask(("done",))
    os.kill(os.getpid(), signal.SIGKILL)


def _waiting() -> str:
    text = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(file=text)
    return text.getvalue()


class _Telling(logging.Handler):
    """What is logged with a traceback is nothing that a kill may lead to."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(logging.ERROR)
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._wire.put(("trouble", self.format(record)))


class _Body(httpx.AsyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


class _Transport(httpx.AsyncBaseTransport):
    """Our own requests, without sockets of httpx's. The next fate of their method goes with them."""

    def __init__(self, host: str, wire: Wire, fates: dict[str, list[str]]) -> None:
        self._host, self._wire, self._fates = host, wire, fates

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        fates = self._fates.get(request.method)
        fate = fates.pop(0) if fates and self._host == "api" else None
        answer = await send(
            self._wire,
            HttpAsk(
                host=self._host,
                method=request.method,
                path=request.url.path,
                query=dict(request.url.params.items()),
                headers=dict(request.headers.items()),
                body=await request.aread(),
                fate=fate,
            ),
        )
        if answer is None:
            raise httpx.ReadError("no answer")
        return httpx.Response(answer.status, headers=list(answer.headers), stream=_Body(answer.body))


async def send(wire: Wire, ask: HttpAsk) -> HttpAnswer | None:
    answer = await wire.put(ask)
    assert answer is None or isinstance(answer, HttpAnswer)
    return answer


class Life:
    """A gate on a store, and clients for it."""

    def __init__(self, job: Job, wire: Wire, runtime: Runtime, outbound_fates: dict[str, list[str]]) -> None:
        self.job, self.wire, self.runtime, self.parts = job, wire, runtime, runtime.parts
        self.outbound_fates = outbound_fates  # of our own requests, by method
        self.random = random.Random(f"life {job.seed}")
        self.gate = PaymentGate(self.parts, self.runtime.settings.spend_policy(), reason_header=True)
        self.origin = f"http://127.0.0.1:{MAIN_PORT}"
        self.reason: str | None = None  # why the last request was not paid for

    @classmethod
    async def start(cls, job: Job, wire: Wire) -> Life:
        fates: dict[str, list[str]] = {}
        return cls(job, wire, await open_wired(job, wire, fates), fates)

    async def run(self) -> None:
        report = await self.look()
        self.origin = report.origin
        await self.wire.ask(report)
        if self.job.verify:
            await self.verify()
        if self.job.resume:
            by_socket = self.job.kill.point is None and self.random.random() < SOCKETS
            status = await (converse(self, units=1) if by_socket else self.get())
            await self.wire.ask(("resumed", status, self.reason))
        points.trap.arm()
        from tests.crash.acts import ACTS  # which are about lives

        for group in self.job.acts:
            await asyncio.gather(*(ACTS[name](self) for name in group))

    async def verify(self) -> None:
        """A kill is nothing that the ledger's proofs may take for a hand."""
        verdict = await verify._verify(self.runtime.settings, ask_chain=False)
        findings = [f"{where} {found}" for where, found in verdict.findings]
        if findings:
            await self.wire.ask(("trouble", f"bursar ledger verify: {findings}"))
        tokens = add_up(read_ledger(self.job.ledger)).tokens.values()
        totals = Totals(
            deposited=sum(one.deposited for one in tokens),
            captured=sum(one.paid + one.adjusted for one in tokens),
            refunded=sum(one.refunded for one in tokens),
            fees=sum(one.fees for one in tokens),
        )
        await self.wire.ask(totals)

    async def look(self) -> Report:
        store = self.parts.store
        channels, counters = await store.books()
        folded = {
            channel.channel_id: _unwatched(Parts.recover)(self.parts, channel)[0]
            for channel in channels
            if channel.owner is not None and channel.status not in FINAL and not store.is_busy(channel)
        }
        live = [channel for channel in channels if channel.status not in FINAL]
        last = max(live, key=lambda channel: channel.updated_at, default=None)
        return Report(
            channels=channels,
            folded=folded,
            counters=counters,
            limits=LIMITS if self.job.spend is None else LIMITS | {"total-day/": self.job.spend.max_per_day},
            origin=self.origin if last is None else last.scope.origin,
        )

    async def spend(self, spend: Spend) -> None:
        """Tells of each payment what became of it; without any, of what is on record."""
        self.origin = f"http://127.0.0.1:{spend.port}"
        if not (spend.payments or spend.to_the_end):
            await self.wire.ask(await self.look())
        left = spend.payments
        while left > 0:
            some = min(left, self.random.randrange(1, 5))
            await asyncio.gather(*(self._spend(self.random.choice(PRICES[4:])) for _ in range(some)))
            left -= some
        for price in sorted(PRICES, reverse=True) if spend.to_the_end else ():
            while await self._spend(price):
                pass

    async def _spend(self, price: int) -> bool:
        status = await self.get(f"/costs/{price}")
        await self.wire.ask(("spent", price, status, self.reason))
        return status == 200

    # -- clients

    def fresh_origin(self) -> str:
        """One that never was paid: its own scope."""
        return f"http://127.0.0.1:{self.random.randrange(10_000, 60_000)}"

    async def get(
        self,
        path: str = "/quote",
        *,
        method: str = "GET",
        origin: str | None = None,
        body: bytes = b"",
        fates: Iterable[str] = (),
        ends: Outcome = Outcome.COMPLETE,
        units: int = 0,
    ) -> int:
        """What the proxy does with one request; the status that its client got, 0 for none.

        `fates` are those of its payments, one after the other. `units` is what a stream sends before it ends.
        """
        url = f"{origin or self.origin}{path}"
        request = http.Request.make(method, url, body)
        client = connection.Client(peername=("127.0.0.1", 9), sockname=("127.0.0.1", 8), timestamp_start=0)
        flow = http.HTTPFlow(client, connection.Server(address=None))
        flow.request = request
        ticket = self.gate.consider(flow)
        assert isinstance(ticket, PayTicket)
        ticket.body_sha256 = hashlib.sha256(body).hexdigest()
        outcome = Outcome.LOST
        try:
            outgoing = self.gate.prepare_now(ticket)
            if outgoing is None:
                outgoing = await self.gate.prepare(ticket)
            status, outcome = await self._through(ticket, request, outgoing, iter(fates), ends, units)
            return status
        finally:
            self.gate.finished(ticket, outcome)

    async def _through(
        self,
        ticket: PayTicket,
        request: http.Request,
        outgoing: Outgoing,
        fates: Iterator[str],
        ends: Outcome,
        units: int,
    ) -> tuple[int, Outcome]:
        lost = False
        for _ in range(MOST_ATTEMPTS):
            paying = bool(outgoing.sets)
            if paying and ends is Outcome.NOT_SENT:
                return 0, Outcome.NOT_SENT
            response = await self._once(with_fields(request, outgoing), next(fates, None) if paying else None)
            if response is None:
                if lost or not ticket.repeatable_method:
                    return 0, Outcome.LOST
                lost = True
                again = await self.gate.lost(ticket)
                if again is None:
                    return 0, Outcome.LOST
                outgoing = again
                continue
            if not self.gate.wants(ticket, response):
                body = self.gate.received(ticket, response)
                if body is not None and units:
                    await self._stream(ticket, body, units)
                return response.status_code, ends if paying else Outcome.COMPLETE
            decision = await self.gate.answered(ticket, response, response.raw_content)
            if isinstance(decision, Deliver):
                self.reason = next((value for name, value in decision.adds if name == "Bursar-Reason"), None)
                return response.status_code, Outcome.COMPLETE
            outgoing = decision.outgoing
        raise AssertionError(f"one request was sent upstream {MOST_ATTEMPTS} times")

    async def _once(self, request: http.Request, fate: str | None) -> http.Response | None:
        path, _, query = request.path.partition("?")
        answer = await send(
            self.wire,
            HttpAsk(
                host="api",
                method=request.method,
                path=path,
                query=dict(parse_qsl(query, keep_blank_values=True)),
                headers={name.decode().lower(): value.decode() for name, value in request.headers.fields},
                body=request.raw_content or b"",
                fate=fate,
            ),
        )
        if answer is None:
            return None
        fields = [(name.encode(), value.encode()) for name, value in answer.headers]
        return http.Response.make(answer.status, answer.body, fields)

    async def _stream(self, ticket: PayTicket, body: Any, units: int) -> None:
        """A server that sends units, and pauses for the money of each that is not covered yet."""
        attempt = ticket.attempt
        if attempt is None or attempt.stream is None:
            return
        channel, sent = attempt.grant.channel.channel_id, 0
        while sent < units and attempt.stream.stop_reason is None:
            event = await self.wire.ask(("tick", channel))
            body.feed(event)
            if not event.startswith(b"data"):
                while attempt.stream.waiting:  # noqa: ASYNC110 - nothing tells; the proxy looks again, too
                    await asyncio.sleep(0.001)
                continue
            sent += 1
        body.feed(await self.wire.ask(("hang-up", channel)))
        body.end()

    # -- what is on record

    async def channels(self, *status: ChannelStatus) -> list[Channel]:
        return [one for one in await self.parts.store.all() if not status or one.status in status]

    async def settled(self) -> None:
        """Until the chain has decided on everything of this process."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                for one in self.gate._offers.desks:
                    while one.opening is not None:
                        await one.opening.decided.wait()
                    while tasks := list(one._topping.values()):
                        await asyncio.wait(tasks)
                        await asyncio.sleep(0)
        except TimeoutError:
            waiting = [one for one in await self.channels() if one.pending is not None]
            (chain,) = self.parts.chains.values()
            raise AssertionError(f"undecided at {await chain.head()}: {waiting}") from None

    async def release(self) -> None:
        await self.gate.release_idle(-60_000)

    async def as_command(self, name: str, channel_id: str, *rest: Any) -> Any:
        """What another process does, with an owner and a ledger of its own, when somebody types a command."""
        runtime = await open_wired(self.job, self.wire, self.outbound_fates)
        parts = runtime.parts
        try:
            match name:
                case "close":
                    return await closing.close_channel(parts, channel_id)
                case "force":
                    return await forcing.force_close(parts, channel_id)
                case "top-up":
                    return await by_hand.top_up_channel(
                        parts, self.runtime.settings.spend_policy(), channel_id, *rest
                    )
        except (BursarError, StoreError) as error:
            return error
        finally:
            await runtime.close()


def _unwatched(method: Any) -> Any:
    """Looking is no step of the payer's."""
    return getattr(method, "__wrapped__", method)


USUAL_SETTINGS = settings_for(Path("/nowhere"))


async def open_wired(job: Job, wire: Wire, fates: dict[str, list[str]]) -> Runtime:
    """As `bursar run` opens them, but for where its own requests go."""
    os.environ[KEY_VARIABLE] = job.key.hex()
    if job.spend is None:  # parsed once, before the fork
        store = USUAL_SETTINGS.store.model_copy(update={"directory": job.store})
        settings = USUAL_SETTINGS.model_copy(update={"store": store})
    else:
        settings = settings_for(job.store, job.spend)
    runtime = await open_runtime(settings, need_signer=True)
    for chain in runtime.parts.chains.values():
        chain._client = httpx.AsyncClient(transport=_Transport("rpc", wire, {}), trust_env=False)
    api = httpx.AsyncClient(transport=_Transport("api", wire, fates), trust_env=False)
    serve_errands(runtime.parts.outbound, api)
    return runtime
