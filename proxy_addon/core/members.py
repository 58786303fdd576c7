"""Reads the members of one decoded JSON object, strictly, and names the one that is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import FIELD_LIMIT
from proxy_addon.core.strict_json import b64_decode_any, decode_object
from store.amounts import parse_wire

_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_BYTES: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})+\Z")

EXACT_LIMIT: Final = 2**53 - 1
"""The largest JSON number that every reader takes for the same integer (RFC 8259 section 6)."""


@dataclass(frozen=True, slots=True)
class Members:
    """`what` is how errors call the object. A member that is ``null`` counts as absent."""

    values: Mapping[str, Any]
    what: str

    @classmethod
    def of(cls, value: object, what: str) -> Members:
        if not isinstance(value, Mapping):
            raise RemoteProtocolError(f"{what} is no JSON object")
        return cls(value, what)

    @classmethod
    def of_json(cls, data: str | bytes, what: str) -> Members:
        return cls(decode_object(data, what), what)

    @classmethod
    def of_field(cls, value: str, what: str) -> Members:
        """From a field whose value is base64url of JSON (some servers: padded base64)."""
        if len(value) > FIELD_LIMIT:
            raise RemoteProtocolError(f"{what} has {len(value)} bytes, over the limit of {FIELD_LIMIT}")
        return cls(decode_object(b64_decode_any(value.strip("\t "), what), what), what)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def inner(self, name: str) -> Members:
        return Members.of(self.values.get(name), f"{self.what}.{name}")

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise RemoteProtocolError(f"{self.what}.{name} is {'no string' if self.has(name) else 'missing'}")
        return value

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def amount(self, name: str) -> int:
        """Base units."""
        try:
            return parse_wire(self.values.get(name), f"{self.what}.{name}")
        except ValueError as error:
            raise RemoteProtocolError(str(error)) from None

    def maybe_amount(self, name: str) -> int | None:
        return self.amount(name) if self.has(name) else None

    def hash(self, name: str) -> str:
        """32 bytes as lower-case 0x hex."""
        return self._hex(name, _HASH, "0x and 64 hex digits")

    def maybe_hash(self, name: str) -> str | None:
        return self.hash(name) if self.has(name) else None

    def address(self, name: str) -> str:
        """20 bytes as lower-case 0x hex."""
        return self._hex(name, _ADDRESS, "0x and 40 hex digits")

    def octets(self, name: str) -> str:
        """Any number of bytes as lower-case 0x hex."""
        return self._hex(name, _BYTES, "0x and pairs of hex digits")

    def _hex(self, name: str, form: re.Pattern[str], expected: str) -> str:
        value = self.text(name)
        if not form.match(value):
            raise RemoteProtocolError(f"{self.what}.{name} is {ascii(value)[:80]}: expected {expected}")
        return value.lower()

    def units(self) -> int | None:
        """Units are told, not paid: a number of them that is none counts as absent."""
        units = self.values.get("units")
        return units if type(units) is int and 0 <= units <= EXACT_LIMIT else None
