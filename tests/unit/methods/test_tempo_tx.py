from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytempo
import pytest
import rlp
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.methods.abi import keccak256, to_bytes, to_hex
from proxy_addon.methods.tempo_tx import (
    EXPIRING_NONCE_KEY,
    SECP256K1_ORDER,
    Call,
    TempoTransaction,
    decode,
    decode_for_signing,
    fee_in_base_units,
    max_fee_for,
    recover,
)
from tests.unit.methods.samples import ADDRESS, KEY, OTHER_KEY

SENDER = to_bytes(ADDRESS)
UINT = st.integers(0, 2**64 - 1)
TIMES = st.integers(1, 2**64 - 1)
CALLS = st.builds(
    Call,
    to=st.binary(min_size=20, max_size=20),
    data=st.binary(max_size=300),
    value=st.integers(0, 2**256 - 1),
)


@st.composite
def transactions(draw: st.DrawFn) -> TempoTransaction:
    priority = draw(UINT)
    expiring = draw(st.booleans())
    valid_before = draw(TIMES) if expiring else draw(st.none() | TIMES)
    return TempoTransaction(
        chain_id=draw(st.integers(1, 2**53)),
        gas_limit=draw(st.integers(1, 2**64 - 1)),
        max_priority_fee_per_gas=priority,
        max_fee_per_gas=priority + draw(UINT),
        calls=tuple(draw(st.lists(CALLS, min_size=1, max_size=3))),
        nonce_key=EXPIRING_NONCE_KEY if expiring else draw(st.integers(0, 2**192)),
        nonce=0 if expiring else draw(UINT),
        valid_before=valid_before,
        valid_after=draw(st.none() | st.integers(1, valid_before or 2**64)),
        fee_token=draw(st.none() | st.binary(min_size=20, max_size=20)),
        sponsored=draw(st.booleans()),
    )


def theirs(tx: TempoTransaction) -> pytempo.TempoTransaction:
    return pytempo.TempoTransaction.create(
        chain_id=tx.chain_id,
        gas_limit=tx.gas_limit,
        max_fee_per_gas=tx.max_fee_per_gas,
        max_priority_fee_per_gas=tx.max_priority_fee_per_gas,
        nonce=tx.nonce,
        nonce_key=tx.nonce_key,
        valid_before=tx.valid_before,
        valid_after=tx.valid_after,
        fee_token=tx.fee_token,
        awaiting_fee_payer=tx.sponsored,
        calls=tuple(pytempo.Call.create(call.to, call.value, call.data) for call in tx.calls),
    )


def sign(tx: TempoTransaction, key: str = KEY) -> bytes:
    return bytes(Account.unsafe_sign_hash(tx.signing_hash(), key).signature)


@settings(max_examples=150, deadline=None)
@given(transactions())
def test_what_is_signed_is_what_pytempo_signs(tx: TempoTransaction) -> None:
    other = theirs(tx)
    assert tx.encode_for_signing() == other.encode_for_signing()
    assert tx.signing_hash() == other.get_signing_hash()
    assert tx.expiring_nonce_hash(SENDER) == keccak256(other.encode_for_signing() + SENDER)
    if not tx.sponsored:  # pytempo leaves the placeholder out of what it hands to a sponsor
        signed = other.sign(KEY)
        assert tx.encode_signed(sign(tx)) == signed.encode()
        assert tx.tx_hash(sign(tx)) == signed.hash()


@settings(max_examples=150, deadline=None)
@given(transactions())
def test_what_was_written_is_read_back(tx: TempoTransaction) -> None:
    signature = sign(tx)
    found = decode(tx.encode_signed(signature))
    expected = replace(tx, fee_token=None) if tx.sponsored else tx
    assert found.transaction == expected
    assert (found.sender, found.signature, found.sponsor_signature) == (SENDER, signature, None)
    assert found.expiring_nonce_hash == tx.expiring_nonce_hash(SENDER)
    assert decode_for_signing(tx.encode_for_signing()) == expected


@settings(deadline=None)
@given(transactions(), st.data())
def test_no_change_of_a_byte_goes_unnoticed(tx: TempoTransaction, data: st.DataObject) -> None:
    raw = bytearray(tx.encode_signed(sign(tx)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(raw))
    except ValueError:
        return
    assert found.sender != SENDER


@given(st.binary(max_size=200))
def test_junk_is_a_value_error(raw: bytes) -> None:
    for prefix in (b"", b"\x76"):
        with pytest.raises(ValueError):  # noqa: PT011 - any of them, and nothing else
            decode(prefix + raw)
        with pytest.raises(ValueError):  # noqa: PT011
            decode_for_signing(prefix + raw)


def example(**changes: Any) -> TempoTransaction:
    fields: dict[str, Any] = {
        "chain_id": 42431,
        "gas_limit": 1_000_000,
        "max_fee_per_gas": 41_000_000_000,
        "calls": (Call(b"\x4d" * 20, b"\xed\xc5"),),
        "valid_before": 1_795_420_025,
        "fee_token": b"\x20" * 20,
    }
    return TempoTransaction(**(fields | changes))


def tampered(change: Callable[[list[Any]], None]) -> bytes:
    tx = example()
    fields = list(rlp.decode(tx.encode_signed(sign(tx))[1:]))
    change(fields)
    return b"\x76" + bytes(rlp.encode(fields))


def put(at: int, value: Any) -> Callable[[list[Any]], None]:
    def change(fields: list[Any]) -> None:
        fields[at] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put(0, b"\x00\x01"), "chain id"),
        (put(3, b""), "gas limit"),
        (put(3, b"\x01" * 33), "gas limit"),
        (put(3, [b"\x01"]), "gas limit should be bytes"),
        (put(4, []), "at least one call"),
        (put(4, b"\x01"), "calls should be a list"),
        (put(4, [b"\x01"]), "call should be a list"),
        (put(4, [[b"\x01" * 20, b""]]), "three parts"),
        (put(4, [[b"\x01" * 19, b"", b""]]), "20 bytes"),
        (put(5, [[b"\x01" * 20, []]]), "access list"),
        (put(5, b""), "access list should be a list"),
        (put(7, b"\x01"), "nonce 0"),
        (put(8, b""), "until when"),
        (put(10, b"\x01" * 19), "fee token"),
        (put(11, b"\x01"), "sponsor signature should be a list"),
        (put(11, [b"\x01", b"\x01"]), "three parts"),
        (put(11, [b"\x02", b"\x01", b"\x01"]), "out of range"),
        (put(11, [b"\x01", b"\x01", b"\xff" * 32]), "out of range"),
        (put(12, [b"\x01"]), "authorisations"),
        (put(13, b"\x01" * 64), "65 bytes"),
        (lambda fields: fields.pop(), "14 fields"),
        (lambda fields: fields.append(b""), "14 fields"),
    ],
)
def test_what_we_do_not_build_is_not_read(change: Callable[[list[Any]], None], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode(tampered(change))


def test_a_sponsored_transaction_is_read_with_its_sponsors_signature() -> None:
    tx = example(sponsored=True, fee_token=None)
    signature = sign(tx)
    fields = list(rlp.decode(tx.encode_signed(signature)[1:]))
    by = Account.unsafe_sign_hash(b"\x01" * 32, OTHER_KEY)
    fields[10] = b"\x20" * 20
    fields[11] = [by.v - 27, by.r, by.s]
    found = decode(b"\x76" + bytes(rlp.encode(fields)))
    assert found.sender == SENDER
    assert found.sponsor_signature == bytes(by.signature)
    assert found.transaction.fee_token == b"\x20" * 20
    assert found.expiring_nonce_hash == tx.expiring_nonce_hash(SENDER)


def test_what_a_sponsor_completed_is_nothing_for_the_sender_to_sign() -> None:
    tx = example(sponsored=True, fee_token=None)
    fields = list(rlp.decode(tx.encode_for_signing()[1:]))
    fields[11] = [b"", b"\x01", b"\x01"]
    with pytest.raises(ValueError, match="not what a sender signs"):
        decode_for_signing(b"\x76" + bytes(rlp.encode(fields)))
    fields[11] = b"\x00"
    fields[10] = b"\x20" * 20  # a sponsored sender signs no fee token
    with pytest.raises(ValueError, match="not what a sender signs"):
        decode_for_signing(b"\x76" + bytes(rlp.encode(fields)))


@pytest.mark.parametrize("prefix", [b"", b"\x02", b"\x78"])
def test_another_type_is_refused(prefix: bytes) -> None:
    with pytest.raises(ValueError, match="0x76"):
        decode(prefix + example().encode_signed(sign(example()))[1:])


def test_a_list_is_expected() -> None:
    with pytest.raises(ValueError, match="no list"):
        decode(b"\x76\x80")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"chain_id": 0}, "chain"),
        ({"gas_limit": 0}, "gas limit"),
        ({"calls": ()}, "call"),
        ({"calls": (Call(b"\x01"),)}, "20 bytes"),
        ({"max_fee_per_gas": 1}, "priority fee"),
        ({"max_priority_fee_per_gas": -1}, "priority fee"),
        ({"fee_token": b"\x01"}, "fee token"),
        ({"nonce": 1}, "nonce 0"),
        ({"valid_before": None}, "until when"),
        ({"valid_before": 0}, "bound of 0"),
        ({"valid_after": 0}, "bound of 0"),
    ],
)
def test_a_transaction_that_cannot_be_is_not_built(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        example(**changes)


def test_a_malleable_or_odd_signature_is_refused() -> None:
    tx = example()
    signature = sign(tx)
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    high = r + (SECP256K1_ORDER - s).to_bytes(32, "big") + bytes([55 - v])
    for bad in (
        high,
        signature[:64],
        signature[:64] + b"\x00",
        bytes(64) + b"\x1b",
        b"\xff" * 32 + signature[32:],
    ):
        with pytest.raises(ValueError, match=r"signature"):
            tx.encode_signed(bad)
        with pytest.raises(ValueError, match=r"signature"):
            recover(tx.signing_hash(), bad)


def test_a_signature_that_no_key_can_have_made() -> None:
    # x = 5 is on no point of secp256k1
    with pytest.raises(ValueError, match="no key"):
        recover(b"\x01" * 32, (5).to_bytes(32, "big") + (1).to_bytes(32, "big") + b"\x1b")


def test_the_hash_without_a_sponsor_is_that_of_the_bytes() -> None:
    tx = example()
    assert tx.tx_hash(sign(tx)) == keccak256(tx.encode_signed(sign(tx)))
    assert to_hex(tx.encode_signed(sign(tx))).startswith("0x76")


@pytest.mark.parametrize(
    ("gas", "price", "fee"),
    [(0, 1, 0), (1, 1, 1), (1, 10**12, 1), (1, 10**12 + 1, 2), (561_028, 18_500_000_000, 10_380)],
)
def test_a_fee_is_rounded_up(gas: int, price: int, fee: int) -> None:
    assert fee_in_base_units(gas, price) == fee


def test_the_maximum_fee_outlives_a_doubling() -> None:
    assert max_fee_for(20_000_000_000) > 40_000_000_000
