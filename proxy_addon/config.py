"""The config file: TOML → pydantic → what the rooms need. Every error names the key, the limit and the way out."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from decimal import Decimal, localcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from proxy_addon import config_errors
from proxy_addon.config_lines import Locator, lines_of
from proxy_addon.config_tables import (
    DEFAULT_HOME,
    Breaker,
    Chain,
    Egress,
    Host,
    Limits,
    Policy,
    Proxy,
    Store,
    Table,
    Wallet,
    Watchdog,
)
from proxy_addon.config_types import Caip2
from proxy_addon.core.policy import ChainRule, ClientRule, HostRule, Rates, SpendPolicy
from store.amounts import Token, parse_units

DEFAULT_PATH: Final = DEFAULT_HOME / "config.toml"
SEAL_NAME: Final = "seal.json"


class ConfigError(Exception):
    """The config cannot be used; nothing was started. The message says which key and what to write."""


class Settings(Table):
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
                "reserve",
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
        reserve=host.reserve,
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
        with path.open(encoding="utf-8-sig") as file:
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
        wrong = config_errors.told(error.errors(), Settings.model_fields, lines)
        text = "".join(f"\n  {one}" for one in wrong)
        raise ConfigError(f"{source} has {len(wrong)} wrong setting(s):{text}") from None
