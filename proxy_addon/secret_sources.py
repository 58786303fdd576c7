"""Where a password or a key comes from: ``fd:3``, ``command:…``, ``keyring:…``, ``env:…``, ``file:…``.

Each is read once, when it is needed, and never shown: an error names the place, not what was there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from proxy_addon.core.errors import BursarError
from proxy_addon.private_file import read_private

Source = Callable[[], str]

KINDS: Final = ("env", "file", "fd", "command", "keyring")
_LIMIT: Final = 65_536  # bytes
_COMMAND_SECONDS: Final = 60.0


class SecretUnavailable(BursarError):
    """A key or password is not where the config says. The message names the place and the way out."""


def descriptor_of(spec: str | None) -> int | None:
    """The file descriptor that `spec` reads from, which a child that is to read it must inherit."""
    kind, _, rest = (spec or "").partition(":")
    return int(rest) if kind == "fd" else None


def variable_of(spec: str | None) -> str | None:
    """The environment variable that `spec` names."""
    kind, _, rest = (spec or "").partition(":")
    return rest if kind == "env" else None


def source(spec: str, what: str, environ: Mapping[str, str] = os.environ) -> Source:
    """Reads `what` (for errors: "the password of …") from `spec`, when called. Calls raise `SecretUnavailable`."""
    kind, _, rest = spec.partition(":")

    def read() -> str:
        match kind:
            case "env":
                text = environ.get(rest) or ""
            case "file":
                text = read_private(Path(rest).expanduser(), _unavailable).decode("utf-8", "replace")
            case "fd":
                text = read_descriptor(int(rest), what)
            case "command":
                text = _from_command(shlex.split(rest), what)
            case "keyring":
                text = _from_keyring(rest, what)
            case _:
                raise SecretUnavailable(f"{what}: {kind}: is none of {', '.join(KINDS)}")
        lines = text.splitlines()
        if not lines or not lines[0].strip():
            place = f"the environment variable {rest}" if kind == "env" else f"{kind}:" + _shown(kind, rest)
            raise SecretUnavailable(f"{place} is empty or not set: it should hold {what}")
        return lines[0]

    return read


def _shown(kind: str, rest: str) -> str:
    # A command's arguments may hold a token.
    return shlex.split(rest)[0] if kind == "command" else rest


def read_descriptor(number: int, what: str) -> str:
    """To its end; then it is closed, so that no child of ours inherits it. Raises `SecretUnavailable`."""
    data = b""
    try:
        while chunk := os.read(number, _LIMIT):
            data += chunk
            if len(data) > _LIMIT:
                raise SecretUnavailable(f"fd:{number} holds more than {_LIMIT} bytes: that is not {what}")
        os.close(number)
    except OSError as error:
        raise SecretUnavailable(
            f"fd:{number} should hold {what}, but cannot be read ({error.strerror}): start bursar with"
            f" {number}< and the file, or a pipe"
        ) from None
    return data.decode("utf-8", "replace")


def _from_command(arguments: list[str], what: str) -> str:
    name = arguments[0]
    try:
        done = subprocess.run(  # noqa: S603 (the user's own config names it)
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise SecretUnavailable(f"{name}, which should print {what}, is no command here") from None
    except subprocess.TimeoutExpired:
        raise SecretUnavailable(
            f"{name}, which should print {what}, did not end in {_COMMAND_SECONDS:g} s"
        ) from None
    except OSError as error:
        raise SecretUnavailable(f"{name}, which should print {what}: {error.strerror}") from None
    if done.returncode:
        raise SecretUnavailable(f"{name}, which should print {what}, ended with {done.returncode}")
    return done.stdout[:_LIMIT].decode("utf-8", "replace")


def _from_keyring(rest: str, what: str) -> str:
    service, _, user = rest.partition("/")
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        raise SecretUnavailable(
            f"{what} is in the system's keyring, which needs a package: pip install 'bursar[keyring]'"
        ) from None
    try:
        return keyring.get_password(service, user or "bursar") or ""
    except KeyringError as error:
        raise SecretUnavailable(
            f"the system's keyring does not give {what} ({type(error).__name__}): is it unlocked?"
        ) from None


def _unavailable(message: str) -> SecretUnavailable:
    return SecretUnavailable(message)
