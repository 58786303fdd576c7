"""From settings to running parts: the store, the ledger, the key, the chains. Wiring only."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Final

from proxy_addon import outbound
from proxy_addon.audit import Audit, log
from proxy_addon.chain import ChainClient
from proxy_addon.config import ConfigError, Settings
from proxy_addon.config_tables import Store
from proxy_addon.core.policy import Origin
from proxy_addon.egress import Egress
from proxy_addon.keys import load_signer
from proxy_addon.methods import tempo_tx
from proxy_addon.outbound import Outbound
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.tasks import background
from proxy_addon.payer.till import Till
from proxy_addon.signer import Signer
from proxy_addon.watchdog.rules import Rules
from proxy_addon.watchdog.watch import Watchdog
from store.amounts import parse_units
from store.backends import open_backend
from store.channels import ChannelStore
from store.journal import Journal, boot_id
from store.presence import Presence
from store.records import Channel

PRELOAD_S: Final = 0.05
"""So long after the start is loaded what the first opening needs: the start does not share its core with it then."""

_LATE: Final = ("certifi", "httpx", "rlp")
"""What is imported later than at the start. That it is there is looked after then."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that one process has open. `close` it in the end; a process that dies loses nothing either."""

    settings: Settings
    store: ChannelStore
    journal: Journal
    signer: Signer | None
    parts: Parts
    presence: Presence
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def watch(self, tills: Callable[[], Iterable[Till]]) -> None:
        """Bring deposits home in the background, until `close`. `tills` are the channels that are in use here."""
        if self.signer is not None:
            asyncio.get_running_loop().call_later(PRELOAD_S, _preload)
            watchdog = Watchdog(self.parts, watchdog_rules(self.settings, self.signer), tills)
            self.tasks.append(background(watchdog.run(), "bursar-watchdog"))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for chain in self.parts.chains.values():
            await chain.aclose()
        await self.parts.outbound.aclose()
        await self.presence.leave()
        await self.store.close()


async def open_runtime(settings: Settings, *, need_signer: bool) -> Runtime:
    """Open what `settings` name. Raises `ConfigError`, `KeystoreError`, `StoreError`; then nothing stays open."""
    for name in _LATE:
        if find_spec(name) is None:
            raise ConfigError(f"the package {name} is not installed: pip install --force-reinstall bursar")
    signer = load_signer(settings) if need_signer else None
    backend = await open_backend(settings.store.backend, settings.store.directory)
    store = ChannelStore(backend)
    try:
        journal, presence = await _enter(settings.store, store)
    except BaseException:
        await store.close()
        raise
    parts = Parts(
        store=store,
        signer=signer,
        chains=open_chains(settings),
        audit=Audit(journal, now_ms),
        ledger=settings.store.ledger,
        now=now_ms,
        token=settings.token,
        outbound=open_outbound(settings),
    )
    log.debug("bursar: store %s, ledger %s", settings.store.directory, journal.path)
    return Runtime(settings, store, journal, signer, parts, presence)


def _preload() -> None:
    """Beside the first requests, rather than before them, or within the first opening."""

    def load() -> None:
        tempo_tx.preload()
        outbound.preload()

    threading.Thread(target=load, name="preload", daemon=True).start()


async def _enter(where: Store, store: ChannelStore) -> tuple[Journal, Presence]:
    segment = where.ledger_max_mib * 2**20
    journal = Journal(where.ledger, store.owner_id, boot_id(), segment_bytes=segment)
    try:
        presence = await Presence.enter(
            store, journal, ledger=where.ledger, seal_path=where.seal, directory=where.directory
        )
    except BaseException:
        journal.close()
        raise
    return journal, presence


def open_chains(settings: Settings) -> dict[str, ChainClient]:
    """The chains that the config names. `aclose` each in the end."""
    return {
        name: ChainClient(
            chain.rpc,
            int(name.partition(":")[2]),
            chain.timeout_s,
            quorum=chain.rpc_quorum,
            confirmations=chain.confirmations,
        )
        for name, chain in settings.chains.items()
    }


def watchdog_rules(settings: Settings, signer: Signer) -> Rules:
    """What the config lets the watchdog do. Without the payer's own key nothing can be done by force."""
    table, policy = settings.watchdog, settings.spend_policy()
    own_idle_s = {
        rule.name: host.close_idle_s for rule, host in zip(policy.hosts, settings.policy.hosts, strict=True)
    }

    def close_idle_ms(origin: str) -> int:
        rule = policy.rule_for(Origin.parse(origin))
        own = own_idle_s.get(rule.name) if rule is not None else None
        return 1000 * (table.close_idle_s if own is None else own)

    def max_fee(channel: Channel) -> int:
        token = settings.token(channel.scope.chain, channel.scope.token)
        return parse_units(table.max_fee, token.decimals, "watchdog.max_fee")

    return Rules(
        close_idle_ms=close_idle_ms,
        force_after_ms=1000 * table.force_close_after_s if signer.signs_transactions else 0,
        max_fee=max_fee,
        every_s=table.every_s,
    )


def open_outbound(settings: Settings) -> Outbound:
    """How we ask servers ourselves. `aclose` it in the end."""
    return Outbound(egress_of(settings), extra_ca=settings.proxy.upstream_ca)


def egress_of(settings: Settings) -> Egress:
    """Where connections may go."""
    table = settings.egress
    return Egress(
        settings.spend_policy(),
        allow=table.allow,
        ports=table.ports,
        check_local_clients=table.check_local_clients,
    )
