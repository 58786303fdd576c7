"""The config file: TOML → pydantic → what the rooms need. Every error names the key, the limit and the way out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from proxy_addon.config_types import Address, Amount, Caip2, Count, Flag, HostPattern, SocketPath, UserPath
from proxy_addon.core.policy import ChainRule, HostRule, SpendPolicy
from store.amounts import Token, parse_units

DEFAULT_HOME: Final = Path("~/.bursar")
DEFAULT_PATH: Final = DEFAULT_HOME / "config.toml"


class ConfigError(Exception):
    """The config cannot be used; nothing was started. The message says which key and what to write."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wallet(_Table):
    keystore: UserPath | None = None
    password_env: str | None = None
    password_file: UserPath | None = None
    private_key_env: str | None = None

    @model_validator(mode="after")
    def _one_key(self) -> Wallet:
        if self.keystore is not None and self.private_key_env is not None:
            raise ValueError("names both keystore and private_key_env; keep one")
        return self


class Store(_Table):
    backend: str = "lmdb"
    directory: UserPath = (DEFAULT_HOME / "store").expanduser()

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"


class Proxy(_Table):
    listen_host: str = "127.0.0.1"
    listen_port: Count = Field(default=8402, ge=0, le=65535)
    reason_header: Flag = False
    upstream_ca: UserPath | None = None
    release_idle_s: Count = Field(default=3, ge=1)
    max_body_mib: Count = Field(default=256, ge=0)


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


class Policy(_Table):
    max_per_day: Amount = "0"
    max_lifetime: Amount = "0"
    hosts: tuple[Host, ...] = ()


class TokenEntry(_Table):
    address: Address
    symbol: str = Field(min_length=1, max_length=16)
    decimals: Count = Field(default=6, ge=0, le=18)


class Chain(_Table):
    rpc: tuple[str, ...] = Field(min_length=1)
    extra_escrows: tuple[Address, ...] = ()
    timeout_s: Count = Field(default=10, ge=1, le=120)
    tokens: tuple[TokenEntry, ...] = ()


class Settings(_Table):
    """A whole config file."""

    mode: Literal["pay", "shadow"] = "pay"
    wallet: Wallet = Wallet()
    store: Store = Store()
    proxy: Proxy = Proxy()
    policy: Policy = Policy()
    chains: dict[Caip2, Chain] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _amounts_fit_the_tokens(self) -> Settings:
        decimals = {entry.decimals for chain in self.chains.values() for entry in chain.tokens}
        amounts = {
            "policy.max_per_day": self.policy.max_per_day,
            "policy.max_lifetime": self.policy.max_lifetime,
        }
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
            ):
                if (value := getattr(host, key)) is not None:
                    amounts[f"policy.hosts[{index}].{key}"] = value
        for name, value in amounts.items():
            for places in decimals:
                parse_units(value, places, name)
        return self

    def spend_policy(self) -> SpendPolicy:
        return SpendPolicy(
            hosts=tuple(_host_rule(index, host) for index, host in enumerate(self.policy.hosts)),
            chains={name: _chain_rule(name, chain) for name, chain in self.chains.items()},
            max_per_day=self.policy.max_per_day,
            max_lifetime=self.policy.max_lifetime,
            shadow=self.mode == "shadow",
        )

    def token(self, chain: str, address: str) -> Token:
        """How to show a token; one that is not configured is shown in base units."""
        for entry in self.chains[chain].tokens if chain in self.chains else ():
            if entry.address == address:
                return Token(entry.address, entry.symbol, entry.decimals)
        return Token(address, f"base units of {address}", 0)


def _host_rule(index: int, host: Host) -> HostRule:
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
    )


def _times(amount: str, factor: int) -> str:
    from decimal import Decimal

    return format(Decimal(amount.replace("_", "")) * factor, "f")


def _chain_rule(name: str, chain: Chain) -> ChainRule:
    tokens = {entry.address: Token(entry.address, entry.symbol, entry.decimals) for entry in chain.tokens}
    return ChainRule(caip2=name, tokens=tokens, extra_escrows=frozenset(chain.extra_escrows))


def load(path: Path) -> Settings:
    """Read a config file. Raises `ConfigError`."""
    path = path.expanduser()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}; run `bursar init`, or name another file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return parse(data, str(path))


def parse(data: dict[str, Any], source: str) -> Settings:
    """Settings from parsed TOML. Raises `ConfigError` that names `source` and each wrong key."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        lines = [
            f"  {_key(one['loc'])}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()
        ]
        raise ConfigError(f"{source} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from None


def _key(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "config"
