from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.tempo_session import calls
from proxy_addon.methods.tempo_session.calls import OpenCall
from proxy_addon.methods.tempo_session.voucher import V1, V2
from proxy_addon.methods.tempo_tx import SECP256K1_ORDER, Call, TempoTransaction, recover
from proxy_addon.signer import GuardedSigner, KeyRejected, Signer, SignerRefused, parse_key
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
    channel,
    descriptor,
    ours,
    pending,
    scope,
)

S = ChannelStatus
SIGNER = Signer.from_hex(KEY)
SECRET = KEY[2:]


def voucher(record: Channel, amount: int) -> bytes:
    return SIGNER.sign_voucher(V2.digest_for(record, amount), record, amount)


# ---------------------------------------------------------------- vouchers


@settings(deadline=None)
@given(
    amount=st.integers(-5, 120),
    authorised=st.integers(0, 100),
    deposit=st.integers(0, 100),
    close_amount=st.none() | st.integers(0, 100),
    opening=st.booleans(),
    status=st.sampled_from(S),
)
def test_only_what_the_record_authorises_is_signed(
    amount: int, authorised: int, deposit: int, close_amount: int | None, opening: bool, status: ChannelStatus
) -> None:
    record = channel(
        status=status,
        authorised=authorised,
        deposit=0 if opening else deposit,
        pending=pending(deposit=deposit) if opening else None,
        close_amount=close_amount,
    )
    allowed = (
        status in {S.PROPOSED, S.SENT, S.UNKNOWN, S.OPEN, S.DRAINING, S.CLOSING}
        and 0 < amount <= min(authorised, deposit)
        and (status is not S.CLOSING or (close_amount is not None and amount <= close_amount))
    )
    digest = V2.digest_for(record, max(amount, 0))
    if not allowed:
        with pytest.raises(SignerRefused, match=record.channel_id):
            SIGNER.sign_voucher(digest, record, amount)
        return
    signature = SIGNER.sign_voucher(digest, record, amount)
    assert recover(digest, signature) == to_bytes(ADDRESS)


def test_the_same_amount_always_gives_the_same_signature() -> None:
    assert voucher(channel(), 5) == voucher(channel(), 5) != voucher(channel(), 6)


@pytest.mark.parametrize(
    "digest",
    [
        V2.digest_for(channel(), 9_999),
        V2.digest_for(channel(channel_id="0x" + "c2" * 32), 10_000),
        V2.digest_for(channel(scope=scope(chain="eip155:1")), 10_000),
        V1.digest_for(channel(), 10_000),
        bytes(32),
        b"",
    ],
)
def test_a_digest_of_something_else_is_not_signed(digest: bytes) -> None:
    with pytest.raises(SignerRefused, match="digest"):
        SIGNER.sign_voucher(digest, channel(), 10_000)


def test_vouchers_of_another_signer_are_not_ours_to_sign() -> None:
    record = channel(scope=scope(voucher_signer=OTHER_ADDRESS))
    with pytest.raises(SignerRefused, match=OTHER_ADDRESS):
        voucher(record, 1)


def test_vouchers_of_another_payer_are_not_ours_to_sign() -> None:
    record = channel(scope=scope(payer=OTHER_ADDRESS))
    with pytest.raises(SignerRefused, match=f"payer is {OTHER_ADDRESS}"):
        voucher(record, 1)


def test_an_unknown_family_is_not_signed() -> None:
    record = channel(scope=scope(family="somebody-else"))
    with pytest.raises(SignerRefused, match="somebody-else/v2"):
        voucher(record, 1)


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
        voucher(delegated(), 7)


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


# ---------------------------------------------------------------- the key


@pytest.mark.parametrize("key", [KEY, KEY[2:], f"  {KEY}\n", OTHER_KEY])
def test_a_key_gives_the_address_of_eth_account(key: str) -> None:
    signer = Signer.from_hex(key)
    assert signer.address == signer.voucher_signer == Account.from_key(key.strip()).address.lower()


BAD_KEYS = [
    "",
    "0x",
    SECRET[:-1],
    SECRET + "0",
    "0x" + "zz" * 32,
    "00" * 32,
    f"{SECP256K1_ORDER:064x}",
    "ff" * 32,
    "a b" * 21 + "c",
]


@pytest.mark.parametrize("text", BAD_KEYS)
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(KeyRejected) as caught:
        Signer.from_hex(text)
    shown = "".join(traceback.format_exception(caught.value))
    assert len(text) < 8 or text not in shown


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(KeyRejected):
        Signer(b"\x01" * 31)
    assert parse_key(KEY) == bytes.fromhex(SECRET)


def _forms_of_the_key() -> list[str]:
    raw = bytes.fromhex(SECRET)
    return [SECRET, repr(raw), str(list(raw)), str(int(SECRET, 16)), repr(bytearray(raw))]


def _assert_hidden(text: str) -> None:
    for form in _forms_of_the_key():
        assert form.lower() not in text.lower()


@pytest.mark.parametrize("render", [repr, str, "{}".format])
def test_no_rendering_shows_the_key(render: Callable[[object], str]) -> None:
    signer = Signer.from_hex(KEY)
    opener = signer.opening(scope(), deposit=50_000)
    for thing in (signer, opener):
        _assert_hidden(render(thing))
        assert ADDRESS in render(thing)
    for thing in (BOTH, VOUCHERS_ONLY):
        _assert_hidden(render(thing))
        assert OTHER_KEY[2:] not in render(thing)
        assert ADDRESS in render(thing)
        assert OTHER_ADDRESS in render(thing)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_signer_does_not_leave(take: Callable[[object], object]) -> None:
    signer = Signer.from_hex(KEY)
    for thing in (signer, signer.opening(scope(), deposit=1)):
        with pytest.raises(TypeError, match="never pickled"):
            take(thing)


def test_no_traceback_shows_the_key_even_with_local_variables() -> None:
    signer = Signer.from_hex(KEY)
    attempts: list[Callable[[], object]] = [
        lambda: signer.sign_voucher(bytes(32), channel(), 1),
        lambda: signer.sign_voucher(bytes(32), replace(channel(), status=S.ASIDE), 1),
        lambda: signer.opening(scope(), deposit=1).sign_transaction(opening().encode_for_signing()),
        lambda: signer._sign(b"not a digest"),
    ]
    for attempt in attempts:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it shows nothing
            attempt()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        _assert_hidden("".join(shown.format()))


def test_it_does_not_start_without_its_backend() -> None:
    program = "import sys; sys.modules['coincurve'] = None; import proxy_addon.signer"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "coincurve" in ended.stderr


def test_signing_does_not_load_eth_account() -> None:
    program = "import sys, proxy_addon.signer, proxy_addon.keystore; sys.exit('eth_account' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
