"""From settings to running parts: the store, the ledger, the key, the chains. Wiring only."""

from __future__ import annotations

import time
from dataclasses import dataclass

from proxy_addon.audit import Audit, log
from proxy_addon.chain import ChainClient
from proxy_addon.config import ConfigError, Settings
from proxy_addon.outbound import Outbound
from proxy_addon.payer.parts import Parts
from proxy_addon.signer import Signer
from store.backends import open_backend
from store.channels import ChannelStore
from store.journal import Journal, boot_id


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

    async def close(self) -> None:
        for chain in self.parts.chains.values():
            await chain.aclose()
        await self.parts.outbound.aclose()
        await self.store.close()
        self.journal.close()


async def open_runtime(settings: Settings, *, need_signer: bool) -> Runtime:
    """Open what `settings` name. Raises `ConfigError`, `KeystoreError`, `StoreError`; then nothing stays open."""
    signer = load_signer(settings) if need_signer else None
    backend = await open_backend(settings.store.backend, settings.store.directory)
    store = ChannelStore(backend)
    try:
        journal = Journal(settings.store.ledger, backend.owner_id, boot_id())
    except BaseException:
        await store.close()
        raise
    chains = {
        name: ChainClient(chain.rpc, int(name.partition(":")[2]), chain.timeout_s)
        for name, chain in settings.chains.items()
    }
    parts = Parts(
        store=store,
        signer=signer,
        chains=chains,
        audit=Audit(journal, now_ms),
        ledger=settings.store.ledger,
        now=now_ms,
        token=settings.token,
        outbound=Outbound(extra_ca=settings.proxy.upstream_ca),
    )
    log.debug("bursar: store %s, ledger %s", settings.store.directory, journal.path)
    return Runtime(settings, store, journal, signer, parts)


def load_signer(settings: Settings) -> Signer:
    """The key that the config names. Raises `ConfigError` if it names none, `KeystoreError` if it does not open."""
    from proxy_addon import keystore

    wallet = settings.wallet
    if wallet.private_key_env is not None:
        return keystore.signer_from_env(wallet.private_key_env)
    if wallet.keystore is None:
        raise ConfigError("the config names no key: set [wallet].keystore or [wallet].private_key_env")
    if wallet.password_file is not None:
        password = keystore.password_from_file(wallet.password_file)
    elif wallet.password_env is not None:
        password = keystore.password_from_env(wallet.password_env)
    else:
        raise ConfigError("the config names no password: set [wallet].password_env or [wallet].password_file")
    return keystore.signer_from_keystore(wallet.keystore, password)
