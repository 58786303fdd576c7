"""What the Payment scheme says, as values; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from types import MappingProxyType
from typing import Any

import pytest

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import FIELD_LIMIT, format_challenge
from proxy_addon.core.messages import (
    BODY_LIMIT,
    CREDENTIAL_LIMIT,
    Challenge,
    NeedVoucher,
    Problem,
    Receipt,
    build_credential,
    challenge_from,
    format_receipt,
    is_payment_credential,
    need_voucher_from,
    parse_challenges,
    parse_credential,
    parse_need_voucher,
    parse_problem,
    parse_receipt,
    parse_receipt_json,
    receipt_from,
)
from proxy_addon.core.strict_json import b64url_encode

# The draft's "Example Challenge" and "Example Credential".
EXAMPLE = (
    'Payment id="x7Tg2pLqR9mKvNwY3hBcZa", realm="api.example.com", method="example", intent="charge",'
    ' expires="2025-01-15T12:05:00Z",'
    ' request="eyJhbW91bnQiOiIxMDAwIiwiY3VycmVuY3kiOiJVU0QiLCJyZWNpcGllbnQiOiJhY2N0XzEyMyJ9"'
)
EXAMPLE_CREDENTIAL = (
    "Payment eyJjaGFsbGVuZ2UiOnsiaWQiOiJ4N1RnMnBMcVI5bUt2TndZM2hCY1phIiwicmVhbG0iOiJhcGkuZXhhbXBsZS5jb20iLCJtZX"
    "Rob2QiOiJleGFtcGxlIiwiaW50ZW50IjoiY2hhcmdlIiwicmVxdWVzdCI6ImV5SmhiVzkxYm5RaU9pSXhNREF3SWl3aVkzVnljbVZ1WTNr"
    "aU9pSlZVMFFpTENKeVpXTnBjR2xsYm5RaU9pSmhZMk4wWHpFeU15SjkiLCJleHBpcmVzIjoiMjAyNS0wMS0xNVQxMjowNTowMFoifSwicG"
    "F5bG9hZCI6eyJwcm9vZiI6IjB4YWJjMTIzLi4uIn19"
)
CHANNEL = "0x6d0f4fdf1f2f6a1f6c1b0fbd6a7d5c2c0a8d3d7b1f6a9c1b3e2d4a5b6c7d8e9f"


def encode(value: object) -> str:
    return b64url_encode(json.dumps(value, separators=(",", ":")).encode())


PARAMS = {
    "id": "abc",
    "realm": "api.example.com",
    "method": "tempo",
    "intent": "session",
    "request": encode({"amount": "25", "methodDetails": {"chainId": 4217}}),
}


def challenge(**changes: str) -> Challenge:
    return challenge_from({**PARAMS, **changes})


# --- challenges ------------------------------------------------------------------------------------------


def test_the_draft_s_example() -> None:
    parsed = parse_challenges([EXAMPLE])
    assert parsed.problems == ()
    (found,) = parsed.challenges
    assert (found.id, found.realm, found.method, found.intent) == (
        "x7Tg2pLqR9mKvNwY3hBcZa",
        "api.example.com",
        "example",
        "charge",
    )
    assert found.expires_at == 1736942700000
    assert found.request_json == {"amount": "1000", "currency": "USD", "recipient": "acct_123"}
    assert found.credential_header == "Authorization"
    assert build_credential(found, {"proof": "0xabc123..."}) == EXAMPLE_CREDENTIAL


def test_echo_has_every_optional_that_was_there_and_no_other() -> None:
    optional = {
        "expires": "2025-01-15T12:05:00.5+01:00",
        "digest": "sha-256=abc",
        "description": 'é "quoted" \\ —',
        "opaque": "not-base64!",
        "header": "payment-authorization",
    }
    full = {**PARAMS, **optional}
    (found,) = parse_challenges([format_challenge({**full, "unknown": "x", "echo": "y"})]).challenges
    assert found.echo() == full
    assert list(found.echo()) == list(full)
    assert json.loads(found.echo_bytes) == full
    assert found.credential_header == "Payment-Authorization"
    assert challenge().echo() == PARAMS
    assert challenge().expires_at is None


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Authorization", "Authorization"),
        ("AUTHORIZATION", "Authorization"),
        ("Payment-Authorization", "Payment-Authorization"),
    ],
)
def test_credential_header(header: str, name: str) -> None:
    assert challenge(header=header).credential_header == name
    assert challenge(header=header).echo()["header"] == header


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"id": None}, "parameter id is missing"),
        ({"id": ""}, "parameter id is empty"),
        ({"realm": None}, "parameter realm is missing"),
        ({"method": None}, "parameter method is missing"),
        ({"intent": None}, "parameter intent is missing"),
        ({"request": None}, "parameter request is missing"),
        ({"request": ""}, "parameter request is empty"),
        ({"method": "Tempo"}, "method is 'Tempo'"),
        ({"method": "1tempo"}, "method is '1tempo'"),
        ({"method": "tempo\n"}, "method is "),
        ({"intent": ""}, "intent is ''"),
        ({"intent": "a/b"}, "intent is 'a/b'"),
        ({"header": "Cookie"}, "header is 'Cookie'"),
        ({"header": ""}, "header is ''"),
        ({"expires": ""}, "expires is ''"),
        ({"expires": "tomorrow"}, "expires is 'tomorrow'"),
        ({"request": "e30="}, "request is not base64url"),
        ({"request": encode([])}, "request is an array"),
        (
            {"request": b64url_encode(b'{"amount":"1","amount":"2"}')},
            "request .* 'amount' appears more than once",
        ),
        ({"request": b64url_encode(b'{"a":' * 17 + b"0" + b"}" * 17)}, "request is nested deeper than 16"),
        ({"id": 1}, "parameter id is no string"),
        ({"expires": 1}, "parameter expires is no string"),
    ],
)
def test_malformed_challenges(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        challenge_from({**PARAMS, **changes})


def test_methods_of_other_servers_are_well_formed() -> None:
    for method in ("x402", "tempo-v2", "vendor:method", "a_b"):
        assert challenge(method=method).method == method


def test_a_challenge_made_by_hand_is_checked_when_it_is_used() -> None:
    made = Challenge(**{**PARAMS, "request": "e30", "header": "Cookie", "expires": "x"})
    assert made.request_json == {}
    with pytest.raises(RemoteProtocolError, match="header"):
        _ = made.credential_header
    with pytest.raises(RemoteProtocolError, match="expires"):
        _ = made.expires_at
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.id = "x"  # type: ignore[misc]


def test_one_malformed_challenge_does_not_hide_a_good_one() -> None:
    values = [
        'Basic realm="x"',
        "Payment id=1, Payment token68==",
        format_challenge({**PARAMS, "method": "TEMPO"}) + ", " + format_challenge({**PARAMS, "id": "good"}),
        format_challenge(PARAMS) + ', id="again"',
        "Payment",
        'Digest "',
        "Payment \n",
    ]
    parsed = parse_challenges(values)
    assert [found.id for found in parsed.challenges] == ["good"]
    assert parsed.problems == (
        "Payment challenge 1: parameter realm is missing",
        "Payment challenge 2: it has a token68 where parameters are expected",
        "Payment challenge 3: method is 'TEMPO': expected lower-case letters",
        "Payment challenge 5: parameter id appears more than once",
        "Payment challenge 6: parameter id is missing",
        "Payment challenge 7: the field holds a control character (0x0a)",
    )


def test_other_schemes_in_the_same_field() -> None:
    value = f'Basic realm="Payment", {format_challenge(PARAMS)}, Bearer x'
    assert parse_challenges([value]).challenges == (challenge(),)


def test_nothing_to_pay() -> None:
    assert parse_challenges([]).challenges == parse_challenges(["Bearer"]).challenges == ()
    assert parse_challenges(["Bearer"]).problems == ()


def test_the_challenges_together_are_limited() -> None:
    big = format_challenge({**PARAMS, "request": encode({"a": "x" * 5000})})
    parsed = parse_challenges([big] * 3)
    assert len(parsed.challenges) == 2
    assert parsed.problems == (f"a field of {len(big)} bytes makes the Payment challenges over 16384",)
    # an overlong field is one problem, whatever it holds
    assert len(parse_challenges([", ".join([big] * 3), big]).challenges) == 1
    # and a client of 4 KB challenges gets them
    assert (
        parse_challenges([format_challenge({**PARAMS, "request": encode({"a": "x" * 2800})})]).problems == ()
    )


def test_the_number_of_challenges_is_limited() -> None:
    parsed = parse_challenges(["Payment, " * 1000])
    assert len(parsed.problems) == 33
    assert parsed.problems[-1] == "there are more than 32 Payment challenges"
    assert [
        found.id for found in parse_challenges([format_challenge(PARAMS), "Payment, " * 40]).challenges
    ] == ["abc"]


# --- credentials -----------------------------------------------------------------------------------------


def test_credential() -> None:
    asked = challenge(opaque="b64", header="Payment-Authorization")
    payload = {
        "action": "voucher",
        "descriptor": MappingProxyType({"salt": "0x01"}),
        "cumulativeAmount": "250",
    }
    value = build_credential(asked, payload, "did:pkh:eip155:4217:0xabc")
    assert value.startswith("Payment ey")
    read = parse_credential(value)
    assert read.challenge == asked
    assert read.payload == {**payload, "descriptor": {"salt": "0x01"}}
    assert read.source == "did:pkh:eip155:4217:0xabc"
    assert "0x01" not in repr(read)
    assert parse_credential(build_credential(asked, {})).source is None


def test_a_payload_of_no_json_is_our_own_mistake() -> None:
    with pytest.raises(TypeError):
        build_credential(challenge(), {"signature": object()})


def test_the_draft_s_credential() -> None:
    read = parse_credential(f" pAYMENT   {EXAMPLE_CREDENTIAL.partition(' ')[2]} ")
    assert read.challenge == parse_challenges([EXAMPLE]).challenges[0]
    assert read.payload == {"proof": "0xabc123..."}


def credential_of(value: object) -> str:
    return f"Payment {encode(value)}"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("", "expected one Payment credential"),
        ("Payment", "expected one Payment credential"),
        ("Bearer e30", "expected one Payment credential"),
        (f"{EXAMPLE_CREDENTIAL}, {EXAMPLE_CREDENTIAL}", "expected one Payment credential"),
        (f"{EXAMPLE_CREDENTIAL} {EXAMPLE_CREDENTIAL}", "expected one Payment credential"),
        (f"{EXAMPLE_CREDENTIAL}=", "expected one Payment credential"),
        (f"{EXAMPLE_CREDENTIAL}\n", "expected one Payment credential"),
        ("Payment e30A", "JSON"),
        ("Payment e30", "credential.challenge is no object"),
        (credential_of({"challenge": [], "payload": {}}), "credential.challenge is no object"),
        (credential_of({"challenge": PARAMS}), "credential.payload is no object"),
        (credential_of({"challenge": PARAMS, "payload": "x"}), "credential.payload is no object"),
        (credential_of({"challenge": PARAMS, "payload": {}, "source": 1}), "credential.source is no string"),
        (credential_of({"challenge": {**PARAMS, "id": ""}, "payload": {}}), "parameter id is empty"),
        ("Payment " + "x" * CREDENTIAL_LIMIT, "over the limit of 65536"),
    ],
)
def test_malformed_credentials(value: str, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        parse_credential(value)


@pytest.mark.parametrize(
    ("value", "payment"),
    [
        (EXAMPLE_CREDENTIAL, True),
        ("payment\tx", True),
        ("Payment", True),
        (" Payment broken!", True),
        ("Bearer x, Payment y", True),
        ("Bearer x", False),
        ("Payments x", False),
        ("Basic payment x", False),
        ("", False),
    ],
)
def test_does_the_client_pay_by_itself(value: str, payment: bool) -> None:
    assert is_payment_credential(value) is payment


# --- receipts --------------------------------------------------------------------------------------------

# The draft's receipt of a metered request, and that of its core.
SESSION_RECEIPT: dict[str, Any] = {
    "method": "tempo",
    "intent": "session",
    "status": "success",
    "timestamp": "2025-01-06T12:08:30Z",
    "reference": CHANNEL,
    "challengeId": "c_8d0e3b5a9f2c1d4e",
    "channelId": CHANNEL,
    "acceptedCumulative": "250000",
    "spent": "237500",
    "units": 500,
}
CORE_RECEIPT = (
    "eyJzdGF0dXMiOiJzdWNjZXNzIiwibWV0aG9kIjoiaW52b2ljZSIsInRpbWVzdGFtcCI6IjIwMjUtMDEtMTVUMTI6MDA6MDBaIiwicmVmZXJl"
    "bmNlIjoiaW52XzEyMzQ1In0"
)


def test_receipt_of_a_session() -> None:
    expected = Receipt(
        method="tempo",
        intent="session",
        timestamp="2025-01-06T12:08:30Z",
        reference=CHANNEL,
        challenge_id="c_8d0e3b5a9f2c1d4e",
        channel_id=CHANNEL,
        accepted_cumulative=250000,
        spent=237500,
        units=500,
    )
    assert parse_receipt(encode(SESSION_RECEIPT)) == expected
    assert parse_receipt(encode(SESSION_RECEIPT | {"more": {"x": [1]}, "txHash": None})) == expected
    assert parse_receipt_json(json.dumps(SESSION_RECEIPT)) == expected
    assert receipt_from(SESSION_RECEIPT) == expected
    assert format_receipt(expected) == encode(SESSION_RECEIPT)
    closed = parse_receipt(
        encode(SESSION_RECEIPT | {"txHash": "0x" + "AB" * 32, "channelId": CHANNEL.upper().replace("X", "x")})
    )
    assert closed.tx_hash == "0x" + "ab" * 32
    assert closed.channel_id == CHANNEL


def test_receipt_of_another_method() -> None:
    read = parse_receipt(CORE_RECEIPT)
    assert read == Receipt(method="invoice", timestamp="2025-01-15T12:00:00Z", reference="inv_12345")
    assert parse_receipt(format_receipt(read)) == read
    assert parse_receipt(f" {CORE_RECEIPT}=\t") == read  # 107 letters: one is missing for a padded value


@pytest.mark.parametrize(
    "amount", ["-1", "1e3", "01", "1.0", " 1", "1\n", "", "0x1", "٣", str(2**128), "9" * 5000, 1, 1.5]
)
@pytest.mark.parametrize("name", ["acceptedCumulative", "spent"])
def test_amounts_of_receipts(name: str, amount: object) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"receipt\.{name} is "):
        receipt_from(SESSION_RECEIPT | {name: amount})


def test_the_largest_amount() -> None:
    assert receipt_from(SESSION_RECEIPT | {"spent": str(2**128 - 1)}).spent == 2**128 - 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"status": "failed"}, "status is 'failed'"),
        ({"status": None}, "status is missing"),
        ({"status": True}, "status is no string"),
        ({"method": None}, "method is missing"),
        ({"timestamp": 1}, "timestamp is no string"),
        ({"reference": None}, "reference is missing"),
        ({"intent": 1}, "intent is no string"),
        ({"challengeId": {}}, "challengeId is no string"),
        ({"channelId": "0x12"}, "channelId is '0x12': expected 0x and 64 hex digits"),
        ({"channelId": CHANNEL + "\n"}, "channelId is "),
        ({"txHash": "x"}, "txHash is 'x'"),
    ],
)
def test_malformed_receipts(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        parse_receipt(encode(SESSION_RECEIPT | changes))


@pytest.mark.parametrize("units", [-1, 1.5, "5", True, None, []])
def test_units_that_are_no_count_are_none(units: object) -> None:
    assert receipt_from(SESSION_RECEIPT | {"units": units}).units is None


@pytest.mark.parametrize("value", ["", "!", "e30", encode([]), "e" * 16385])
def test_what_is_no_receipt(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match="Payment-Receipt"):
        parse_receipt(value)


def test_a_receipt_is_an_object() -> None:
    with pytest.raises(RemoteProtocolError, match="receipt is no JSON object"):
        receipt_from([])


# --- problems --------------------------------------------------------------------------------------------

PROBLEM_TYPE = "application/problem+json; charset=utf-8"


def problem(**members: object) -> Problem:
    found = parse_problem(PROBLEM_TYPE, json.dumps(members).encode())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind_of", "kind"),
    [
        ("https://paymentauth.org/problems/payment-required", "payment-required"),
        ("https://paymentauth.org/problems/verification-failed", "verification-failed"),
        ("https://paymentauth.org/problems/session/insufficient-balance", "session/insufficient-balance"),
        ("https://paymentauth.org/problems/x\r\n[00:00] all is well\x1b[2J", "unreadable"),
        ("https://paymentauth.org/problems/" + "x" * 65, "unreadable"),
        ("https://paymentauth.org/problems/\u202e", "unreadable"),
        ("https://paymentauth.org/problems/", None),
        ("https://paymentauth.org/problemsx/verification-failed", None),
        ("http://paymentauth.org/problems/verification-failed", None),
        ("https://example.com/?https://paymentauth.org/problems/verification-failed", None),
        ("about:blank", None),
        ("", None),
        (7, None),
    ],
)
def test_kind_of_problem(kind_of: object, kind: str | None) -> None:
    assert problem(type=kind_of).kind == kind


def test_problem() -> None:
    found = problem(
        type="https://paymentauth.org/problems/session/insufficient-balance",
        title="Insufficient Balance",
        status=402,
        detail="Insufficient balance: requested 30, available 5.",
        challengeId="abc",
        requiredTopUp="25",
        hint="…",
        details={"x": 1},
    )
    assert found == Problem(
        type="https://paymentauth.org/problems/session/insufficient-balance",
        title="Insufficient Balance",
        status=402,
        detail="Insufficient balance: requested 30, available 5.",
        challenge_id="abc",
        required_top_up=25,
    )


def test_members_of_the_wrong_type_count_as_absent() -> None:
    assert problem(title=1, detail=[], status="402", challengeId={}, requiredTopUp=25) == Problem()
    assert problem(status=True, requiredTopUp="1e3") == Problem()
    assert problem() == Problem(type="about:blank")


def test_what_is_no_problem() -> None:
    assert parse_problem("application/json", b"{}") is None
    assert parse_problem("text/html", b"<html>") is None
    for body in (b"", b"[]", b"<html>", b"[" * 1000, b'{"a":"' + b"x" * BODY_LIMIT + b'"}'):
        with pytest.raises(RemoteProtocolError, match="problem"):
            parse_problem(PROBLEM_TYPE, body)


# --- session ---------------------------------------------------------------------------------------------

NEED: dict[str, object] = {
    "channelId": CHANNEL,
    "requiredCumulative": "250025",
    "acceptedCumulative": "250000",
    "deposit": "500000",
}


def test_need_voucher() -> None:
    expected = NeedVoucher(
        channel_id=CHANNEL, required_cumulative=250025, accepted_cumulative=250000, deposit=500000
    )
    assert parse_need_voucher(json.dumps(NEED | {"more": 1})) == expected
    assert parse_need_voucher(json.dumps(NEED).encode()) == expected
    assert need_voucher_from(NEED) == expected


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"channelId": None}, "channelId is missing"),
        ({"channelId": "0x6d0f4fdf..."}, "channelId is "),
        ({"requiredCumulative": "-1"}, "requiredCumulative is '-1'"),
        ({"acceptedCumulative": 1}, "acceptedCumulative is 1"),
        ({"deposit": None}, "deposit is None"),
    ],
)
def test_malformed_need_voucher(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        parse_need_voucher(json.dumps(NEED | changes))


@pytest.mark.parametrize("data", ["", "null", "[]", "\ud800", b"\xff"])
def test_what_is_no_need_voucher(data: str | bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="payment-need-voucher"):
        parse_need_voucher(data)


@pytest.mark.parametrize(
    ("status", "known"), [(99, False), (100, True), (402, True), (599, True), (600, False), (402.0, False)]
)
def test_a_status_of_a_problem_is_one_of_http(status: object, known: bool) -> None:
    assert problem(status=status).status == (status if known else None)


@pytest.mark.parametrize(
    ("units", "known"), [(0, True), (1, True), (2**53 - 1, True), (2**53, False), (-1, False)]
)
def test_a_count_of_units_begins_at_none(units: int, known: bool) -> None:
    assert receipt_from(SESSION_RECEIPT | {"units": units}).units == (units if known else None)


def test_a_credential_is_two_levels_deeper_than_what_it_carries() -> None:
    """The deepest request that a challenge may have comes back in its credential; nothing deeper does."""

    def deep(levels: int) -> object:
        return {"x": deep(levels - 1)} if levels else 1

    assert parse_credential(credential_of({"challenge": PARAMS, "payload": deep(17)})).payload == deep(17)
    with pytest.raises(RemoteProtocolError, match="deeper than 18"):
        parse_credential(credential_of({"challenge": PARAMS, "payload": deep(18)}))


def test_the_challenges_of_an_answer_may_be_as_long_as_one_field_together() -> None:
    rest = FIELD_LIMIT - len(EXAMPLE)
    filled = 'Payment id="' + "x" * (rest - len('Payment id=""')) + '"'
    assert len(parse_challenges([EXAMPLE, filled]).problems) == 1  # of the second one itself
    assert "over" not in parse_challenges([EXAMPLE, filled]).problems[0]
    assert parse_challenges([EXAMPLE, filled + " "]).problems == (
        f"a field of {rest + 1} bytes makes the Payment challenges over 16384",
    )
    assert len(parse_challenges([EXAMPLE, filled + " "]).challenges) == 1
