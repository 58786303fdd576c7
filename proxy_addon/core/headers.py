"""The fields of HTTP that the Payment scheme uses: parse and serialise, nothing of what they mean.

Field values come as mitmproxy hands them out: text decoded as UTF-8 with surrogate escapes. Where a value
was not UTF-8 its bytes are read as ISO-8859-1, which is what servers on Node send. Everything that parses
takes linear time and raises `RemoteProtocolError` and nothing else.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.strict_json import b64_decode_any

FIELD_LIMIT: Final = 16 * 1024
"""The longest value, and the most of Payment challenges together, that we read. Peers must take 4 KB."""

PAYMENT: Final = "payment"

_TCHARS: Final = (
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # token, RFC 9110 section 5.6.2; possessive: gives nothing back
)
_QUOTED: Final = r'"(?P<quoted>[^"\\]*+(?:\\.[^"\\]*+)*+)"'  # RFC 9110 section 5.6.4
_OWS: Final = r"[\t ]*+"  # RFC 9110 section 5.6.3; BWS is the same

# One element of WWW-Authenticate = #challenge (RFC 9110 section 11.6.1), with
# challenge = auth-scheme [ 1*SP ( token68 / #auth-param ) ] (section 11.3). A comma parts challenges as well
# as the parameters of one, so an element is a parameter, a scheme with its first parameter, a scheme with a
# token68, a scheme alone, or nothing.
_ELEMENT: Final = re.compile(
    rf"{_OWS}(?:"
    rf"(?:(?P<scheme>{_TCHARS})[ ]++)?(?P<name>{_TCHARS}){_OWS}={_OWS}(?:(?P<token>{_TCHARS})|{_QUOTED})"
    rf"|(?P<lone>{_TCHARS})(?:[ ]++(?P<token68>[A-Za-z0-9._~+/-]++=*+))?"
    rf")?{_OWS}(?:,|\Z)",
    re.DOTALL,
)
# What to skip where no element can be read: all up to the next comma outside quotes. It may begin a scheme.
_REST: Final = re.compile(r'[^",]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)[^",]*+)*+(?:,|\Z)', re.DOTALL)
_STARTS: Final = re.compile(rf"{_OWS}(?P<scheme>{_TCHARS})[ ]++(?=[^=\t ,])")

_QUOTED_PAIR: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110 section 5.5: no CTL but HTAB
_NOT_TOKEN: Final = re.compile(r"[^!#$%&'*+.^_`|~0-9A-Za-z-]")


@dataclass(frozen=True, slots=True)
class AuthChallenge:
    """One challenge of any scheme. `problem` says why it cannot be read; the others are still good."""

    scheme: str  # lower case
    params: Mapping[str, str] = field(default_factory=dict)  # names in lower case, values unescaped
    token68: str | None = None
    problem: str = ""


def field_text(value: str) -> str:
    """`value` as text without surrogates; refuses what no field may hold (RFC 9110 section 5.5)."""
    if found := _FORBIDDEN.search(value):
        raise RemoteProtocolError(f"the field holds a control character (0x{ord(found[0]):02x})")
    if value.isascii():
        return value
    try:
        raw = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise RemoteProtocolError("the field holds half a surrogate pair") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def parse_www_authenticate(values: Iterable[str]) -> list[AuthChallenge]:
    """All challenges of all WWW-Authenticate fields, in order, whatever their scheme.

    What is wrong with one challenge is told in its `problem`. A field that cannot be read at all (too long,
    control characters) comes as one challenge with a problem, of scheme ``payment`` if it names that.
    """
    challenges: list[AuthChallenge] = []
    for value in values:
        if len(value) > FIELD_LIMIT:
            challenges.append(_unreadable(value, f"the field has {len(value)} bytes, over {FIELD_LIMIT}"))
            continue
        try:
            text = field_text(value)
        except RemoteProtocolError as error:
            challenges.append(_unreadable(value, str(error)))
            continue
        challenges.extend(_parse_field(text))
    return challenges


def _unreadable(value: str, problem: str) -> AuthChallenge:
    return AuthChallenge(PAYMENT if PAYMENT in value.lower() else "", problem=problem)


def _parse_field(text: str) -> list[AuthChallenge]:
    challenges: list[AuthChallenge] = []
    scheme = ""
    params: dict[str, str] = {}
    token68: str | None = None
    problem = ""

    def finish() -> None:
        if scheme or params or problem:
            challenges.append(AuthChallenge(scheme, params, token68, problem))

    at, end = 0, len(text)
    while at < end:
        element = _ELEMENT.match(text, at)
        if element is None:
            if begins := _STARTS.match(text, at):
                finish()
                scheme, params, token68, problem = begins["scheme"].lower(), {}, None, ""
            rest = _REST.match(text, at)
            assert rest is not None  # it matches anywhere
            problem = problem or f"it cannot be parsed at {ascii(rest[0].strip())[:60]}"
            at = rest.end()
            continue
        at = element.end()  # always further on: it ends with a comma, or at the end
        if started := element["scheme"] or element["lone"]:
            finish()
            scheme, params, token68, problem = started.lower(), {}, element["token68"], ""
        if (name := element["name"]) is None:
            continue
        name = name.lower()
        if not scheme:
            problem = problem or f"parameter {name[:40]} stands before any scheme"
        elif token68 is not None:
            problem = problem or f"parameter {name[:40]} follows a token68"
        elif name in params:
            problem = problem or f"parameter {name[:40]} appears more than once"
        quoted = element["quoted"]
        params[name] = value = element["token"] if quoted is None else _unescape(quoted)
        if quoted is not None and _FORBIDDEN.search(value):
            problem = problem or f"parameter {name[:40]} holds an escaped control character"
    finish()
    return challenges


def _unescape(quoted: str) -> str:
    r"""Resolve quoted-pairs (RFC 9110 section 5.6.4) and ``\uXXXX``.

    The latter is what SDKs write for UTF-16 units beyond ISO-8859-1. As they double every real backslash,
    it is told apart; and it must be resolved, or the echo would not match what the server signed.
    """
    if "\\" not in quoted:
        return quoted
    text = _QUOTED_PAIR.sub(lambda pair: chr(int(pair[1], 16)) if pair[1] else pair[2], quoted)
    if text.isascii():
        return text
    # Join surrogate pairs; half a pair becomes U+FFFD, as UTF-8 encoders of other languages make it.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def format_challenge(params: Mapping[str, str], scheme: str = "Payment") -> str:
    """A WWW-Authenticate value. ``format_challenge(challenge.echo())`` gives back what was parsed.

    Raises ``ValueError`` for what no field can carry.
    """
    parts = []
    for name, value in params.items():
        if not name or _NOT_TOKEN.search(name):
            raise ValueError(f"parameter name {name!r} is no token (RFC 9110 section 5.6.2)")
        parts.append(f'{name}="{_escape(name, value)}"')
    return f"{scheme} {', '.join(parts)}"


def _escape(name: str, value: str) -> str:
    if _FORBIDDEN.search(value):
        raise ValueError(f"parameter {name} holds a control character, which no field can carry")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if escaped.isascii():
        return escaped
    units = escaped.encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if code < 0x80 else f"\\u{code:04x}" for code in codes)


# --- Accept-Payment --------------------------------------------------------------------------------------

# payment-range = payment-token [ weight ] (Payment scheme, "Client Payment Preferences"); weight and qvalue
# are those of RFC 9110 section 12.4.2. Names as in SDKs: digits and hyphens too.
_RANGE: Final = re.compile(
    rf"{_OWS}(?P<method>\*|[a-z0-9:_-]++)/(?P<intent>\*|[A-Za-z0-9-]++)"
    rf"(?:{_OWS};{_OWS}[qQ]=(?P<q>0(?:\.[0-9]{{0,3}})?|1(?:\.0{{0,3}})?))?{_OWS}\Z"
)


@dataclass(frozen=True, slots=True)
class PaymentRange:
    """One thing that a client can pay with. `weight` is q in thousandths: 0 means never."""

    method: str
    intent: str
    weight: int = 1000


def format_accept_payment(ranges: Sequence[PaymentRange]) -> str:
    """``tempo/session, tempo/charge;q=0.5``."""
    return ", ".join(
        f"{item.method}/{item.intent}" + ("" if item.weight == 1000 else f";q={_qvalue(item.weight)}")
        for item in ranges
    )


def _qvalue(weight: int) -> str:
    if not 0 <= weight < 1000:  # of 1000 nothing is said
        raise ValueError(f"weight {weight} is not within 0 … 1000")
    return f"0.{weight:03d}".rstrip("0").rstrip(".")


def parse_accept_payment(value: str) -> tuple[PaymentRange, ...]:
    if len(value) > FIELD_LIMIT:
        raise RemoteProtocolError(f"Accept-Payment has {len(value)} bytes, over {FIELD_LIMIT}")
    ranges = []
    for element in value.split(","):
        if not element.strip("\t "):
            continue  # RFC 9110 section 5.6.1.2: empty elements do not count
        if (found := _RANGE.match(element)) is None:
            raise RemoteProtocolError(
                f"Accept-Payment has {ascii(element)[:60]}: expected method/intent;q=0.5"
            )
        whole, _, fraction = (found["q"] or "1").partition(".")
        ranges.append(PaymentRange(found["method"], found["intent"], int(whole + fraction.ljust(3, "0"))))
    return tuple(ranges)


# --- Times -----------------------------------------------------------------------------------------------

# RFC 3339 section 5.6 date-time.
_DATE_TIME: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))\Z"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def parse_date_time(text: str, what: str = "date-time") -> int:
    """RFC 3339 → ms since the epoch, rounded down (a leap second counts as the one before it)."""
    found = _DATE_TIME.match(text)
    if found is None:
        raise RemoteProtocolError(f"{what} is {ascii(text)[:60]}: expected RFC 3339, 2025-01-15T12:00:00Z")
    year, month, day, hour, minute, second = (int(part) for part in found.group(1, 2, 3, 4, 5, 6))
    fraction, sign, off_hour, off_minute = found.group(7, 8, 9, 10)
    if second == 60:
        second = 59
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise RemoteProtocolError(f"{what} is {ascii(text)[:60]}: {error}") from None
    ms = (moment - _EPOCH) // _MILLISECOND + int((fraction or "")[:3].ljust(3, "0"))
    if sign:
        if int(off_hour) > 23 or int(off_minute) > 59:
            raise RemoteProtocolError(f"{what} is {ascii(text)[:60]}: no such offset from UTC")
        offset = (int(off_hour) * 60 + int(off_minute)) * 60_000
        ms += -offset if sign == "+" else offset
    return ms


_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# RFC 9110 section 5.6.7: a recipient takes all three forms of HTTP-date.
_HTTP_DATES: Final = (
    re.compile(rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT\Z"),
    re.compile(rf"[A-Z][a-z]+day, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT\Z"),
    re.compile(rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})\Z"),
)
_SECONDS: Final = re.compile(r"[0-9]+\Z")
_LONGEST_WAIT: Final = 2**31


def parse_retry_after(value: str, now: int) -> int | None:
    """Seconds to wait from `now` (ms), or None if it says nothing usable (RFC 9110 section 10.2.3).

    Never raises: an unreadable hint is no reason to fail a payment.
    """
    text = value.strip("\t ")
    if _SECONDS.match(text):
        return int(text) if len(text) <= 10 and int(text) < _LONGEST_WAIT else _LONGEST_WAIT
    moment = parse_http_date(text, now)
    if moment is None:
        return None
    return min(max(0, -((now - moment) // 1000)), _LONGEST_WAIT)


def parse_http_date(text: str, now: int) -> int | None:
    """An HTTP-date in ms, or None if it is none (RFC 9110 section 5.6.7). `now` (ms) says which century it is."""
    found = next((match for form in _HTTP_DATES if (match := form.match(text))), None)
    if found is None:
        return None
    year = int(found["year"])
    this_year = (_EPOCH + timedelta(milliseconds=now)).year
    if len(found["year"]) == 2:  # the one at most 50 years ahead, says RFC 9110 section 5.6.7
        year = this_year + 50 - (this_year + 50 - year) % 100
    month = _MONTHS.index(found["month"]) + 1
    second = min(int(found["second"]), 59)
    try:
        moment = datetime(
            year, month, int(found["day"]), int(found["hour"]), int(found["minute"]), second, tzinfo=UTC
        )
    except ValueError:
        return None
    return (moment - _EPOCH) // _MILLISECOND


# --- Content type and digest ------------------------------------------------------------------------------


def media_type(content_type: str) -> str:
    """Type and subtype in lower case, without parameters (RFC 9110 section 8.3.1)."""
    return content_type.partition(";")[0].strip("\t ").lower()


def is_problem_json(content_type: str) -> bool:
    """Is the body a problem description (RFC 9457 section 3)?"""
    return media_type(content_type) == "application/problem+json"


def is_event_stream(content_type: str) -> bool:
    return media_type(content_type) == "text/event-stream"


# RFC 9530 section 2: a dictionary of byte sequences, sha-256=:…: (RFC 8941). SDKs leave the colons out.
_SHA256: Final = re.compile(
    rf"(?:\A|,){_OWS}sha-256="
    rf"(?::(?P<bytes>[A-Za-z0-9+/]*+={{0,2}}):|(?P<bare>[A-Za-z0-9+/_-]++={{0,2}})){_OWS}(?:,|\Z)"
)


def parse_digest(value: str) -> bytes:
    """The SHA-256 of a body that a challenge is bound to."""
    found = _SHA256.search(value)
    if found is None:
        raise RemoteProtocolError(f"digest is {ascii(value)[:80]}: expected sha-256=:…: (RFC 9530)")
    digest = b64_decode_any(found["bytes"] if found["bytes"] is not None else found["bare"], "digest")
    if len(digest) != 32:
        raise RemoteProtocolError(f"digest has {len(digest)} bytes: SHA-256 has 32")
    return digest


def digest_matches(value: str, body_sha256: bytes) -> bool:
    """Was `value` made for the body whose SHA-256 is `body_sha256`? (Constant time.)"""
    return hmac.compare_digest(parse_digest(value), body_sha256)
