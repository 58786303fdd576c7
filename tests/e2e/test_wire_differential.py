"""Our reading and writing of the wire against that of two other implementations: pympp, and mppx 0.11.

What they write we read as they meant it; what we write they read as we meant it; and a challenge that went
through us is still the one that its server signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import mpp
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from proxy_addon.core.headers import digest_matches, format_challenge, parse_date_time
from proxy_addon.core.messages import (
    Challenge,
    NeedVoucher,
    Receipt,
    build_credential,
    format_receipt,
    need_voucher_from,
    parse_challenges,
    parse_credential,
    parse_need_voucher,
    parse_receipt,
    parse_receipt_json,
    receipt_from,
)
from tests.peers.oracle import Oracle, OracleError

SECRET = "a secret of the server"
CHANNEL = "0x" + "6d" * 32
REQUEST = {
    "amount": "25",
    "currency": "0x20c0000000000000000000000000000000000000",
    "recipient": "0x742d35cc6634c0532925a3b844bc9e7595f8fe00",
    "suggestedDeposit": "10000000",
    "unitType": "llm_token",
    "methodDetails": {"chainId": 4217, "sessionProtocol": "v2", "feePayer": True},
}
PAYLOAD = {
    "action": "voucher",
    "channelId": CHANNEL,
    "cumulativeAmount": "250",
    "signature": "0x" + "ab" * 65,
}

texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('"\\,= \té—\N{GRINNING FACE}'),
    max_size=20,
)
names = texts.filter(lambda text: text.strip() != "")
requests = st.dictionaries(
    st.text("abcdefghXYZé", min_size=1, max_size=6),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=4,
)
params = st.fixed_dictionaries(
    {
        "realm": names,
        "method": st.sampled_from(["tempo", "x402", "vendor:method"]),
        "intent": st.sampled_from(["session", "charge"]),
        "request": st.just(REQUEST) | requests,
    },
    optional={
        "expires": st.sampled_from(["2025-01-15T12:05:00Z", "2099-12-31T23:59:59.123Z"]),
        "digest": st.just("sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="),
        "description": names,
        "meta": st.dictionaries(st.text("abc", min_size=1, max_size=3), texts, min_size=1, max_size=2),
        "header": st.sampled_from(["Payment-Authorization", "Authorization"]),
    },
)


def over_the_wire(value: str) -> str:
    """A field value as the proxy sees it: sent as ISO-8859-1 by the server, decoded as UTF-8 by mitmproxy."""
    sent = value.encode("latin-1")
    seen = sent.decode("utf-8", "surrogateescape")
    # Text whose ISO-8859-1 happens to be valid UTF-8 is read as that: nobody can tell.
    assume(value.isascii() or any("\udc80" <= char <= "\udcff" for char in seen))
    return seen


def only(value: str) -> Challenge:
    parsed = parse_challenges([value])
    assert parsed.problems == ()
    (challenge,) = parsed.challenges
    return challenge


# --- pympp -----------------------------------------------------------------------------------------------


@given(params)
def test_challenges_of_pympp(sent: dict[str, Any]) -> None:
    theirs = mpp.Challenge.create(secret_key=SECRET, **sent)
    ours = only(over_the_wire(theirs.to_www_authenticate(sent["realm"])))

    assert ours.request == theirs.request_b64
    assert ours.request_json == theirs.request
    assert (ours.id, ours.method, ours.intent) == (theirs.id, theirs.method, theirs.intent)
    assert (ours.realm, ours.description) == (theirs.realm, theirs.description)
    assert (ours.expires, ours.digest) == (theirs.expires, theirs.digest)
    assert ours.credential_header == theirs.credential_header

    # what we send back is still what it signed
    again = mpp.Challenge.from_www_authenticate(format_challenge(ours.echo()))
    assert again.verify(SECRET, again.realm)
    assert again.realm == theirs.realm


@given(params)
def test_credentials_for_pympp(sent: dict[str, Any]) -> None:
    theirs = mpp.Challenge.create(secret_key=SECRET, **sent)
    ours = only(over_the_wire(theirs.to_www_authenticate(sent["realm"])))
    read = mpp.Credential.from_authorization(build_credential(ours, PAYLOAD, "did:pkh:eip155:4217:0xabc"))
    assert read.challenge == theirs.to_echo()
    assert (read.payload, read.source) == (PAYLOAD, "did:pkh:eip155:4217:0xabc")


@given(params)
def test_credentials_of_pympp(sent: dict[str, Any]) -> None:
    theirs = mpp.Challenge.create(secret_key=SECRET, **sent)
    value = mpp.Credential(theirs.to_echo(), PAYLOAD, "did:x").to_authorization()
    read = parse_credential(value)
    assert read.challenge == only(over_the_wire(theirs.to_www_authenticate(sent["realm"])))
    assert (read.payload, read.source) == (PAYLOAD, "did:x")


def test_receipts_of_pympp() -> None:
    theirs = mpp.Receipt(
        status="success",
        timestamp=datetime(2025, 1, 6, 12, 8, 30, 500_000, UTC),
        reference=CHANNEL,
        extensions={"channelId": CHANNEL, "acceptedCumulative": "250", "spent": "237", "units": 5},
    )
    ours = parse_receipt(theirs.to_payment_receipt())
    assert (ours.method, ours.reference, ours.channel_id) == ("tempo", CHANNEL, CHANNEL)
    assert (ours.accepted_cumulative, ours.spent, ours.units) == (250, 237, 5)
    assert parse_date_time(ours.timestamp) == 1736165310500


def test_receipts_for_pympp() -> None:
    ours = Receipt(method="tempo", timestamp="2025-01-06T12:08:30Z", reference=CHANNEL, spent=2**128 - 1)
    theirs = mpp.Receipt.from_payment_receipt(format_receipt(ours))
    assert (theirs.status, theirs.method, theirs.reference) == ("success", "tempo", CHANNEL)
    assert theirs.extensions == {"spent": str(2**128 - 1)}


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_digests_of_pympp(body: bytes, other: bytes) -> None:
    value = mpp.BodyDigest.compute(body)
    assert digest_matches(value, hashlib.sha256(body).digest())
    assert digest_matches(value, hashlib.sha256(other).digest()) == (body == other)


# --- mppx ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as running:
        yield running


# The oracle keeps nothing between calls, so examples may share it; the first call waits for Node.
on_one_oracle = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.e2e
@on_one_oracle
@given(sent=params)
def test_challenges_of_mppx(oracle: Oracle, sent: dict[str, Any]) -> None:
    value = oracle.call("challengeHeader", challenge=sent | {"secretKey": SECRET})
    theirs = oracle.call("parseChallenge", header=value)
    ours = only(over_the_wire(value))

    assert ours.request_json == theirs["request"] == sent["request"]
    for name in ("id", "realm", "method", "intent", "expires", "digest", "description", "opaque", "header"):
        assert getattr(ours, name) == theirs.get(name), name

    again = format_challenge(ours.echo())
    assert oracle.call("parseChallenge", header=again) == theirs
    assert oracle.call("verifyChallenge", header=again, secretKey=SECRET)


@pytest.mark.e2e
@on_one_oracle
@given(sent=params)
def test_credentials_for_and_of_mppx(oracle: Oracle, sent: dict[str, Any]) -> None:
    value = oracle.call("challengeHeader", challenge=sent | {"secretKey": SECRET})
    theirs = oracle.call("parseChallenge", header=value)
    ours = only(over_the_wire(value))

    read = oracle.call("parseCredential", header=build_credential(ours, PAYLOAD, "did:x"))
    assert read == {"challenge": theirs, "payload": PAYLOAD, "source": "did:x"}

    made = parse_credential(oracle.call("credential", challenge=value, payload=PAYLOAD, source="did:x"))
    assert made.challenge == ours
    assert (made.payload, made.source) == (PAYLOAD, "did:x")


@pytest.mark.e2e
def test_a_changed_challenge_is_not_the_one_that_mppx_signed(oracle: Oracle) -> None:
    """The check above can fail."""
    sent = {"realm": "r", "method": "tempo", "intent": "session", "request": REQUEST, "secretKey": SECRET}
    echo = only(oracle.call("challengeHeader", challenge=sent)).echo()
    assert oracle.call("verifyChallenge", header=format_challenge(echo), secretKey=SECRET)
    changed = format_challenge(echo | {"realm": "s"})
    assert not oracle.call("verifyChallenge", header=changed, secretKey=SECRET)


@pytest.mark.e2e
def test_several_challenges_in_one_field(oracle: Oracle) -> None:
    made = [
        oracle.call(
            "challengeHeader",
            challenge={
                "id": str(n),
                "realm": ', Payment id="x"',
                "method": "tempo",
                "intent": intent,
                "request": {},
            },
        )
        for n, intent in enumerate(("session", "charge", "session"))
    ]
    field = ", ".join(made)
    theirs = oracle.call("parseChallenges", header=field)
    ours = parse_challenges([f'Basic realm="x, y", {field}, Bearer abc'])
    assert [found.id for found in ours.challenges] == [found["id"] for found in theirs] == ["0", "1", "2"]
    assert ours.problems == ()


REFUSED_BY_BOTH = {
    "empty id": 'Payment id="", realm="r", method="tempo", intent="session", request="e30"',
    "no realm": 'Payment id="a", method="tempo", intent="session", request="e30"',
    "no request": 'Payment id="a", realm="r", method="tempo", intent="session"',
    "twice": 'Payment id="a", realm="r", method="tempo", intent="session", request="e30", id="b"',
    "upper case": 'Payment id="a", realm="r", method="Tempo", intent="session", request="e30"',
    "open quote": 'Payment id="a", realm="r", method="tempo", intent="session", request="e30',
    "array": 'Payment id="a", realm="r", method="tempo", intent="session", request="W10"',
    "no JSON": 'Payment id="a", realm="r", method="tempo", intent="session", request="eyI"',
    "no date": 'Payment id="a", realm="r", method="tempo", intent="session", request="e30", expires="soon"',
}


@pytest.mark.e2e
@pytest.mark.parametrize("value", REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)
def test_what_neither_takes(oracle: Oracle, value: str) -> None:
    with pytest.raises(OracleError):
        oracle.call("parseChallenge", header=value)
    parsed = parse_challenges([value])
    assert parsed.challenges == ()
    assert len(parsed.problems) == 1


SESSION_RECEIPT = {
    "method": "tempo",
    "intent": "session",
    "status": "success",
    "timestamp": "2025-01-06T12:08:30.250Z",
    "reference": CHANNEL,
    "challengeId": "c",
    "channelId": CHANNEL,
    "acceptedCumulative": str(2**96 - 1),
    "spent": "237500",
    "units": 500,
    "txHash": "0x" + "1a" * 32,
}
RECEIPT = Receipt(
    method="tempo",
    intent="session",
    timestamp="2025-01-06T12:08:30.250Z",
    reference=CHANNEL,
    challenge_id="c",
    channel_id=CHANNEL,
    accepted_cumulative=2**96 - 1,
    spent=237500,
    units=500,
    tx_hash="0x" + "1a" * 32,
)


@pytest.mark.e2e
def test_receipts_of_and_for_mppx(oracle: Oracle) -> None:
    value = oracle.call("receipt", receipt=SESSION_RECEIPT)
    assert parse_receipt(value) == RECEIPT
    assert format_receipt(RECEIPT) == value
    assert oracle.call("parseReceipt", header=format_receipt(RECEIPT)) == SESSION_RECEIPT
    event = oracle.call("formatEvent", kind="receipt", value=SESSION_RECEIPT)
    assert parse_receipt_json(event.partition("data: ")[2]) == RECEIPT
    frame = json.loads(oracle.call("formatFrame", kind="closeReady", value=SESSION_RECEIPT))
    assert receipt_from(frame["data"]) == RECEIPT


@pytest.mark.e2e
def test_need_voucher_of_mppx(oracle: Oracle) -> None:
    need = {
        "channelId": CHANNEL,
        "requiredCumulative": "250025",
        "acceptedCumulative": "250000",
        "deposit": "500000",
    }
    expected = NeedVoucher(
        channel_id=CHANNEL, required_cumulative=250025, accepted_cumulative=250000, deposit=500000
    )
    event = oracle.call("formatEvent", kind="needVoucher", value=need)
    assert parse_need_voucher(event.partition("data: ")[2]) == expected
    frame = json.loads(oracle.call("formatFrame", kind="needVoucher", value=need))
    assert need_voucher_from(frame["data"]) == expected


@pytest.mark.e2e
@settings(on_one_oracle, max_examples=30)
@given(body=st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_digests_of_mppx(oracle: Oracle, body: str) -> None:
    value = oracle.call("bodyDigest", body=body)
    assert digest_matches(value, hashlib.sha256(body.encode()).digest())
