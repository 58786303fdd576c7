"""Only our own signature in a snapshot proves anything, whatever else the snapshot says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.core.snapshot import SessionSnapshot, SignedVoucher
from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.tempo_session.proof import proves
from proxy_addon.methods.tempo_session.voucher import CODECS
from proxy_addon.methods.tempo_tx import SECP256K1_ORDER
from proxy_addon.signer import Signer
from store.records import Channel
from tests.unit.methods.samples import (
    ADDRESS,
    KEY,
    OTHER_ADDRESS,
    OTHER_KEY,
    descriptor,
    ours,
    scope,
    v1_ours,
)

US, STRANGER = Signer.from_hex(KEY), Signer.from_hex(OTHER_KEY)
DELEGATED = ours(
    scope=scope(voucher_signer=OTHER_ADDRESS), descriptor=descriptor(authorizedSigner=OTHER_ADDRESS)
)
DEPOSIT = 2**90
HUGE = 2**300
FOREIGN = "0x" + "99" * 32

AMOUNTS = st.integers(1, DEPOSIT)
RECORDS = st.sampled_from([ours(), v1_ours(), DELEGATED])


def signature(record: Channel, amount: int, signer: Signer | None = None) -> str:
    """A voucher's signature by whoever holds the key, whatever the record allows."""
    codec = CODECS[record.scope.family, record.scope.version]
    holder = signer or (STRANGER if record.scope.voucher_signer == OTHER_ADDRESS else US)
    return to_hex(holder._sign(codec.digest_for(record, amount)))


def snapshot(record: Channel, amount: int, **changes: Any) -> SessionSnapshot:
    """What an honest server shows of its books."""
    fields: dict[str, Any] = {
        "channel_id": record.channel_id,
        "chain_id": record.scope.chain_id,
        "escrow": record.scope.escrow,
        "descriptor": dict(record.descriptor),
        "accepted_cumulative": amount,
        "required_cumulative": amount,
        "deposit": DEPOSIT,
        "settled": 0,
        "spent": amount,
        "highest_voucher": SignedVoucher(
            channel_id=record.channel_id, cumulative_amount=amount, signature=signature(record, amount)
        ),
    }
    return SessionSnapshot(**(fields | changes))


def with_voucher(record: Channel, amount: int, **changes: Any) -> SessionSnapshot:
    honest = snapshot(record, amount)
    assert honest.highest_voucher is not None
    return replace(honest, highest_voucher=replace(honest.highest_voucher, **changes))


@given(RECORDS, AMOUNTS, st.integers(0, 2**128), st.integers(0, 2**128), st.integers(0, DEPOSIT))
def test_our_own_signature_proves_its_amount_and_no_claim_moves_it(
    record: Channel, amount: int, accepted: int, spent: int, authorised: int
) -> None:
    """Also where it is more than the record authorises: the record is the older of the two then."""
    told = snapshot(
        record, amount, accepted_cumulative=accepted, spent=spent, settled=spent, deposit=accepted
    )
    assert proves(replace(record, authorised=authorised), told) == amount


@given(RECORDS, AMOUNTS, st.integers(0, 2**96 - 1))
def test_a_signature_proves_no_other_amount(record: Channel, signed: int, claimed: int) -> None:
    told = with_voucher(record, signed, cumulative_amount=claimed)
    assert proves(record, told) == (signed if claimed == signed else None)


@given(RECORDS, AMOUNTS)
def test_a_strangers_signature_proves_nothing(record: Channel, amount: int) -> None:
    stranger = US if record.scope.voucher_signer == OTHER_ADDRESS else STRANGER
    told = with_voucher(record, amount, signature=signature(record, amount, stranger))
    assert proves(record, told) is None


@given(RECORDS, AMOUNTS)
def test_without_a_voucher_all_is_a_claim(record: Channel, amount: int) -> None:
    assert proves(record, snapshot(record, amount, highest_voucher=None)) is None


@given(RECORDS, AMOUNTS)
def test_the_other_form_of_a_signature_proves_nothing(record: Channel, amount: int) -> None:
    """Anybody can make it from ours; the escrow refuses it, so the server could not cash it."""
    own = to_bytes(signature(record, amount))
    high = SECP256K1_ORDER - int.from_bytes(own[32:64], "big")
    mirrored = own[:32] + high.to_bytes(32, "big") + bytes([55 - own[64]])
    assert proves(record, with_voucher(record, amount, signature=to_hex(mirrored))) is None


@given(RECORDS, AMOUNTS, st.binary(max_size=80))
def test_bytes_that_are_no_signature_prove_nothing(record: Channel, amount: int, data: bytes) -> None:
    assert proves(record, with_voucher(record, amount, signature=to_hex(data))) is None


@given(RECORDS, AMOUNTS, st.integers(0, 64), st.integers(1, 255))
def test_no_changed_byte_is_overlooked(record: Channel, amount: int, at: int, change: int) -> None:
    own = bytearray(to_bytes(signature(record, amount)))
    own[at] ^= change
    assert proves(record, with_voucher(record, amount, signature=to_hex(bytes(own)))) is None


@pytest.mark.parametrize("amount", [0, -1, 2**96, 2**128, HUGE])
def test_amounts_that_no_voucher_carries_prove_nothing(amount: int) -> None:
    record = ours()
    assert proves(record, with_voucher(record, 7, cumulative_amount=amount)) is None
    zero = with_voucher(record, 7, cumulative_amount=0, signature=signature(record, 0))
    assert proves(record, zero) is None


def test_a_v1_voucher_may_be_wider() -> None:
    record = v1_ours()
    assert proves(record, snapshot(record, 2**128 - 1)) == 2**128 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_id": FOREIGN},
        {"chain_id": 1},
        {"chain_id": HUGE},
        {"escrow": ADDRESS},
        {"descriptor": {}},
        {"descriptor": descriptor(salt=FOREIGN)},
        {"descriptor": descriptor(payer=OTHER_ADDRESS)},
        {"descriptor": descriptor(operator=OTHER_ADDRESS)},
    ],
)
def test_another_channel_proves_nothing(changes: dict[str, Any]) -> None:
    assert proves(ours(), snapshot(ours(), 7, **changes)) is None


def test_a_voucher_of_another_channel_proves_nothing() -> None:
    other = ours(descriptor=descriptor(salt=FOREIGN))
    assert proves(other, snapshot(other, 7)) == 7
    assert proves(ours(), snapshot(other, 7)) is None
    told = with_voucher(ours(), 7, channel_id=other.channel_id)
    assert proves(ours(), told) is None
    told = with_voucher(ours(), 7, signature=signature(other, 7))
    assert proves(ours(), told) is None
    elsewhere = ours(scope=scope(chain="eip155:4217"))
    assert proves(ours(), with_voucher(ours(), 7, signature=signature(elsewhere, 7))) is None


def test_a_record_that_does_not_fit_its_id_proves_nothing() -> None:
    broken = ours(channel_id=FOREIGN)
    assert proves(broken, snapshot(broken, 7)) is None
    unknown = ours(scope=scope(version="v9"))
    assert proves(unknown, replace(snapshot(ours(), 7), channel_id=unknown.channel_id)) is None


def test_our_own_signature_in_our_own_way() -> None:
    """`signature` signs as the signer does for a record that allows it."""
    record = ours(authorised=7)
    digest = CODECS["tempo-session", "v2"].digest_for(record, 7)
    assert signature(record, 7) == to_hex(US.sign_voucher(digest, record, 7))
