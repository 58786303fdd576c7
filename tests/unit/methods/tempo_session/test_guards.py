"""What the signer reads in a transaction before it signs it: any deviation is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.tempo_session import calls
from proxy_addon.methods.tempo_session.guards import Guard
from proxy_addon.methods.tempo_session.guards_v2 import V2_GUARDS as V2
from proxy_addon.methods.tempo_session.voucher import CODECS
from proxy_addon.methods.tempo_tx import Call, TempoTransaction
from proxy_addon.signer import GUARDS
from store.records import Channel
from tests.unit.methods.samples import OTHER_ADDRESS, RESERVE, TOKEN, descriptor, ours, scope

OTHER = "0x" + "99" * 20
FOREIGN = descriptor(salt="0x" + "99" * 32)

TOP_UP = calls.encode_top_up(descriptor(), 7)
REQUEST = calls.encode_request_close(descriptor())
WITHDRAW = calls.encode_withdraw(descriptor())


def transaction(*data: bytes, to: str = RESERVE, value: int = 0, **changes: Any) -> TempoTransaction:
    fields: dict[str, Any] = {
        "chain_id": 42431,
        "gas_limit": 500_000,
        "max_fee_per_gas": 41_000_000_000,
        "calls": tuple(Call(to_bytes(to), one, value) for one in data),
        "valid_before": 1_795_420_025,
        "fee_token": to_bytes(TOKEN),
    }
    return TempoTransaction(**(fields | changes))


def guards() -> dict[str, tuple[Guard, bytes]]:
    return {
        "a top-up": (V2.top_up(ours(), 7, False), TOP_UP),
        "a close request": (V2.request_close(ours()), REQUEST),
        "a withdrawal": (V2.withdraw(ours()), WITHDRAW),
    }


def refuse(guard: Guard, tx: TempoTransaction, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        guard.check(tx.encode_for_signing())


@pytest.mark.parametrize("what", guards())
def test_what_was_announced_passes(what: str) -> None:
    guard, data = guards()[what]
    guard.check(transaction(data).encode_for_signing())
    assert guard.what == what


@pytest.mark.parametrize("what", guards())
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"chain_id": 1}, "chain is 1"),
        ({"to": OTHER}, f"target is {OTHER}"),
        ({"value": 1}, "value"),
        ({"nonce_key": 0}, "nonce key"),
        ({"sponsored": True, "fee_token": None}, "sponsorship"),
        ({"fee_token": None}, "fee token"),
        ({"fee_token": to_bytes(OTHER)}, "fee token"),
    ],
)
def test_another_envelope_is_refused(what: str, changes: dict[str, Any], complaint: str) -> None:
    guard, data = guards()[what]
    refuse(guard, transaction(data, **changes), f"{what} whose {complaint}")


@pytest.mark.parametrize("what", guards())
def test_one_call_and_no_other(what: str) -> None:
    guard, data = guards()[what]
    refuse(guard, transaction(data, data), "number of calls is 2, not 1")
    for wrong in {TOP_UP, REQUEST, WITHDRAW, b"", b"\xa9\x05\x9c\xbb" + bytes(64)} - {data}:
        refuse(guard, transaction(wrong), "not a .* call")


@pytest.mark.parametrize("payload", [b"", b"\x19\x01" + bytes(64), b"\x76\xc0"])
def test_only_a_transaction_is_read(payload: bytes) -> None:
    for guard, _ in guards().values():
        with pytest.raises(ValueError, match=r"not a Tempo transaction|13 fields"):
            guard.check(payload)


def test_another_channels_descriptor_is_refused() -> None:
    for guard, data in (
        (V2.top_up(ours(), 7, False), calls.encode_top_up(FOREIGN, 7)),
        (V2.request_close(ours()), calls.encode_request_close(FOREIGN)),
        (V2.withdraw(ours()), calls.encode_withdraw(FOREIGN)),
    ):
        refuse(guard, transaction(data), "whose descriptor is")


def records_that_contradict_themselves() -> dict[str, Channel]:
    """Records whose descriptor was changed after the fact: the call matches it, the rest does not."""
    return {
        "payer": ours(descriptor=descriptor(payer=OTHER_ADDRESS)),
        "payee": ours(descriptor=descriptor(payee=OTHER_ADDRESS)),
        "token": ours(descriptor=descriptor(token=OTHER_ADDRESS)),
        "channel": ours(channel_id="0x" + "c1" * 32),
    }


@pytest.mark.parametrize("name", records_that_contradict_themselves())
def test_a_record_that_contradicts_itself_moves_nothing(name: str) -> None:
    record = records_that_contradict_themselves()[name]
    tx = transaction(calls.encode_top_up(record.descriptor, 7))
    refuse(V2.top_up(record, 7, False), tx, f"whose {name} is")


@settings(deadline=None)
@given(meant=st.integers(1, 2**96 - 1), found=st.integers(0, 2**96 - 1))
def test_exactly_the_amount(meant: int, found: int) -> None:
    guard = V2.top_up(ours(), meant, False)
    payload = transaction(calls.encode_top_up(descriptor(), found)).encode_for_signing()
    if meant == found:
        guard.check(payload)
    else:
        with pytest.raises(ValueError, match=f"additional deposit is {found}, not {meant}"):
            guard.check(payload)


@settings(deadline=None)
@given(st.data())
def test_no_flipped_byte_of_the_calls_passes(data: st.DataObject) -> None:
    what = data.draw(st.sampled_from(sorted(guards())))
    guard, call = guards()[what]
    changed = bytearray(call)
    changed[data.draw(st.integers(0, len(call) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"whose|not|fit"):
        guard.check(transaction(bytes(changed)).encode_for_signing())


def test_a_sponsored_top_up_is_announced_as_one() -> None:
    guard = V2.top_up(ours(), 7, True)
    guard.check(transaction(TOP_UP, sponsored=True, fee_token=None).encode_for_signing())
    refuse(guard, transaction(TOP_UP), "sponsorship")


def test_whatever_can_be_signed_has_a_channel_that_can_be_guarded() -> None:
    assert set(GUARDS) <= set(CODECS)
    assert to_hex(to_bytes(scope().escrow)) == RESERVE
