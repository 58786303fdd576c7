"""The tables of the config file as pydantic has them: keys, types, defaults, and what each must make sense of alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from proxy_addon.config_types import (
    Address,
    Amount,
    Caip2,
    Count,
    Endpoints,
    Flag,
    HostPattern,
    Permit,
    Ports,
    SecretSpec,
    SocketPath,
    UserPath,
    VariableName,
)

DEFAULT_HOME: Final = Path("~/.bursar")


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeySource(Table):
    """One key: an encrypted file with its password, or the key itself from elsewhere."""

    keystore: UserPath | None = None
    password_env: VariableName | None = None
    password_file: UserPath | None = None
    password_from: SecretSpec | None = None
    private_key_env: VariableName | None = None
    private_key_from: SecretSpec | None = None

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        named = [
            name
            for name in ("keystore", "private_key_env", "private_key_from")
            if getattr(self, name) is not None
        ]
        if len(named) > 1:
            raise ValueError(f"names both {named[0]} and {named[1]}; keep one")
        return self

    @property
    def names_a_key(self) -> bool:
        return any(one is not None for one in (self.keystore, self.private_key_env, self.private_key_from))


class Wallet(KeySource):
    payer: Address | None = None
    voucher_key: KeySource | None = None

    @property
    def sources(self) -> tuple[KeySource, ...]:
        return (self,) if self.voucher_key is None else (self, self.voucher_key)


class Store(Table):
    backend: str = "lmdb"
    directory: UserPath = (DEFAULT_HOME / "store").expanduser()
    seal: UserPath | None = None
    ledger_max_mib: Count = Field(default=64, ge=1)

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"


class Proxy(Table):
    listen_host: str = "127.0.0.1"
    listen_port: Count = Field(default=8402, ge=0, le=65535)
    auth_file: UserPath | None = None
    reason_header: Flag = False
    upstream_ca: UserPath | None = None
    release_idle_s: Count = Field(default=3, ge=1)
    max_body_mib: Count = Field(default=256, ge=0)
    drain_s: Count = Field(default=10, ge=0, le=3600)
    strict_retries: Flag = False


class Egress(Table):
    allow: tuple[Permit, ...] = ()
    ports: tuple[Ports, ...] = ((80, 80), (443, 443))
    check_local_clients: Flag = False


class Watchdog(Table):
    close_idle_s: Count = Field(default=86_400, ge=0)
    force_close_after_s: Count = Field(default=0, ge=0)
    max_fee: Amount = "0.05"
    every_s: Count = Field(default=60, ge=1)


class Host(Table):
    host: HostPattern
    max_price: Amount
    max_per_day: Amount
    max_deposit: Amount
    deposit: Amount | None = None
    max_opens_per_day: Count = Field(default=3, ge=0)
    max_deposits_per_day: Amount | None = None
    max_channels_per_scope: Count = Field(default=4, ge=1)
    authorise_ahead: Amount = "0"
    reserve: Amount | None = None
    max_stream_step: Amount | None = None
    max_stream_per_second: Amount | None = None
    max_per_stream: Amount | None = None
    payees: tuple[Address, ...] = ()
    tokens: tuple[Address, ...] = ()
    chains: tuple[Caip2, ...] = ()
    allow_http: Flag = False
    websocket_paths: tuple[SocketPath, ...] = ()
    pin_payee: Flag = False
    breaker_failures: Count | None = Field(default=None, ge=1)
    breaker_max_undelivered: Amount | None = None
    breaker_retry_after_s: Count | None = Field(default=None, ge=1)
    close_idle_s: Count | None = Field(default=None, ge=0)


class Client(Table):
    name: str = Field(min_length=1)
    max_per_day: Amount


class Policy(Table):
    max_per_day: Amount = "0"
    max_lifetime: Amount = "0"
    max_deposits_total: Amount | None = None
    max_per_day_per_client: Amount | None = None
    clients: tuple[Client, ...] = ()
    hosts: tuple[Host, ...] = ()

    @model_validator(mode="after")
    def _each_client_once(self) -> Policy:
        names = [client.name for client in self.clients]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"clients names {twice!r} twice; keep one table for each")
        return self


class Breaker(Table):
    failures: Count = Field(default=5, ge=1)
    max_undelivered: Amount | None = None
    retry_after_s: Count = Field(default=60, ge=1)


class Limits(Table):
    attempts_per_minute: Count = Field(default=600, ge=1)
    in_flight_per_origin: Count = Field(default=1024, ge=1)
    in_flight: Count = Field(default=4096, ge=1)


class TokenEntry(Table):
    address: Address
    symbol: str = Field(min_length=1, max_length=16)
    decimals: Count = Field(default=6, ge=0, le=18)


class Chain(Table):
    rpc: Endpoints
    extra_escrows: tuple[Address, ...] = ()
    timeout_s: Count = Field(default=10, ge=1, le=120)
    rpc_quorum: Count = Field(default=1, ge=1)
    confirmations: Count = Field(default=0, ge=0, le=1000)
    tokens: tuple[TokenEntry, ...] = ()

    @model_validator(mode="after")
    def _enough_endpoints(self) -> Chain:
        if self.rpc_quorum > len(set(self.rpc)):
            raise ValueError(
                f"rpc_quorum = {self.rpc_quorum} needs as many different endpoints in rpc,"
                f" which names {len(set(self.rpc))}"
            )
        return self
