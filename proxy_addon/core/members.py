"""Reads one member of a decoded JSON object, strictly, naming it where it is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import FIELD_LIMIT
from proxy_addon.core.strict_json import b64_decode_any, decode_object
from store.amounts import parse_wire

HEX32: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z")
ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})+\Z")



def decode_field(value: str, what: str) -> dict[str, Any]:
    if len(value) > FIELD_LIMIT:
        raise RemoteProtocolError(f"{what} has {len(value)} bytes, over the limit of {FIELD_LIMIT}")
    return decode_object(b64_decode_any(value.strip("\t "), what), what)


def as_object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RemoteProtocolError(f"{what} is no JSON object")
    return value


def text(members: Mapping[str, Any], name: str, what: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{what}.{name} is missing or no string")
    return value


def maybe_text(members: Mapping[str, Any], name: str, what: str) -> str | None:
    return None if members.get(name) is None else text(members, name, what)


def hexadecimal(members: Mapping[str, Any], name: str, what: str, form: re.Pattern[str]) -> str:
    value = text(members, name, what)
    if not form.match(value):
        raise RemoteProtocolError(f"{what}.{name} is {ascii(value)[:80]}: expected 0x hex of its length")
    return value.lower()


def maybe_hexadecimal(members: Mapping[str, Any], name: str, what: str, form: re.Pattern[str]) -> str | None:
    return None if members.get(name) is None else hexadecimal(members, name, what, form)


def amount(members: Mapping[str, Any], name: str, what: str) -> int:
    try:
        return parse_wire(members.get(name), f"{what}.{name}")
    except ValueError as error:
        raise RemoteProtocolError(str(error)) from None


def maybe_amount(members: Mapping[str, Any], name: str, what: str) -> int | None:
    return None if members.get(name) is None else amount(members, name, what)


def units(members: Mapping[str, Any]) -> int | None:
    """Units are told, not paid: one that is no count is as good as none."""
    units = members.get("units")
    return units if type(units) is int and units >= 0 else None
