"""The config file: TOML → pydantic → what the rooms need. Every error names the key, the limit and the way out."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from decimal import Decimal, localcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from proxy_addon.config_lines import Locator, lines_of
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
)
from proxy_addon.core.policy import ChainRule, ClientRule, HostRule, Rates, SpendPolicy
from store.amounts import Token, parse_units

DEFAULT_HOME: Final = Path("~/.bursar")
DEFAULT_PATH: Final = DEFAULT_HOME / "config.toml"
SEAL_NAME: Final = "seal.json"


class ConfigError(Exception):
    """The config cannot be used; nothing was started. The message says which key and what to write."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeySource(_Table):
    """One key: an encrypted file with its password, or the key itself from elsewhere."""

    keystore: UserPath | None = None
    password_env: str | None = None
    password_file: UserPath | None = None
    password_from: SecretSpec | None = None
    private_key_env: str | None = None
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


class Store(_Table):
    backend: str = "lmdb"
    directory: UserPath = (DEFAULT_HOME / "store").expanduser()
    seal: UserPath | None = None
    ledger_max_mib: Count = Field(default=64, ge=1)

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"


class Proxy(_Table):
    listen_host: str = "127.0.0.1"
    listen_port: Count = Field(default=8402, ge=0, le=65535)
    auth_file: UserPath | None = None
    reason_header: Flag = False
    upstream_ca: UserPath | None = None
    release_idle_s: Count = Field(default=3, ge=1)
    max_body_mib: Count = Field(default=256, ge=0)
    drain_s: Count = Field(default=10, ge=0, le=3600)
    strict_retries: Flag = False


class Egress(_Table):
    allow: tuple[Permit, ...] = ()
    ports: tuple[Ports, ...] = ((80, 80), (443, 443))
    check_local_clients: Flag = False


class Watchdog(_Table):
    close_idle_s: Count = Field(default=86_400, ge=0)
    force_close_after_s: Count = Field(default=0, ge=0)
    max_fee: Amount = "0.05"
    every_s: Count = Field(default=60, ge=1)


class Host(_Table):
    host: HostPattern
    max_price: Amount
    max_per_day: Amount
    max_deposit: Amount
    deposit: Amount | None = None
    max_opens_per_day: Count = Field(default=3, ge=0)
    max_deposits_per_day: Amount | None = None
    max_channels_per_scope: Count = Field(default=4, ge=1)
    authorise_ahead: Amount = "0"
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


class Client(_Table):
    name: str = Field(min_length=1)
    max_per_day: Amount


class Policy(_Table):
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


class Breaker(_Table):
    failures: Count = Field(default=5, ge=1)
    max_undelivered: Amount | None = None
    retry_after_s: Count = Field(default=60, ge=1)


class Limits(_Table):
    attempts_per_minute: Count = Field(default=600, ge=1)
    in_flight_per_origin: Count = Field(default=1024, ge=1)
    in_flight: Count = Field(default=4096, ge=1)


class TokenEntry(_Table):
    address: Address
    symbol: str = Field(min_length=1, max_length=16)
    decimals: Count = Field(default=6, ge=0, le=18)


class Chain(_Table):
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


class Settings(_Table):
    """A whole config file."""

    _locator: Locator | None = PrivateAttr(default=None)

    mode: Literal["pay", "shadow"] = "pay"
    wallet: Wallet = Wallet()
    store: Store = Store()
    proxy: Proxy = Proxy()
    egress: Egress = Egress()
    policy: Policy = Policy()
    breaker: Breaker = Breaker()
    limits: Limits = Limits()
    watchdog: Watchdog = Watchdog()
    chains: dict[Caip2, Chain] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _amounts_fit_the_tokens(self) -> Settings:
        decimals = {entry.decimals for chain in self.chains.values() for entry in chain.tokens}
        amounts = {
            "policy.max_per_day": self.policy.max_per_day,
            "policy.max_lifetime": self.policy.max_lifetime,
            "watchdog.max_fee": self.watchdog.max_fee,
        }
        for name, value in (
            ("policy.max_deposits_total", self.policy.max_deposits_total),
            ("policy.max_per_day_per_client", self.policy.max_per_day_per_client),
            ("breaker.max_undelivered", self.breaker.max_undelivered),
            *(
                (f"policy.clients[{n}].max_per_day", one.max_per_day)
                for n, one in enumerate(self.policy.clients)
            ),
        ):
            if value is not None:
                amounts[name] = value
        for index, host in enumerate(self.policy.hosts):
            for key in (
                "max_price",
                "max_per_day",
                "max_deposit",
                "deposit",
                "max_deposits_per_day",
                "authorise_ahead",
                "max_stream_step",
                "max_stream_per_second",
                "max_per_stream",
                "breaker_max_undelivered",
            ):
                if (value := getattr(host, key)) is not None:
                    amounts[f"policy.hosts[{index}].{key}"] = value
            if host.max_deposits_per_day is None:
                name = f"policy.hosts[{index}].max_deposit × max_opens_per_day"
                amounts[name] = _times(host.max_deposit, host.max_opens_per_day)
        for name, value in amounts.items():
            for places in decimals:
                parse_units(value, places, name)
        return self

    def spend_policy(self) -> SpendPolicy:
        return SpendPolicy(
            hosts=tuple(
                _host_rule(index, host, self.breaker) for index, host in enumerate(self.policy.hosts)
            ),
            chains={name: _chain_rule(name, chain) for name, chain in self.chains.items()},
            max_per_day=self.policy.max_per_day,
            max_lifetime=self.policy.max_lifetime,
            shadow=self.mode == "shadow",
            max_deposits_total=self.policy.max_deposits_total,
            clients=_client_rules(self.policy),
            other_clients=_other_clients(self.policy),
            rates=Rates(
                attempts_per_minute=self.limits.attempts_per_minute,
                in_flight_per_origin=self.limits.in_flight_per_origin,
                in_flight=self.limits.in_flight,
            ),
        )

    def locate(self, message: str) -> str:
        """`message`, with the lines of the keys that it names."""
        return message if self._locator is None else self._locator(message)

    def token(self, chain: str, address: str) -> Token:
        """How to show a token; one that is not configured is shown in base units."""
        for entry in self.chains[chain].tokens if chain in self.chains else ():
            if entry.address == address:
                return Token(entry.address, entry.symbol, entry.decimals)
        return Token(address, f"base units of {address}", 0)


def _client_rules(policy: Policy) -> dict[str, ClientRule]:
    return {
        client.name: ClientRule(f"policy.clients[{index}].max_per_day", client.max_per_day)
        for index, client in enumerate(policy.clients)
    }


def _other_clients(policy: Policy) -> ClientRule | None:
    limit = policy.max_per_day_per_client
    return None if limit is None else ClientRule("policy.max_per_day_per_client", limit)


def _host_rule(index: int, host: Host, breaker: Breaker) -> HostRule:
    return HostRule(
        name=f"policy.hosts[{index}]",
        pattern=host.host,
        max_price=host.max_price,
        max_per_day=host.max_per_day,
        max_deposit=host.max_deposit,
        deposit=host.deposit if host.deposit is not None else host.max_deposit,
        max_opens_per_day=host.max_opens_per_day,
        max_deposits_per_day=host.max_deposits_per_day or _times(host.max_deposit, host.max_opens_per_day),
        max_channels_per_scope=host.max_channels_per_scope,
        authorise_ahead=host.authorise_ahead,
        max_stream_step=host.max_stream_step or host.max_price,
        max_stream_per_second=host.max_stream_per_second or host.max_per_day,
        max_per_stream=host.max_per_stream or host.max_per_day,
        payees=frozenset(host.payees),
        tokens=frozenset(host.tokens),
        chains=frozenset(host.chains),
        allow_http=host.allow_http,
        websocket_paths=frozenset(host.websocket_paths),
        pin_payee=host.pin_payee,
        breaker_failures=host.breaker_failures or breaker.failures,
        breaker_max_undelivered=host.breaker_max_undelivered or breaker.max_undelivered,
        breaker_retry_after_s=host.breaker_retry_after_s or breaker.retry_after_s,
    )


def _times(amount: str, factor: int) -> str:
    with localcontext(prec=100):  # exact: an amount has up to 39 digits, and up to 18 places
        return format(Decimal(amount.replace("_", "")) * factor, "f")


def _chain_rule(name: str, chain: Chain) -> ChainRule:
    tokens = {entry.address: Token(entry.address, entry.symbol, entry.decimals) for entry in chain.tokens}
    return ChainRule(caip2=name, tokens=tokens, extra_escrows=frozenset(chain.extra_escrows))


def load(path: Path) -> Settings:
    """Read a config file, which not everybody may write. Raises `ConfigError`."""
    path = path.expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            _check_writers(path, os.fstat(file.fileno()).st_mode)
            text = file.read()
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}; run `bursar init`, or name another file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    settings = _sealed(parse_text(text, str(path)), path)
    settings._locator = Locator(path, lines_of(text))
    return settings


def _check_writers(path: Path, mode: int) -> None:
    """Whoever writes it decides who is paid, and how much."""
    if mode & stat.S_IWOTH:
        raise ConfigError(
            f"the config {path} can be changed by every user (mode {stat.S_IMODE(mode):o}): chmod 600 {path}"
        )


def _sealed(settings: Settings, path: Path) -> Settings:
    """With the seal in its place: beside the key, or beside the config if the key is in no file."""
    store, keystore = settings.store, settings.wallet.keystore
    if store.backend == "memory":  # which is never an older copy
        store = store.model_copy(update={"seal": None})
    elif store.seal is None:
        beside = path.absolute() if keystore is None else keystore
        store = store.model_copy(update={"seal": beside.with_name(SEAL_NAME)})
    if store.seal is not None and store.directory.absolute() in store.seal.absolute().parents:
        raise ConfigError(
            f"{path}: the seal {store.seal} is in the store's directory, where a copy that is put back would replace"
            " it; name a file elsewhere as [store].seal"
        )
    return settings.model_copy(update={"store": store})


def parse_text(text: str, source: str) -> Settings:
    """Settings from the text of a config file. Raises `ConfigError` that names `source`, and nothing else."""
    try:
        data = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # its own, numbers of too many digits, lists in lists in lists
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    return parse(data, source, lines_of(text))


def parse(data: dict[str, Any], source: str, lines: Mapping[str, int] = MappingProxyType({})) -> Settings:
    """Settings from parsed TOML. Raises `ConfigError` that names `source` and each wrong key, with its line."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        wrong = [
            f"  {_with_line(_key(one['loc']), lines)}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        ]
        raise ConfigError(f"{source} has {len(wrong)} wrong setting(s):\n" + "\n".join(wrong)) from None


def _with_line(key: str, lines: Mapping[str, int]) -> str:
    return f"{key} (line {lines[key]})" if key in lines else key


def _key(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, str):
            part = (part if part.isprintable() else ascii(part))[:80]
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "config"
