"""The store's records; the first byte says how: ``R`` the raw bytes, ``S`` a channel's JSON under a good checksum,
``T`` the same with a reserve, ``N`` a counter's digits under one.

- Nothing but `UnknownVersion` is raised; nothing is guessed.
- A record that is read can be written, is the same when it is read again, and is written in one form only.
- Its money can be checked: `account.check` says yes, or raises `IllegalMove`.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

from store import account, codec
from store.amounts import UINT128_MAX
from store.contract import UnknownVersion
from store.records import CounterMove, Hold, JournalMark
from tests.fuzz.oracle import loggable
from tests.fuzz.target import Target
from tests.unit.methods.samples import channel, ours, pending, v1_ours


def one_input(data: bytes) -> None:
    how, rest = data[:1], data[1:]
    if how == b"N":
        counter(sealed(rest))
        return
    match how:
        case b"S":
            record = sealed(rest)
        case b"T":
            record = sealed(rest, codec.WITH_RESERVE)
        case _:
            record = rest
    counter(record)
    try:
        found = codec.decode_channel(record)
    except UnknownVersion as error:
        loggable(str(error))
        return
    written = codec.encode_channel(found)
    again = codec.decode_channel(written)
    assert again == found
    assert codec.encode_channel(again) == written
    for value in (found.authorised, found.paid, found.deposit, found.settled, found.held):
        assert -UINT128_MAX <= value <= UINT128_MAX
    try:
        account.check(found)
        account.doubt_everything(found, 1)
    except account.IllegalMove:
        return
    assert 0 <= found.reserved <= found.free
    assert 0 <= found.issued <= found.authorised


def counter(data: bytes) -> None:
    try:
        value = codec.decode_int(data)
    except UnknownVersion as error:
        loggable(str(error))
        return
    assert -UINT128_MAX <= value <= UINT128_MAX
    assert codec.encode_int(value) == data


def sealed(payload: bytes, version: int = codec.FORMAT) -> bytes:
    """As the codec does it: what a fuzzer would never guess."""
    return bytes([version]) + zlib.crc32(payload, version).to_bytes(4) + payload


def seeds() -> dict[str, bytes]:
    def payload(record: bytes) -> bytes:
        return (b"T" if record[0] == codec.WITH_RESERVE else b"S") + record[5:]

    busy = replace(
        ours(deposit=2**100, authorised=2**99, paid=5, owner="p1", epoch=3, transactions=("0xab",)),
        holds={"r1": Hold("r1", 10, 20, 30, 40, -1, "f")},
        held=10,
        folded=JournalMark("p1", 7, "boot"),
        close_amount=4,
    )
    opening = channel(
        pending=pending(counters=(CounterMove("day/x", 5, 2**90, "policy.hosts[0]"), CounterMove("n", -1))),
        deposit=0,
    )
    return {
        "open.json": payload(codec.encode_channel(ours())),
        "busy.json": payload(codec.encode_channel(busy)),
        "reserve.json": payload(codec.encode_channel(replace(busy, reserved=2**98))),
        "opening.json": payload(codec.encode_channel(opening)),
        "v1.json": payload(codec.encode_channel(v1_ours(note="é"))),
        "raw": b"R" + codec.encode_channel(ours()),
        "raw_counter": b"R" + codec.encode_int(-(2**100)),
        "counter": b"N1000000",
        "odd_kind.json": payload(codec.encode_channel(opening)).replace(
            b'"kind":"open"', b'"kind":"\x7fopen"'
        ),
        "deep_kind.json": payload(codec.encode_channel(opening)).replace(
            b'"kind":"open"', b'"kind":' + b"[" * 1000 + b"]" * 1000
        ),
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"S",
            b"T",
            b"R",
            b"N",
            b"null",
            b"true",
            b'"holds":[[',
            b'"pending":{',
            b'"folded":[',
            b'"scope":[',
            b'"status":',
        ),
        *(
            b'"340282366920938463463374607431768211455"',
            b"-1",
            b"1e3",
            b"18446744073709551616",
            b'"0"',
            b'"open"',
        ),
        *(b"1.0", b'"\\ud800"', b"\xff", b'"descriptor":{', b"\x01", b"\x02", b'"-5"', b'"1_0"'),
    ),
    longest=4096,
)
