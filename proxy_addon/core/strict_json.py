"""JSON and base64url as peers may send them: one reading, or none.

Python's own decoders are lenient where money cannot be: ``urlsafe_b64decode`` skips junk, ``json`` takes the
last of two equal keys, ``NaN``, and lone surrogates that blow up when they are encoded again. Everything here
raises `RemoteProtocolError` and nothing else.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64encode
from typing import Any, Final

from proxy_addon.core.errors import RemoteProtocolError

MAX_SIZE: Final = 16 * 1024
MAX_DEPTH: Final = 16

_B64URL: Final = re.compile(r"[A-Za-z0-9_-]*\Z")  # RFC 4648 section 5, without padding
_B64_ANY: Final = re.compile(r"[A-Za-z0-9_+/-]*={0,2}\Z")  # sections 4 and 5
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")

# RFC 8259 section 7: a string, so that brackets inside one do not count as nesting.
# It also matches one that does not end, or the search would begin anew at each of its quotes.
_STRING: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET: Final = re.compile(r"[{}\[\]]")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_DIGITS: Final = 80  # a uint256 has 78; beyond that a number is an attack on the parser


def b64url_encode(data: bytes) -> str:
    """RFC 4648 section 5, without padding."""
    return b64encode(data).rstrip(b"=").translate(_TO_URL).decode("ascii")


def b64url_decode(text: str, what: str = "base64url value") -> bytes:
    """Only the URL-safe alphabet, no padding, no unused bits set (RFC 4648 sections 3.2, 3.3, 3.5)."""
    if not _B64URL.match(text):
        raise RemoteProtocolError(f"{what} is not base64url without padding (RFC 4648 section 5)")
    return _decode(text, what)


def b64_decode_any(text: str, what: str = "base64 value") -> bytes:
    """Either alphabet, padded or not; else as strict. For fields that servers encode in both ways."""
    if not _B64_ANY.match(text):
        raise RemoteProtocolError(f"{what} is not base64 (RFC 4648)")
    bare = text.rstrip("=")
    if len(bare) != len(text) and len(text) % 4:
        raise RemoteProtocolError(f"{what} has wrong base64 padding (RFC 4648 section 3.2)")
    return _decode(bare, what)


def _decode(bare: str, what: str) -> bytes:
    if len(bare) % 4 == 1:
        raise RemoteProtocolError(f"{what} has a length that base64 cannot have")
    standard = bare.replace("-", "+").replace("_", "/") + "=" * (-len(bare) % 4)
    data = binascii.a2b_base64(standard)
    # Two texts must not decode to the same bytes; only a rest can have unused bits.
    if len(bare) % 4 and b64encode(data[-(len(data) % 3) :]).decode("ascii") != standard[-4:]:
        raise RemoteProtocolError(f"{what} has bits set beyond its last byte (RFC 4648 section 3.5)")
    return data


def decode_object(
    data: bytes | str, what: str, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH
) -> dict[str, Any]:
    """One JSON object (RFC 8259). Refuses repeated keys, non-finite numbers, lone surrogates, other types.

    Numbers with a fraction or an exponent come as ``float``: whoever reads an integer checks for ``int``.
    """
    value = decode(data, what, max_size=max_size, max_depth=max_depth)
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{what} is {_kind(value)}: expected a JSON object")
    return value


def decode(data: bytes | str, what: str, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH) -> Any:
    """Any JSON value, under the same rules as `decode_object`."""
    if len(data) > max_size:
        raise RemoteProtocolError(f"{what} has {len(data)} bytes, over the limit of {max_size}")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"{what} is not UTF-8 at byte {error.start}") from None
    check_depth(text, what, max_depth)
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"{what} is not JSON that can be trusted: {str(error)[:120]}") from None
    if (_SURROGATE_ESCAPE.search(text) or not text.isascii()) and not _encodable(value):
        raise RemoteProtocolError(f"{what} holds half a surrogate pair, which UTF-8 cannot carry")
    return value


def check_depth(text: str, what: str, max_depth: int = MAX_DEPTH) -> None:
    """Raises `RemoteProtocolError` for nesting that could end the process: parsers recurse in C."""
    if text.count("{") + text.count("[") <= max_depth:
        return
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "{[" else -1
        if depth > max_depth:
            raise RemoteProtocolError(f"{what} is nested deeper than {max_depth} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"member {ascii(twice)[:60]} appears more than once")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number


def _bounded(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded
)


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "a number"
