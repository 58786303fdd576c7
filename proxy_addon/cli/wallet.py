"""The wallet as the command handles it: making its key, finding its password, keeping both from others."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import Home
from proxy_addon.cli.template import WalletChoice
from proxy_addon.secret_sources import descriptor_of, variable_of

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from proxy_addon.config_tables import KeySource, Wallet

PASSWORD_ENV: Final = "BURSAR_PASSWORD"  # noqa: S105 (a variable's name)
KEY_ENV: Final = "BURSAR_PRIVATE_KEY"


def read_key(path: Path) -> bytes:
    """The private key, in hex, in a file or (``-``) on stdin. Raises `Failure`, which does not repeat it."""
    from proxy_addon.config_types import is_key
    from proxy_addon.signer import KeyRejected, Signer, parse_key

    if is_key(str(path)):
        raise Failure(
            "--import-key takes the name of a file (- for stdin), never the key itself: a shell keeps what was typed"
            " in its history, and ps shows it. If that key has money, move it to another",
            ExitCode.CONFIG,
        )
    try:
        text = sys.stdin.read() if str(path) == "-" else path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Failure(f"the key in {path} cannot be read: {why}", ExitCode.CONFIG) from None
    if text.lstrip().startswith("{"):
        raise Failure(
            f"{path} is an encrypted key file: put it in the home as key.json (chmod 600) and use --existing-key",
            ExitCode.CONFIG,
        )
    try:
        key = parse_key(text.strip())
        Signer(key)
    except KeyRejected as error:
        raise Failure(f"{path}: {error}", ExitCode.CONFIG) from None
    return key


def address_in_env(name: str) -> str | None:
    """The address of the key in an environment variable; None while it is not set. Raises `KeystoreError`."""
    if not os.environ.get(name):
        return None
    from proxy_addon.keystore import signer_from_env

    return signer_from_env(name).address


def create_key(home: Home, key: bytes | None, *, ask: bool) -> tuple[str, WalletChoice]:
    """Write key.json with a new or an imported key; the address, and what the config says of it.

    Nothing is overwritten. A random password is on disk before the key that needs it.
    """
    from proxy_addon.keystore import create_keystore

    password, choice = _new_password(home, ask=ask)
    try:
        signer = create_keystore(home.keystore, password, key)
    except Exception:
        if choice.password_file is not None:
            choice.password_file.unlink(missing_ok=True)  # made a moment ago, for nothing
        raise
    return signer.address, choice


def adopt_key(home: Home, *, ask: bool) -> tuple[str, WalletChoice]:
    """Go on with the key.json that is there; its password is tried if it is at hand. Raises `KeystoreError`."""
    from proxy_addon import keystore

    if os.environ.get(PASSWORD_ENV):
        source = keystore.password_from_env(PASSWORD_ENV)
        choice = WalletChoice(keystore=home.keystore, password_env=PASSWORD_ENV)
    elif home.password.exists():
        source = keystore.password_from_file(home.password)
        choice = WalletChoice(keystore=home.keystore, password_file=home.password)
    else:
        choice = WalletChoice(keystore=home.keystore, password_env=PASSWORD_ENV)
        if not ask:
            address = keystore.keystore_address(home.keystore)
            return address or "(unknown until the key is opened)", choice

        def source() -> str:
            return str(click.prompt(f"Password of {home.keystore}", hide_input=True))

    return keystore.signer_from_keystore(home.keystore, source).address, choice


def missing_password(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the proxy's environment needs to open the wallet, asked for on a terminal; {} if nothing.

    Raises `Failure` where nobody can be asked.
    """
    if settings.mode == "shadow":  # no key is opened
        return {}
    found: dict[str, str] = {}
    for one in settings.wallet.sources:
        name = one.password_env
        if one.keystore is None or name is None or environ.get(name) or name in found:
            continue
        if one.password_from is not None or (one.password_file is not None and one.password_file.exists()):
            continue
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Failure(
                f"{name} is not set: it should hold the password of {one.keystore};"
                " set it, or name a password_file in the config",
                ExitCode.CONFIG,
            )
        found[name] = click.prompt(f"Password of {one.keystore}", hide_input=True, err=True)
    return found


def secrets_in_env(wallet: Wallet) -> frozenset[str]:
    """Variables that hold what opens the wallet: for the proxy alone, not for the command it serves."""
    named = {PASSWORD_ENV, KEY_ENV}
    for one in wallet.sources:
        named |= {name for name in (one.password_env, one.private_key_env) if name}
        named |= {name for spec in _specs(one) if (name := variable_of(spec))}
    return frozenset(named)


def descriptors(wallet: Wallet) -> tuple[int, ...]:
    """File descriptors that the proxy reads secrets from, and so has to inherit."""
    specs = (spec for one in wallet.sources for spec in _specs(one))
    return tuple(number for spec in specs if (number := descriptor_of(spec)) is not None)


def _specs(one: KeySource) -> tuple[str | None, str | None]:
    return one.password_from, one.private_key_from


def _new_password(home: Home, *, ask: bool) -> tuple[str, WalletChoice]:
    by_env = WalletChoice(keystore=home.keystore, password_env=PASSWORD_ENV)
    if given := os.environ.get(PASSWORD_ENV):
        return given, by_env
    question = "Password for the key file (empty: a random one, kept beside it)"
    if ask and (typed := ask_password(question)):
        return typed, by_env
    password = secrets.token_urlsafe(24)
    write_new(home.password, password + "\n")
    return password, WalletChoice(keystore=home.keystore, password_file=home.password)


def ask_password(question: str) -> str:
    """A password typed twice alike; "" for none, which is not asked for again."""
    while True:
        typed: str = click.prompt(question, hide_input=True, default="", show_default=False, err=True)
        again = "The same again"
        if not typed or typed == click.prompt(
            again, hide_input=True, default="", show_default=False, err=True
        ):
            return typed
        click.echo("These were not the same: once more.", err=True)


def write_new(path: Path, text: str) -> None:
    """A file for its owner only, on disk when this returns. Raises `Failure` if there is one already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failure(f"{path} exists and is not overwritten", ExitCode.CONFIG) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
