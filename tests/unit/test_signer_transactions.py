"""What the signer makes of transactions; each refusal of a guard is in methods/tempo_session/test_guards.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account

from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.tempo_session import calls
from proxy_addon.methods.tempo_session.calls import OpenCall
from proxy_addon.methods.tempo_session.voucher import V2
from proxy_addon.methods.tempo_tx import Call, TempoTransaction, recover
from proxy_addon.signer import GuardedSigner, KeyRejected, Signer, SignerRefused
from store.lifecycle import ChannelStatus
from store.records import Channel
from tests.unit.methods.samples import (
    ADDRESS,
    KEY,
    OTHER_ADDRESS,
    OTHER_KEY,
    PAYEE,
    RESERVE,
    SALT,
    TOKEN,
    ZERO,
    descriptor,
    ours,
    pending,
    scope,
)

S = ChannelStatus
SIGNER = Signer.from_hex(KEY)


# ---------------------------------------------------------------- openings


def opening(**changes: Any) -> TempoTransaction:
    fields: dict[str, Any] = {
        "chain_id": 42431,
        "gas_limit": 1_000_000,
        "max_fee_per_gas": 41_000_000_000,
        "calls": (open_call(),),
        "valid_before": 1_795_420_025,
        "fee_token": to_bytes(TOKEN),
    }
    return TempoTransaction(**(fields | changes))


def open_call(to: str = RESERVE, value: int = 0, **changes: Any) -> Call:
    fields: dict[str, Any] = {
        "payee": PAYEE,
        "operator": ZERO,
        "token": TOKEN,
        "deposit": 50_000,
        "salt": "0x" + SALT.hex(),
        "authorized_signer": ZERO,
    }
    return Call(to_bytes(to), OpenCall(**(fields | changes)).encode(), value)


def test_an_opening_is_signed_as_announced() -> None:
    tx = opening()
    signer = SIGNER.opening(scope(), deposit=50_000)
    signature = signer.sign_transaction(tx.encode_for_signing())
    assert recover(tx.signing_hash(), signature) == to_bytes(ADDRESS)
    assert signer.sign_transaction(tx.encode_for_signing()) == signature
    assert signer.address == ADDRESS
    sponsored = opening(sponsored=True, fee_token=None)
    SIGNER.opening(scope(), deposit=50_000, sponsored=True).sign_transaction(sponsored.encode_for_signing())


OTHER = "0x" + "99" * 20


@pytest.mark.parametrize(
    ("tx", "complaint"),
    [
        (opening(chain_id=1), "chain"),
        (opening(calls=(open_call(), open_call())), "number of calls"),
        (opening(calls=(open_call(to=OTHER),)), "target"),
        (opening(calls=(open_call(value=1),)), "value"),
        (opening(nonce_key=0), "nonce key"),
        (opening(sponsored=True, fee_token=None), "sponsorship"),
        (opening(fee_token=None), "fee token"),
        (opening(fee_token=to_bytes(OTHER)), "fee token"),
        (opening(calls=(open_call(payee=OTHER),)), "payee"),
        (opening(calls=(open_call(operator=OTHER),)), "operator"),
        (opening(calls=(open_call(token=OTHER),)), "token"),
        (opening(calls=(open_call(deposit=50_001),)), "deposit is 50001, not 50000"),
        (opening(calls=(open_call(deposit=49_999),)), "deposit"),
        (opening(calls=(open_call(authorized_signer=OTHER),)), "authorised signer"),
        (opening(calls=(Call(to_bytes(TOKEN), b"\xa9\x05\x9c\xbb"),)), "not an open call"),
    ],
)
def test_a_transaction_that_does_anything_else_is_not_signed(tx: TempoTransaction, complaint: str) -> None:
    with pytest.raises(SignerRefused, match=complaint):
        SIGNER.opening(scope(), deposit=50_000).sign_transaction(tx.encode_for_signing())


@pytest.mark.parametrize(
    "payload", [b"", b"\x19\x01" + bytes(64), b"\x02\xc0", b"\x76\xc0", opening().encode_for_signing()[:-1]]
)
def test_only_a_transaction_is_signed(payload: bytes) -> None:
    with pytest.raises(SignerRefused):
        SIGNER.opening(scope(), deposit=50_000).sign_transaction(payload)


def test_one_opening_is_one_transaction() -> None:
    signer = SIGNER.opening(scope(), deposit=50_000)
    signer.sign_transaction(opening().encode_for_signing())
    other = opening(calls=(open_call(salt="0x" + "01" * 32),))
    with pytest.raises(SignerRefused, match="second"):
        signer.sign_transaction(other.encode_for_signing())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"payer": OTHER_ADDRESS}, "payer"),
        ({"voucher_signer": OTHER_ADDRESS}, "voucher signer"),
        ({"version": "v9"}, "v9"),
        ({"family": "evm-charge"}, "evm-charge"),
    ],
)
def test_an_opening_that_cannot_be_checked_is_refused(changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(SignerRefused, match=complaint):
        SIGNER.opening(scope(**changes), deposit=1)


# ---------------------------------------------------------------- top-ups and forced closes


def on_channel(data: bytes, **changes: Any) -> TempoTransaction:
    return opening(calls=(Call(to_bytes(RESERVE), data),), **changes)


TOP_UP = on_channel(calls.encode_top_up(descriptor(), 7))
REQUEST_CLOSE = on_channel(calls.encode_request_close(descriptor()))
WITHDRAW = on_channel(calls.encode_withdraw(descriptor()))


def test_a_top_up_is_signed_as_announced() -> None:
    signer = SIGNER.topping_up(ours(), amount=7)
    signature = signer.sign_transaction(TOP_UP.encode_for_signing())
    assert recover(TOP_UP.signing_hash(), signature) == to_bytes(ADDRESS)
    with pytest.raises(SignerRefused, match="second"):
        signer.sign_transaction(replace(TOP_UP, gas_limit=1).encode_for_signing())
    sponsored = replace(TOP_UP, sponsored=True, fee_token=None)
    SIGNER.topping_up(ours(), amount=7, sponsored=True).sign_transaction(sponsored.encode_for_signing())


@pytest.mark.parametrize("tx", [REQUEST_CLOSE, WITHDRAW, opening()])
def test_a_top_up_is_nothing_else(tx: TempoTransaction) -> None:
    with pytest.raises(SignerRefused, match="not a topUp call"):
        SIGNER.topping_up(ours(), amount=7).sign_transaction(tx.encode_for_signing())
    with pytest.raises(SignerRefused, match="additional deposit"):
        SIGNER.topping_up(ours(), amount=8).sign_transaction(TOP_UP.encode_for_signing())


@pytest.mark.parametrize("status", S)
def test_only_an_open_channel_is_topped_up(status: ChannelStatus) -> None:
    record = ours(status=status)
    if status is S.OPEN:
        SIGNER.topping_up(record, amount=7)
        return
    with pytest.raises(SignerRefused, match=f"the channel is {status}"):
        SIGNER.topping_up(record, amount=7)


@pytest.mark.parametrize(
    ("changes", "amount", "complaint"),
    [
        ({"pending": pending(kind="top_up")}, 7, "on its way"),
        ({"pending": pending()}, 7, "on its way"),
        ({}, 0, "adds nothing"),
        ({}, -1, "adds nothing"),
        ({"scope": scope(payer=OTHER_ADDRESS)}, 7, "payer"),
        ({"scope": scope(voucher_signer=OTHER_ADDRESS)}, 7, "voucher signer"),
        ({"scope": scope(version="v9")}, 7, "v9"),
    ],
)
def test_a_top_up_that_is_none_of_ours(changes: dict[str, Any], amount: int, complaint: str) -> None:
    with pytest.raises(SignerRefused, match=complaint):
        SIGNER.topping_up(ours(**changes), amount=amount)


FORCED: list[tuple[Callable[[Channel], GuardedSigner], TempoTransaction, TempoTransaction]] = [
    (SIGNER.requesting_close, REQUEST_CLOSE, WITHDRAW),
    (SIGNER.withdrawing, WITHDRAW, REQUEST_CLOSE),
]


@pytest.mark.parametrize(("announce", "tx", "other"), FORCED)
def test_each_step_of_a_forced_close_is_itself(
    announce: Callable[[Channel], GuardedSigner], tx: TempoTransaction, other: TempoTransaction
) -> None:
    signature = announce(ours()).sign_transaction(tx.encode_for_signing())
    assert recover(tx.signing_hash(), signature) == to_bytes(ADDRESS)
    with pytest.raises(SignerRefused, match="not a"):
        announce(ours()).sign_transaction(other.encode_for_signing())
    with pytest.raises(SignerRefused, match="payer"):
        announce(ours(scope=scope(payer=OTHER_ADDRESS)))


@pytest.mark.parametrize(("announce", "tx", "other"), FORCED)
@pytest.mark.parametrize("status", S)
def test_only_a_channel_with_a_deposit_is_closed_by_force(
    announce: Callable[[Channel], GuardedSigner],
    tx: TempoTransaction,
    other: TempoTransaction,
    status: ChannelStatus,
) -> None:
    if status in {S.OPEN, S.DRAINING, S.CLOSING, S.ASIDE}:
        announce(ours(status=status))
        return
    with pytest.raises(SignerRefused, match=f"it is {status}"):
        announce(ours(status=status))


# ---------------------------------------------------------------- a key for vouchers alone

THIRD_KEY = "0x" + "33" * 32
THIRD_ADDRESS = Account.from_key(THIRD_KEY).address.lower()
BOTH = Signer.from_hex(KEY, OTHER_KEY)
VOUCHERS_ONLY = Signer.of_vouchers(to_bytes(OTHER_KEY), payer=ADDRESS.upper().replace("0X", "0x"))
DELEGATED = scope(voucher_signer=OTHER_ADDRESS)


def delegated(**changes: Any) -> Channel:
    fields = {"scope": DELEGATED, "descriptor": descriptor(authorizedSigner=OTHER_ADDRESS)}
    return ours(**(fields | changes))


def test_each_key_signs_its_own() -> None:
    assert (BOTH.address, BOTH.voucher_signer, BOTH.signs_transactions) == (ADDRESS, OTHER_ADDRESS, True)
    record = delegated()
    digest = V2.digest_for(record, 7)
    assert recover(digest, BOTH.sign_voucher(digest, record, 7)) == to_bytes(OTHER_ADDRESS)
    tx = opening(calls=(open_call(authorized_signer=OTHER_ADDRESS),))
    signature = BOTH.opening(DELEGATED, deposit=50_000).sign_transaction(tx.encode_for_signing())
    assert recover(tx.signing_hash(), signature) == to_bytes(ADDRESS)
    with pytest.raises(SignerRefused, match="authorised signer"):
        BOTH.opening(DELEGATED, deposit=50_000).sign_transaction(opening().encode_for_signing())
    tx = on_channel(calls.encode_withdraw(record.descriptor))
    signature = BOTH.withdrawing(record).sign_transaction(tx.encode_for_signing())
    assert recover(tx.signing_hash(), signature) == to_bytes(ADDRESS)


def test_channels_of_one_key_are_not_those_of_two() -> None:
    with pytest.raises(SignerRefused, match=f"signer is {ADDRESS}, not {OTHER_ADDRESS}"):
        BOTH.sign_voucher(V2.digest_for(ours(), 7), ours(), 7)
    with pytest.raises(SignerRefused, match="voucher signer"):
        BOTH.opening(scope(), deposit=1)
    with pytest.raises(SignerRefused, match=f"signer is {OTHER_ADDRESS}, not {ADDRESS}"):
        SIGNER.sign_voucher(V2.digest_for(delegated(), 7), delegated(), 7)


def test_the_voucher_key_alone_signs_vouchers() -> None:
    assert (VOUCHERS_ONLY.address, VOUCHERS_ONLY.voucher_signer) == (ADDRESS, OTHER_ADDRESS)
    assert not VOUCHERS_ONLY.signs_transactions
    record = delegated()
    digest = V2.digest_for(record, 7)
    assert VOUCHERS_ONLY.sign_voucher(digest, record, 7) == BOTH.sign_voucher(digest, record, 7)


@pytest.mark.parametrize(
    ("announce", "what"),
    [
        (lambda signer: signer.opening(DELEGATED, deposit=50_000), "an opening"),
        (lambda signer: signer.topping_up(delegated(), amount=7), "a top-up"),
        (lambda signer: signer.requesting_close(delegated()), "a close request"),
        (lambda signer: signer.withdrawing(delegated()), "a withdrawal"),
    ],
)
def test_the_voucher_key_alone_moves_no_deposit(announce: Callable[[Signer], object], what: str) -> None:
    announce(BOTH)
    with pytest.raises(SignerRefused, match=f"{what} needs the key of the payer {ADDRESS}"):
        announce(VOUCHERS_ONLY)


def test_it_signs_for_one_payer_only() -> None:
    record = delegated(scope=replace(DELEGATED, payer=THIRD_ADDRESS))
    for signer in (BOTH, VOUCHERS_ONLY):
        with pytest.raises(SignerRefused, match=f"payer is {THIRD_ADDRESS}"):
            signer.sign_voucher(V2.digest_for(record, 7), record, 7)


def test_a_payer_that_signs_its_own_vouchers_is_no_other_case() -> None:
    signer = Signer.of_vouchers(to_bytes(KEY), payer=ADDRESS)
    assert signer.signs_transactions
    assert Signer.from_hex(KEY, KEY).voucher_signer == ADDRESS
    for wrong in ("", "me", OTHER_KEY):
        with pytest.raises(ValueError, match="payer"):
            Signer.of_vouchers(to_bytes(OTHER_KEY), payer=wrong)
    with pytest.raises(KeyRejected):
        Signer.of_vouchers(b"short", payer=ADDRESS)
    with pytest.raises(KeyRejected):
        Signer.from_hex(KEY, "short")
