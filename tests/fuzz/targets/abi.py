"""Bytes of contracts and transactions; the first byte says which reader.

- Nothing but ``ValueError`` is raised, and its words can go to a log.
- What is read and written again gives the very same bytes: no padding, no second form, nothing left over.
- Amounts fit their integer types.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy_addon.methods import abi, tempo_tx
from proxy_addon.methods.tempo_session import calls, v1_calls
from proxy_addon.methods.tempo_session.events import parse_closed
from store.amounts import UINT96_MAX, UINT128_MAX
from tests.fuzz import samples
from tests.fuzz.oracle import amount, loggable, lower_hex
from tests.fuzz.target import Target


def reserve_state(data: bytes) -> None:
    state = calls.parse_state(data)
    amount(state.deposit, UINT96_MAX)
    amount(state.settled, state.deposit)
    amount(state.close_requested_at, 2**32 - 1)
    assert data == b"".join(
        (abi.uint_word(state.settled), abi.uint_word(state.deposit), abi.uint_word(state.close_requested_at))
    )


def stored_channel(data: bytes) -> None:
    found = v1_calls.parse_channel(data)
    amount(found.deposit)
    amount(found.settled, found.deposit)
    amount(found.close_requested_at, 2**64 - 1)
    for address in (found.payer, found.payee, found.token, found.authorized_signer):
        lower_hex(address, 20)
    assert type(found.is_open) is bool


def closed(data: bytes) -> None:
    event = parse_closed(data, 96)
    amount(event.captured, UINT96_MAX)
    amount(event.refunded, UINT96_MAX)
    assert data == abi.uint_word(event.captured) + abi.uint_word(event.refunded)


def opening(data: bytes) -> None:
    call = calls.parse_open(data)
    amount(call.deposit, UINT96_MAX)
    assert call.encode() == data


def v1_opening(data: bytes) -> None:
    call = v1_calls.parse_open(data)
    amount(call.deposit, UINT128_MAX)
    assert call.encode() == data


def top_up(data: bytes) -> None:
    descriptor, added = calls.parse_top_up(data)
    assert calls.parse_descriptor(descriptor) == descriptor
    assert calls.encode_top_up(descriptor, added) == data


def v1_top_up(data: bytes) -> None:
    assert v1_calls.encode_top_up(*v1_calls.parse_top_up(data)) == data


def steps(data: bytes) -> None:
    if data[:4] == calls.WITHDRAW:
        assert calls.encode_withdraw(calls.parse_withdraw(data)) == data
    elif data[:4] == v1_calls.WITHDRAW:
        assert v1_calls.encode_withdraw(v1_calls.parse_withdraw(data)) == data
    elif data[:4] == v1_calls.REQUEST_CLOSE:
        assert v1_calls.encode_request_close(v1_calls.parse_request_close(data)) == data
    elif data[:4] == v1_calls.APPROVE:
        assert v1_calls.encode_approve(*v1_calls.parse_approve(data)) == data
    else:
        assert calls.encode_request_close(calls.parse_request_close(data)) == data


def signed(data: bytes) -> None:
    found = tempo_tx.decode(data)
    assert len(found.sender) == 20
    if found.sponsor_signature is None and not (found.transaction.sponsored and found.transaction.fee_token):
        assert found.transaction.encode_signed(found.signature) == data
    assert tempo_tx.decode(found.transaction.encode_signed(found.signature)).sender == found.sender


def unsigned(data: bytes) -> None:
    assert tempo_tx.decode_for_signing(data).encode_for_signing() == data


def signature(data: bytes) -> None:
    assert len(tempo_tx.recover(data[:32].ljust(32, b"\0"), data[32:])) == 20


READERS: dict[bytes, Callable[[bytes], None]] = {
    b"S": reserve_state,
    b"C": stored_channel,
    b"E": closed,
    b"O": opening,
    b"o": v1_opening,
    b"T": top_up,
    b"t": v1_top_up,
    b"W": steps,
    b"X": signed,
    b"U": unsigned,
    b"R": signature,
}


def one_input(data: bytes) -> None:
    reader = READERS.get(data[:1])
    if reader is None:
        return
    try:
        reader(data[1:])
    except ValueError as error:
        loggable(str(error))


def seeds() -> dict[str, bytes]:
    words = {
        "state": b"S" + abi.uint_word(20_000) + abi.uint_word(50_000) + abi.uint_word(0),
        "closed": b"E" + abi.uint_word(20_000) + abi.uint_word(30_000),
        "stored": b"C"
        + abi.uint_word(0)
        + abi.uint_word(1_795_420_000)
        + b"".join(abi.address_word(samples.VECTORS[name]) for name in ("payer", "payee", "token", "payer"))
        + abi.uint_word(50_000)
        + abi.uint_word(20_000),
    }
    v1 = samples.VECTORS["v1_openings"][0]
    descriptor, v1_id = samples.OPENING["descriptor"], v1["channel_id"]
    transactions = {
        "open": b"O" + abi.to_bytes(samples.OPENING["call"]),
        "signed": b"X" + abi.to_bytes(samples.OPENING["transaction"]),
        "sponsored": b"X"
        + abi.to_bytes(next(one["transaction"] for one in samples.VECTORS["openings"] if one["sponsored"])),
        "v1_signed": b"X" + abi.to_bytes(v1["transaction"]),
        "unsigned": b"U" + abi.to_bytes(samples.OPENING["signing_payload"]),
        "signature": b"R"
        + abi.to_bytes(samples.VOUCHER["digest"])
        + abi.to_bytes(samples.VOUCHER["signature"]),
    }
    made = {
        "v1_open": b"o" + v1_call(v1["transaction"]),
        "top_up": b"T" + calls.encode_top_up(descriptor, 30_000),
        "v1_top_up": b"t" + v1_calls.encode_top_up(v1_id, 30_000),
        "withdraw": b"W" + calls.encode_withdraw(descriptor),
        "v1_request_close": b"W" + v1_calls.encode_request_close(v1_id),
        "approve": b"W" + v1_calls.encode_approve(samples.VECTORS["v1_escrow"], 50_000),
    }
    return words | transactions | made


def v1_call(transaction: str) -> bytes:
    return tempo_tx.decode(abi.to_bytes(transaction)).transaction.calls[-1].data


TARGET = Target(
    one_input,
    seeds,
    words=(
        *READERS,
        *(
            b"\0" * 32,
            b"\xff" * 12,
            b"\0" * 12,
            b"\x76",
            b"\xf9\x01",
            b"\xc0",
            b"\x80",
            b"\xb8\x41",
            b"\x1b",
            b"\x1c",
        ),
        *(calls.OPEN, calls.WITHDRAW, v1_calls.WITHDRAW, v1_calls.APPROVE, b"\xf8", b"\xff\xff\xff\xff"),
    ),
)
