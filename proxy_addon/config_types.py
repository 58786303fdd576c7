"""What a value in the config may look like: each type refuses with a sentence that says what to write."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from proxy_addon.core.addresses import parse_permit, parse_ports
from store.amounts import parse_units

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_KEY_IN_HEX: Final = re.compile(r"(?:0[xX])?[0-9a-fA-F]{64}\Z")
_SECRET_KINDS: Final = ("env", "file", "fd", "command", "keyring")
_CAIP2: Final = re.compile(r"eip155:[1-9][0-9]{0,18}\Z")
_HOST: Final = re.compile(
    r"(?:\*\.)?(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)(?::[0-9]{1,5})?\Z"
)


def _address(value: str) -> str:
    if not _ADDRESS.match(value):
        raise ValueError("expected an address such as 0x20c0000000000000000000000000000000000000")
    return value.lower()


def _caip2(value: str) -> str:
    if not _CAIP2.match(value):
        raise ValueError('expected a chain such as "eip155:4217"')
    return value


def _amount(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'expected an amount in quotes, such as "0.10", not {value!r}')
    parse_units(value, 18, "the value")  # the token's own decimals are checked where the tokens are known
    return value


def _path(value: Path) -> Path:
    if is_key(str(value)):
        raise ValueError("expected a path; never the secret itself")
    if "\0" in str(value):
        raise ValueError("a path cannot hold a NUL")
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError(
            f"{ascii(str(value))[:80]} begins with the home of a user that there is not"
        ) from None


def _host(value: str) -> str:
    if not _HOST.match(value):
        raise ValueError(
            'expected a host such as "api.example.com", "*.example.com", "127.0.0.1:8080" or "[::1]:8080"'
        )
    _, colon, port = value.rpartition(":")
    if colon and port.isdigit() and not 1 <= int(port) <= 65535:
        raise ValueError(f"port {port} does not exist; expected 1 to 65535")
    return value.lower()


def _socket_path(value: str) -> str:
    if not value.startswith("/") or "?" in value or "#" in value:
        raise ValueError('expected a path without a query, such as "/ws"')
    return value


def _permit(value: str) -> str:
    parse_permit(value)
    return value


def _some(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise ValueError("expected one at least")
    return value


def _endpoint(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # What it is may be a secret: endpoints are sold by keys in their paths.
        raise ValueError('expected an endpoint such as "https://rpc.tempo.xyz"')
    return value


def is_key(text: str) -> bool:
    """Is it a private key, where the name of something was asked for? Then it must not be repeated."""
    return _KEY_IN_HEX.match(text.strip()) is not None


def _variable(value: str) -> str:
    if is_key(value) or not _VARIABLE.match(value):
        raise ValueError(
            'expected the name of an environment variable, such as "BURSAR_PASSWORD"; never the secret itself'
        )
    return value


def _secret_spec(value: str) -> str:
    kind, colon, rest = value.partition(":")
    if (
        is_key(rest)
        or not colon
        or kind not in _SECRET_KINDS
        or not rest.strip()
        or (kind == "fd" and not rest.isdigit())
    ):
        raise ValueError(
            'expected where the secret is, such as "fd:3", "command:pass show bursar", "keyring:bursar/me",'
            ' "env:NAME" or "file:/run/secrets/bursar"; never the secret itself'
        )
    if kind == "env":
        _variable(rest)
    if kind == "command":
        try:
            shlex.split(rest)
        except ValueError as error:
            raise ValueError(f"a command that cannot be split into words: {error}") from None
    return value


Address = Annotated[str, AfterValidator(_address)]
Caip2 = Annotated[str, AfterValidator(_caip2)]
Amount = Annotated[str, BeforeValidator(_amount)]
# Strict: "no" must not come to mean true, nor true one.
Count = Annotated[int, Strict(), Field(lt=2**31)]
Endpoints = Annotated[tuple[Annotated[str, AfterValidator(_endpoint)], ...], AfterValidator(_some)]
SecretSpec = Annotated[str, AfterValidator(_secret_spec)]
Flag = Annotated[bool, Strict()]
HostPattern = Annotated[str, AfterValidator(_host)]
Permit = Annotated[str, AfterValidator(_permit)]
Ports = Annotated[tuple[int, int], BeforeValidator(parse_ports)]
SocketPath = Annotated[str, AfterValidator(_socket_path)]
VariableName = Annotated[str, AfterValidator(_variable)]
UserPath = Annotated[Path, AfterValidator(_path)]
