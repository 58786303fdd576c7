from __future__ import annotations

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.methods import abi

ADDRESSES = st.binary(min_size=20, max_size=20)


@given(ADDRESSES, st.integers(0, 2**256 - 1), st.binary(min_size=32, max_size=32))
def test_words_are_those_of_eth_abi(address: bytes, number: int, blob: bytes) -> None:
    ours = abi.address_word(abi.to_hex(address)) + abi.uint_word(number) + abi.bytes32_word(abi.to_hex(blob))
    assert ours == encode(["address", "uint256", "bytes32"], [address, number, blob])
    first, second, third = abi.words(ours, 3, "tuple")
    assert abi.read_address(first, "address") == abi.to_hex(address)
    assert abi.read_uint(second, 256, "number") == number
    assert third == blob


@given(st.binary(max_size=300))
def test_keccak_is_keccak(data: bytes) -> None:
    assert abi.keccak256(data) == keccak(data)


def test_a_selector_is_the_head_of_the_hash() -> None:
    assert abi.selector("transfer(address,uint256)").hex() == "a9059cbb"


@pytest.mark.parametrize(
    "value",
    [None, 5, "", "0x", "0x" + "a" * 39, "0x" + "a" * 41, "a" * 40, "0x" + "g" * 40, "0x" + "a" * 40 + "\n"],
)
def test_a_bad_address_is_refused_by_name(value: object) -> None:
    with pytest.raises(ValueError, match="recipient"):
        abi.parse_address(value, "recipient")


def test_an_address_is_lowered() -> None:
    assert abi.parse_address("0xF39Fd6e51aad88F6F4ce6aB8827279cffFb92266", "payer").islower()


@pytest.mark.parametrize("value", [None, 5, "0x", "0x" + "a" * 63, "0x" + "a" * 65, "0x" + "a" * 64 + "\n"])
def test_bad_bytes32_are_refused_by_name(value: object) -> None:
    with pytest.raises(ValueError, match="channelId"):
        abi.parse_bytes32(value, "channelId")


def test_hex_needs_its_prefix() -> None:
    with pytest.raises(ValueError, match="no 0x"):
        abi.to_bytes("abcd")


@pytest.mark.parametrize("value", [-1, 2**96])
def test_a_number_outside_its_type_is_not_encoded(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit uint96"):
        abi.uint_word(value, 96)


def test_padding_that_is_not_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="uint160"):
        abi.read_address(b"\x01" + bytes(31), "payee")
    with pytest.raises(ValueError, match="expected 64"):
        abi.words(bytes(63), 2, "state")
