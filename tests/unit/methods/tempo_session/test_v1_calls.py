from __future__ import annotations

from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.tempo_session import v1_calls as calls
from tests.unit.methods.samples import ADDRESS, V1_ESCROW, ZERO, v1_descriptor

BYTES20 = st.binary(min_size=20, max_size=20).map(to_hex)
BYTES32 = st.binary(min_size=32, max_size=32).map(to_hex)
UINT128 = st.integers(0, 2**128 - 1)
ID = "0x" + "c1" * 32


@given(
    st.fixed_dictionaries(
        {
            "payer": BYTES20,
            "payee": BYTES20,
            "token": BYTES20,
            "salt": BYTES32,
            "authorizedSigner": BYTES20,
        }
    ),
    BYTES20,
    st.integers(1, 2**64),
)
def test_a_channel_id_is_the_hash_of_the_tuple(fields: dict[str, str], escrow: str, chain: int) -> None:
    types = ["address", "address", "address", "bytes32", "address", "address", "uint256"]
    values = [to_bytes(fields[name]) for name in calls.DESCRIPTOR_FIELDS]
    expected = keccak(encode(types, [*values, to_bytes(escrow), chain]))
    assert calls.channel_id(fields, escrow=escrow, chain_id=chain) == to_hex(expected)


@given(BYTES20, BYTES20, UINT128, BYTES32, BYTES20)
def test_an_open_call_is_read_back(payee: str, token: str, deposit: int, salt: str, signer: str) -> None:
    call = calls.OpenCall(payee, token, deposit, salt, signer)
    assert calls.parse_open(call.encode()) == call
    types = ["address", "address", "uint128", "bytes32", "address"]
    arguments = encode(types, [payee, token, deposit, to_bytes(salt), signer])
    assert call.encode() == keccak(text="open(address,address,uint128,bytes32,address)")[:4] + arguments


@given(BYTES20, st.integers(0, 2**256 - 1), BYTES32, UINT128)
def test_the_other_calls_are_read_back(spender: str, approved: int, channel: str, amount: int) -> None:
    assert calls.parse_approve(calls.encode_approve(spender, approved)) == (spender, approved)
    assert calls.parse_top_up(calls.encode_top_up(channel, amount)) == (channel, amount)
    assert calls.parse_request_close(calls.encode_request_close(channel)) == channel
    assert calls.parse_withdraw(calls.encode_withdraw(channel)) == channel


PARSERS: dict[str, tuple[Any, bytes]] = {
    "approve": (calls.parse_approve, calls.encode_approve(V1_ESCROW, 1)),
    "open": (calls.parse_open, calls.OpenCall(ADDRESS, ADDRESS, 1, ID, ZERO).encode()),
    "topUp": (calls.parse_top_up, calls.encode_top_up(ID, 1)),
    "requestClose": (calls.parse_request_close, calls.encode_request_close(ID)),
    "withdraw": (calls.parse_withdraw, calls.encode_withdraw(ID)),
}


@pytest.mark.parametrize("name", PARSERS)
def test_one_call_is_no_other(name: str) -> None:
    parse, data = PARSERS[name]
    for other, (_, others) in PARSERS.items():
        if other != name:
            with pytest.raises(ValueError, match=f"not an? {name} call"):
                parse(others)
    for wrong in (b"", data[:-1], data + bytes(1)):
        with pytest.raises(ValueError, match=name):
            parse(wrong)


@pytest.mark.parametrize(
    ("parse", "data"),
    [
        (calls.parse_approve, calls.APPROVE + b"\x01" + bytes(63)),
        (calls.parse_open, calls.OPEN + b"\x01" + bytes(159)),
        (calls.parse_open, calls.OPEN + bytes(64) + b"\x01" + bytes(95)),
        (calls.parse_top_up, calls.TOP_UP + bytes(32) + b"\x01" + bytes(31)),
    ],
)
def test_padded_arguments_are_refused(parse: Any, data: bytes) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        parse(data)


STORED = ["bool", "uint64", "address", "address", "address", "address", "uint128", "uint128"]


@given(st.booleans(), st.integers(0, 2**64 - 1), BYTES20, BYTES20, BYTES20, BYTES20, UINT128, UINT128)
def test_a_channel_is_read(
    finalized: bool, requested: int, payer: str, payee: str, token: str, signer: str, one: int, two: int
) -> None:
    settled, deposit = sorted((one, two))
    data = encode(STORED, [finalized, requested, payer, payee, token, signer, deposit, settled])
    found = calls.parse_channel(data)
    assert found == calls.StoredChannel(finalized, requested, payer, payee, token, signer, deposit, settled)
    assert found.is_open == (payer != ZERO and not finalized)


@pytest.mark.parametrize("at", range(7))
def test_a_padded_channel_is_refused(at: int) -> None:
    data = bytearray(encode(STORED, [True, 1, ADDRESS, ADDRESS, ADDRESS, ZERO, 2, 1]))
    data[32 * at] = 1
    with pytest.raises(ValueError, match="does not fit"):
        calls.parse_channel(bytes(data))


@pytest.mark.parametrize("data", [b"", bytes(255), bytes(257), bytes(224) + (1).to_bytes(32, "big")])
def test_an_impossible_channel_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected 256|more than the deposit"):
        calls.parse_channel(data)


def test_a_descriptor_is_normalised() -> None:
    mixed = {name: "0x" + value[2:].upper() for name, value in v1_descriptor().items()}
    assert calls.parse_descriptor({**mixed, "operator": 1}) == v1_descriptor()


@pytest.mark.parametrize("name", calls.DESCRIPTOR_FIELDS)
@pytest.mark.parametrize("value", [None, 1, "0x12"])
def test_a_bad_descriptor_names_its_field(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"descriptor.{name}"):
        calls.parse_descriptor({**v1_descriptor(), name: value})


def test_the_getter_is_the_contracts() -> None:
    assert calls.encode_get_channel(ID) == keccak(text="getChannel(bytes32)")[:4] + to_bytes(ID)
