"""The Payment scheme for any input: what is written is read back, what is malformed raises one kind of error."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy_addon.core import headers, messages, snapshot, strict_json
from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import Challenge, Receipt

# --- what peers may send ---------------------------------------------------------------------------------

# Any text that a field can carry: no control characters but the tab.
field_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x7f").filter(
        lambda char: char >= " " or char == "\t"
    ),
    max_size=40,
)
any_text = st.text(st.characters(), max_size=200)  # with surrogates and control characters
tokens = st.text("!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | field_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(field_texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(field_texts, json_values, max_size=4)
instants = st.datetimes(
    min_value=datetime(1900, 1, 1),
    max_value=datetime(2200, 1, 1),
    timezones=st.builds(
        lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-23 * 60 - 59, 23 * 60 + 59)
    ),
)


def written(value: object) -> str:
    return strict_json.b64url_encode(json.dumps(value).encode())


challenges = st.builds(
    Challenge,
    id=field_texts.filter(bool),
    realm=field_texts,
    method=st.from_regex(r"[a-z][a-z0-9:_-]{0,9}", fullmatch=True),
    intent=st.from_regex(r"[A-Za-z0-9-]{1,9}", fullmatch=True),
    request=st.builds(written, json_objects),
    expires=st.none() | st.builds(datetime.isoformat, instants),
    digest=st.none() | field_texts,
    description=st.none() | field_texts,
    opaque=st.none() | field_texts,
    header=st.none() | st.sampled_from(["Authorization", "authorization", "PAYMENT-AUTHORIZATION"]),
)

# Words of the grammar in any order: gets much deeper into the parsers than plain text.
salads = st.lists(
    st.sampled_from(
        [
            "Payment",
            "payment ",
            "Basic",
            " ",
            "\t",
            ",",
            "=",
            '"',
            "\\",
            '="',
            '",',
            "id",
            "id=",
            "realm=x",
            "a==",
            "\\u",
            "\\ud83d",
            "é",
            "\udce9",
            "\n",
            "{",
            "[",
            "]",
            "}",
            ":",
            "0",
            "1e3",
            "NaN",
            "null",
            "e30",
            "_w",
        ]
    ),
    max_size=25,
).map("".join)
# A good value with a bite taken out and something else put in.
mutants = st.builds(
    lambda value, at, cut, put: value[:at] + put + value[at + cut :],
    st.one_of(
        challenges.map(lambda made: headers.format_challenge(made.echo())),
        challenges.map(lambda made: messages.build_credential(made, {"action": "voucher"})),
        json_objects.map(json.dumps),
        json_objects.map(written),
        st.just("2025-01-15T12:05:00.5+01:00"),
        st.just("Sun, 06 Nov 1994 08:49:37 GMT"),
        st.just("sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"),
        st.just("tempo/charge, tempo/session;q=0.5"),
    ),
    st.integers(0, 400),
    st.integers(0, 20),
    any_text | salads,
)
texts = any_text | salads | mutants


# --- one kind of error, whatever comes -------------------------------------------------------------------

parsers_of_text: dict[str, Callable[[str], object]] = {
    "accept-payment": headers.parse_accept_payment,
    "date-time": headers.parse_date_time,
    "digest": headers.parse_digest,
    "field": headers.field_text,
    "base64url": strict_json.b64url_decode,
    "base64": strict_json.b64_decode_any,
    "json": lambda text: strict_json.decode(text, "it"),
    "credential": messages.parse_credential,
    "receipt": messages.parse_receipt,
    "receipt event": messages.parse_receipt_json,
    "need-voucher": messages.parse_need_voucher,
    "snapshot": snapshot.parse_snapshot,
}


@pytest.mark.parametrize("parser", parsers_of_text)
@given(text=texts)
def test_no_other_error_for_any_text(parser: str, text: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parsers_of_text[parser](text)


@pytest.mark.parametrize("parser", parsers_of_text)
@given(value=json_objects | json_values)
def test_no_other_error_for_any_json_in_base64(parser: str, value: object) -> None:
    with contextlib.suppress(RemoteProtocolError):
        parsers_of_text[parser](written(value))


@given(st.lists(texts, max_size=4))
def test_challenges_are_read_without_any_error(values: list[str]) -> None:
    for found in headers.parse_www_authenticate(values):
        assert isinstance(found.problem, str)
    parsed = messages.parse_challenges(values)
    for made in parsed.challenges:
        assert isinstance(made.request_json, dict)
        assert made.credential_header in ("Authorization", "Payment-Authorization")
        assert messages.parse_credential(messages.build_credential(made, {})).challenge == made
    for problem in parsed.problems:
        problem.encode()


@given(texts, st.integers(0, 2**43))
def test_hints_are_read_without_any_error(text: str, now: int) -> None:
    seconds = headers.parse_retry_after(text, now)
    assert seconds is None or 0 <= seconds <= 2**31
    assert headers.is_problem_json(text) in (True, False)
    assert messages.is_payment_credential(text) in (True, False)


@given(st.binary(max_size=200) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_other_error_for_any_bytes(data: bytes) -> None:
    for parse in (messages.parse_receipt_json, messages.parse_need_voucher):
        with contextlib.suppress(RemoteProtocolError):
            parse(data)
    with contextlib.suppress(RemoteProtocolError):
        messages.parse_problem("application/problem+json", data)


@given(json_values)
def test_no_other_error_for_any_value(value: object) -> None:
    for parse in (messages.receipt_from, messages.need_voucher_from, snapshot.snapshot_from):
        with contextlib.suppress(RemoteProtocolError):
            parse(value)


members = st.sampled_from(
    [
        "status",
        "method",
        "timestamp",
        "reference",
        "challengeId",
        "channelId",
        "acceptedCumulative",
        "spent",
        "units",
        "txHash",
        "requiredCumulative",
        "deposit",
        "chainId",
        "descriptor",
        "escrow",
        "settled",
        "highestVoucher",
        "type",
        "requiredTopUp",
        "challenge",
        "payload",
    ]
)
near_values = json_values | st.sampled_from(
    ["success", "0x" + "1" * 64, "0x" + "1" * 40, "1", "-1", "1e3", "9" * 40]
)


@given(st.dictionaries(members, near_values))
def test_no_other_error_for_objects_that_come_close(value: dict[str, Any]) -> None:
    for parse in (messages.receipt_from, messages.need_voucher_from, snapshot.snapshot_from):
        with contextlib.suppress(RemoteProtocolError):
            parse(value)
    body = json.dumps(value).encode()
    found = messages.parse_problem("application/problem+json", body)
    assert found is not None
    assert found.required_top_up is None or 0 <= found.required_top_up < 2**128
    with contextlib.suppress(RemoteProtocolError):
        messages.parse_credential(f"Payment {written(value)}")


# --- round trips -----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(tokens, st.dictionaries(tokens, field_texts, min_size=1, max_size=4)), max_size=4))
def test_challenges_round_trip(made: list[tuple[str, dict[str, str]]]) -> None:
    values = [headers.format_challenge(params, scheme) for scheme, params in made]
    for fields in (values, [", ".join(values)]):
        read = headers.parse_www_authenticate(fields)
        assert [(found.scheme, found.params, found.problem) for found in read] == [
            (scheme, params, "") for scheme, params in made
        ]


@given(challenges)
def test_the_echo_is_what_was_sent(sent: Challenge) -> None:
    parsed = messages.parse_challenges([headers.format_challenge(sent.echo() | {"unknown": "x"})])
    assert parsed.problems == ()
    assert parsed.challenges == (sent,)
    credential = messages.build_credential(parsed.challenges[0], {"a": "b"}, "did:x")
    decoded = json.loads(base64.urlsafe_b64decode(credential.removeprefix("Payment ") + "=="))
    assert decoded == {"challenge": sent.echo(), "payload": {"a": "b"}, "source": "did:x"}
    assert messages.parse_credential(credential).challenge == sent


@given(challenges, salads, salads)
@example(Challenge(id="a", realm="b", method="c", intent="d", request="e30"), 'Payment id="', "Payment")
def test_no_rubbish_hides_a_good_challenge(good: Challenge, before: str, after: str) -> None:
    parsed = messages.parse_challenges([before, headers.format_challenge(good.echo()), after])
    assert good in parsed.challenges


@given(st.binary(max_size=100))
def test_base64url_round_trips(data: bytes) -> None:
    text = strict_json.b64url_encode(data)
    assert text == base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert strict_json.b64url_decode(text) == data
    assert strict_json.b64_decode_any(base64.b64encode(data).decode()) == data


@given(st.text("AQgw_-+/=9", max_size=12))
def test_no_two_texts_decode_to_the_same_bytes(text: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert strict_json.b64url_encode(strict_json.b64url_decode(text)) == text


@given(json_values)
def test_json_reads_as_python_reads_it(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert strict_json.decode(text, "it") == json.loads(text)
        assert strict_json.decode(text.encode(), "it") == json.loads(text)


amounts = st.integers(0, 2**128 - 1)
hashes = st.binary(min_size=32, max_size=32).map(lambda data: "0x" + data.hex())


@given(
    st.builds(
        Receipt,
        method=field_texts,
        timestamp=field_texts,
        reference=field_texts,
        intent=st.none() | field_texts,
        challenge_id=st.none() | field_texts,
        channel_id=st.none() | hashes,
        accepted_cumulative=st.none() | amounts,
        spent=st.none() | amounts,
        units=st.none() | st.integers(0, 2**53 - 1),
        tx_hash=st.none() | hashes,
    )
)
def test_receipts_round_trip(receipt: Receipt) -> None:
    assert messages.parse_receipt(messages.format_receipt(receipt)) == receipt


@given(st.text("0123456789-+.eE _x", max_size=45))
def test_an_amount_is_read_exactly_or_not_at_all(text: str) -> None:
    receipt = {"status": "success", "method": "m", "timestamp": "t", "reference": "r", "spent": text}
    try:
        spent = messages.receipt_from(receipt).spent
    except RemoteProtocolError:
        assert not (text.isdecimal() and str(int(text)) == text and int(text) < 2**128)
    else:
        assert str(spent) == text


@given(instants)
def test_times_round_trip(instant: datetime) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    text = instant.isoformat()
    assert headers.parse_date_time(text) == (instant - epoch) // timedelta(milliseconds=1)
    whole = instant.astimezone(UTC).replace(microsecond=0)
    ms = (whole - epoch) // timedelta(milliseconds=1)
    date = whole.strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert headers.parse_retry_after(date, ms - 61_000) == 61


@given(
    st.lists(
        st.builds(
            headers.PaymentRange,
            st.from_regex(r"[a-z]{1,5}|\*", fullmatch=True),
            st.from_regex(r"[a-z-]{1,5}|\*", fullmatch=True),
            st.integers(0, 1000),
        )
    )
)
def test_accept_payment_round_trips(ranges: list[headers.PaymentRange]) -> None:
    assert headers.parse_accept_payment(headers.format_accept_payment(ranges)) == tuple(ranges)


# --- time ------------------------------------------------------------------------------------------------

# Repeated to the limit, each of these costs hours where a parser backtracks or begins anew at every letter.
UNITS = [
    *('"', '\\"', '""', '"\\', "a", " ", "\t ", ",", "=", "a=", "a =", 'a="', 'a="\\', 'a="b" ', "a b "),
    *("Payment ", "Payment,", "Payment a=b,", 'Payment a="b"c,', 'x,"', "\\u", "\\ud83d", "é", "A=", ":"),
    *("[", "]", '"[', '[\\"', '{"":', '{"\\":', "0", "-", "9.", ";q=", "a/b;", "/"),
]
PREFIXES = ["", 'Payment id="', "Payment ", "sha-256=:", "[", '"', "Sun", "2025-01-15T12:05:00."]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_no_input_takes_long(prefix: str) -> None:
    for unit in UNITS:
        for ending in ("", "\\", '"', "!"):
            text = (prefix + unit * headers.FIELD_LIMIT)[: headers.FIELD_LIMIT - 1] + ending
            messages.parse_challenges([text])
            messages.is_payment_credential(text)
            headers.parse_retry_after(text, 0)
            for parse in parsers_of_text.values():
                with contextlib.suppress(RemoteProtocolError):
                    parse(text)
