"""`bursar pins`: the payees that hosts are held to (`pin_payee`), and letting go of one that has moved."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from proxy_addon.audit import iso
from proxy_addon.cli.failure import Failure
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.output import echo_json, table, utc
from proxy_addon.cli.records import open_store

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from store.pins import Pin

_PORTS: Final = {"https": "443", "http": "80"}


@click.group(name="pins")
def command() -> None:
    """List and forget the payees that hosts are held to.

    A host whose rule says pin_payee = true is held to the payee that it is first paid as. Another payee is refused
    until a person says that it has moved.

    \b
    Examples:
      bursar pins list
      bursar pins forget api.example.com
    """


@command.command(name="list")
@config_option
@json_option
def list_(config: Path, as_json: bool) -> None:
    """All pins.

    \b
    Example:
      bursar pins list --json
    """
    pins = asyncio.run(_read(load_settings(config)))
    if as_json:
        echo_json([{"origin": pin.origin, "payee": pin.payee, "since": iso(pin.since)} for pin in pins])
    elif not pins:
        click.echo("no pins", err=True)
    else:
        click.echo(
            table(("ORIGIN", "PAYEE", "SINCE"), [(pin.origin, pin.payee, utc(pin.since)) for pin in pins])
        )


@command.command(name="forget")
@config_option
@click.argument("host", metavar="HOST")
def forget(config: Path, host: str) -> None:
    """Let HOST's next payee be its first again.

    HOST is written as in the config: a name, with its port if that is not the scheme's own.

    \b
    Example:
      bursar pins forget api.example.com
    """
    for pin in asyncio.run(_forget(load_settings(config), host)):
        click.echo(
            f"{pin.origin} is no longer held to {pin.payee}; it will be to the next payee that it is paid as"
        )


async def _read(settings: Settings) -> tuple[Pin, ...]:
    if settings.store.backend == "lmdb" and not settings.store.directory.exists():
        return ()  # looking does not make one
    store = await open_store(settings)
    try:
        return await store.pins()
    finally:
        await store.close()


async def _forget(settings: Settings, host: str) -> list[Pin]:
    pins = [pin for pin in await _read(settings) if host.lower() in _names(pin.origin)]
    if not pins:
        raise Failure(f"{host} is held to no payee; `bursar pins list` has all that are")
    store = await open_store(settings)
    try:
        return [pin for pin in pins if await store.forget_pin(pin.origin)]
    finally:
        await store.close()


def _names(origin: str) -> tuple[str, ...]:
    """How people write an origin: in full, without its scheme, and without a port that is the scheme's own."""
    scheme, _, authority = origin.partition("://")
    host, _, port = authority.rpartition(":")
    return (origin, authority, host) if _PORTS.get(scheme) == port else (origin, authority)
