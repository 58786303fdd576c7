"""The file in which channels move: what is written is read back, and nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import interchange
from store.account import check
from store.interchange import InterchangeError
from store.lifecycle import ChannelStatus
from store.merging import Incoming
from store.records import Channel, Hold
from tests.unit.methods import samples

S = ChannelStatus
COUNTERS = {"lifetime/0xa": 2**127, "host-day/0xa/2026-01-01/api.example.com:443": 0}
HASH = "0x" + "ee" * 32


def dump(*channels: Incoming, counters: dict[str, int] | None = None) -> bytes:
    return interchange.dump(channels, counters or {}, store="id", commits=7, exported_at=1_800_000_000_000)


def incoming(moved: bool = False, **changes: Any) -> Incoming:
    return Incoming(samples.ours(**changes), moved)


@st.composite
def channels(draw: st.DrawFn) -> Channel:
    amounts = st.integers(0, 2**127)
    deposit = draw(amounts)
    authorised = draw(st.integers(0, deposit))
    paid = draw(st.integers(0, authorised))
    return samples.ours(
        status=draw(
            st.sampled_from([status for status in S if status not in (S.PROPOSED, S.SENT, S.UNKNOWN)])
        ),
        deposit=deposit,
        authorised=authorised,
        paid=paid,
        uncertain=draw(st.integers(0, authorised - paid)),
        eligible_at=draw(st.integers(0, 2**52)),
        accepted=draw(amounts),
        settled=draw(amounts),
        fees=draw(amounts),
        min_delta=draw(st.integers(1, 2**90)),
        equal_refused=draw(st.booleans()),
        close_amount=draw(st.none() | st.integers(0, authorised)),
        captured=draw(st.none() | amounts),
        refunded=draw(st.none() | amounts),
        transactions=tuple(draw(st.lists(st.just(HASH), max_size=3))),
        pending=draw(st.none() | st.just(samples.pending(kind="top_up", raw=""))),
        note=draw(st.text(st.characters(codec="utf-8"), max_size=20)),
        opened_at=draw(st.integers(0, 2**52)),
        updated_at=draw(st.integers(0, 2**52)),
    )


@given(channels(), st.booleans())
def test_what_is_written_is_read_back(channel: Channel, moved: bool) -> None:
    document = interchange.parse(dump(Incoming(channel, moved), counters=COUNTERS))
    (found,) = document.incoming
    expected = replace(channel, status=S.OPEN) if moved else channel
    assert found == Incoming(expected, moved)
    assert document.counters == COUNTERS
    assert (document.metadata.store, document.metadata.commits) == ("id", 7)


def test_amounts_are_decimal_strings_and_what_is_in_flight_is_uncertain() -> None:
    hold = Hold("r", 2_000, 9_000, 1, 2, 1, "f")
    (row,) = json.loads(dump(incoming(holds={"r": hold}, held=2_000, paid=1_000)))["channels"]
    assert (row["authorised"], row["paid"], row["uncertain"]) == ("10000", "1000", "2000")
    assert "held" not in row
    assert "holds" not in row


def test_nobody_can_move_money_with_it() -> None:
    """A signed transaction can be sent by whoever has it."""
    pending = samples.pending(raw="0x76" + "5ec2e7" * 20)
    data = dump(incoming(status=S.UNKNOWN, pending=pending, deposit=0))
    assert b"5ec2e7" not in data
    (found,) = interchange.parse(data).incoming
    assert found.channel.pending == replace(pending, raw="", counters=())
    check(found.channel)


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(
        dump(incoming(), incoming(moved=True, scope=samples.scope(payer=samples.OTHER_ADDRESS)))
    )
    document["channels"][1]["channel"] = HASH
    change(document)
    return json.dumps(document).encode()


def setting(place: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *path, last = place.split(".")
        table: Any = document
        for part in path:
            table = table[int(part)] if part.isdigit() else table[part]
        table[last] = value

    return change


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", 'no "bursar-channels"'),
        (b'{"metadata": 3}', 'no "bursar-channels"'),
        (b'{"metadata": {"format": "other"}}', 'no "bursar-channels"'),
        (changed(setting("metadata.version", 2)), "of version 2; this bursar reads version 1"),
        (changed(setting("metadata.version", True)), "of version True"),
        (changed(setting("metadata.version", "1")), "of version 1;"),
        (changed(setting("metadata.more", 1)), "metadata.more: Extra inputs"),
        (changed(setting("channels.0.paid", 10)), "channels.0.paid: the amount is 10: expected base units"),
        (changed(setting("channels.0.paid", "1e3")), "channels.0.paid"),
        (changed(setting("channels.0.paid", "-1")), "channels.0.paid"),
        (changed(setting("channels.0.paid", str(2**128))), "channels.0.paid"),
        (changed(setting("channels.0.paid", "99999")), "free is -89999, below zero"),
        (changed(setting("channels.0.authorised", "60000")), "over the deposit of 50000"),
        (changed(setting("channels.0.status", "lucky")), "channels.0.status"),
        (changed(setting("channels.0.channel", "0xC1")), "channels.0.channel"),
        (changed(setting("channels.0.channel", HASH)), "a channel is in it twice"),
        (changed(setting("channels.0.held", "0")), "channels.0.held: Extra inputs"),
        (changed(setting("channels.0.moved", 1)), "channels.0.moved"),
        (changed(setting("channels.0.scope.chain", "eip155:0")), "channels.0.scope.chain"),
        (changed(setting("channels.0.scope.payee", "0x" + "A" * 40)), "channels.0.scope.payee"),
        (changed(setting("channels.0.scope.origin", "api.example.com")), "channels.0.scope.origin"),
        (changed(setting("channels.0.updated_at", 1.5)), "channels.0.updated_at"),
        (changed(setting("counters.x", 5)), "counters.x"),
        (changed(lambda document: document.pop("counters")), "counters: Field required"),
    ],
)
def test_what_this_version_did_not_write_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InterchangeError) as caught:
        interchange.parse(data)
    assert says in str(caught.value)


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_no_other_error_comes_out(data: bytes) -> None:
    with pytest.raises(InterchangeError):
        interchange.parse(data)


def test_a_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interchange, "LARGEST", 100)
    with pytest.raises(InterchangeError, match="more than"):
        interchange.parse(dump(incoming()))


@pytest.mark.parametrize(
    ("place", "value", "taken"),
    [
        ("channels.0.updated_at", 0, True),
        ("channels.0.updated_at", -1, False),
        ("channels.0.updated_at", 2**53 - 1, True),
        ("channels.0.updated_at", 2**53, False),
        ("channels.0.note", "x" * 65_536, True),
        ("channels.0.note", "x" * 65_537, False),
        ("channels.0.paid", "0", True),
        ("metadata.exported_at", 0, True),
    ],
)
def test_how_far_a_value_may_go(place: str, value: object, taken: bool) -> None:
    data = changed(setting(place, value))
    if taken:
        interchange.parse(data)
        return
    with pytest.raises(InterchangeError, match=place):
        interchange.parse(data)


def test_a_file_of_exactly_the_largest_size_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dump(incoming())
    monkeypatch.setattr(interchange, "LARGEST", len(data))
    interchange.parse(data)
    monkeypatch.setattr(interchange, "LARGEST", len(data) - 1)
    with pytest.raises(InterchangeError, match="more than 0 MiB"):
        interchange.parse(data)


def test_the_first_thing_that_is_wrong_is_named() -> None:
    def change(document: dict[str, Any]) -> None:
        setting("channels.0.paid", "x")(document)
        setting("channels.1.moved", 1)(document)

    with pytest.raises(InterchangeError, match=r"^channels\.0\.paid: "):
        interchange.parse(changed(change))
