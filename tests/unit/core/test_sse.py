"""Taking payment events out of an event stream: what leaves, when, and what is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from proxy_addon.core.messages import NeedVoucher, Receipt
from proxy_addon.core.sse import HELD_LIMIT, EventFilter, Fed, Malformed

CHANNEL = "0x6d0f4fdf1f2f6a1f6c1b0fbd6a7d5c2c0a8d3d7b1f6a9c1b3e2d4a5b6c7d8e9f"
# As mppx 0.11 writes them.
NEED = (
    b'event: payment-need-voucher\ndata: {"channelId":"%b","requiredCumulative":"250025",'
    b'"acceptedCumulative":"250000","deposit":"500000"}\n\n' % CHANNEL.encode()
)
RECEIPT = (
    b'event: payment-receipt\ndata: {"method":"tempo","intent":"session","status":"success",'
    b'"timestamp":"2026-01-01T00:00:00.000Z","reference":"%b","challengeId":"c","channelId":"%b",'
    b'"acceptedCumulative":"250025","spent":"250025","units":7}\n\n' % (CHANNEL.encode(), CHANNEL.encode())
)
MESSAGE = b"event: message\ndata: hello\n\n"
NEEDED = NeedVoucher(
    channel_id=CHANNEL, required_cumulative=250025, accepted_cumulative=250000, deposit=500000
)
RECEIVED = Receipt(
    method="tempo",
    intent="session",
    timestamp="2026-01-01T00:00:00.000Z",
    reference=CHANNEL,
    challenge_id="c",
    channel_id=CHANNEL,
    accepted_cumulative=250025,
    spent=250025,
    units=7,
)
LONG = b"x" * (HELD_LIMIT + 1)


def whole(body: bytes, *, held_limit: int = HELD_LIMIT) -> Fed:
    filter_ = EventFilter(held_limit=held_limit)
    fed, rest = filter_.feed(body), filter_.end()
    return Fed(fed.out + rest.out, fed.events + rest.events)


def bytewise(body: bytes, *, held_limit: int = HELD_LIMIT) -> Fed:
    filter_ = EventFilter(held_limit=held_limit)
    pieces = [filter_.feed(body[at : at + 1]) for at in range(len(body))]
    pieces.append(filter_.end())
    return Fed(b"".join(p.out for p in pieces), tuple(event for p in pieces for event in p.events))


@pytest.mark.parametrize(
    ("body", "out", "events"),
    [
        (b"", b"", ()),
        (MESSAGE + NEED + MESSAGE + RECEIPT, MESSAGE + MESSAGE, (NEEDED, RECEIVED)),
        (NEED + NEED, b"", (NEEDED, NEEDED)),
        (RECEIPT.replace(b": ", b":", 2), b"", (RECEIVED,)),
        # The three ends of a line, mixed too.
        (MESSAGE + NEED.replace(b"\n", b"\r") + MESSAGE, MESSAGE * 2, (NEEDED,)),
        (MESSAGE + NEED.replace(b"\n", b"\r\n") + MESSAGE, MESSAGE * 2, (NEEDED,)),
        (NEED[:-1] + b"\r" + MESSAGE, MESSAGE, (NEEDED,)),
        (NEED[:-1] + b"\r\n\n\r\r\n" + MESSAGE, b"\n\r\r\n" + MESSAGE, (NEEDED,)),
        (b"data: 1\r\n\r\ndata: 2\r\rdata: 3\r\n\r", b"data: 1\r\n\r\ndata: 2\r\rdata: 3\r\n\r", ()),
        # The name anywhere among the lines; other fields and comments in the event go with it.
        (b"id: 7\n: x\nretry: 1\n" + NEED, b"", (NEEDED,)),
        (NEED.split(b"\n")[1] + b"\nevent: payment-need-voucher\n\n" + MESSAGE, MESSAGE, (NEEDED,)),
        # A comment before it stays, as do surplus empty lines.
        (b"\n: keep-alive\n\n:\r" + NEED + b"\n" + MESSAGE, b"\n: keep-alive\n\n:\r\n" + MESSAGE, (NEEDED,)),
        # A BOM may come first, once.
        (b"\xef\xbb\xbf" + NEED + MESSAGE, b"\xef\xbb\xbf" + MESSAGE, (NEEDED,)),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + NEED, b"\xef\xbb\xbf\xef\xbb\xbf" + NEED, ()),
        (MESSAGE + b"\xef\xbb\xbf" + NEED, MESSAGE + b"\xef\xbb\xbf" + NEED, ()),
        (b"\xef", b"\xef", ()),
        (b"\xef\xbb\n\n", b"\xef\xbb\n\n", ()),
        # The data in several lines.
        (NEED.replace(b",", b",\ndata:"), b"", (NEEDED,)),
        # Cut off: what says all that it must is told; what is none comes out.
        (NEED[:-1], b"", (NEEDED,)),
        (NEED[:-2], b"", (NEEDED,)),
        (MESSAGE + b"data: no end", MESSAGE + b"data: no end", ()),
        (b"event: payment-rec", b"event: payment-rec", ()),
        (b"event: payment-receipt", b"", (Malformed("payment-receipt", "the event has no data"),)),
        # Unreadable, and out all the same.
        (b"event: payment-receipt\n\n", b"", (Malformed("payment-receipt", "the event has no data"),)),
        # Two names: the first decides, its event has left.
        (b"event: message\n" + NEED, b"event: message\n" + NEED, ()),
        (b"event\n" + NEED, b"event\n" + NEED, ()),
        (
            b"event: payment-receipt\nevent: message\n\n" + MESSAGE,
            MESSAGE,
            (Malformed("payment-receipt", "the event has no data"),),
        ),
        # Near the name, and not the name.
        (b"event: payment-receipts\n\n", b"event: payment-receipts\n\n", ()),
        (b"event:  payment-receipt\n\n", b"event:  payment-receipt\n\n", ()),
        (b"event: payment-receipt \n\n", b"event: payment-receipt \n\n", ()),
        (b"event : payment-receipt\n\n", b"event : payment-receipt\n\n", ()),
        (b"Event: payment-receipt\n\n", b"Event: payment-receipt\n\n", ()),
        (b" event: payment-receipt\n\n", b" event: payment-receipt\n\n", ()),
        (b"event: Payment-Receipt\n\n", b"event: Payment-Receipt\n\n", ()),
        (b"event: payment-receipt\0\n\n", b"event: payment-receipt\0\n\n", ()),
        (b"data: event: payment-receipt\n\n", b"data: event: payment-receipt\n\n", ()),
        (b": event: payment-receipt\n\n", b": event: payment-receipt\n\n", ()),
        # No text at all.
        (b"\0\xff\xfe\n\0\n\n\r\0", b"\0\xff\xfe\n\0\n\n\r\0", ()),
        # Beyond the limit: without a name it passes, and is none any more; with one it is dropped, and told once.
        (b"data: " + LONG + b"\n" + NEED + NEED, b"data: " + LONG + b"\n" + NEED, (NEEDED,)),
        (b"event: message\ndata: " + LONG + b"\r\r\n" + NEED, b"event: message\ndata: " + LONG + b"\r\r\n", (NEEDED,)),
        (
            b"event: payment-receipt\r\ndata: " + LONG + b"\r\ndata: " + LONG + b"\r\n\r\n" + NEED + MESSAGE,
            MESSAGE,
            (Malformed("payment-receipt", "the event is longer than 65536 bytes"), NEEDED),
        ),
    ],
)  # fmt: skip
def test_what_leaves_and_what_is_told(body: bytes, out: bytes, events: tuple[object, ...]) -> None:
    assert whole(body) == Fed(out, events)  # type: ignore[arg-type]
    assert bytewise(body) == Fed(out, events)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"data", "not JSON"),
        (b"data: {", "not JSON"),
        (b"Data: {}\ndatas: {}", "no data"),
        (b'data: {"channelId":"\xff"}', "not UTF-8"),
        (b'data: {"channelId":"\0"}', "not JSON"),
        (b'data: {"channelId":"0x12"}', "channelId"),
        (b"data: []", "expected a JSON object"),
        (b'data: {"a":"' + b"x" * (16 * 1024) + b'"}', "over the limit of 16384"),
        (NEED.split(b"\n")[1] + b"\n" + NEED.split(b"\n")[1], "not JSON"),
    ],
)
def test_a_payment_event_that_cannot_be_read_is_taken_out_and_told(data: bytes, reason: str) -> None:
    fed = whole(MESSAGE + b"event: payment-need-voucher\n" + data + b"\n\n" + MESSAGE)
    assert fed.out == MESSAGE * 2
    (event,) = fed.events
    assert isinstance(event, Malformed)
    assert event.name == "payment-need-voucher"
    assert reason in event.reason


@pytest.mark.parametrize(
    ("pieces", "outs"),
    [
        # A name is decided by its first letter that is not a payment event's.
        ((b"ev", b"ent", b": ", b"m", b"essage\n"), (b"", b"", b"", b"event: m", b"essage\n")),
        ((b"event: p", b"r", b"ogress"), (b"", b"event: pr", b"ogress")),
        ((b"event: payment-receipt", b"s"), (b"", b"event: payment-receipts")),
        ((b"event: payment-need-voucher", b"s", b"\n"), (b"", b"event: payment-need-vouchers", b"\n")),
        ((b"event", b"\n", b"data: 1"), (b"", b"event\n", b"data: 1")),
        # Data first: at its end.
        ((b"data: 1\n", b"\n"), (b"", b"data: 1\n\n")),
        ((b"data: 1\n", b"event: m", b"essage"), (b"", b"data: 1\nevent: m", b"essage")),
        ((b"data: 1\r\n", b"\r", b"\n"), (b"", b"data: 1\r\n\r", b"\n")),
        # Keep-alives: at once.
        ((b":", b" pi", b"ng\n", b"\n"), (b":", b" pi", b"ng\n", b"\n")),
        # A body may begin like a BOM.
        ((b"\xef", b"\xbb", b"\xbf", b":"), (b"", b"", b"\xef\xbb\xbf", b":")),
        # Megabytes before the name do not wait, from the byte on that is over the limit.
        ((b"data: ", LONG[:-7], b"y", b"z", b"\n", NEED), (b"", b"", b"data: " + LONG[:-7] + b"y", b"z", b"\n", NEED)),
    ],
)  # fmt: skip
def test_what_waits(pieces: tuple[bytes, ...], outs: tuple[bytes, ...]) -> None:
    filter_ = EventFilter()
    assert tuple(filter_.feed(piece).out for piece in pieces) == outs


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("over", [False, True])
def test_the_limit_counts_bytes_up_to_the_name_s_end_of_line(end: bytes, over: bool) -> None:
    name = b"event: payment-receipt"
    lead = b"data: " + b"1" * (HELD_LIMIT + over - len(b"data: ") - len(end) - len(name) - 1) + end
    for feed in (whole, bytewise):
        fed = feed(lead + name + end + end)
        if over:
            assert fed == Fed(lead + name + end + end)
        else:
            assert fed.out == b""
            assert isinstance(fed.events[0], Malformed)


def test_a_piece_without_payment_events_is_not_copied() -> None:
    filter_ = EventFilter()
    assert filter_.feed(MESSAGE).out is MESSAGE


def test_a_name_in_the_data_is_read_with_care() -> None:
    body = b"data: event: payment-receipt\n\ndata: event:payment-receipt\n\n"
    assert EventFilter().feed(body) == Fed(body)


def test_after_the_end_nothing_more_comes() -> None:
    filter_ = EventFilter()
    filter_.feed(NEED[:-1])
    assert filter_.end() == Fed(b"", (NEEDED,))
    assert filter_.end() == Fed(b"")


@pytest.mark.parametrize(
    "line",
    [
        b":\n",
        b":\r\n",
        b":\r",
        b": ping\n",
        b"\n",
        b"a\n",
        b"a\r",
        b"a\r\n",
        b"event\n",
        b"eventful\n",
        b"data\n",
    ],
)
@pytest.mark.parametrize("before", [b"", b"id: 1\n", b"event: payment-receipt\n", b"event: message\n"])
def test_a_flood_of_lines_costs_a_few_steps_for_each_piece(before: bytes, line: bytes) -> None:
    """Steps of ours, counted: so it must not depend on how many lines a piece has."""
    piece = line * (16_384 // len(line))
    steps = {count: steps_of([before, *[piece] * count]) for count in (1, 4)}
    assert steps[1] < 40
    assert steps[4] < 120


def steps_of(pieces: list[bytes]) -> int:
    """How many calls of the filter's functions it takes."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_globals.get("__name__") == "proxy_addon.core.sse"

    filter_ = EventFilter()
    sys.setprofile(count)
    try:
        for piece in pieces:
            filter_.feed(piece)
        filter_.end()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("pieces", [whole, bytewise])
def test_the_longest_event_that_is_held(end: bytes, pieces: Callable[..., Fed]) -> None:
    """Each of its bytes counts, those of its ends of line too; the empty line at its end as the rest."""
    event = NEED.replace(b"\n", end)
    assert pieces(event + MESSAGE, held_limit=len(event)) == Fed(MESSAGE, (NEEDED,))
    shorter = len(event) - len(end) - 1
    said = Malformed("payment-need-voucher", f"the event is longer than {shorter} bytes")
    assert pieces(event + MESSAGE, held_limit=shorter) == Fed(MESSAGE, (said,))


@pytest.mark.parametrize(
    ("body", "out", "events"),
    [
        (b"event: message\n" + NEED, b"event: message\n" + NEED, ()),  # one event: its first name has decided
        (b"event: message\n\n" + NEED, b"event: message\n\n", (NEEDED,)),
        (b"event\n\n" + NEED, b"event\n\n", (NEEDED,)),
        (b"event: message\r\n\r\n" + NEED, b"event: message\r\n\r\n", (NEEDED,)),
        (NEED + b"data: 1\r\n\r\n" + NEED, b"data: 1\r\n\r\n", (NEEDED, NEEDED)),
        (NEED + b"event: message\r\n\r\n" + NEED, b"event: message\r\n\r\n", (NEEDED, NEEDED)),
        (b"\n\n" + NEED + b"\n\n", b"\n\n\n\n", (NEEDED,)),
    ],
)  # fmt: skip
def test_however_it_is_cut_in_two(body: bytes, out: bytes, events: tuple[object, ...]) -> None:
    assert bytewise(body) == Fed(out, events)  # type: ignore[arg-type]
    for cut in range(len(body) + 1):
        filter_ = EventFilter()
        pieces = (filter_.feed(body[:cut]), filter_.feed(body[cut:]), filter_.end())
        found = Fed(
            b"".join(one.out for one in pieces), tuple(event for one in pieces for event in one.events)
        )
        assert found == Fed(out, events), cut  # type: ignore[arg-type]


def test_how_much_of_an_event_is_held() -> None:
    assert HELD_LIMIT == 65_536


def test_many_lines_at_once_count_like_one_after_the_other() -> None:
    """What is held already counts with what comes in one piece."""
    name, lines = b"event: payment-receipt\n", b"a\n" * 25 + b"\n"
    filter_ = EventFilter(held_limit=60)
    pieces = (filter_.feed(name), filter_.feed(lines + MESSAGE))
    assert b"".join(one.out for one in pieces) == MESSAGE
    (said,) = (event for one in pieces for event in one.events)
    assert said == Malformed("payment-receipt", "the event is longer than 60 bytes")


@pytest.mark.parametrize("pieces", [whole, bytewise])
def test_the_longest_event_that_is_held_as_the_body_ends(pieces: Callable[..., Fed]) -> None:
    event = NEED.replace(b"\n", b"\r\n")[:-2]
    assert pieces(event, held_limit=len(event)) == Fed(b"", (NEEDED,))
    said = Malformed("payment-need-voucher", f"the event is longer than {len(event) - 1} bytes")
    assert pieces(event, held_limit=len(event) - 1) == Fed(b"", (said,))


def test_many_lines_at_once_are_too_long_also_as_the_body_ends() -> None:
    filter_ = EventFilter(held_limit=60)
    pieces = (filter_.feed(b"event: payment-receipt\n"), filter_.feed(b"a\n" * 25), filter_.end())
    (said,) = (event for one in pieces for event in one.events)
    assert said == Malformed("payment-receipt", "the event is longer than 60 bytes")
