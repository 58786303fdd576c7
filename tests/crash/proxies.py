"""The whole proxy killed under load: `bursar run`, real clients, and servers that note every voucher."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from proxy_addon.cli.supervise import ProxyProcess, start_proxy
from proxy_addon.config import Settings, load
from proxy_addon.demo.chain import PATH_USD
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.runtime import Runtime, open_runtime
from store.amounts import format_units
from store.lifecycle import FINAL
from tests.crash.books import Auditor, Expectation, Kind, Violation
from tests.crash.front import in_front_of
from tests.crash.jobs import MOST_PER_STREAM, SOCKET_PATH, Report
from tests.crash.world import World

KEY_VARIABLE = "CRASH_WALLET_KEY"
KILLS_PER_WALLET = 25
CLIENTS = 8  # of each of two curls, at once
SOCKETS = 2  # WebSockets at once, one after the other each
LOAD = 3000  # requests that each would send
LONGEST_S = 0.6  # under load
STOPPED = 0.15  # so many are not killed but told to stop
STOP_S = 30
DEPOSIT = 400 * PRICE

_CONFIG = """\
[wallet]
private_key_env = "{key}"

[store]
directory = "{home}/store"

[proxy]
release_idle_s = 1

[policy]
max_per_day = "500"
max_lifetime = "500"

[[policy.hosts]]
host = "127.0.0.1:{port}"
max_price = "0.05"
max_per_day = "500"
max_deposit = "6"
max_opens_per_day = 500
max_deposits_per_day = "500"
max_channels_per_scope = 8
max_per_stream = "{stream}"
websocket_paths = ["{path}"]

[chains."eip155:{chain_id}"]
rpc = ["{rpc}"]

[[chains."eip155:{chain_id}".tokens]]
address = "{token}"
symbol = "USD"
decimals = 6
"""


@dataclass
class Proxied:
    """What the campaign has done, and what it found."""

    kills: int = 0
    stops: int = 0
    paid: int = 0
    resumed: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # what the clients got
    heard: int = 0  # messages that came over WebSockets
    sockets: int = 0  # on which a credential was taken
    units: int = 0  # charged over them
    seen: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.violations

    def lines(self) -> Iterator[str]:
        by_kind = Counter(one.kind for one in self.violations)
        yield f"proxies killed: {self.kills} (and told to stop: {self.stops})"
        yield from (f"{kind}: {by_kind[kind]}" for kind in Kind)
        yield f"resumed: {self.resumed}; requests paid: {self.paid}"
        yield "clients got: " + ", ".join(f"{name} × {n}" for name, n in sorted(self.statuses.items()))
        yield f"WebSockets paid: {self.sockets}; units charged over them: {self.units}, heard: {self.heard}"
        yield "credentials that arrived: " + ", ".join(f"{name} {n}" for name, n in sorted(self.seen.items()))
        yield f"seconds: {self.seconds:.1f}"


class _Wallet:
    """One wallet, one store; proxies come and go."""

    def __init__(self, seed: str, home: Path, result: Proxied) -> None:
        self.seed, self.home, self.result = seed, home, result
        self.random = random.Random(f"proxies {seed}")
        self.authority = ""
        self.world = World(f"proxies {seed}", deposit=DEPOSIT)
        self.world.api.intercept = self._note
        self.auditor = Auditor(self.world)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            KEY_VARIABLE: self.world.key.hex(),
        }

    async def _note(self, request: Request) -> Response | None:
        self.world.note(request.headers)
        return None

    async def run(self, kills: int) -> None:
        async with self.world.rpc, self.world.api, in_front_of(self.world) as port:
            self.authority = f"127.0.0.1:{port}"
            self.config = self.home / "config.toml"
            self.config.write_text(
                _CONFIG.format(
                    key=KEY_VARIABLE,
                    home=self.home,
                    port=port,
                    stream=format_units(MOST_PER_STREAM, 6),
                    path=SOCKET_PATH,
                    chain_id=self.world.chain.chain_id,
                    rpc=self.world.rpc.url,
                    token=PATH_USD,
                )
            )
            for number in range(kills):
                await self._cycle(number)
        self.result.paid += sum(one.charged > 0 for one in self.world.api.log)
        self.result.sockets += len(self.world.lines)
        self.result.units += sum(line.units for line in self.world.lines)
        self.result.seen.update(self.world.seen)

    async def _cycle(self, number: int) -> None:
        before = await look(load(self.config), self.environment[KEY_VARIABLE])
        self.result.violations += self.auditor.audit(before)
        await self.world.decide(before)
        expected = Expectation.of(before, self.world.on_chain)
        opened = len(self.world.openings)
        proxy = await asyncio.to_thread(
            start_proxy, self.config, self.environment, self.home / f"proxy-{number}.log"
        )
        try:
            (status,) = await self._curl(proxy, f"http://{self.authority}/quote", 1)
            self.result.resumed += status == "200"
            again = len(self.world.openings) - opened
            if (expected.served and status != "200") or (again and not expected.opens):
                text = f"{self.seed}, proxy {number}: the next request got {status}, and opened {again}"
                self.result.violations.append(Violation(Kind.STUCK, text))
            await self._load_and_end(proxy, number)
        finally:
            proxy.process.kill()
            await asyncio.to_thread(proxy.stop)

    async def _load_and_end(self, proxy: ProxyProcess, number: int) -> None:
        urls = (
            f"http://{self.authority}/quote?n=[1-{LOAD}]",
            f"http://{self.authority}/stream?chunks=4&n=[1-{LOAD}]",
        )
        posted = ("--data-binary", "order") if self.random.random() < 0.5 else ()
        loads = [
            asyncio.ensure_future(self._curl(proxy, urls[0], CLIENTS)),
            asyncio.ensure_future(self._curl(proxy, urls[1], CLIENTS, *posted)),
        ]
        listeners = [asyncio.ensure_future(self._listen(proxy)) for _ in range(SOCKETS)]
        await asyncio.sleep(self.random.random() * LONGEST_S)
        if self.random.random() < STOPPED:
            proxy.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(proxy.process.wait, STOP_S)
            self.result.stops += 1
            if code:
                text = f"{self.seed}, proxy {number}: told to stop, it ended with {code}"
                self.result.violations.append(Violation(Kind.TROUBLE, text))
        else:
            proxy.process.kill()
            self.result.kills += 1
        for statuses in await asyncio.gather(*loads):
            self.result.statuses.update(statuses)
        await asyncio.gather(*listeners)
        log = (self.home / f"proxy-{number}.log").read_text(errors="replace")
        if "Traceback" in log or "has crashed" in log:
            text = f"{self.seed}, proxy {number}: {log[-3000:]}"
            self.result.violations.append(Violation(Kind.TROUBLE, text))

    async def _listen(self, proxy: ProxyProcess) -> None:
        """Unmodified WebSocket clients, until the proxy is gone."""
        with contextlib.suppress(OSError, InvalidHandshake, TimeoutError):
            while proxy.process.poll() is None:
                async with connect(f"ws://{self.authority}{SOCKET_PATH}", proxy=proxy.url) as connection:
                    with contextlib.suppress(ConnectionClosed):
                        async for _ in connection:
                            self.result.heard += 1

    async def _curl(self, proxy: ProxyProcess, url: str, clients: int, *more: str) -> list[str]:
        """The statuses that an unmodified curl got; "000" for no answer."""
        process = await asyncio.create_subprocess_exec(
            *("curl", "-q", "-s", "-x", proxy.url, "--max-time", "60", "-o", os.devnull),
            *("-Z", "--parallel-max", str(clients), "--fail-early", "-w", "%{http_code}\n", *more, url),
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        output, _ = await process.communicate()
        return output.decode().split()


async def look(settings: Settings, key: str) -> Report:
    """What is on record between two proxies, from a process that claims nothing."""
    os.environ[KEY_VARIABLE] = key
    runtime = await open_runtime(settings, need_signer=True)
    try:
        return await _look(runtime)
    finally:
        await runtime.close()


async def _look(runtime: Runtime) -> Report:
    store, parts = runtime.store, runtime.parts
    channels, counters = await store.books()
    live = [channel for channel in channels if channel.status not in FINAL]
    folded = {channel.channel_id: parts.recover(channel)[0] for channel in live if channel.owner is not None}
    last = max(live, key=lambda channel: channel.updated_at, default=None)
    return Report(
        channels=channels,
        folded=folded,
        counters=counters,
        limits={"host-day/": 500_000_000, "total-day/": 500_000_000, "lifetime/": 500_000_000},
        origin="" if last is None else last.scope.origin,
    )


async def kill_proxies(seed: int, kills: int, say: Callable[[Proxied], None] = lambda found: None) -> Proxied:
    """`say` hears what there is so far, after each wallet."""
    started, result, number = time.monotonic(), Proxied(), 0
    while result.kills < kills:
        home = Path(tempfile.mkdtemp(prefix="bursar-proxies-"))
        try:
            size = min(KILLS_PER_WALLET, kills - result.kills)
            await _Wallet(f"{seed}/{number}", home, result).run(size)
        finally:
            shutil.rmtree(home, ignore_errors=True)
        number += 1
        say(result)
    result.seconds = time.monotonic() - started
    return result
