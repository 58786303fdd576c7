"""Versioned bytes ↔ records. An unknown version is refused, never guessed; damage is told from both.

One record is ``format (1 byte) ‖ CRC-32 of the rest (4 bytes) ‖ JSON``. The JSON names the fields of a
channel (a store should be readable with nothing but a dump), holds and other small rows go by position.
Integers that fit 64 bits are JSON numbers, larger ones decimal strings. Equal values, with equal order in
their mappings, give equal bytes.

A change of any record in `records` that moves a field is a new format; its number goes into `FORMAT`, and the old
one stays readable.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, Literal, NoReturn

import orjson

from store.amounts import UINT128_MAX
from store.contract import UnknownVersion
from store.lifecycle import ChannelStatus
from store.records import Channel, CounterMove, Hold, JournalMark, PaymentScope, PendingTransaction

FORMAT: Final = 1
WITH_RESERVE: Final = 2
"""Of channel records: one has ``reserved``, and is written so only if it has. The one before reads as 0."""
_HEADER_BYTES: Final = 5

_INT64_MIN: Final = -(2**63)
_UINT64_MAX: Final = 2**64 - 1

_SCOPE_FIELDS: Final = tuple(field.name for field in fields(PaymentScope))
_STRINGS: Final = ("channel_id", "resource", "note")
_INTEGERS: Final = (
    *("epoch", "authorised", "paid", "uncertain", "eligible_at", "held", "accepted", "deposit", "settled"),
    *("seq", "min_delta", "delta_strikes", "clean_needed", "bad_rows", "bad_row_at", "fees"),
    *("opened_at", "updated_at"),
)
_OPTIONAL_INTEGERS: Final = ("close_amount", "captured", "refunded")
_SPECIAL: Final = (
    *(
        "scope",
        "descriptor",
        "status",
        "owner",
        "holds",
        "equal_refused",
        "pending",
        "folded",
        "transactions",
        "reserved",
    ),
)
_FIELDS: Final = frozenset((*_STRINGS, *_INTEGERS, *_OPTIONAL_INTEGERS, *_SPECIAL))
_PLAIN: Final = (*_STRINGS, *_INTEGERS, *_OPTIONAL_INTEGERS, "owner", "equal_refused")
_plain_of: Final = attrgetter(*_PLAIN)
_scope_of: Final = attrgetter(*_SCOPE_FIELDS)
_hold_of: Final = attrgetter(*(field.name for field in fields(Hold)))
_HOLD_FIELDS: Final = len(fields(Hold))

if (
    frozenset(field.name for field in fields(Channel)) != _FIELDS
):  # a field that no codec writes is lost money
    raise TypeError("store.codec does not cover the fields of store.records.Channel")

_STATUS: Final[dict[object, ChannelStatus]] = {status.value: status for status in ChannelStatus}


def encode_channel(channel: Channel) -> bytes:
    """The record's bytes. Raises ``ValueError`` for what could not be read back as it was: an integer beyond 128
    bits, text that is not Unicode, holds filed under an id that is not their own."""
    record: dict[str, object] = dict(zip(_PLAIN, _plain_of(channel), strict=True))
    record["scope"] = _scope_of(channel.scope)
    record["descriptor"] = dict(channel.descriptor)
    record["status"] = channel.status.value
    holds = channel.holds
    record["holds"] = [_hold_of(hold) for hold in holds.values()]
    if any(key != hold.request_id for key, hold in holds.items()):
        raise ValueError(f"channel {channel.channel_id}: a hold is filed under another request's id")
    pending = channel.pending
    record["pending"] = None if pending is None else _pending_record(pending)
    mark = channel.folded
    record["folded"] = None if mark is None else (mark.journal, mark.line, mark.boot_id)
    record["transactions"] = channel.transactions
    version = FORMAT
    if channel.reserved:
        record["reserved"], version = channel.reserved, WITH_RESERVE
    return seal(_dump(record, f"channel {channel.channel_id}"), version)


def decode_channel(data: bytes) -> Channel:
    """The record that `encode_channel` wrote. Raises `UnknownVersion`, and nothing else, for any other bytes."""
    payload = unseal(data, "channel record", (FORMAT, WITH_RESERVE))
    try:
        return _channel(orjson.loads(payload), with_reserve=data[0] == WITH_RESERVE)
    except (ValueError, TypeError, KeyError) as error:
        _damaged("channel record", str(error), error)


def encode_int(value: int) -> bytes:
    """A counter's bytes. Raises ``ValueError`` beyond 128 bits."""
    if not -UINT128_MAX <= value <= UINT128_MAX:
        raise ValueError(f"a counter of {value.bit_length()} bits: a store keeps up to 128 bits")
    return seal(b"%d" % value)


def decode_int(data: bytes) -> int:
    """The counter that `encode_int` wrote. Raises `UnknownVersion`, and nothing else, for any other bytes."""
    payload = unseal(data, "counter")
    try:
        value = int(payload)
    except ValueError as error:
        _damaged("counter", "not a number", error)
    if b"%d" % value != payload or not -UINT128_MAX <= value <= UINT128_MAX:
        _damaged("counter", "not a plain number within 128 bits")
    return value


def seal(payload: bytes, version: int = FORMAT) -> bytes:
    """`payload` as everything in the store is written: with its format and its checksum."""
    return bytes((version,)) + zlib.crc32(payload, version).to_bytes(4) + payload


def unseal(data: bytes, what: str, versions: tuple[int, ...] = (FORMAT,)) -> bytes:
    """What `seal` was given. Raises `UnknownVersion` for any other bytes."""
    if len(data) < _HEADER_BYTES:
        _damaged(what, f"only {len(data)} bytes")
    if data[0] not in versions:
        raise UnknownVersion(
            f"a {what} in the store is of format {data[0]}; this bursar reads format {max(versions)}."
            " Nothing was changed. Install the newer bursar that wrote it, or put back a copy of the store from before."
        )
    payload = data[_HEADER_BYTES:]
    if zlib.crc32(payload, data[0]) != int.from_bytes(data[1:_HEADER_BYTES]):
        _damaged(what, "the checksum does not match")
    return payload


def _damaged(what: str, why: str, cause: BaseException | None = None) -> NoReturn:
    raise UnknownVersion(
        f"a {what} in the store is damaged ({why[:80]}). It was left as it is, and nothing is signed on it."
        " Check the disk, then put back a copy of the store or recover the deposit from the chain."
    ) from cause


def _dump(record: dict[str, object], what: str) -> bytes:
    try:
        return orjson.dumps(record)
    except TypeError:  # an integer beyond 64 bits: rare, so only then is the record walked
        pass
    try:
        return orjson.dumps(_with_long_integers(record))
    except TypeError as error:  # a lone surrogate, or a value of a type that the record does not allow
        raise ValueError(f"{what} cannot be written: {error}") from error


def _with_long_integers(value: object) -> object:
    match value:
        case int() if _INT64_MIN <= value <= _UINT64_MAX:
            return value
        case int() if -UINT128_MAX <= value <= UINT128_MAX:
            return str(value)
        case int():
            raise ValueError(f"an integer of {value.bit_length()} bits: a channel keeps up to 128 bits")
        case Mapping():
            return {key: _with_long_integers(item) for key, item in value.items()}
        case list() | tuple():
            return [_with_long_integers(item) for item in value]
        case _:
            return value


def _pending_record(pending: PendingTransaction) -> dict[str, object]:
    return {
        "kind": pending.kind,
        "raw": pending.raw,
        "tx_hash": pending.tx_hash,
        "valid_before": pending.valid_before,
        "deposit": pending.deposit,
        "fee_sponsored": pending.fee_sponsored,
        "counters": [(move.key, move.amount, move.limit, move.rule) for move in pending.counters],
    }


def _channel(record: object, *, with_reserve: bool) -> Channel:
    if type(record) is not dict or len(record) != len(_FIELDS) - (not with_reserve):
        raise ValueError("its fields are not those of a channel")
    values: dict[str, Any] = {name: _string(record[name]) for name in _STRINGS}
    for name in _INTEGERS:
        value = record[name]
        values[name] = value if type(value) is int else _integer(value)
    for name in _OPTIONAL_INTEGERS:
        values[name] = _optional_integer(record[name])
    values["scope"] = PaymentScope(*map(_string, _row(record["scope"], len(_SCOPE_FIELDS))))
    values["descriptor"] = _strings_by_name(record["descriptor"])
    values["status"] = _STATUS[_string(record["status"])]
    owner = record["owner"]
    values["owner"] = None if owner is None else _string(owner)
    rows = record["holds"]
    holds = {hold.request_id: hold for hold in map(_hold, _list(rows))}
    if len(holds) != len(rows):
        raise ValueError("two holds of one request")
    values["holds"] = holds
    values["equal_refused"] = _boolean(record["equal_refused"])
    pending = record["pending"]
    values["pending"] = None if pending is None else _pending(pending)
    mark = record["folded"]
    values["folded"] = None if mark is None else _mark(mark)
    values["transactions"] = tuple(map(_string, _list(record["transactions"])))
    values["reserved"] = _integer(record["reserved"]) if with_reserve else 0
    return Channel(**values)


def _hold(row: object) -> Hold:
    request_id, amount, voucher, sent_at, expires_at, seq, fingerprint = _row(row, _HOLD_FIELDS)
    return Hold(
        _string(request_id),
        _integer(amount),
        _integer(voucher),
        _integer(sent_at),
        _integer(expires_at),
        _integer(seq),
        _string(fingerprint),
    )


def _mark(row: object) -> JournalMark:
    journal, line, boot_id = _row(row, 3)
    return JournalMark(journal=_string(journal), line=_integer(line), boot_id=_string(boot_id))


def _pending(record: object) -> PendingTransaction:
    if type(record) is not dict or len(record) != len(fields(PendingTransaction)):
        raise ValueError("its fields are not those of a pending transaction")
    kind: Literal["open", "top_up"]
    match record["kind"]:
        case "open" | "top_up" as kind:
            pass
        case _:
            raise ValueError("a pending transaction of an unknown kind")
    return PendingTransaction(
        kind=kind,
        raw=_string(record["raw"]),
        tx_hash=_string(record["tx_hash"]),
        valid_before=_integer(record["valid_before"]),
        deposit=_integer(record["deposit"]),
        fee_sponsored=_boolean(record["fee_sponsored"]),
        counters=tuple(map(_counter_move, _list(record["counters"]))),
    )


def _counter_move(row: object) -> CounterMove:
    key, amount, limit, rule = _row(row, 4)
    return CounterMove(
        key=_string(key), amount=_integer(amount), limit=_optional_integer(limit), rule=_string(rule)
    )


def _string(value: object) -> str:
    if type(value) is not str:
        raise ValueError("text was expected")
    return value


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false was expected")
    return value


def _integer(value: object) -> int:
    if type(value) is int:  # never bool, which JSON keeps apart
        return value
    if type(value) is not str or len(value) > 40:
        raise ValueError("an integer was expected")
    number = int(value)
    short = _INT64_MIN <= number <= _UINT64_MAX
    if short or str(number) != value or not -UINT128_MAX <= number <= UINT128_MAX:
        raise ValueError("an integer in an unknown form")
    return number


def _optional_integer(value: object) -> int | None:
    return None if value is None else _integer(value)


def _list(value: object) -> list[object]:
    if type(value) is not list:
        raise ValueError("a list was expected")
    return value


def _row(value: object, length: int) -> list[object]:
    row = _list(value)
    if len(row) != length:
        raise ValueError(f"a row of {len(row)} where {length} were expected")
    return row


def _strings_by_name(value: object) -> dict[str, str]:
    if type(value) is not dict:
        raise ValueError("names and texts were expected")
    for item in value.values():
        _string(item)
    return value
