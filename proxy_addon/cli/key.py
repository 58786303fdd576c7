"""`bursar key`: the wallet's key: whose it is, a new password for it, a new key in its place."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import config_option, load_settings
from proxy_addon.cli.output import short_id
from proxy_addon.cli.wallet import ask_password, missing_password

if TYPE_CHECKING:
    from proxy_addon.config import Settings


@click.group(name="key")
def command() -> None:
    """Show the wallet's address, change its password, put a new key in its place.

    \b
    Examples:
      bursar key address
      bursar key password
      bursar key rotate
    """


@command.command(name="address")
@config_option
def address(config: Path) -> None:
    """Who pays, and who signs vouchers where that is another key.

    \b
    Example:
      bursar key address
    """
    from proxy_addon.keys import load_signer

    settings = load_settings(config)
    os.environ.update(missing_password(settings))
    signer = load_signer(settings)
    click.echo(signer.address)
    if signer.voucher_signer != signer.address:
        click.echo(f"vouchers by {signer.voucher_signer}", err=True)
    if not signer.signs_transactions:
        click.echo("the payer's own key is not here: nothing can be opened or closed by force", err=True)


@command.command(name="password")
@config_option
@click.option(
    "--new-password-env", metavar="NAME", help="Take the new one from this variable; ask for nothing."
)
def password(config: Path, new_password_env: str | None) -> None:
    """Encrypt the key file with a new password. The key, and so the address, stays the same.

    The old file is replaced in one step: after a crash it is the old one or the new one, whole.

    \b
    Example:
      bursar key password
    """
    from proxy_addon import keystore
    from proxy_addon.keys import key_of

    settings = load_settings(config)
    path = _key_file(settings)
    word = _new_password(new_password_env)
    os.environ.update(missing_password(settings))
    keystore.replace_keystore(path, word, key_of(settings.wallet, "wallet"))
    click.echo(f"{path} has a new password; say so where the config gets it from")


@command.command(name="rotate")
@config_option
@click.option(
    "--new-password-env", metavar="NAME", help="The new key's password is in this variable; ask for nothing."
)
def rotate(config: Path, new_password_env: str | None) -> None:
    """Put a new key in the place of the old one, which stays beside it under its address.

    Refused while channels of the old key may hold a deposit: close them first. What else the old address has is not
    moved; any Ethereum wallet opens the old file.

    \b
    Example:
      bursar channels close --all && bursar key rotate
    """
    from proxy_addon import keystore

    settings = load_settings(config)
    path = _key_file(settings)
    old = keystore.keystore_address(path)
    if old is None:
        raise Failure(
            f"{path} does not say whose key it holds; open it once with another wallet", ExitCode.CONFIG
        )
    still = asyncio.run(_unfinished(settings, old))
    if still:
        raise Failure(
            f"{len(still)} channel(s) of {old} may hold a deposit ({', '.join(map(short_id, still))}):"
            " `bursar channels close --all` first",
            ExitCode.REFUSED,
        )
    word = _new_password(new_password_env)
    kept = path.with_name(f"{path.stem}-{old}{path.suffix}")
    signer = keystore.rotate_keystore(path, kept, word)
    click.echo(f"{signer.address}")
    click.echo(f"pays from now on; send money to it. The old key is in {kept}", err=True)


def _key_file(settings: Settings) -> Path:
    if settings.wallet.keystore is None:
        raise Failure(
            "the config's [wallet] names no keystore: the key is kept elsewhere, and has to be changed there",
            ExitCode.CONFIG,
        )
    return settings.wallet.keystore


def _new_password(variable: str | None) -> str:
    if variable is not None:
        word = os.environ.get(variable, "")
        if not word:
            raise Failure(f"the environment variable {variable} is not set", ExitCode.CONFIG)
        return word
    if not sys.stdin.isatty():
        raise Failure(
            "there is no terminal to ask for the new password: name a variable with --new-password-env"
        )
    word = ask_password("The new password")
    if not word:
        raise Failure("an empty password protects nothing; nothing was changed", ExitCode.CONFIG)
    return word


async def _unfinished(settings: Settings, payer: str) -> list[str]:
    from proxy_addon.cli.records import read_channels
    from store.lifecycle import FINAL

    return [
        view.channel.channel_id
        for view in await read_channels(settings)
        if view.channel.scope.payer == payer and view.channel.status not in FINAL
    ]
