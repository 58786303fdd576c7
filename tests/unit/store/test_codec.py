from __future__ import annotations

import importlib.util
import zlib
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from store import codec
from store.amounts import UINT128_MAX
from store.codec import FORMAT, WITH_RESERVE, decode_channel, decode_int, encode_channel, encode_int
from store.contract import UnknownVersion
from store.lifecycle import ChannelStatus
from store.records import Channel, CounterMove, Hold, JournalMark, PaymentScope, PendingTransaction

ADDRESS = "0x" + "ab" * 20
HASH = "0x" + "cd" * 32

SCOPE = PaymentScope(
    family="tempo-session",
    version="v2",
    chain="eip155:4217",
    escrow="0x" + "01" * 20,
    token="0x" + "02" * 20,
    payee="0x" + "03" * 20,
    payer="0x" + "04" * 20,
    voucher_signer="0x" + "05" * 20,
    discriminator="0x" + "06" * 20,
    origin="https://api.example.com:443",
)

FULL = Channel(
    channel_id=HASH,
    scope=SCOPE,
    descriptor={"salt": HASH, "payer": ADDRESS},
    resource="https://api.example.com/v1/ünïcode",
    status=ChannelStatus.OPEN,
    owner="a" * 32,
    epoch=7,
    authorised=2**64,
    paid=2**64 - 1,
    uncertain=2**63,
    eligible_at=1_700_000_000_000,
    holds={"r2": Hold("r2", 5, UINT128_MAX, 1, 2, -1, "f"), "r1": Hold("r1", 2**100, 6, 3, 4, 0, "")},
    held=2**100 + 5,
    accepted=11,
    deposit=UINT128_MAX,
    settled=13,
    seq=14,
    min_delta=15,
    equal_refused=True,
    delta_strikes=16,
    clean_needed=17,
    bad_rows=18,
    bad_row_at=19,
    pending=PendingTransaction(
        kind="top_up",
        raw="0x76",
        tx_hash=HASH,
        valid_before=20,
        deposit=2**90,
        fee_sponsored=True,
        counters=(CounterMove("lifetime/t", -(2**70)), CounterMove("opens/d/h", 1, 2**80, "policy.opens")),
    ),
    folded=JournalMark("j", 21, "b"),
    close_amount=0,
    captured=2**65,
    refunded=23,
    fees=24,
    reserved=27,
    transactions=(HASH, "0x"),
    note='"\\\n\u2028 noted',
    opened_at=25,
    updated_at=26,
)

BARE = Channel(channel_id="", scope=SCOPE, descriptor={}, resource="", status=ChannelStatus.PROPOSED)

integers = st.integers(-UINT128_MAX, UINT128_MAX) | st.sampled_from(
    [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63)]
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scopes = st.builds(PaymentScope, *(text for _ in fields(PaymentScope)))
holds = st.lists(
    st.builds(Hold, text, integers, integers, integers, integers, integers, text),
    max_size=4,
    unique_by=lambda hold: hold.request_id,
).map(lambda found: {hold.request_id: hold for hold in found})
pendings = st.builds(
    PendingTransaction,
    kind=st.sampled_from(["open", "top_up"]),
    raw=text,
    tx_hash=text,
    valid_before=integers,
    deposit=integers,
    fee_sponsored=st.booleans(),
    counters=st.lists(st.builds(CounterMove, text, integers, st.none() | integers, text), max_size=3).map(
        tuple
    ),
)
_BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "channel_id": text,
    "scope": scopes,
    "descriptor": st.dictionaries(text, text, max_size=3),
    "resource": text,
    "status": st.sampled_from(ChannelStatus),
    "owner": st.none() | text,
    "holds": holds,
    "equal_refused": st.booleans(),
    "pending": st.none() | pendings,
    "folded": st.none() | st.builds(JournalMark, text, integers, text),
    "close_amount": st.none() | integers,
    "captured": st.none() | integers,
    "refunded": st.none() | integers,
    "transactions": st.lists(text, max_size=3).map(tuple),
    "note": text,
}
channels = st.builds(Channel, **{field.name: _BY_NAME.get(field.name, integers) for field in fields(Channel)})


def seal(payload: bytes, version: int = FORMAT) -> bytes:
    """A record with the right mark and checksum, whatever is in it."""
    return bytes([version]) + zlib.crc32(payload, version).to_bytes(4, "big") + payload


def content(channel: Channel) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(encode_channel(channel)[5:])
    return found


@given(channels)
@example(FULL)
@example(BARE)
def test_a_channel_comes_back_as_it_was(channel: Channel) -> None:
    data = encode_channel(channel)
    found = decode_channel(data)
    assert found == channel
    assert list(found.holds) == list(channel.holds)
    assert list(found.descriptor) == list(channel.descriptor)
    assert encode_channel(found) == data


def test_every_field_is_kept() -> None:
    """No field of the example has its default, so one that the codec forgot would show."""
    kept = decode_channel(encode_channel(FULL))
    for field in fields(Channel):
        assert getattr(kept, field.name) == getattr(FULL, field.name)
        assert getattr(FULL, field.name) != getattr(BARE, field.name) or field.name == "scope"
    assert type(kept.status) is ChannelStatus
    assert type(kept.transactions) is tuple


def test_mappings_of_any_kind_are_written() -> None:
    channel = replace(FULL, holds=MappingProxyType(dict(FULL.holds)), descriptor=MappingProxyType({"a": "b"}))
    assert decode_channel(encode_channel(channel)) == replace(FULL, descriptor={"a": "b"})


@given(st.integers(-UINT128_MAX, UINT128_MAX))
@example(UINT128_MAX)
@example(-UINT128_MAX)
@example(0)
def test_a_counter_comes_back_as_it_was(value: int) -> None:
    assert decode_int(encode_int(value)) == value


@pytest.mark.parametrize("value", [UINT128_MAX + 1, -UINT128_MAX - 1, 10**5000], ids=int.bit_length)
def test_integers_beyond_128_bits_are_not_written(value: int) -> None:
    with pytest.raises(ValueError, match="128 bits"):
        encode_int(value)
    with pytest.raises(ValueError, match="128 bits"):
        encode_channel(replace(FULL, paid=value))
    with pytest.raises(ValueError, match="128 bits"):
        encode_channel(replace(FULL, holds={"r1": replace(FULL.holds["r1"], amount=value)}))


@pytest.mark.parametrize(
    "channel",
    [
        replace(FULL, note="\ud800"),
        replace(BARE, resource="\udfff"),
        replace(FULL, holds={"another": FULL.holds["r1"]}),
        replace(BARE, descriptor={"a": object()}),  # type: ignore[dict-item]
    ],
)
def test_what_could_not_be_read_back_is_not_written(channel: Channel) -> None:
    with pytest.raises(ValueError, match="channel"):
        encode_channel(channel)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: bytes([FORMAT]) + tail))
@example(b"")
@example(bytes([FORMAT]))
@example(bytes([FORMAT, 0, 0, 0, 0]))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for decode in (decode_channel, decode_int):
        with pytest.raises(UnknownVersion):
            decode(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=60) | json_values.map(orjson.dumps) | st.just(b"[" * 5000))
def test_no_content_with_a_good_checksum_raises_anything_else(payload: bytes) -> None:
    with pytest.raises(UnknownVersion):
        decode_channel(seal(payload))
    try:
        value = decode_int(seal(payload))
    except UnknownVersion:
        return
    assert b"%d" % value == payload


@given(st.sampled_from(sorted(content(FULL))), json_values)
def test_no_field_raises_anything_else(name: str, value: object) -> None:
    """A damaged field is refused, or it is a value that the field may have and that is kept."""
    data = seal(orjson.dumps(content(FULL) | {name: value}), WITH_RESERVE)
    try:
        found = decode_channel(data)
    except UnknownVersion:
        return
    assert decode_channel(encode_channel(found)) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("paid", True),
        ("paid", 1.0),
        ("paid", None),
        ("paid", "1"),  # only what does not fit a JSON number is text
        ("paid", str(2**64 - 1)),
        ("paid", str(2**128)),
        ("paid", "0" + str(2**100)),
        ("paid", "+" + str(2**100)),
        ("paid", str(2**100) + " "),
        ("paid", f"{2**100:_}"),
        ("paid", "9" * 5000),
        ("paid", "١" * 30),
        ("note", None),
        ("note", 1),
        ("owner", 1),
        ("equal_refused", 1),
        ("equal_refused", None),
        ("status", "lost"),
        ("status", None),
        ("status", ["open"]),
        ("scope", None),
        ("scope", ["a"] * 9),
        ("scope", ["a"] * 11),
        ("scope", ["a"] * 9 + [1]),
        ("descriptor", [["a", "b"]]),
        ("descriptor", {"a": 1}),
        ("holds", {}),
        ("holds", [["r", 1, 1, 1, 1, 1]]),
        ("holds", [["r", 1, 1, 1, 1, 1, None]]),
        ("holds", [["r", None, 1, 1, 1, 1, ""]]),
        ("holds", [["r", 1, 1, 1, 1, 1, ""]] * 2),
        ("folded", ["j", 1]),
        ("folded", ["j", "1", "b"]),
        ("folded", {}),
        ("transactions", "0x"),
        ("transactions", [1]),
        ("pending", {}),
        ("pending", []),
        ("pending", content(FULL)["pending"] | {"kind": "close"}),
        ("pending", content(FULL)["pending"] | {"more": 1}),
        ("pending", content(FULL)["pending"] | {"fee_sponsored": 0}),
        ("pending", content(FULL)["pending"] | {"counters": [["k", 1, None]]}),
        ("pending", content(FULL)["pending"] | {"counters": [["k", None, None, ""]]}),
        (
            "pending",
            {key: value for key, value in content(FULL)["pending"].items() if key != "raw"} | {"x": 1},
        ),
        ("captured", "0"),
        ("another field", 1),
    ],
)
def test_a_field_of_another_kind_is_refused(name: str, value: object) -> None:
    with pytest.raises(UnknownVersion, match="damaged"):
        decode_channel(seal(orjson.dumps(content(FULL) | {name: value}), WITH_RESERVE))


@pytest.mark.parametrize("name", sorted(content(FULL)))
def test_a_missing_field_is_refused(name: str) -> None:
    record = content(FULL)
    del record[name]
    for changed in (record, record | {"x" + name: 1}):
        with pytest.raises(UnknownVersion, match="damaged"):
            decode_channel(seal(orjson.dumps(changed), WITH_RESERVE))


@pytest.mark.parametrize("data", [encode_channel(BARE), encode_int(12345678901234567890)])
def test_every_flipped_bit_is_noticed(data: bytes) -> None:
    decode = decode_channel if len(data) > 100 else decode_int
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(UnknownVersion):
                decode(bytes(damaged))
    for length in range(len(data)):
        with pytest.raises(UnknownVersion):
            decode(data[:length])


@pytest.mark.parametrize(
    "payload", [b"", b"-", b"-0", b"01", b"1_0", b" 1", b"1.0", b"0x1", b"\xd9\xa1", b"9" * 5000]
)
def test_only_plain_numbers_are_counters(payload: bytes) -> None:
    with pytest.raises(UnknownVersion, match="damaged"):
        decode_int(seal(payload))


def test_a_counter_is_no_channel_and_a_channel_no_counter() -> None:
    with pytest.raises(UnknownVersion, match="damaged"):
        decode_channel(encode_int(5))
    with pytest.raises(UnknownVersion, match="damaged"):
        decode_int(encode_channel(BARE))


def test_a_newer_version_is_named_with_the_way_out() -> None:
    for decode, data in ((decode_channel, encode_channel(FULL)), (decode_int, encode_int(1))):
        with pytest.raises(UnknownVersion, match=r"format 3;.*reads format [12]\..*newer bursar"):
            decode(bytes([3]) + data[1:])


def test_a_record_is_of_format_2_if_it_has_a_reserve_and_only_then() -> None:
    """So that whoever puts the bursar from before back can read what it wrote."""
    plain = replace(FULL, reserved=0)
    assert (encode_channel(plain)[0], encode_channel(FULL)[0]) == (1, 2)
    assert decode_channel(encode_channel(plain)).reserved == 0
    assert "reserved" not in content(plain)


def test_the_format_says_whether_there_is_a_reserve() -> None:
    for version, record in ((1, content(FULL)), (2, content(replace(FULL, reserved=0)))):
        with pytest.raises(UnknownVersion, match="damaged"):
            decode_channel(seal(orjson.dumps(record), version))
    with pytest.raises(UnknownVersion, match="format 2;"):
        decode_int(bytes([2]) + encode_int(1)[1:])


def test_the_bytes_of_format_1_stay_as_they_are() -> None:
    """A store on somebody's disk has them. If this fails, the change needs a new format, and a reader for the old."""
    assert encode_int(10000) == bytes.fromhex("01") + zlib.crc32(b"10000", 1).to_bytes(4, "big") + b"10000"
    assert encode_channel(BARE)[5:].decode() == (
        '{"channel_id":"","resource":"","note":"","epoch":0,"authorised":0,"paid":0,"uncertain":0,"eligible_at":0,'
        '"held":0,"accepted":0,"deposit":0,"settled":0,"seq":0,"min_delta":1,"delta_strikes":0,"clean_needed":0,'
        '"bad_rows":0,"bad_row_at":0,"fees":0,"opened_at":0,"updated_at":0,"close_amount":null,"captured":null,'
        '"refunded":null,"owner":null,"equal_refused":false,"scope":["tempo-session","v2","eip155:4217",'
        '"0x0101010101010101010101010101010101010101","0x0202020202020202020202020202020202020202",'
        '"0x0303030303030303030303030303030303030303","0x0404040404040404040404040404040404040404",'
        '"0x0505050505050505050505050505050505050505","0x0606060606060606060606060606060606060606",'
        '"https://api.example.com:443"],"descriptor":{},"status":"proposed","holds":[],"pending":null,'
        '"folded":null,"transactions":[]}'
    )
    hold = content(FULL)["holds"][0]
    assert hold == ["r2", 5, str(UINT128_MAX), 1, 2, -1, "f"]
    assert content(FULL)["pending"]["counters"] == [
        ["lifetime/t", str(-(2**70)), None, ""],
        ["opens/d/h", 1, str(2**80), "policy.opens"],
    ]


def test_a_field_that_is_not_written_stops_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record with one field more than the codec knows: what was in it would be gone after a restart."""

    @dataclass(frozen=True, slots=True)
    class More(Channel):
        lent: int = 0

    monkeypatch.setattr("store.records.Channel", More)
    spec = importlib.util.spec_from_file_location("codec_of_another_record", codec.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(TypeError, match="does not cover the fields"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("digits", [39, 40, 41, 4000, 5000])
def test_a_number_of_any_length_is_refused_as_one_of_another_form(digits: int) -> None:
    """Also one so long that Python refuses to read it: it must not end in another error."""
    with pytest.raises(ValueError, match=r"integer"):
        codec._integer("9" * digits)
