"""What the signer reads in a transaction before it signs it: any deviation is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.tempo_session import calls, v1_calls
from proxy_addon.methods.tempo_session.guards import Guard
from proxy_addon.methods.tempo_session.guards_v1 import V1_GUARDS
from proxy_addon.methods.tempo_session.guards_v2 import V2_GUARDS
from proxy_addon.methods.tempo_session.voucher import CODECS
from proxy_addon.methods.tempo_tx import Call, TempoTransaction
from proxy_addon.signer import GUARDS
from store.records import Channel
from tests.unit.methods.samples import (
    OTHER_ADDRESS,
    PAYEE,
    RESERVE,
    SALT,
    TOKEN,
    V1_ESCROW,
    ZERO,
    descriptor,
    ours,
    scope,
    v1_descriptor,
    v1_ours,
    v1_scope,
)

OTHER = "0x" + "99" * 20
FOREIGN = "0x" + "99" * 32


def call(to: str, data: bytes) -> Call:
    return Call(to_bytes(to), data)


def approval(amount: int = 7, spender: str = V1_ESCROW) -> Call:
    return call(TOKEN, v1_calls.encode_approve(spender, amount))


V1_OPEN = v1_calls.OpenCall(PAYEE, TOKEN, 7, "0x" + SALT.hex(), ZERO)
V1_ID = v1_ours().channel_id


@dataclass(frozen=True)
class Case:
    guard: Guard
    calls: tuple[Call, ...]


def v1(data: bytes, *before: Call) -> tuple[Call, ...]:
    return (*before, call(V1_ESCROW, data))


def v2(data: bytes) -> tuple[Call, ...]:
    return (call(RESERVE, data),)


CASES = {
    "v2 top-up": Case(V2_GUARDS.top_up(ours(), 7, False), v2(calls.encode_top_up(descriptor(), 7))),
    "v2 request": Case(V2_GUARDS.request_close(ours()), v2(calls.encode_request_close(descriptor()))),
    "v2 withdrawal": Case(V2_GUARDS.withdraw(ours()), v2(calls.encode_withdraw(descriptor()))),
    "v1 opening": Case(V1_GUARDS.opening(v1_scope(), 7, False), v1(V1_OPEN.encode(), approval())),
    "v1 top-up": Case(
        V1_GUARDS.top_up(v1_ours(), 7, False), v1(v1_calls.encode_top_up(V1_ID, 7), approval())
    ),
    "v1 request": Case(V1_GUARDS.request_close(v1_ours()), v1(v1_calls.encode_request_close(V1_ID))),
    "v1 withdrawal": Case(V1_GUARDS.withdraw(v1_ours()), v1(v1_calls.encode_withdraw(V1_ID))),
}
MOVING = ("v1 opening", "v1 top-up")


def payload(parts: Sequence[Call], **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "chain_id": 42431,
        "gas_limit": 500_000,
        "max_fee_per_gas": 41_000_000_000,
        "calls": tuple(parts),
        "valid_before": 1_795_420_025,
        "fee_token": to_bytes(TOKEN),
    }
    return TempoTransaction(**(fields | changes)).encode_for_signing()


def refuse(guard: Guard, parts: Sequence[Call], complaint: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=complaint):
        guard.check(payload(parts, **changes))


@pytest.mark.parametrize("name", CASES)
def test_what_was_announced_passes(name: str) -> None:
    case = CASES[name]
    case.guard.check(payload(case.calls))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"chain_id": 1}, "chain is 1"),
        ({"nonce_key": 0}, "nonce key"),
        ({"sponsored": True, "fee_token": None}, "sponsorship"),
        ({"fee_token": None}, "fee token"),
        ({"fee_token": to_bytes(OTHER)}, "fee token"),
    ],
)
def test_another_envelope_is_refused(name: str, changes: dict[str, Any], complaint: str) -> None:
    case = CASES[name]
    refuse(case.guard, case.calls, f"{case.guard.what} whose {complaint}", **changes)


@pytest.mark.parametrize("name", CASES)
def test_another_target_or_a_value_is_refused(name: str) -> None:
    case = CASES[name]
    for at, one in enumerate(case.calls):
        for wrong, complaint in (
            (replace(one, to=to_bytes(OTHER)), f"target is {OTHER}"),
            (replace(one, value=1), "value is 1"),
        ):
            refuse(case.guard, [*case.calls[:at], wrong, *case.calls[at + 1 :]], complaint)


@pytest.mark.parametrize("name", CASES)
def test_these_calls_and_no_others(name: str) -> None:
    case = CASES[name]
    refuse(case.guard, [*case.calls, *case.calls], "number of calls")
    refuse(case.guard, [*case.calls, approval()], "number of calls")
    if len(case.calls) > 1:
        refuse(case.guard, case.calls[:1], "number of calls")
        refuse(case.guard, case.calls[1:], "not an approve call")
        refuse(case.guard, case.calls[::-1], "not an approve call")
    for other in CASES.values():
        if other is not case and other.calls[-1] != case.calls[-1]:
            refuse(case.guard, [*case.calls[:-1], other.calls[-1]], r"not an? .* call|has .* bytes")
    for wrong in (b"", b"\xa9\x05\x9c\xbb" + bytes(64)):
        refuse(case.guard, [*case.calls[:-1], replace(case.calls[-1], data=wrong)], "not an? ")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("data", [b"", b"\x19\x01" + bytes(64), b"\x76\xc0"])
def test_only_a_transaction_is_read(name: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a Tempo transaction|13 fields"):
        CASES[name].guard.check(data)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_flipped_byte_of_the_calls_passes(data: st.DataObject) -> None:
    case = CASES[data.draw(st.sampled_from(sorted(set(CASES) - {"v1 opening"})))]
    at = data.draw(st.integers(0, len(case.calls) - 1))
    changed = bytearray(case.calls[at].data)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    parts = [*case.calls[:at], replace(case.calls[at], data=bytes(changed)), *case.calls[at + 1 :]]
    refuse(case.guard, parts, r"whose|not|fit")


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        (approval(8), "approved amount is 8, not 7"),
        (approval(2**256 - 1), "approved amount"),
        (approval(spender=OTHER), "approved spender"),
    ],
)
def test_an_approval_is_of_exactly_as_much_to_the_escrow(name: str, first: Call, complaint: str) -> None:
    case = CASES[name]
    refuse(case.guard, [first, *case.calls[1:]], complaint)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"payee": OTHER}, "payee"),
        ({"token": OTHER}, "token"),
        ({"deposit": 8}, "deposit is 8, not 7"),
        ({"authorized_signer": OTHER}, "authorised signer"),
    ],
)
def test_a_v1_opening_does_what_its_scope_says(changes: dict[str, Any], complaint: str) -> None:
    opening = replace(V1_OPEN, **changes)
    refuse(CASES["v1 opening"].guard, v1(opening.encode(), approval()), complaint)


def test_a_signer_of_its_own_is_announced() -> None:
    guard = V1_GUARDS.opening(v1_scope(voucher_signer=OTHER_ADDRESS), 7, False)
    guard.check(payload(v1(replace(V1_OPEN, authorized_signer=OTHER_ADDRESS).encode(), approval())))
    refuse(guard, v1(V1_OPEN.encode(), approval()), "authorised signer")


def test_another_channel_is_refused() -> None:
    other = descriptor(salt=FOREIGN)
    for name, data in (
        ("v2 top-up", calls.encode_top_up(other, 7)),
        ("v2 request", calls.encode_request_close(other)),
        ("v2 withdrawal", calls.encode_withdraw(other)),
    ):
        refuse(CASES[name].guard, v2(data), "whose descriptor is")
    for name, parts in (
        ("v1 top-up", v1(v1_calls.encode_top_up(FOREIGN, 7), approval())),
        ("v1 request", v1(v1_calls.encode_request_close(FOREIGN))),
        ("v1 withdrawal", v1(v1_calls.encode_withdraw(FOREIGN))),
    ):
        refuse(CASES[name].guard, parts, f"whose channel is {FOREIGN}")


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "payer": {"payer": OTHER_ADDRESS},
    "payee": {"payee": OTHER_ADDRESS},
    "token": {"token": OTHER_ADDRESS},
}


@pytest.mark.parametrize("name", [*CONTRADICTIONS, "channel"])
def test_a_record_that_contradicts_itself_moves_nothing(name: str) -> None:
    """The call matches the record's descriptor, or its id; the rest of the record does not."""
    if name == "channel":
        second, first = ours(channel_id=FOREIGN), v1_ours(channel_id=FOREIGN)
    else:
        second = ours(descriptor=descriptor(**CONTRADICTIONS[name]))
        first = v1_ours(descriptor=v1_descriptor(**CONTRADICTIONS[name]))
    refuse(V2_GUARDS.top_up(second, 7, False), v2(calls.encode_top_up(second.descriptor, 7)), f"whose {name}")
    refuse(
        V1_GUARDS.top_up(first, 7, False),
        v1(v1_calls.encode_top_up(first.channel_id, 7), approval()),
        f"whose {name}",
    )


@settings(deadline=None)
@given(meant=st.integers(1, 2**96 - 1), found=st.integers(0, 2**96 - 1))
def test_exactly_the_amount(meant: int, found: int) -> None:
    pairs: list[tuple[Guard, tuple[Call, ...]]] = [
        (V2_GUARDS.top_up(ours(), meant, False), v2(calls.encode_top_up(descriptor(), found))),
        (
            V1_GUARDS.top_up(v1_ours(), meant, False),
            v1(v1_calls.encode_top_up(V1_ID, found), approval(meant)),
        ),
    ]
    for guard, parts in pairs:
        if meant == found:
            guard.check(payload(parts))
        else:
            refuse(guard, parts, f"additional deposit is {found}, not {meant}")


@pytest.mark.parametrize(
    ("guard", "parts"),
    [
        (V2_GUARDS.top_up(ours(), 7, True), CASES["v2 top-up"].calls),
        (V1_GUARDS.top_up(v1_ours(), 7, True), CASES["v1 top-up"].calls),
        (V1_GUARDS.opening(v1_scope(), 7, True), CASES["v1 opening"].calls),
    ],
)
def test_a_sponsored_transaction_is_announced_as_one(guard: Guard, parts: tuple[Call, ...]) -> None:
    guard.check(payload(parts, sponsored=True, fee_token=None))
    refuse(guard, parts, "sponsorship")


def test_whose_vouchers_can_be_signed_can_be_opened_and_closed_by_force() -> None:
    assert set(GUARDS) == set(CODECS)


def test_a_descriptor_without_its_fields_moves_nothing() -> None:
    record: Channel = v1_ours(channel_id=V1_ID, descriptor=v1_descriptor())
    broken = replace(record, descriptor={"payer": scope().payer})
    refuse(V1_GUARDS.withdraw(broken), CASES["v1 withdrawal"].calls, "descriptor.payee")
