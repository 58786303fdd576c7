"""What the Payment scheme says: challenge, credential, receipt, problem, and the messages of a session.

Frozen values, read strictly: `RemoteProtocolError` for what is malformed, and nothing else. What the server
signed (the `id` is its MAC over the rest) is kept as it came and echoed as it came, never encoded again.
Amounts are base units. A message is a claim of the server; what it may move is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import orjson

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import (
    FIELD_LIMIT,
    PAYMENT,
    AuthChallenge,
    is_problem_json,
    parse_date_time,
    parse_www_authenticate,
)
from proxy_addon.core.members import Members
from proxy_addon.core.strict_json import MAX_DEPTH, b64url_decode, b64url_encode, decode_object
from store.amounts import parse_wire

PAYMENT_RESPONSE_FIELDS: Final = (
    "Payment-Receipt",
    "Payment-Session",
    "Payment-Session-Snapshot",
    "PAYMENT-REQUIRED",  # x402 v2
    "PAYMENT-RESPONSE",
    "X-PAYMENT-RESPONSE",  # x402 v1
)
"""Fields (and trailers) of a paid answer that are none of the client's business."""

PAYMENT_REQUEST_FIELDS: Final = (
    "Accept-Payment",
    "Payment-Authorization",
    "Payment-Session",
    "PAYMENT-SIGNATURE",  # x402 v2
    "X-PAYMENT",  # x402 v1
)
"""Fields of a request by which a client would pay by itself; and ``Authorization: Payment``."""

CREDENTIAL_LIMIT: Final = (
    64 * 1024
)  # it echoes a challenge of up to 16 KB, encoded twice, and holds an opening
BODY_LIMIT: Final = 64 * 1024

# --- Challenge -------------------------------------------------------------------------------------------

_REQUIRED: Final = ("id", "realm", "method", "intent", "request")
_OPTIONAL: Final = ("expires", "digest", "description", "opaque", "header")
# The draft has letters only; servers and SDKs also name methods "x402" or "tempo-v2".
_METHOD: Final = re.compile(r"[a-z][a-z0-9:_-]*\Z")
_INTENT: Final = re.compile(r"[A-Za-z0-9-]+\Z")
_MOST_CHALLENGES: Final = 32  # bounds what one answer can make us log
_CREDENTIAL_HEADERS: Final[dict[str, Literal["Authorization", "Payment-Authorization"]]] = {
    "authorization": "Authorization",
    "payment-authorization": "Payment-Authorization",
}


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """One Payment challenge. The text fields are raw: what `echo` gives back is what the server sent."""

    id: str
    realm: str
    method: str
    intent: str
    request: str  # base64url of JSON; `request_json` is its reading
    expires: str | None = None
    digest: str | None = None
    description: str | None = None  # for display: no decision may depend on it
    opaque: str | None = None
    header: str | None = None

    @cached_property
    def request_json(self) -> Mapping[str, Any]:
        """Not to be changed. Numbers are ``int`` only where they were written as integers."""
        return decode_object(b64url_decode(self.request, "request"), "request")

    def forget_reading(self) -> None:
        """For one that is kept: `request_json`, which is made again on demand, can be 25 times as large as its text."""
        self.__dict__.pop("request_json", None)

    @cached_property
    def expires_at(self) -> int | None:
        """Milliseconds since the epoch; None if the server set no end."""
        return None if self.expires is None else parse_date_time(self.expires, "expires")

    @cached_property
    def credential_header(self) -> Literal["Authorization", "Payment-Authorization"]:
        """The request field that carries the credential."""
        name = _CREDENTIAL_HEADERS.get("authorization" if self.header is None else self.header.lower())
        if name is None:
            raise RemoteProtocolError(
                f"header is {ascii(self.header)[:60]}: a credential goes in Authorization or"
                " Payment-Authorization only"
            )
        return name

    def echo(self) -> dict[str, str]:
        """The parameters that were there, as they were, in the scheme's order."""
        pairs = ((name, getattr(self, name)) for name in (*_REQUIRED, *_OPTIONAL))
        return {name: value for name, value in pairs if value is not None}

    @cached_property
    def echo_bytes(self) -> bytes:
        """`echo` as JSON, made once: a challenge is answered many times."""
        # Copied: what orjson returns holds on to its whole buffer, up to eight times as much, and this may be kept.
        return bytes(memoryview(orjson.dumps(self.echo())))


@dataclass(frozen=True, slots=True)
class Parsed:
    """The Payment challenges of an answer that can be used, and what is wrong with the others."""

    challenges: tuple[Challenge, ...] = ()
    problems: tuple[str, ...] = ()


def parse_challenges(values: Iterable[str]) -> Parsed:
    """Read all WWW-Authenticate fields; a malformed challenge does not hide a good one. Never raises."""
    challenges: list[Challenge] = []
    problems: list[str] = []
    total = number = 0
    for value in values:
        if PAYMENT not in value.lower():
            continue
        if total + len(value) > FIELD_LIMIT:
            problems.append(f"a field of {len(value)} bytes makes the Payment challenges over {FIELD_LIMIT}")
            continue
        total += len(value)
        for found in parse_www_authenticate((value,)):
            if found.scheme != PAYMENT:
                continue
            number += 1
            if number > _MOST_CHALLENGES:
                problems.append(f"there are more than {_MOST_CHALLENGES} Payment challenges")
                return Parsed(tuple(challenges), tuple(problems))
            try:
                challenges.append(_from_params(found))
            except RemoteProtocolError as error:
                problems.append(f"Payment challenge {number}: {error}")
    return Parsed(tuple(challenges), tuple(problems))


def _from_params(found: AuthChallenge) -> Challenge:
    if found.problem:
        raise RemoteProtocolError(found.problem)
    if found.token68 is not None:
        raise RemoteProtocolError("it has a token68 where parameters are expected")
    return challenge_from(found.params)


def challenge_from(params: Mapping[str, object]) -> Challenge:
    """A challenge from its parameters (of a field, or of a credential's echo). Unknown ones are ignored."""
    known: dict[str, str] = {}
    for name in (*_REQUIRED, *_OPTIONAL):
        value = params.get(name)
        if value is None:
            if name in _REQUIRED:
                raise RemoteProtocolError(f"parameter {name} is missing")
            continue
        if not isinstance(value, str):
            raise RemoteProtocolError(f"parameter {name} is no string")
        known[name] = value
    for name in ("id", "request"):
        if not known[name]:
            raise RemoteProtocolError(f"parameter {name} is empty")
    if not _METHOD.match(known["method"]):
        raise RemoteProtocolError(f"method is {ascii(known['method'])[:60]}: expected lower-case letters")
    if not _INTENT.match(known["intent"]):
        raise RemoteProtocolError(
            f"intent is {ascii(known['intent'])[:60]}: expected letters, digits, hyphens"
        )
    challenge = Challenge(**known)
    # Read once, and cached: a challenge that exists can be used.
    _ = challenge.request_json, challenge.expires_at, challenge.credential_header
    return challenge


# --- Credential ------------------------------------------------------------------------------------------

# credentials = "Payment" 1*SP base64url-nopad: one, and nothing beside it.
_CREDENTIAL: Final = re.compile(r"[Pp][Aa][Yy][Mm][Ee][Nn][Tt] ++([A-Za-z0-9_-]++)\Z")
_PAYMENT_SCHEME: Final = re.compile(r"(?:\A|,)[\t ]*+payment(?:[\t ]|\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credential:
    """What a client answers a challenge with."""

    challenge: Challenge
    payload: Mapping[str, Any] = field(repr=False)  # holds signatures
    source: str | None = None


def build_credential(challenge: Challenge, payload: Mapping[str, Any], source: str | None = None) -> str:
    """The value of `challenge.credential_header` that answers `challenge` with `payload`."""
    body = b'{"challenge":%b,"payload":%b' % (challenge.echo_bytes, orjson.dumps(payload, default=_plain))
    body += b',"source":%b}' % orjson.dumps(source) if source is not None else b"}"
    return f"Payment {b64url_encode(body)}"


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a payload cannot hold {type(value).__name__}")


def is_payment_credential(value: str) -> bool:
    """Does this Authorization value use the Payment scheme, well-formed or not, alone or in a list?"""
    return _PAYMENT_SCHEME.search(value) is not None


def parse_credential(value: str) -> Credential:
    """Exactly one credential. Raises `RemoteProtocolError` naming the part."""
    if len(value) > CREDENTIAL_LIMIT:
        raise RemoteProtocolError(
            f"the credential has {len(value)} bytes, over the limit of {CREDENTIAL_LIMIT}"
        )
    found = _CREDENTIAL.match(value.strip("\t "))
    if found is None:
        raise RemoteProtocolError("expected one Payment credential: Payment, a space, base64url")
    values = decode_object(
        b64url_decode(found[1], "credential"),
        "credential",
        max_size=CREDENTIAL_LIMIT,
        max_depth=MAX_DEPTH + 2,
    )
    echo, payload, source = values.get("challenge"), values.get("payload"), values.get("source")
    if not isinstance(echo, dict):
        raise RemoteProtocolError("credential.challenge is no object")
    if not isinstance(payload, dict):
        raise RemoteProtocolError("credential.payload is no object")
    if source is not None and not isinstance(source, str):
        raise RemoteProtocolError("credential.source is no string")
    return Credential(challenge_from(echo), payload, source)


# --- Receipt ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The server's word that it was paid. The second half is a session's; amounts are over the channel's life."""

    method: str
    timestamp: str  # as the server wrote it
    reference: str
    intent: str | None = None
    challenge_id: str | None = None
    channel_id: str | None = None
    accepted_cumulative: int | None = None
    spent: int | None = None  # some servers tell that of the request
    units: int | None = None
    tx_hash: str | None = None


def parse_receipt(value: str) -> Receipt:
    """A Payment-Receipt field. Raises `RemoteProtocolError` naming the member."""
    return _receipt(Members.of_field(value, "Payment-Receipt"))


def parse_receipt_json(data: str | bytes) -> Receipt:
    """The data of a ``payment-receipt`` event."""
    return _receipt(Members.of_json(data, "payment-receipt"))


def receipt_from(value: object) -> Receipt:
    """A receipt inside something that is already decoded."""
    return _receipt(Members.of(value, "receipt"))


def _receipt(read: Members) -> Receipt:
    if (status := read.text("status")) != "success":
        raise RemoteProtocolError(f"{read.what}.status is {ascii(status)[:60]}: expected 'success'")
    return Receipt(
        method=read.text("method"),
        timestamp=read.text("timestamp"),
        reference=read.text("reference"),
        intent=read.maybe_text("intent"),
        challenge_id=read.maybe_text("challengeId"),
        channel_id=read.maybe_hash("channelId"),
        accepted_cumulative=read.maybe_amount("acceptedCumulative"),
        spent=read.maybe_amount("spent"),
        units=read.units(),
        tx_hash=read.maybe_hash("txHash"),
    )


def format_receipt(receipt: Receipt) -> str:
    """The value of a Payment-Receipt field."""
    values: dict[str, Any] = {
        "method": receipt.method,
        "intent": receipt.intent,
        "status": "success",
        "timestamp": receipt.timestamp,
        "reference": receipt.reference,
        "challengeId": receipt.challenge_id,
        "channelId": receipt.channel_id,
        "acceptedCumulative": _shown(receipt.accepted_cumulative),
        "spent": _shown(receipt.spent),
        "units": receipt.units,
        "txHash": receipt.tx_hash,
    }
    return b64url_encode(orjson.dumps({name: value for name, value in values.items() if value is not None}))


def _shown(amount: int | None) -> str | None:
    return None if amount is None else str(amount)


# --- Problem ---------------------------------------------------------------------------------------------

PROBLEM_BASE: Final = "https://paymentauth.org/problems/"
_KIND: Final = re.compile(r"[a-z0-9][a-z0-9/_-]{0,63}\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An RFC 9457 description of what went wrong."""

    type: str = "about:blank"
    title: str | None = None
    detail: str | None = None
    status: int | None = None
    challenge_id: str | None = None
    required_top_up: int | None = None  # what insufficient-balance lacks; the server's word

    @property
    def kind(self) -> str | None:
        """``session/insufficient-balance``, ``verification-failed``, …; None if not of the Payment scheme.

        It gets into logs, ledgers and records: what no kind of the scheme looks like is called ``unreadable``.
        """
        if not self.type.startswith(PROBLEM_BASE) or self.type == PROBLEM_BASE:
            return None
        kind = self.type.removeprefix(PROBLEM_BASE)
        return kind if _KIND.match(kind) else "unreadable"


def parse_problem(content_type: str, body: bytes) -> Problem | None:
    """None if the body is no problem description by its content type; raises if it then is not readable.

    Members of the wrong type count as absent (RFC 9457 section 3.1).
    """
    if not is_problem_json(content_type):
        return None
    values = decode_object(body, "problem", max_size=BODY_LIMIT)
    status = values.get("status")
    return Problem(
        type=_string(values, "type") or "about:blank",
        title=_string(values, "title"),
        detail=_string(values, "detail"),
        status=status if type(status) is int and 100 <= status <= 599 else None,
        challenge_id=_string(values, "challengeId"),
        required_top_up=_amount(values, "requiredTopUp"),
    )


def _string(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) else None


def _amount(values: Mapping[str, Any], name: str) -> int | None:
    try:
        return parse_wire(values.get(name), name)
    except ValueError:
        return None


# --- Session ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedVoucher:
    """A metered stream has used up its balance and waits for a voucher of at least `required_cumulative`."""

    channel_id: str
    required_cumulative: int
    accepted_cumulative: int
    deposit: int


def parse_need_voucher(data: str | bytes) -> NeedVoucher:
    """The data of a ``payment-need-voucher`` event."""
    return _need_voucher(Members.of_json(data, "payment-need-voucher"))


def need_voucher_from(value: object) -> NeedVoucher:
    """The same, already decoded (WebSocket frames hold it as an object)."""
    return _need_voucher(Members.of(value, "payment-need-voucher"))


def _need_voucher(read: Members) -> NeedVoucher:
    return NeedVoucher(
        channel_id=read.hash("channelId"),
        required_cumulative=read.amount("requiredCumulative"),
        accepted_cumulative=read.amount("acceptedCumulative"),
        deposit=read.amount("deposit"),
    )
