from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.tempo_session.voucher import V1, V2
from proxy_addon.methods.tempo_tx import SECP256K1_ORDER, recover
from proxy_addon.signer import KeyRejected, Signer, SignerRefused, parse_key
from store.lifecycle import ChannelStatus
from store.records import Channel
from tests.unit.methods.samples import (
    ADDRESS,
    KEY,
    OTHER_ADDRESS,
    OTHER_KEY,
    channel,
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


@pytest.mark.parametrize(("close_amount", "amount"), [(5, 6), (None, 1)])
def test_while_closing_no_more_than_the_close_amount_is_signed(close_amount: int | None, amount: int) -> None:
    record = channel(status=S.CLOSING, close_amount=close_amount)
    with pytest.raises(SignerRefused, match=f"closing with {close_amount}"):
        voucher(record, amount)
    if close_amount:
        voucher(record, close_amount)


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
    for thing in (Signer.from_hex(KEY, OTHER_KEY), Signer.of_vouchers(to_bytes(OTHER_KEY), payer=ADDRESS)):
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
        lambda: signer.opening(scope(), deposit=1).sign_transaction(b"\x76\xc0"),
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
