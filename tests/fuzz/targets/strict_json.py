"""JSON, and (where the input begins with a tilde) base64, as peers may send them.

- Nothing but `RemoteProtocolError` is raised, and its words can go to a log.
- What is read is what Python's lenient decoder reads, and what orjson reads if it takes it; written and read again it
  is the same; no number has more digits than the limit, no nesting more levels.
- No two texts of strict base64url are the same bytes.
"""

from __future__ import annotations

import json

import orjson

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.strict_json import (
    MAX_DEPTH,
    b64_decode_any,
    b64url_decode,
    b64url_encode,
    decode,
    decode_object,
)
from tests.fuzz import samples
from tests.fuzz.oracle import loggable
from tests.fuzz.target import Target


def one_input(data: bytes) -> None:
    if data.startswith(b"~"):
        base64(data[1:].decode("utf-8", "surrogateescape"))
        return
    try:
        value = decode(data, "value")
    except RemoteProtocolError as error:
        loggable(str(error))
        return
    check(value, 0)
    assert json.loads(data) == value
    assert decode(json.dumps(value), "value") == value
    assert decode(json.dumps(value, ensure_ascii=False).encode(), "value") == value
    assert decode(data.decode(), "value") == value
    try:
        other = orjson.loads(data)
    except orjson.JSONDecodeError:
        other = value
    assert same(value, other), (value, other)
    try:
        assert decode_object(data, "value") == value
    except RemoteProtocolError:
        assert not isinstance(value, dict)


def check(value: object, depth: int) -> None:
    assert depth <= MAX_DEPTH
    match value:
        case dict():
            for name, item in value.items():
                name.encode()
                check(item, depth + 1)
        case list():
            for item in value:
                check(item, depth + 1)
        case str():
            value.encode()
        case bool() | None:
            pass
        case int():
            assert abs(value) < 10**80
        case float():
            assert value - value == 0, value
        case _:
            raise AssertionError(type(value))


def same(one: object, other: object) -> bool:
    """orjson reads integers beyond 64 bits as floats."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
        case list(), list():
            return len(one) == len(other) and all(map(same, one, other))
        case int(), float():
            return abs(one) >= 2**63 and float(one) == other
    return one == other


def base64(text: str) -> None:
    try:
        found = b64_decode_any(text)
    except RemoteProtocolError as error:
        loggable(str(error))
        return
    written = b64url_encode(found)
    assert b64url_decode(written) == found
    assert written == text.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        assert b64url_decode(text) == found
    except RemoteProtocolError:
        assert text != written


def seeds() -> dict[str, bytes]:
    return {
        "request.json": samples.dumps(samples.REQUEST),
        "numbers.json": b'[0, -0, -1, 1.5, 1e3, 1E-400, 0.1e1, 123456789012345678901234567890, -0.0, "\\u0000"]',
        "strings.json": '{"é": "\\u00e9", "\\ud83d\\ude00": "😀", "": null, "a\\"b\\\\": [true, [], {}]}'.encode(),
        "deep.json": b"[" * 16 + b"]" * 16,
        "bare": b"~" + b64url_encode(samples.dumps(samples.DETAILS)).encode(),
        "padded": b"~/+8=",
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b":",
            b",",
            b"\\",
            b"\\u",
            b"\\ud800",
            b"\\udc00",
            b"null",
            b"true",
            b"false",
        ),
        *(
            b"NaN",
            b"Infinity",
            b"-",
            b"e",
            b"E+",
            b".",
            b"1e999",
            b"9" * 81,
            b"\xef\xbb\xbf",
            b"\xed\xa0\x80",
            b"\x00",
        ),
        *(b"~", b"=", b"==", b"_", b"-", b"+", b"/", b"[" * 17, b'{"a":'),
    ),
)
