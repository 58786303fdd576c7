"""The stage: a simulated chain, one peer for each attack, and the real proxy as a process of its own before them."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from mitmproxy.certs import CertStore

from proxy_addon.cli.records import open_store, read_channels
from proxy_addon.core.messages import PAYMENT_RESPONSE_FIELDS
from proxy_addon.demo.chain import PATH_USD, SimulatedChain
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.signer import Signer
from store import account
from store.lifecycle import ChannelStatus
from store.records import Channel
from tests.e2e.proxies import KEY_VARIABLE, Home, Proxy, bursar, quiet_environment, until
from tests.hostile import client
from tests.hostile.attack import DECIMALS, LIMITS_OF_ALL, Attack, Complaint, Stage, Verdict
from tests.hostile.client import GAVE_UP, Got
from tests.hostile.peer import GOODS, PRICE, Peer, honest
from tests.peers.devnet import Account
from tests.unit.cli.tls import _self_signed

T = TypeVar("T")

FUNDS: Final = 2_000_000_000
PATIENCE_S: Final = 20.0
"""How long a client waits. The proxy's own deadlines are shorter, but for that of an opening."""
HEALTH: Final = "health"
STRANGER: Final = "stranger"
"""A host that no rule is about."""
_HIDDEN: Final = frozenset(name.lower() for name in PAYMENT_RESPONSE_FIELDS) | {"payment-authorization"}


class World:
    """For a ``with``. `attacks` are known beforehand: each has its own table in the config."""

    def __init__(self, attacks: Iterable[Attack], *, mitmdump: bool = False) -> None:
        self.attacks = tuple(attacks)
        self._mitmdump = mitmdump
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.peers: dict[str, Peer] = {}
        self._store = threading.Lock()  # one environment of a store at a time in one process

    # -- setting the stage

    def __enter__(self) -> World:
        try:
            return self._enter()
        except BaseException:
            self._stack.close()
            raise

    def _enter(self) -> World:
        self._thread.start()
        self._stack.callback(self._end_loop)
        self.directory = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bursar-hostile-"))
        )
        certificate, key = _self_signed(self.directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.run(self._start(context))
        wallet = secrets.token_bytes(32)
        self.payer = Signer(wallet).address
        self.run_in(lambda: self.chain.fund(self.payer, FUNDS))
        self.proxy = self._launch(Account(self.payer, "0x" + wallet.hex()), certificate)
        self._stack.callback(self.proxy.kill)
        return self

    async def _start(self, context: ssl.SSLContext) -> None:
        self.chain = SimulatedChain()
        self.rpc = await RpcServer(self.chain).__aenter__()
        for attack in self.attacks:
            tls = context if attack.tls else None
            self.peers[attack.name] = Peer(self.chain, attack.name, attack.script, attack.terms, tls)
            for name in attack.others:
                self.peers[f"{attack.name}/{name}"] = Peer(self.chain, name, honest)
        self.peers[HEALTH] = Peer(self.chain, HEALTH, honest)
        self.peers[STRANGER] = Peer(self.chain, STRANGER, honest)
        for peer in self.peers.values():
            await peer.start()

    def _launch(self, wallet: Account, certificate: Path) -> Proxy:
        directory = self.directory / "home"
        directory.mkdir(mode=0o700)
        (directory / "ca").mkdir(mode=0o700)
        CertStore.from_store(directory / "ca", "mitmproxy", 2048)
        shutil.copy(certificate, directory / "site.pem")
        home = Home(directory, wallet)
        home.write(self._settings(home))
        command = bursar(home, "run", "--listen", "127.0.0.1:0")
        if self._mitmdump:
            from tests.e2e.proxies import ADDON
            from tests.forked import MITMDUMP

            command = [str(MITMDUMP), "-s", str(ADDON), "--set", f"bursar_config={home.config}"]
            command += ["--set", f"confdir={home.ca}", "--listen-host", "127.0.0.1", "--listen-port", "0"]
            command += ["--set", f"ssl_verify_upstream_trusted_ca={certificate}"]
        return Proxy(home, command).launch().ready()

    def _settings(self, home: Home) -> dict[str, Any]:
        def table(peer: Peer, limits: Mapping[str, Any]) -> dict[str, Any]:
            shown = {
                name: value
                for name, value in limits.items()
                if value is not None and name not in LIMITS_OF_ALL
            }
            return {"host": peer.authority, **shown}

        hosts = [table(self.peers[attack.name], attack.whole_limits) for attack in self.attacks]
        for attack in self.attacks:
            hosts += [
                table(self.peers[f"{attack.name}/{name}"], attack.whole_limits) for name in attack.others
            ]
        hosts.append(
            table(self.peers[HEALTH], {"max_price": "0.05", "max_per_day": "50", "max_deposit": "20"})
        )
        return {
            "wallet": {"private_key_env": KEY_VARIABLE},
            "store": {"directory": str(home.store)},
            "proxy": {"release_idle_s": 1, "upstream_ca": str(home.directory / "site.pem")},
            "policy": {"max_per_day": "1000", "max_lifetime": "1000", "hosts": hosts},
            "limits": {**LIMITS_OF_ALL, "in_flight": 10 * LIMITS_OF_ALL["in_flight_per_origin"]},
            "chains": {
                f"eip155:{self.chain.chain_id}": {
                    "rpc": [self.rpc.url],
                    "tokens": [{"address": PATH_USD, "symbol": "USD", "decimals": DECIMALS}],
                }
            },
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self._stack.close()

    def close(self) -> None:
        """End the proxy in order, and look at all of its books. Raises `Complaint`, `AssertionError`."""
        self.proxy.stop()
        self.audit()

    def _end_loop(self) -> None:
        async def end() -> None:
            for peer in self.peers.values():
                await peer.stop()
            await self.rpc.__aexit__()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
        """In the peers' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def run_in(self, work: Callable[[], T]) -> T:
        async def call() -> T:
            return work()

        return self.run(call())

    # -- clients

    def curl(self, url: str, count: int, *options: str, seconds: float = PATIENCE_S) -> list[Got]:
        ca = self.proxy.home.ca / "mitmproxy-ca-cert.pem"
        environment = quiet_environment(PATH=os.environ["PATH"])
        return client.curl(self.proxy.url, ca, url, count, *options, seconds=seconds, environment=environment)

    def converse(self, url: str, *, seconds: float) -> client.Heard:
        return client.converse(self.proxy.url, url, seconds=seconds)

    # -- one attack

    def play(self, attack: Attack, *, check_others: bool = True) -> Verdict:
        peer = self.peers[attack.name]
        stage = Stage(self, attack, peer, log_from=len(self.proxy.log))
        begun = time.monotonic()
        complaints: list[str] = []
        try:
            attack.play(stage)
        except Complaint as error:
            complaints.append(str(error))
        seconds = time.monotonic() - begun
        limits = attack.whole_limits
        try:
            taken = self.run_in(peer.cash)
        except AssertionError as error:
            complaints.append(str(error))
            taken = peer.highest
        loss, bound = taken - peer.delivered, attack.bound.units(limits)
        if loss > bound:
            complaints.append(f"it took {loss}, over the bound of {bound}")
        if attack.exact and loss != bound:
            complaints.append(f"it took {loss}; {bound} is what it should have come to")
        complaints += self._of_limits(peer, limits)
        complaints += self._of_client(attack, stage.got)
        if check_others:
            complaints += self.unwell()
        return Verdict(
            attack=attack,
            loss=loss,
            bound=bound,
            locked=self.run_in(lambda: self._locked(peer)),
            opens=len(peer.openings),
            requests=len(stage.got),
            upstream=len(peer.requests),
            seconds=seconds,
            complaints=complaints,
        )

    def _locked(self, peer: Peer) -> int:
        states = [self.chain.channel(one) for one in peer.openings]
        return sum(one.deposit - one.settled for one in states)

    def _of_limits(self, peer: Peer, limits: Mapping[str, Any]) -> Iterable[str]:
        """What holds whatever the attack: the limits that are not about one request."""
        from store.amounts import parse_units

        def units(key: str) -> int:
            return parse_units(limits[key], DECIMALS)

        if peer.forged:
            yield f"vouchers that are none: {peer.forged}"
        if peer.highest > units("max_per_day"):
            yield f"vouchers for {peer.highest} in all, over max_per_day"
        deposits = self.run_in(lambda: [self.chain.channel(one).deposit for one in peer.openings])
        if any(one > units("max_deposit") for one in deposits):
            yield f"deposits of {deposits}, over max_deposit"
        landed = [one for one in deposits if one]
        if len(landed) > limits["max_opens_per_day"]:
            yield f"{len(landed)} channels were opened, over max_opens_per_day"

    def _of_client(self, attack: Attack, got: Iterable[Got]) -> Iterable[str]:
        for one in got:
            leaked = sorted({name for name, _ in one.headers if name.lower() in _HIDDEN})
            if leaked and one.status not in (402, 410):
                yield f"the client was shown {', '.join(leaked)}: {one.shown}"
            if one.exit == GAVE_UP and not attack.unanswered:
                yield f"the client waited in vain: {one.shown}"

    def unwell(self) -> Iterable[str]:
        """The proxy lives, and others are still served."""
        assert self.proxy.process is not None
        if self.proxy.process.poll() is not None:
            yield f"the proxy is dead ({self.proxy.process.returncode}): {self.proxy.log[-2000:]}"
            return
        (got,) = self.curl(f"{self.peers[HEALTH].url}/", 1)
        if (got.status, got.body) != (200, GOODS):
            yield f"an honest host is not served any more: {got.shown}"

    # -- the books

    def channels(self) -> list[Channel]:
        """The store's records, each completed by its owner's journal."""
        with self._store:
            return [view.channel for view in asyncio.run(read_channels(self.proxy.home.settings))]

    def of(self, peer: Peer) -> list[Channel]:
        return [one for one in self.channels() if one.scope.host == peer.authority]

    def decided(self, peer: Peer) -> None:
        """Wait until the chain has decided on all openings that this peer has seen."""

        def all_told() -> bool:
            told = {
                line["channel"]
                for line in self.proxy.home.ledger
                if line["kind"] in ("opened", "open-failed")
            }
            return peer.offered <= told

        until(all_told, f"the chain has decided on the openings of {peer.name}")

    def opens(self, peer: Peer) -> int:
        """Today's, as the budget counts them."""
        return sum(
            count
            for key, count in self._counters().items()
            if key.startswith("opens/") and peer.authority in key
        )

    def refusals(self, peer: Peer) -> list[str]:
        """The reasons of the ledger's decisions against this peer."""
        lines = self.proxy.home.ledger_of("decision", host=peer.authority)
        return [line["reason"] for line in lines]

    def audit(self) -> None:
        """Every voucher that left is on record, within its deposit; the counters are the sum of all records."""
        channels = {one.channel_id: one for one in self.channels()}
        for peer in self.peers.values():
            for voucher in peer.vouchers.values():
                record = channels.get(voucher.channel)
                assert record is not None, f"a channel that is on no record: {voucher}"
                assert voucher.amount <= record.authorised, (voucher, record)
        for record in channels.values():
            account.check(record)
        alive = [one for one in channels.values() if one.status is not ChannelStatus.FAILED]
        authorised = sum(one.authorised for one in alive)
        counters = self._counters()
        for family in ("host-day/", "total-day/", "lifetime/"):
            told = sum(value for key, value in counters.items() if key.startswith(family))
            assert told == authorised, (family, told, authorised)
        log = self.proxy.log
        assert "Traceback" not in log, log[-20_000:]
        assert "has crashed" not in log, log[-20_000:]

    def _counters(self) -> dict[str, int]:
        async def read() -> dict[str, int]:
            store = await open_store(self.proxy.home.settings)
            try:
                return await store.counters()
            finally:
                await store.close()

        with self._store:
            return asyncio.run(read())


__all__ = ["PRICE", "World"]
