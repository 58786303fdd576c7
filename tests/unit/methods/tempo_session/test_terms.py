from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.core.errors import RemoteProtocolError, UnsupportedChallenge
from proxy_addon.core.terms import Terms
from proxy_addon.methods.tempo_session.terms import parse_terms, session_protocol
from tests.unit.methods.samples import PAYEE, RESERVE, TOKEN, ZERO, challenge, details, request


def test_a_full_challenge_is_read() -> None:
    found = parse_terms(
        challenge(
            request(
                recipient=PAYEE.upper().replace("0X", "0x"),
                methodDetails=details(
                    operator="0x" + "0A" * 20,
                    feePayer=True,
                    minVoucherDelta="5",
                    channelId="0x" + "AB" * 32,
                    somethingNew={"x": 1},
                ),
            )
        ),
        "v2",
    )
    assert found == Terms(
        family="tempo-session",
        version="v2",
        chain="eip155:42431",
        escrow=RESERVE,
        token=TOKEN,
        payee=PAYEE,
        discriminator="0x" + "0a" * 20,
        price=10_000,
        amount_limit=2**96 - 1,
        min_delta=5,
        suggested_deposit=50_000,
        unit_type="request",
        fee_payer=True,
        channel_hint="0x" + "ab" * 32,
    )


def test_what_is_optional_may_be_missing_or_null() -> None:
    lean = parse_terms(challenge(request(suggestedDeposit=None, unitType=None)), "v2")
    assert (lean.suggested_deposit, lean.unit_type, lean.min_delta, lean.fee_payer) == (None, None, 1, False)
    assert (lean.discriminator, lean.channel_hint) == (ZERO, None)
    nulls = dict.fromkeys(("operator", "feePayer", "minVoucherDelta", "channelId"))
    content = request()
    content["methodDetails"] |= nulls
    content |= {"suggestedDeposit": None, "unitType": None}
    assert parse_terms(challenge(content), "v2") == lean


def test_a_delta_of_zero_means_one() -> None:
    assert parse_terms(challenge(request(methodDetails=details(minVoucherDelta="0"))), "v2").min_delta == 1


def test_the_default_chain_is_tempos() -> None:
    assert parse_terms(challenge(request(methodDetails=details(chainId=None))), "v2").chain == "eip155:4217"


def test_no_protocol_means_v1() -> None:
    found = parse_terms(challenge(request(methodDetails=details(sessionProtocol=None))), "v1")
    assert (found.version, found.amount_limit, found.discriminator) == ("v1", 2**128 - 1, "")


def test_v1_takes_amounts_that_v2_does_not() -> None:
    amount = str(2**96)
    v1 = challenge(request(amount=amount, methodDetails=details(sessionProtocol="v1", operator="ignored")))
    assert parse_terms(v1, "v1").price == 2**96
    with pytest.raises(RemoteProtocolError, match="amount"):
        parse_terms(challenge(request(amount=amount)), "v2")


BAD_AMOUNTS: list[object] = [
    "", "-1", "+1", "1e3", "01", "0x10", "1.0", " 1", "1 ", "1_000", "١", 10, 1.5, True, [], {},
    str(2**96), "9" * 40, "9" * 5000,
]  # fmt: skip
BAD_ADDRESSES: list[object] = ["", "0x", "0x12", "0x" + "g" * 40, "a" * 40, "0x" + "a" * 42, 7, True, [], {}]


@pytest.mark.parametrize("value", [*BAD_AMOUNTS, None, "0"])
def test_a_bad_price_is_named(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="amount"):
        parse_terms(challenge(request(amount=value)), "v2")


@pytest.mark.parametrize("value", BAD_AMOUNTS)
def test_a_bad_optional_amount_is_named(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="suggestedDeposit"):
        parse_terms(challenge(request(suggestedDeposit=value)), "v2")
    with pytest.raises(RemoteProtocolError, match=r"methodDetails\.minVoucherDelta"):
        parse_terms(challenge(request(methodDetails=details(minVoucherDelta=value))), "v2")


@pytest.mark.parametrize("value", [*BAD_ADDRESSES, None])
def test_a_bad_or_missing_address_is_named(value: object) -> None:
    for name in ("currency", "recipient"):
        with pytest.raises(RemoteProtocolError, match=name):
            parse_terms(challenge(request(**{name: value})), "v2")
    with pytest.raises(RemoteProtocolError, match=r"methodDetails\.escrowContract"):
        parse_terms(challenge(request(methodDetails=details(escrowContract=value))), "v2")


@pytest.mark.parametrize("value", BAD_ADDRESSES)
def test_a_bad_operator_or_hint_is_named(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match=r"methodDetails\.operator"):
        parse_terms(challenge(request(methodDetails=details(operator=value))), "v2")
    with pytest.raises(RemoteProtocolError, match=r"methodDetails\.channelId"):
        parse_terms(challenge(request(methodDetails=details(channelId=value))), "v2")


@pytest.mark.parametrize("value", ["4217", 0, -1, 1.0, True, 2**53, [], {}])
def test_a_bad_chain_is_named(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match=r"methodDetails\.chainId"):
        parse_terms(challenge(request(methodDetails=details(chainId=value))), "v2")


@pytest.mark.parametrize("value", ["", "x" * 65, "a\nb", "a\x1b[0m", 3, [], {}])
def test_a_bad_unit_is_named(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="unitType"):
        parse_terms(challenge(request(unitType=value)), "v2")


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}])
def test_a_bad_flag_is_named(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match=r"methodDetails\.feePayer"):
        parse_terms(challenge(request(methodDetails=details(feePayer=value))), "v2")


@pytest.mark.parametrize("payee", [ZERO, TOKEN])
def test_nobody_to_pay(payee: str) -> None:
    with pytest.raises(RemoteProtocolError, match="recipient"):
        parse_terms(challenge(request(recipient=payee)), "v2")


@pytest.mark.parametrize("value", [None, [], "v2", 1])
def test_without_details_there_is_no_escrow(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="methodDetails"):
        parse_terms(challenge(request(methodDetails=value)), "v2")


@pytest.mark.parametrize("value", ["v3", "", "V2", 2, [], {}, "v" * 1000])
def test_another_protocol_is_unsupported(value: object) -> None:
    with pytest.raises(UnsupportedChallenge, match="sessionProtocol") as caught:
        session_protocol(challenge(request(methodDetails=details(sessionProtocol=value))))
    assert len(str(caught.value)) < 200


def test_a_challenge_of_another_version_or_method_is_unsupported() -> None:
    with pytest.raises(UnsupportedChallenge, match="v2, not v1"):
        parse_terms(challenge(request()), "v1")
    for other in (challenge(request(), method="stripe"), challenge(request(), intent="charge")):
        with pytest.raises(UnsupportedChallenge, match="not tempo/session"):
            parse_terms(other, "v2")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("amount", "currency", "recipient", "suggestedDeposit", "unitType", "methodDetails")
DETAILS = (
    "chainId",
    "escrowContract",
    "sessionProtocol",
    "operator",
    "feePayer",
    "minVoucherDelta",
    "channelId",
)


@given(st.sampled_from(FIELDS) | st.sampled_from(DETAILS), JSON)
def test_whatever_a_server_writes_only_a_protocol_error_comes_out(name: str, value: Any) -> None:
    content = request() | ({name: value} if name in FIELDS else {"methodDetails": details() | {name: value}})
    try:
        found = parse_terms(challenge(content), "v2")
    except RemoteProtocolError:
        return
    assert 0 < found.price <= found.amount_limit
    assert found.min_delta >= 1
