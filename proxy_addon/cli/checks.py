"""What `bursar doctor` looks at. Each check says what it found and, where something is wrong, how to mend it.

A check looks, and changes nothing; it never shows a secret.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from proxy_addon.cli.ca import CERTIFICATE
from proxy_addon.cli.home import Home
from store.amounts import Token, parse_units

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from proxy_addon.signer import Signer

LOW_DISK: Final = 64 * 1024 * 1024
CLOCK_SKEW_S: Final = 30
"""As much as `account.UNKNOWN_MARGIN_MS` allows for between a challenge's end and the moment when it is over."""
STALE_BLOCK_S: Final = 120


class Grade(StrEnum):
    OK = "ok"
    WARN = "warn"  # it pays; but
    FAIL = "fail"  # nothing is paid, or not with this


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    grade: Grade
    found: str
    mend: str = ""  # the way out, where there is something to mend


def ok(check: str, found: str) -> Finding:
    return Finding(check, Grade.OK, found)


def versions() -> Iterator[Finding]:
    from mitmproxy import version

    from proxy_addon.mitm.compat import why_unsupported

    python = ".".join(map(str, sys.version_info[:3]))
    told = f"Python {python}, mitmproxy {version.VERSION}"
    if (why := why_unsupported(version.VERSION)) is not None:
        yield Finding("versions", Grade.FAIL, told, why)
    elif sys.version_info < (3, 12):
        yield Finding(
            "versions",
            Grade.WARN,
            told,
            "the newest mitmproxy for Python 3.11 needs an h11 with a request-smuggling flaw (CVE-2025-43859):"
            " use Python 3.12 or newer",
        )
    else:
        yield ok("versions", told)


def hosts(settings: Settings) -> Iterator[Finding]:
    if settings.mode == "shadow":
        yield Finding("mode", Grade.WARN, "shadow: nothing is paid", 'set mode = "pay" when you are ready')
    rules = settings.policy.hosts
    if not rules:
        yield Finding(
            "hosts", Grade.WARN, "no [[policy.hosts]]: nobody is paid", "add a table for each host to pay"
        )
        return
    yield ok("hosts", ", ".join(rule.host for rule in rules))
    for index, rule in enumerate(rules):
        zero = [
            name for name in ("max_price", "max_per_day", "max_deposit") if not _nonzero(getattr(rule, name))
        ]
        zero += [
            name for name in ("max_per_day", "max_lifetime") if not _nonzero(getattr(settings.policy, name))
        ]
        if zero:
            yield Finding(
                "hosts",
                Grade.WARN,
                f"{rule.host} is never paid: {zero[0]} is 0",
                f"set it in policy.hosts[{index}] or in [policy]",
            )
        elif rule.chains and not any(chain in settings.chains for chain in rule.chains):
            yield Finding(
                "hosts",
                Grade.WARN,
                f"{rule.host} is never paid: its chains ({', '.join(rule.chains)}) are not in the config",
                f'name one of [chains] in policy.hosts[{index}].chains, or add [chains."{rule.chains[0]}"]',
            )


def _nonzero(amount: str) -> bool:
    return any(digit in "123456789" for digit in amount)


def modes(settings: Settings, home: Home) -> Iterator[Finding]:
    """Keys, passwords, the store and the authority's key are their owner's alone."""
    files = [one for source in settings.wallet.sources for one in (source.keystore, source.password_file)]
    files.append(home.ca / "mitmproxy-ca.pem")
    directories = [settings.store.directory, home.ca, *(one.parent for one in files if one is not None)]
    open_to_others = []
    for path, most in [
        *((one, 0o600) for one in files),
        *((one, 0o700) for one in dict.fromkeys(directories)),
    ]:
        if path is not None and path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            open_to_others.append((path, most))
    for path, most in open_to_others:
        mode = stat.S_IMODE(path.stat().st_mode)
        yield Finding("files", Grade.FAIL, f"{path} is open to others ({mode:04o})", f"chmod {most:o} {path}")
    if not open_to_others:
        yield ok("files", "keys, store and certificates are yours alone")


def authority(home: Home) -> Iterator[Finding]:
    from cryptography import x509

    certificate = home.ca / CERTIFICATE
    if not certificate.exists():
        yield Finding("certificate", Grade.WARN, "none yet", "`bursar run` or `bursar exec` makes it")
        return
    until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    if until < datetime.now(UTC):
        yield Finding(
            "certificate",
            Grade.FAIL,
            f"{certificate} expired on {until:%Y-%m-%d}",
            f"move {home.ca} away: a new one is made; then trust that one",
        )
    else:
        yield ok("certificate", f"{certificate}, until {until:%Y-%m-%d}")


def port(settings: Settings) -> Iterator[Finding]:
    host, number = settings.proxy.listen_host, settings.proxy.listen_port
    if not number:
        yield ok("port", "a new one at each start")
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            yield Finding(
                "port",
                Grade.WARN,
                f"{host}:{number}: {error.strerror}",
                "fine if that is bursar; else stop the other program, or set [proxy].listen_port",
            )
            return
    yield ok("port", f"{host}:{number} is free")


async def store(settings: Settings) -> AsyncIterator[Finding]:
    from proxy_addon.cli.records import Ownership, read_channels
    from store.contract import StoreError
    from store.lifecycle import FINAL

    directory = settings.store.directory
    try:
        views = await read_channels(settings)
    except StoreError as error:
        yield Finding(
            "store", Grade.FAIL, str(error), "the message says the way out; nothing is signed till then"
        )
        return
    live = [view for view in views if view.channel.status not in FINAL]
    left = sum(view.ownership is Ownership.LEFT for view in live)
    told = f"{directory}: {len(live)} channels that may hold a deposit" + (
        f", {left} left by a process that died (the next start takes them over)" if left else ""
    )
    yield ok("store", told if directory.exists() else f"{directory}: made at the first start")
    at = next(path for path in (directory, *directory.parents) if path.exists())
    if (free := shutil.disk_usage(at).free) < LOW_DISK:
        yield Finding(
            "disk",
            Grade.WARN,
            f"{free // 2**20} MiB left at {at}",
            "free some space: on a full disk nothing is signed, and the 402 passes",
        )


def key(settings: Settings) -> tuple[Finding, Signer | None]:
    """Opens the key, as the proxy would."""
    from proxy_addon.cli.failure import Failure
    from proxy_addon.cli.wallet import missing_password
    from proxy_addon.config import ConfigError
    from proxy_addon.core.errors import BursarError
    from proxy_addon.keys import load_signer

    if settings.mode == "shadow" and settings.wallet == type(settings.wallet)():
        return Finding("key", Grade.WARN, "none, and none is needed in shadow mode"), None
    try:
        os.environ.update(missing_password(settings))
        signer = load_signer(settings)
    except Failure as error:
        return Finding("key", Grade.FAIL, "its password is not at hand", error.message), None
    except (BursarError, ConfigError) as error:
        return Finding(
            "key", Grade.FAIL, str(error), "see [wallet] in the config; `bursar init` makes one"
        ), None
    return ok("key", f"opens; pays as {signer.address}"), signer


async def chains(settings: Settings, payer: str | None) -> AsyncIterator[Finding]:
    if not settings.chains:
        yield Finding(
            "chain", Grade.FAIL, "no [chains] in the config", 'add [chains."eip155:4217"] with its rpc'
        )
    for name in settings.chains:
        async for finding in _chain(settings, name, payer):
            yield finding


async def _chain(settings: Settings, name: str, payer: str | None) -> AsyncIterator[Finding]:
    from proxy_addon.chain import ChainClient
    from proxy_addon.core.errors import BursarError

    chain = settings.chains[name]
    clients = [ChainClient([url], int(name.partition(":")[2]), chain.timeout_s) for url in chain.rpc]
    working = None
    try:
        for url, client in zip(chain.rpc, clients, strict=True):
            try:
                before = time.time()
                head = await client.head()
            except BursarError as error:
                mend = f'[chains."{name}"].rpc names it: is it right, and reachable from here?'
                yield Finding(f"chain {name}", Grade.FAIL, str(error), mend)
                continue
            yield ok(f"chain {name}", f"{_shown(url)} answers, block {head.number}")
            yield _clock((before + time.time()) / 2 - head.timestamp, _shown(url))
            working = working or client
        if working is None or payer is None:
            return
        for entry in chain.tokens:
            token = Token(entry.address, entry.symbol, entry.decimals)
            try:
                balance = await working.balance(entry.address, payer)
            except BursarError as error:
                mend = f'is {entry.address} a token of {name}? See [[chains."{name}".tokens]]'
                yield Finding("balance", Grade.FAIL, str(error), mend)
            else:
                yield _funds(settings, token, name, balance, payer)
    finally:
        for client in clients:
            await client.aclose()


def _clock(skew: float, where: str) -> Finding:
    """`skew`: seconds that this machine's clock is ahead of the newest block's."""
    if skew < -CLOCK_SKEW_S:
        return Finding(
            "clock",
            Grade.FAIL,
            f"this machine is {-skew:.0f} s behind the newest block",
            "set the clock (NTP): challenges would be paid after they expired",
        )
    if skew > STALE_BLOCK_S:
        return Finding(
            "clock",
            Grade.WARN,
            f"the newest block at {where} is {skew:.0f} s old",
            "the endpoint hangs, or this machine's clock is ahead: set it (NTP)",
        )
    return ok("clock", "agrees with the newest block")


def _funds(settings: Settings, token: Token, name: str, balance: int, payer: str) -> Finding:
    wanted = max(
        (
            parse_units(rule.deposit or rule.max_deposit, token.decimals, rule.host)
            for rule in settings.policy.hosts
        ),
        default=0,
    )
    told = f"{token.show(balance)} on {name}"
    if balance >= max(wanted, 1):
        return ok("balance", told)
    return Finding(
        "balance",
        Grade.WARN,
        told,
        f"a deposit takes up to {token.show(wanted)}: send {token.symbol} to {payer}"
        + (" (test money: `bursar faucet`)" if name == "eip155:42431" else ""),
    )


def _shown(url: str) -> str:
    """An endpoint without what may be a key in its path."""
    return urlsplit(url).hostname or "the endpoint"


async def examine(settings: Settings, home: Home) -> AsyncIterator[Finding]:
    """All checks, the quick ones first."""
    for quick in (versions(), hosts(settings), modes(settings, home), authority(home), port(settings)):
        for finding in quick:
            yield finding
    async for finding in store(settings):
        yield finding
    found, signer = await asyncio.to_thread(key, settings)
    yield found
    async for finding in chains(settings, None if signer is None else signer.address):
        yield finding
