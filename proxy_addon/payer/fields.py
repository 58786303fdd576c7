"""Header fields, looked through once: each look-up in mitmproxy's own mapping reads and decodes them all (5 µs)."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mitmproxy import http


def names_of(headers: http.Headers) -> set[bytes]:
    """In lower case."""
    return {name.lower() for name, _ in headers.fields}


def scan(headers: http.Headers) -> dict[bytes, bytes]:
    """By lower-case name; the values of a name that is there more than once are joined, as a list."""
    found: dict[bytes, bytes] = {}
    for name, value in headers.fields:
        name = name.lower()
        found[name] = value if name not in found else b"%b, %b" % (found[name], value)
    return found


def text(value: bytes | None) -> str | None:
    """As mitmproxy would give it."""
    return None if value is None else value.decode("utf-8", "surrogateescape")


def without(headers: http.Headers, unwanted: AbstractSet[bytes]) -> None:
    """Take fields out, in place. Lower-case names."""
    headers.fields = tuple(field for field in headers.fields if field[0].lower() not in unwanted)
