"""The in-band payment frames of a paid WebSocket: JSON objects in text messages, told apart by their member ``mpp``.

A server wraps what its application says into ``{"mpp": "message", "data": "…"}``. Text that is no such object is
the application's own, and so is every binary message. What claims to be a payment frame and cannot be read is
`Unreadable`: it is reported, and never the application's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import NeedVoucher, Receipt, parse_need_voucher, parse_receipt_json
from proxy_addon.core.strict_json import check_depth

NORMAL: Final = 1000
POLICY: Final = 1008
_REASON_LIMIT: Final = 123  # bytes, RFC 6455 section 5.5
_TEXT_LIMIT: Final = 200  # characters of a server's words that are worth a log line
_MAX_DIGITS: Final = 80

# How a payment frame begins, as the servers of this protocol write it.
_CLAIMS: Final = re.compile(
    r'[ \t\r\n]*+\{[ \t\r\n]*+"mpp"[ \t\r\n]*+:[ \t\r\n]*+"(authorization|payment-[a-z-]{1,40}+)"'
)
# As lenient as the application's own reader; but a number without end is no reason to take a frame for its words.
_DECODER: Final = json.JSONDecoder(
    parse_int=lambda digits: int(digits) if len(digits) <= _MAX_DIGITS else float("inf")
)


@dataclass(frozen=True, slots=True)
class Data:
    """The application's own words, unwrapped."""

    text: str


@dataclass(frozen=True, slots=True)
class CloseReady:
    """The server has said all, or was asked to stop; `receipt` is the last word on what was spent."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Failed:
    """The server refused a frame of ours, or failed."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    name: str
    reason: str


Frame = Data | NeedVoucher | Receipt | CloseReady | Failed | Unreadable


@dataclass(frozen=True, slots=True)
class Close:
    """How a connection is to be closed; see `close`."""

    code: int
    reason: str = field(default="")


def close(code: int, reason: str = "") -> Close:
    """A close whose reason fits a control frame."""
    return Close(code, reason.encode()[:_REASON_LIMIT].decode(errors="ignore"))


def authorization(credential: str) -> str:
    """The frame that carries a credential, as it would stand in an Authorization field."""
    return json.dumps({"mpp": "authorization", "authorization": credential}, separators=(",", ":"))


def read(text: str) -> Frame | None:
    """What a text message of the server is; None for the application's, which passes as it is. Never raises."""
    if '"mpp"' not in text:
        return None
    try:
        check_depth(text, "frame")
        found = _DECODER.decode(text)
    except (ValueError, RecursionError, RemoteProtocolError) as error:
        claimed = _CLAIMS.match(text)
        return None if claimed is None else Unreadable(claimed[1], printable(str(error)))
    if not isinstance(found, dict):
        return None
    name, data = found.get("mpp"), found.get("data")
    try:
        match name:
            case "message":
                return Data(_well_formed(data)) if isinstance(data, str) else None
            case "payment-need-voucher":
                return parse_need_voucher(json.dumps(data))
            case "payment-receipt":
                return parse_receipt_json(json.dumps(data))
            case "payment-close-ready":
                return CloseReady(parse_receipt_json(json.dumps(data)))
            case "payment-error":
                status = found.get("status")
                status = status if type(status) is int and 100 <= status <= 599 else 0
                return Failed(status, printable(str(found.get("message", ""))))
            case "authorization" | "payment-close-request":
                return Unreadable(name, "only clients send this")
            case str() if name.startswith("payment-"):
                return Unreadable(printable(name[:40]), "unknown")
    except (RemoteProtocolError, RecursionError) as error:
        return Unreadable(str(name), printable(str(error)))
    return None


def printable(text: str) -> str:
    """What a log line may hold of a server's words."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text[:_TEXT_LIMIT])


def _well_formed(text: str) -> str:
    """A lone surrogate cannot be sent; WebSocket libraries put U+FFFD there."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
