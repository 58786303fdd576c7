"""Small fields; the first byte says which: ``A`` Accept-Payment, ``T`` a date-time, ``R`` Retry-After, ``D`` a digest,
``C`` a credential, ``M`` a content type.

- Nothing but `RemoteProtocolError` is raised, and its words can go to a log; for Retry-After and content types nothing.
- Accept-Payment and credentials, written again, are the same; a date-time that Python can read is Python's; a digest
  has 32 bytes; a wait is between none and the limit.
"""

from __future__ import annotations

from datetime import UTC, datetime

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import (
    digest_matches,
    format_accept_payment,
    is_event_stream,
    is_problem_json,
    parse_accept_payment,
    parse_date_time,
    parse_digest,
    parse_retry_after,
)
from proxy_addon.core.messages import build_credential, is_payment_credential, parse_credential
from proxy_addon.core.strict_json import b64url_encode
from tests.fuzz import samples
from tests.fuzz.oracle import loggable
from tests.fuzz.target import Target

NOW = 1_795_420_000_000


def one_input(data: bytes) -> None:
    text = data[1:].decode("utf-8", "surrogateescape")
    try:
        match data[:1]:
            case b"A":
                accept_payment(text)
            case b"T":
                date_time(text)
            case b"D":
                digest(text)
            case b"C":
                credential(text)
            case b"R":
                wait = parse_retry_after(text, NOW)
                assert wait is None or 0 <= wait <= 2**31
            case _:
                assert not (is_event_stream(text) and is_problem_json(text))
    except RemoteProtocolError as error:
        assert data[:1] in b"ATDC"
        loggable(str(error))


def accept_payment(text: str) -> None:
    ranges = parse_accept_payment(text)
    assert all(0 <= one.weight <= 1000 for one in ranges)
    assert parse_accept_payment(format_accept_payment(ranges)) == ranges


def date_time(text: str) -> None:
    ms = parse_date_time(text)
    assert -(2**46) < ms < 2**48
    short, leap = text.upper().replace(",", ""), ":60" in text
    try:
        expected = datetime.fromisoformat(short)
    except ValueError:
        return  # it takes no leap second, and no year 0
    if not leap and expected.tzinfo is not None and 1 < expected.year < 9999:
        exact = expected.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        assert ms == (exact.days * 86_400 + exact.seconds) * 1000 + exact.microseconds // 1000


def digest(text: str) -> None:
    found = parse_digest(text)
    assert len(found) == 32
    assert digest_matches(text, found)
    assert not digest_matches(text, bytes(32)) or found == bytes(32)


def credential(text: str) -> None:
    is_payment = is_payment_credential(text)
    found = parse_credential(text)
    assert is_payment
    again = parse_credential(build_credential(found.challenge, found.payload, found.source))
    assert again == found


def seeds() -> dict[str, bytes]:
    echo = {"id": "c1", "realm": "r", "method": "tempo", "intent": "session", "request": "e30"}
    token = b64url_encode(
        samples.dumps(
            {"challenge": echo, "payload": {"action": "voucher"}, "source": "did:pkh:eip155:1:0xab"}
        )
    )
    return {
        "accept": b"Atempo/session, tempo/charge;q=0.5, */*;q=0",
        "time": b"T2026-01-15T12:00:00.123+01:30",
        "leap": b"T2016-12-31t23:59:60z",
        "wait_seconds": b"R120",
        "wait_date": b"RWed, 21 Oct 2026 07:28:00 GMT",
        "wait_850": b"RWednesday, 21-Oct-26 07:28:00 GMT",
        "wait_asctime": b"RWed Oct 21 07:28:00 2026",
        "digest": b"Dsha-512=:AA==:, sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
        "credential": b"CPayment " + token.encode(),
        "media": b"MText/Event-Stream; charset=utf-8",
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"A",
            b"T",
            b"R",
            b"D",
            b"C",
            b"M",
            b";q=",
            b"0.5",
            b"1.000",
            b"*",
            b"/",
            b", ",
            b"tempo",
            b"GMT",
            b"Z",
        ),
        *(
            b"+23:59",
            b"-00:00",
            b"0000-",
            b"9999-12-31T23:59:59Z",
            b":60",
            b"02-29",
            b"Payment ",
            b"sha-256=:",
            b"=",
        ),
        *(b"Mon, ", b"Feb", b"99999999999", b"\xff", b"\xc2\xb2", b"9" * 30),
    ),
)
