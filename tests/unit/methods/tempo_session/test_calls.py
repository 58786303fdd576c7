from __future__ import annotations

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.methods.abi import to_hex
from proxy_addon.methods.tempo_session import calls
from tests.unit.methods.samples import RESERVE, descriptor

BYTES20 = st.binary(min_size=20, max_size=20).map(to_hex)
BYTES32 = st.binary(min_size=32, max_size=32).map(to_hex)
UINT96 = st.integers(0, 2**96 - 1)
DESCRIPTORS = st.fixed_dictionaries(
    {
        "payer": BYTES20,
        "payee": BYTES20,
        "operator": BYTES20,
        "token": BYTES20,
        "salt": BYTES32,
        "authorizedSigner": BYTES20,
        "expiringNonceHash": BYTES32,
    }
)


@given(DESCRIPTORS, BYTES20, st.integers(1, 2**64))
def test_a_channel_id_is_the_hash_of_the_tuple(fields: dict[str, str], escrow: str, chain: int) -> None:
    types = [
        "address",
        "address",
        "address",
        "address",
        "bytes32",
        "address",
        "bytes32",
        "address",
        "uint256",
    ]
    values = [bytes.fromhex(fields[name][2:]) for name in calls.DESCRIPTOR_FIELDS]
    expected = keccak(encode(types, [*values, bytes.fromhex(escrow[2:]), chain]))
    assert calls.channel_id(fields, escrow=escrow, chain_id=chain) == to_hex(expected)


@given(BYTES20, BYTES20, BYTES20, UINT96, BYTES32, BYTES20)
def test_an_open_call_is_read_back(
    payee: str, operator: str, token: str, deposit: int, salt: str, signer: str
) -> None:
    call = calls.OpenCall(payee, operator, token, deposit, salt, signer)
    assert calls.parse_open(call.encode()) == call


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not an open call"),
        (calls.TOP_UP + bytes(192), "not an open call"),
        (calls.OPEN + bytes(191), "expected 192"),
        (calls.OPEN + bytes(193), "expected 192"),
        (calls.OPEN + b"\x01" + bytes(191), "payee"),
        (calls.OPEN + bytes(96) + b"\x01" + bytes(95), "deposit"),
    ],
)
def test_another_call_or_padding_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        calls.parse_open(data)


def test_a_descriptor_is_normalised() -> None:
    mixed = {name: "0x" + value[2:].upper() for name, value in descriptor().items()}
    assert calls.parse_descriptor({**mixed, "unknown": 1}) == descriptor()


@pytest.mark.parametrize("name", calls.DESCRIPTOR_FIELDS)
@pytest.mark.parametrize("value", [None, "", 1, "0x12", "0x" + "g" * 64])
def test_a_bad_descriptor_names_its_field(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"descriptor.{name}"):
        calls.parse_descriptor({**descriptor(), name: value})


@given(UINT96, UINT96, st.integers(0, 2**32 - 1))
def test_a_state_is_read(first: int, second: int, requested: int) -> None:
    settled, deposit = sorted((first, second))
    data = encode(["uint96", "uint96", "uint32"], [settled, deposit, requested])
    assert calls.parse_state(data) == calls.ReserveState(settled, deposit, requested)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(95),
        bytes(128),
        b"\x01" + bytes(95),
        bytes(32) + b"\x01" + bytes(63),
        bytes(64) + b"\x01" + bytes(31),
        (2).to_bytes(32, "big") + (1).to_bytes(32, "big") + bytes(32),
    ],
)
def test_an_impossible_state_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected|fit|more than"):
        calls.parse_state(data)


def test_the_getter_is_the_interfaces() -> None:
    assert (
        calls.encode_get_state("0x" + "ab" * 32).hex()
        == keccak(text="getChannelState(bytes32)")[:4].hex() + "ab" * 32
    )
    assert calls.channel_id(descriptor(), escrow=RESERVE, chain_id=1).startswith("0x")


@given(DESCRIPTORS, UINT96)
def test_calls_on_a_channel_are_read_back(fields: dict[str, str], amount: int) -> None:
    assert calls.parse_top_up(calls.encode_top_up(fields, amount)) == (fields, amount)
    assert calls.parse_request_close(calls.encode_request_close(fields)) == fields
    assert calls.parse_withdraw(calls.encode_withdraw(fields)) == fields


ON_A_CHANNEL = {
    "topUp": (calls.parse_top_up, calls.encode_top_up(descriptor(), 7)),
    "requestClose": (calls.parse_request_close, calls.encode_request_close(descriptor())),
    "withdraw": (calls.parse_withdraw, calls.encode_withdraw(descriptor())),
}


@pytest.mark.parametrize("name", ON_A_CHANNEL)
def test_one_call_on_a_channel_is_no_other(name: str) -> None:
    parse, data = ON_A_CHANNEL[name]
    for other, (_, others) in ON_A_CHANNEL.items():
        if other != name:
            with pytest.raises(ValueError, match=f"not a {name} call"):
                parse(others)
    for wrong in (data[:-1], data + bytes(1), data[:4] + b"\x01" + data[5:], b""):
        with pytest.raises(ValueError, match=rf"{name}|payer"):
            parse(wrong)


def test_an_amount_that_is_too_wide_is_not_read() -> None:
    data = bytearray(calls.encode_top_up(descriptor(), 7))
    data[-32] = 1
    with pytest.raises(ValueError, match="additionalDeposit"):
        calls.parse_top_up(bytes(data))
