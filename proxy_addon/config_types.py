"""What a value in the config may look like: each type refuses with a sentence that says what to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Strict

from store.amounts import parse_units

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
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
    return value.expanduser()


def _host(value: str) -> str:
    if not _HOST.match(value):
        raise ValueError('expected a host such as "api.example.com", "*.example.com" or "127.0.0.1:8080"')
    _, colon, port = value.rpartition(":")
    if colon and port.isdigit() and not 1 <= int(port) <= 65535:
        raise ValueError(f"port {port} does not exist; expected 1 to 65535")
    return value.lower()


def _socket_path(value: str) -> str:
    if not value.startswith("/") or "?" in value or "#" in value:
        raise ValueError('expected a path without a query, such as "/ws"')
    return value


Address = Annotated[str, AfterValidator(_address)]
Caip2 = Annotated[str, AfterValidator(_caip2)]
Amount = Annotated[str, BeforeValidator(_amount)]
# Strict: "no" must not come to mean true, nor true one.
Count = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
HostPattern = Annotated[str, AfterValidator(_host)]
SocketPath = Annotated[str, AfterValidator(_socket_path)]
UserPath = Annotated[Path, AfterValidator(_path)]
