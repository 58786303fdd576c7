"""Header fields are read as mitmproxy reads them, only once."""

from __future__ import annotations

from mitmproxy import http

from proxy_addon.payer import fields

HEADERS = http.Headers([(b"A", b"1"), (b"b", b"\xff"), (b"a", b"2"), (b"C", b"")])


def test_as_mitmproxy_reads_them() -> None:
    found = fields.scan(HEADERS)
    assert {name.decode(): fields.text(value) for name, value in found.items()} == {
        name.lower(): HEADERS.get(name) for name in HEADERS
    }
    assert fields.names_of(HEADERS) == {b"a", b"b", b"c"}
    assert fields.text(found.get(b"d")) is None


def test_without() -> None:
    headers = HEADERS.copy()
    fields.without(headers, {b"a", b"d"})
    assert headers.fields == ((b"b", b"\xff"), (b"C", b""))
