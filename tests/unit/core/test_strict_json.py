"""One reading of what a peer sends, or none."""

from __future__ import annotations

import base64

import pytest

from proxy_addon.core import strict_json
from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.strict_json import (
    b64_decode_any,
    b64url_decode,
    b64url_encode,
    check_depth,
    decode,
    decode_object,
)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        # RFC 4648 section 10, without padding
        ("", b""),
        ("Zg", b"f"),
        ("Zm8", b"fo"),
        ("Zm9v", b"foo"),
        ("Zm9vYg", b"foob"),
        ("Zm9vYmE", b"fooba"),
        ("Zm9vYmFy", b"foobar"),
        # the two letters by which the alphabets differ
        ("-_-_", b"\xfb\xff\xbf"),
        ("_w", b"\xff"),
    ],
)
def test_base64url(text: str, data: bytes) -> None:
    assert b64url_decode(text) == data
    assert b64url_encode(data) == text
    assert b64_decode_any(text) == data


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Zg==", "without padding"),
        ("Zm8=", "without padding"),
        ("+/+/", "without padding"),
        ("Zm9v\n", "without padding"),
        ("Zm 9v", "without padding"),
        ("Zm9v!", "without padding"),
        ("Zm9vé", "without padding"),
        ("Zm9vZ", "length"),
        ("Zh", "beyond its last byte"),  # f, and four bits set that belong to nothing
        ("Zm9", "beyond its last byte"),  # fo, and two such bits
        ("Zm9vYh", "beyond its last byte"),
    ],
)
def test_base64url_refuses(text: str, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint) as caught:
        b64url_decode(text, "request")
    assert str(caught.value).startswith("request ")


@pytest.mark.parametrize("text", ["Zg==", "Zg", "Zm8=", "Zm9v", "+/-_", "_w==", "/w"])
def test_base64_of_either_kind(text: str) -> None:
    standard = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    assert b64_decode_any(text) == base64.b64decode(standard + "=" * (-len(standard) % 4))


@pytest.mark.parametrize("text", ["Zg=", "Zm9v=", "=", "Z===", "Zg==\n", "Zh==", "Zg==Zg==", "Z g"])
def test_base64_of_no_kind(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        b64_decode_any(text)


def test_object() -> None:
    assert decode_object(b'{"a": {"b": [1, "x", null, true, -0.5]}}', "it") == {
        "a": {"b": [1, "x", None, True, -0.5]}
    }


def test_integers_stay_integers_and_nothing_else_becomes_one() -> None:
    values = decode_object(b'{"i": 18446744073709551616, "f": 1.0, "e": 1e3}', "it")
    assert values["i"] == 2**64
    assert [type(values[name]) for name in "ife"] == [int, float, float]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b'{"amount":"1","amount":"2"}', "'amount' appears more than once"),
        (b'{"a":{"x":1,"\\u0078":2}}', "'x' appears more than once"),
        (b'{"a":1,"b":2,"c":3,"b":4}', "'b' appears more than once"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":' + b"9" * 81 + b"}", "more than 80 digits"),
        (b'{"a":"\\ud800"}', "half a surrogate pair"),
        (b'{"\\uDFFF":1}', "half a surrogate pair"),
        ('{"a":"\ud800"}', "half a surrogate pair"),
        (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
        (b'\xef\xbb\xbf{"a":1}', "JSON"),
        (b'{"a":1}x', "JSON"),
        (b'{"a":1', "JSON"),
        (b'{"a":01}', "JSON"),
        (b'{"a":"\n"}', "JSON"),
        (b"", "JSON"),
        (b"[]", "an array: expected a JSON object"),
        (b"null", "null: expected"),
        (b"true", "a boolean: expected"),
        (b'"x"', "a string: expected"),
        (b"1", "a number: expected"),
        (b"[" * 17 + b"]" * 17, "deeper than 16"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "deeper than 16"),
        (b'{"a":"' + b"x" * 16384 + b'"}', "over the limit of 16384"),
    ],
)
def test_object_refuses(data: bytes | str, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint) as caught:
        decode_object(data, "the body")
    assert str(caught.value).startswith("the body ")


def test_depth_counts_nesting_not_brackets() -> None:
    assert decode(b"[" * 16 + b"]" * 16, "it") is not None
    wide = b"[" + b"[],{}," * 50 + b'"[[[[[[[[[[[[[[[[[[[[{{{\\"[[["]'
    assert decode(wide, "it")[:2] == [[], {}]


def test_surrogate_pairs_are_text() -> None:
    assert decode_object(b'{"a":"\\ud83d\\ude00"}', "it") == {"a": "\N{GRINNING FACE}"}
    assert decode_object('{"a":"\N{GRINNING FACE}é"}', "it") == {"a": "\N{GRINNING FACE}é"}


@pytest.mark.parametrize("limit", [1, 2, 16])
def test_the_deepest_that_is_read(limit: int) -> None:
    """However many brackets there are in all."""
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deepest = opening * limit + "0" + closing * limit
        check_depth(deepest, "it", limit)
        check_depth(f"[{deepest},{deepest}]", "it", limit + 1)
        with pytest.raises(RemoteProtocolError, match=f"it is nested deeper than {limit} levels"):
            check_depth(f"[{deepest},{deepest}]", "it", limit)


def test_the_largest_that_is_read() -> None:
    assert decode(b'"' + b"x" * 98 + b'"', "it", max_size=100) == "x" * 98
    with pytest.raises(RemoteProtocolError, match="it has 101 bytes, over the limit of 100"):
        decode(b'"' + b"x" * 99 + b'"', "it", max_size=100)
    assert decode(b"9" * 80, "it") == 10**80 - 1


def test_how_much_is_read_where_nothing_else_is_said() -> None:
    assert (strict_json.MAX_SIZE, strict_json.MAX_DEPTH, strict_json._MAX_DIGITS) == (16_384, 16, 80)
