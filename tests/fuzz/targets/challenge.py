"""WWW-Authenticate fields, one a line.

- Nothing is raised, whatever the fields hold; what is said of them can go to a log.
- No more challenges than the limit, of no more text than came.
- A challenge that was read is the same after it was written and read again, and as a credential echoes it.
"""

from __future__ import annotations

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import FIELD_LIMIT, format_challenge, parse_www_authenticate
from proxy_addon.core.messages import (
    CREDENTIAL_LIMIT,
    Challenge,
    Parsed,
    build_credential,
    parse_challenges,
    parse_credential,
)
from tests.fuzz import samples
from tests.fuzz.oracle import loggable
from tests.fuzz.target import Target

MOST = 32


def one_input(data: bytes) -> None:
    values = [line.decode("utf-8", "surrogateescape") for line in data.split(b"\n")]
    for found in parse_www_authenticate(values):
        assert found.scheme == found.scheme.lower()
        loggable(found.problem)
    parsed = parse_challenges(values)
    assert len(parsed.challenges) <= MOST
    assert len(parsed.problems) <= MOST + len(values)
    for problem in parsed.problems:
        loggable(problem)
    assert sum(len(one.request) + len(one.id) for one in parsed.challenges) <= FIELD_LIMIT
    for challenge in parsed.challenges:
        comes_back(challenge)


def comes_back(challenge: Challenge) -> None:
    written = format_challenge(challenge.echo())
    if len(written) <= FIELD_LIMIT:
        assert parse_challenges([written]) == Parsed((challenge,)), written
    credential = build_credential(challenge, {"type": "voucher"}, "did:x")
    if len(credential) <= CREDENTIAL_LIMIT:
        echoed = parse_credential(credential)
        assert (echoed.challenge, echoed.payload, echoed.source) == (challenge, {"type": "voucher"}, "did:x")
    assert challenge.expires_at is None or -(2**46) < challenge.expires_at < 2**48
    try:
        challenge.credential_header.encode("ascii")
        challenge.request_json.get("amount")
    except RemoteProtocolError as error:
        raise AssertionError("a challenge that exists can be used") from error


def seeds() -> dict[str, bytes]:
    whole = samples.challenge_field()
    return {
        "v2": whole,
        "v1_charge_and_bearer": samples.challenge_field(samples.V1_REQUEST)
        + b', Payment id="c", realm="r", method="tempo", intent="charge", request="e30"'
        + b'\nBearer realm="x"\nBasic realm="a \\"b\\"", charset=UTF-8, Negotiate dG9rZW4='
        + b"\n"
        + whole.replace(b"Payment ", b"payment "),
        "escapes": b'Payment id="\\u20ac\\"\\\\", realm="caf\xc3\xa9 \xe9", method=tempo, intent=session,'
        b' request="e30",'
        b' expires="2026-01-15T12:00:00.25+01:00", digest="sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",'
        b' opaque="e30", header="Payment-Authorization", description="one\\ntwo"',
        "long_name": b"Payment id=1, id=2, " + b"n" * 2000 + b"=1, " + b"n" * 2000 + b"=2",
        "broken": b'Payment id="a, Payment id=b realm, Payment =, Payment ,,Payment e30=, id=x\nPayment id=1, id=2',
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(b"Payment ", b"payment", b'id="', b'realm="', b'method="', b'intent="', b'request="', b'expires="'),
        *(
            b'digest="',
            b'opaque="',
            b'header="',
            b'"',
            b"\\",
            b"\\u",
            b", ",
            b"=",
            b"\n",
            b"\t",
            b" ",
            b"e30",
        ),
        *(
            b"tempo",
            b"session",
            b"charge",
            b"Payment-Authorization",
            b"2026-01-15T12:00:00Z",
            b"\xff",
            b"sha-256=:",
        ),
        *(b"\\ud800", b"\\u0000", b"\xc3\xa9", b"\x00"),
    ),
)
