"""The fields of the Payment scheme: what is read from them, and what is refused."""

from __future__ import annotations

import base64
import hashlib

import pytest

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import (
    FIELD_LIMIT,
    AuthChallenge,
    PaymentRange,
    digest_matches,
    field_text,
    format_accept_payment,
    format_challenge,
    is_event_stream,
    is_problem_json,
    media_type,
    parse_accept_payment,
    parse_date_time,
    parse_digest,
    parse_retry_after,
    parse_www_authenticate,
)


def read(*values: str) -> list[tuple[str, dict[str, str] | str | None]]:
    """Scheme and parameters (or token68) of each challenge, none of which may have a problem."""
    challenges = parse_www_authenticate(values)
    assert [challenge.problem for challenge in challenges if challenge.problem] == []
    return [(found.scheme, dict(found.params) or found.token68) for found in challenges]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        (" , ,\t", []),
        ('Payment id="a"', [("payment", {"id": "a"})]),
        ('PAYMENT ID="a", Realm=b', [("payment", {"id": "a", "realm": "b"})]),
        # BWS around "=", OWS around ",", empty elements, more than one space (RFC 9110 sections 5.6.1, 11.2)
        ('Payment   id =\t"a" , ,realm= b,', [("payment", {"id": "a", "realm": "b"})]),
        ('Payment id="a",realm="b"', [("payment", {"id": "a", "realm": "b"})]),
        # quoted-string: commas, equals signs, other challenges and escapes are part of the text
        (
            r'Payment id="a, Payment id=\"b\"", description="\\ \c \"", realm=""',
            [("payment", {"id": 'a, Payment id="b"', "description": '\\ c "', "realm": ""})],
        ),
        ('Payment id="a\tb"', [("payment", {"id": "a\tb"})]),
        # other schemes before, between and after, with parameters, a token68, or nothing
        (
            'Negotiate, Basic realm="x, Payment y", Payment id=1, Bearer abc==, Payment id=2, NTLM',
            [
                ("negotiate", None),
                ("basic", {"realm": "x, Payment y"}),
                ("payment", {"id": "1"}),
                ("bearer", "abc=="),
                ("payment", {"id": "2"}),
                ("ntlm", None),
            ],
        ),
        # RFC 9110 section 11.6.1's example
        (
            'Basic realm="simple", Newauth realm="apps", type=1, title="Login to \\"apps\\""',
            [
                ("basic", {"realm": "simple"}),
                ("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
            ],
        ),
        # RFC 7616 section 3.9.1's
        (
            'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256',
            [("digest", {"realm": "http-auth@example.org", "qop": "auth, auth-int", "algorithm": "SHA-256"})],
        ),
        ("Payment", [("payment", None)]),
        ("Payment abc.def", [("payment", "abc.def")]),
        ("Payment id=", [("payment", "id=")]),  # by the grammar no parameter: its value cannot be empty
        # what SDKs write for text beyond ISO-8859-1 (they double real backslashes)
        (r'Payment a="\u2014 \ud83d\ude00 \\u2014"', [("payment", {"a": "— \N{GRINNING FACE} \\u2014"})]),
        (r'Payment a="\u20 \ud83d x \ude00"', [("payment", {"a": "u20 � x �"})]),
    ],
)
def test_challenges(value: str, expected: list[tuple[str, object]]) -> None:
    assert read(value) == expected


def test_several_fields_are_one_list() -> None:
    assert read("Payment id=1", 'Basic realm="x"', "Payment id=2, Payment id=3") == [
        ("payment", {"id": "1"}),
        ("basic", {"realm": "x"}),
        ("payment", {"id": "2"}),
        ("payment", {"id": "3"}),
    ]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("Payment id=a, ID=b", "parameter id appears more than once"),
        ('Payment id="a', "cannot be parsed at 'Payment id=\"a'"),
        ('Payment id="a\\', "cannot be parsed"),
        ('Payment id="a"b', "cannot be parsed"),
        ("Payment id=a b=c", "cannot be parsed"),
        ("Payment id=a:b", "cannot be parsed"),
        ("Payment abc=, id=a", "follows a token68"),
        (r'Payment id="a\u000a"', "escaped control character"),
        ("Payment id=a, =b", "cannot be parsed at '=b'"),
        ('Payment id=a, "b"', "cannot be parsed"),
    ],
)
def test_a_bad_challenge_hides_no_good_one(value: str, problem: str) -> None:
    challenges = parse_www_authenticate(["Payment id=before", value, "Payment id=after"])
    assert [challenge.problem == "" for challenge in challenges] == [True, False, True]
    assert challenges[1].scheme == "payment"
    assert problem in challenges[1].problem


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ('Payment id=1, Payment id="2"x, Payment id=3', ["1", "3"]),
        ("Payment id=1, Bearer scope=open id, Payment id=3", ["1", "3"]),
        ('Payment id=1, Payment id="2, Payment id=3', ["1"]),
        ("Payment id=1, Payment id=2, id=2, Payment id=3", ["1", "3"]),
        ('Payment id=1, Payment id="2" "x, y", realm=z, Payment id=3', ["1", "3"]),
    ],
)
def test_a_bad_challenge_hides_no_good_one_in_the_same_field(value: str, good: list[str]) -> None:
    challenges = parse_www_authenticate([value])
    assert [found.params["id"] for found in challenges if not found.problem] == good


def test_parameters_without_a_scheme() -> None:
    assert parse_www_authenticate(['id="a", realm=b']) == [
        AuthChallenge("", {"id": "a", "realm": "b"}, None, "parameter id stands before any scheme")
    ]
    assert "cannot be parsed" in parse_www_authenticate(['"'])[0].problem


@pytest.mark.parametrize("char", ["\r", "\n", "\0", "\x0b", "\x7f", "\r\n "])
def test_control_characters_are_refused(char: str) -> None:
    bad, good = parse_www_authenticate([f'Payment id="a{char}b"', "Payment id=c"])
    assert (bad.scheme, bad.params) == ("payment", {})
    assert "control character" in bad.problem
    assert good.params == {"id": "c"}


def test_length() -> None:
    def field(length: int) -> str:
        start, end = 'Payment id=a, request="', '"'
        return start + "x" * (length - len(start + end)) + end

    assert len(read(field(4096))[0][1] or "") == 2
    assert [found.problem for found in parse_www_authenticate([field(FIELD_LIMIT)])] == [""]
    assert parse_www_authenticate([field(FIELD_LIMIT + 1)]) == [
        AuthChallenge("payment", problem="the field has 16385 bytes, over 16384")
    ]
    assert parse_www_authenticate(["Negotiate " + "x" * FIELD_LIMIT])[0].scheme == ""


def test_text_beyond_ascii() -> None:
    """Fields come as UTF-8 with surrogate escapes; servers send UTF-8 or ISO-8859-1."""
    for sent in ("caf\xe9".encode(), "caf\xe9".encode("latin-1")):
        assert field_text(sent.decode("utf-8", "surrogateescape")) == "café"
    with pytest.raises(RemoteProtocolError, match="half a surrogate pair"):
        field_text("\ud800")


@pytest.mark.parametrize(
    ("params", "value"),
    [
        ({"id": "a", "realm": "b c"}, 'Payment id="a", realm="b c"'),
        ({"id": 'q"\\'}, r'Payment id="q\"\\"'),
        ({"d": "é—\N{GRINNING FACE}"}, r'Payment d="\u00e9\u2014\ud83d\ude00"'),
    ],
)
def test_format_challenge(params: dict[str, str], value: str) -> None:
    assert format_challenge(params) == value
    assert read(value) == [("payment", params)]


def test_format_challenge_refuses_what_no_field_can_carry() -> None:
    with pytest.raises(ValueError, match="id holds a control character"):
        format_challenge({"id": "a\r\nSet-Cookie: x"})
    with pytest.raises(ValueError, match="no token"):
        format_challenge({"i d": "a"})
    with pytest.raises(ValueError, match="no token"):
        format_challenge({"": "a"})


# The scheme's own examples ("Client Payment Preferences").
@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        (
            "tempo/charge, tempo/session, stripe/charge;q=0.5, solana/charge;q=0.3",
            [
                ("tempo", "charge", 1000),
                ("tempo", "session", 1000),
                ("stripe", "charge", 500),
                ("solana", "charge", 300),
            ],
        ),
        (
            "tempo/*, solana/*;q=0.6, */session;q=0.3",
            [("tempo", "*", 1000), ("solana", "*", 600), ("*", "session", 300)],
        ),
        ("tempo/charge, tempo/session;q=0", [("tempo", "charge", 1000), ("tempo", "session", 0)]),
        ("tempo/charge;q=0.025", [("tempo", "charge", 25)]),
    ],
)
def test_accept_payment(value: str, ranges: list[tuple[str, str, int]]) -> None:
    expected = tuple(PaymentRange(*item) for item in ranges)
    assert parse_accept_payment(value) == expected
    assert format_accept_payment(expected) == value


def test_accept_payment_in_other_spellings() -> None:
    one = (PaymentRange("tempo", "session"),)
    for value in ("tempo/session;q=1", " ,tempo/session ; Q=1.000,", "tempo/session"):
        assert parse_accept_payment(value) == one


@pytest.mark.parametrize(
    "value",
    [
        "tempo",
        "tempo/",
        "/session",
        "Tempo/session",
        "tempo/session;q=2",
        "tempo/session;q=0.1234",
        "tempo/session;x=1",
        "t/s\n",
        "t/s," * 5000,
    ],
)
def test_accept_payment_refuses(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match="Accept-Payment"):
        parse_accept_payment(value)


@pytest.mark.parametrize("weight", [-1, 1001])
def test_accept_payment_weight(weight: int) -> None:
    with pytest.raises(ValueError, match="0 … 1000"):
        format_accept_payment([PaymentRange("tempo", "session", weight)])


# RFC 3339 section 5.8's examples among them; times by `date -d … +%s`.
@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1985-04-12T23:20:50.52Z", 482196050520),
        ("1996-12-19T16:39:57-08:00", 851042397000),
        ("1937-01-01T12:00:27.87+00:20", -1041337172130),
        ("1990-12-31T23:59:60Z", 662687999000),
        ("2025-01-15T12:05:00Z", 1736942700000),
        ("2025-01-15t12:05:00z", 1736942700000),
        ("2025-01-15T12:05:00.1239Z", 1736942700123),
        ("2025-01-15T12:05:00.999999999999999999Z", 1736942700999),
        ("2025-01-15T12:05:00-00:00", 1736942700000),
        ("2024-02-29T00:00:00Z", 1709164800000),
    ],
)
def test_date_time(text: str, ms: int) -> None:
    assert parse_date_time(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-01-15",
        "2025-01-15T12:05:00",
        "2025-01-15 12:05:00Z",
        "2025-01-15T12:05Z",
        "2025-01-15T12:05:00.Z",
        "2025-01-15T12:05:00Z\n",
        "2025-01-15T24:00:00Z",
        "2025-01-15T12:60:00Z",
        "2025-01-15T12:05:61Z",
        "2025-02-29T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2025-01-15T12:05:00+24:00",
        "2025-01-15T12:05:00+00:60",
        "+2025-01-15T12:05:00Z",
        "२०२५-01-15T12:05:00Z",
        "1736942700",
    ],
)
def test_date_time_refuses(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="expires is "):
        parse_date_time(text, "expires")


NOW = 784111717_250  # 1994-11-06T08:48:37.25Z, a minute before the RFC's example


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 0\t", 0),
        ("2147483648", 2**31),
        ("9" * 5000, 2**31),
        # RFC 9110 section 5.6.7: one moment in its three forms; a part of a second counts as one
        ("Sun, 06 Nov 1994 08:49:37 GMT", 60),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 60),
        ("Sun Nov  6 08:49:37 1994", 60),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0),
        ("Sun, 06 Nov 1993 08:49:37 GMT", 0),
        ("Saturday, 06-Nov-44 08:49:37 GMT", 1577923260),  # within 50 years: 2044
        ("Sunday, 06-Nov-45 08:49:37 GMT", 0),  # else the past: 1945
        ("Sun, 06 Nov 9994 08:49:37 GMT", 2**31),
        ("Sat, 31 Dec 1994 23:59:60 GMT", 4806682),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("", None),
        ("٣", None),
        ("soon", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ("Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 CET", None),
    ],
)
def test_retry_after(value: str, seconds: int | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "problem", "stream"),
    [
        ("application/problem+json", True, False),
        (" Application/Problem+JSON ; charset=utf-8", True, False),
        ("application/json", False, False),
        ("application/problem+jsonx", False, False),
        ("text/event-stream;charset=utf-8", False, True),
        ("", False, False),
    ],
)
def test_content_types(value: str, problem: bool, stream: bool) -> None:
    assert is_problem_json(value) is problem
    assert is_event_stream(value) is stream
    assert media_type(value) == media_type(value.upper())


BODY = b'{"hello": "world"}'
DIGEST = base64.b64encode(hashlib.sha256(BODY).digest()).decode()


def test_digest_of_the_rfc() -> None:
    """RFC 9530 appendix B.1: the SHA-256 of its example, in the scheme's form and in that of SDKs."""
    body = b'{"hello": "world"}\n'
    expected = "RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="
    assert hashlib.sha256(body).digest() == parse_digest(f"sha-256=:{expected}:")


@pytest.mark.parametrize(
    "value",
    [
        f"sha-256=:{DIGEST}:",
        f"sha-256={DIGEST}",
        f"sha-256={DIGEST.rstrip('=')}",
        f"sha-512=:AAAA:, sha-256=:{DIGEST}:",
        f"sha-256=:{DIGEST}:, sha-512=:AAAA:",
    ],
)
def test_digest(value: str) -> None:
    assert digest_matches(value, hashlib.sha256(BODY).digest())
    assert not digest_matches(value, hashlib.sha256(BODY + b" ").digest())


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sha-256",
        "sha-256=",
        "sha-256=::",
        "sha-512=:AAAA:",
        "sha-256=:AAAA:",
        f"sha-256=:{DIGEST}",
        f"sha-256={DIGEST}:",
        f"xsha-256=:{DIGEST}:",
        f"md5=:AAAA:;sha-256=:{DIGEST}:",
        f"SHA-256=:{DIGEST}:",
    ],
)
def test_digest_refuses(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match="digest"):
        digest_matches(value, hashlib.sha256(BODY).digest())


def test_a_field_that_is_too_long_hides_none_after_it() -> None:
    found = parse_www_authenticate(["Payment id=" + "x" * FIELD_LIMIT, "Payment id=\x00", "Payment id=after"])
    assert [challenge.params.get("id") for challenge in found] == [None, None, "after"]
    assert [bool(challenge.problem) for challenge in found] == [True, True, False]


@pytest.mark.parametrize("code", [0x7E, 0x80, 0xFF, 0x100, 0xFFFF])
def test_all_that_is_not_ascii_is_escaped(code: int) -> None:
    value = format_challenge({"d": "é" + chr(code)})
    assert value.isascii()
    assert read(value) == [("payment", {"d": "é" + chr(code)})]


def test_accept_payment_of_any_length_that_is_allowed() -> None:
    one = "tempo/session"
    longest = one + " " * (FIELD_LIMIT - len(one))
    assert parse_accept_payment(longest) == (PaymentRange("tempo", "session"),)
    with pytest.raises(RemoteProtocolError, match="Accept-Payment has 16385 bytes, over 16384"):
        parse_accept_payment(longest + " ")


@pytest.mark.parametrize(
    ("offset", "minutes"),
    [("+00:59", 59), ("-00:59", -59), ("+23:59", 1439), ("-23:59", -1439), ("+01:01", 61)],
)
def test_every_offset_from_utc(offset: str, minutes: int) -> None:
    assert parse_date_time(f"2025-01-15T12:05:00{offset}") == 1736942700000 - minutes * 60_000


@pytest.mark.parametrize(
    ("weight", "text"),
    [(0, ";q=0"), (1, ";q=0.001"), (10, ";q=0.01"), (100, ";q=0.1"), (999, ";q=0.999"), (1000, "")],
)
def test_how_a_weight_is_written(weight: int, text: str) -> None:
    assert format_accept_payment([PaymentRange("tempo", "session", weight)]) == f"tempo/session{text}"
