"""How the command ends: exit codes, and one line for each error instead of a traceback."""

from __future__ import annotations

import os
from enum import IntEnum
from typing import IO, Any, Final

import click


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3  # the config or the wallet
    STORE = 4
    REFUSED = 5  # by the policy or a limit


# By name, so that nothing is imported only to be caught; the nearest class of an error's ancestry counts.
_CODES: Final = {
    "proxy_addon.config.ConfigError": ExitCode.CONFIG,
    "proxy_addon.keystore.KeystoreError": ExitCode.CONFIG,
    "proxy_addon.secret_sources.SecretUnavailable": ExitCode.CONFIG,
    "proxy_addon.signer.KeyRejected": ExitCode.CONFIG,
    "proxy_addon.core.errors.LocalRefusal": ExitCode.REFUSED,
    "proxy_addon.core.errors.BursarError": ExitCode.FAILED,
    "store.charging.LimitExceeded": ExitCode.REFUSED,
    "store.channels.ScopeFull": ExitCode.REFUSED,
    "store.contract.StoreError": ExitCode.STORE,
    "store.account.IllegalMove": ExitCode.STORE,
    "store.lifecycle.IllegalTransition": ExitCode.STORE,
}


class Failure(click.ClickException):
    """An expected end: what is wrong and the way out, in one line (more only where a list is the message)."""

    def __init__(self, message: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        object.__setattr__(self, "exit_code", int(code))  # click declares it for the class, and reads it here

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"bursar: {self.format_message()}", file=file, err=file is None)


def debugging() -> bool:
    return os.environ.get("BURSAR_DEBUG", "") not in ("", "0")


def failure_of(error: Exception) -> Failure:
    """What to tell, and the exit code, for any error that reaches the command's edge."""
    if isinstance(error, Failure):
        return error
    for ancestor in type(error).__mro__:
        code = _CODES.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if code is not None:
            return Failure(str(error), code)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return Failure(f"{where}{error.strerror}")
    return Failure(
        f"unexpected {type(error).__name__}: {error}; BURSAR_DEBUG=1 shows where. Please report it"
    )
