"""The event filter for any body, cut anywhere: against a reading of the whole, byte for byte, and never late."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from proxy_addon.core.messages import NeedVoucher, Receipt
from proxy_addon.core.sse import EventFilter, Fed, PaymentEvent
from tests.properties.sse_reference import BOM, reference, run

CHANNEL = "0x" + "6d" * 32
NAMES = ("payment-need-voucher", "payment-receipt")
BEGINNINGS = {
    line[:size]
    for name in NAMES
    for line in (f"event:{name}".encode(), f"event: {name}".encode())
    for size in range(len(line) + 1)
}


cuts = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any) | st.just([1]) | st.just([100_000])
ends = st.sampled_from([b"\n", b"\r", b"\r\n"])

# --- well-formed streams: the expectation is built with them ----------------------------------------------

texts = st.binary(max_size=40).map(lambda text: text.replace(b"\r", b"").replace(b"\n", b""))
comments = texts.map(lambda text: b":" + text)
values = st.one_of(texts, st.sampled_from([b"", b" payment-receipt", b" {}", b"\0", b" \xff\xfe"]))
fields = st.builds(
    lambda name, value: name + b":" + value,
    st.sampled_from([b"data", b"id", b"retry", b"x", b"Event", b"events", b" event"]),
    values,
)
bare = st.sampled_from([b"data", b"id", b"eventual", b"e", b"\0"])
other_names = st.sampled_from(
    [b"event: message", b"event:p", b"event: payment", b"event:  payment-receipt", b"event: payment-receipt "]
) | st.sampled_from(
    [b"event", b"event:", b"event: Payment-Receipt", b"event: payment-receipts", b"event: \0"]
)
amounts = st.integers(0, 2**96 - 1)


@st.composite
def payments(draw: st.DrawFn) -> tuple[list[bytes], PaymentEvent]:
    """The lines of a payment event, and what it says."""
    spent = draw(amounts)
    expected: PaymentEvent
    if draw(st.booleans()):
        name = "payment-need-voucher"
        expected = NeedVoucher(
            channel_id=CHANNEL, required_cumulative=spent, accepted_cumulative=1, deposit=2
        )
        said = {"requiredCumulative": str(spent), "acceptedCumulative": "1", "deposit": "2"}
    else:
        name = "payment-receipt"
        expected = Receipt(method="tempo", timestamp="t", reference="é", channel_id=CHANNEL, spent=spent)
        said = {
            "method": "tempo",
            "status": "success",
            "timestamp": "t",
            "reference": "é",
            "spent": str(spent),
        }
    text = json.dumps(
        {"channelId": CHANNEL, **said}, indent=draw(st.sampled_from([None, 1])), ensure_ascii=False
    )
    space = draw(st.sampled_from(["", " "]))
    lines = [f"data:{space}{line}".encode() for line in text.split("\n")]
    lines.insert(draw(st.integers(0, len(lines))), f"event:{space}{name}".encode())
    for extra in draw(st.lists(comments | st.just(b"id: 7"), max_size=2)):
        lines.insert(draw(st.integers(1, len(lines))), extra)
    return lines, expected


@st.composite
def others(draw: st.DrawFn) -> list[bytes]:
    """The lines of an event that is no payment event, perhaps without a name; the first is a field."""
    lines = [draw(fields | bare), *draw(st.lists(fields | bare | comments, max_size=3))]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), draw(other_names))
    return lines


def block(lines: list[bytes], end: bytes) -> bytes:
    return b"".join(line + end for line in [*lines, b""])


parts = st.lists(st.tuples(ends, payments() | st.tuples(others(), st.none())))


@given(st.booleans(), parts, cuts)
def test_the_stream_less_its_payment_events(
    bom: bool, parts: list[tuple[bytes, tuple[list[bytes], PaymentEvent | None]]], cut: list[int]
) -> None:
    start = BOM if bom else b""
    body = start + b"".join(block(lines, end) for end, (lines, _) in parts)
    out = start + b"".join(block(lines, end) for end, (lines, event) in parts if event is None)
    assert run(body, cut) == (out, [event for _, (_, event) in parts if event is not None])


# --- anything --------------------------------------------------------------------------------------------

tokens = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b":",
        b" ",
        b"\0",
        b"\xff",
        b"event",
        b"data",
        b"data: {}",
        b"id: 1",
        BOM[:2],
        BOM,
        b"event: payment-receipt",
        b"event:payment-need-voucher",
        b"event: message",
        b"event: pay",
        b"x" * 30,
        b'data:{"channelId":"%b","requiredCumulative":"9",' % CHANNEL.encode(),
        b'data: "acceptedCumulative":"1","deposit":"2"}\n\n',
    ]
)
bodies = st.lists(tokens | st.binary(max_size=3), max_size=30).map(b"".join)
limits = st.integers(1, 120) | st.just(64 * 1024)


@given(bodies, cuts, limits)
@example(b"event: payment-receipt\r\n\r", [1], 22)
@example(b"event: payment-receipt\r\n\r", [1], 23)
@example(b"event: payment-receipt\r\n\r\n\r\n", [1], 25)
@example(b"event: payment-receipt\r\n", [1], 23)
@example(b"event: payment-receipt\n\ndata\n\n", [1], 23)
@example(b"data: 6789012345678901234\n\nevent: payment-receipt\n\n", [1], 26)
@example(b"\xef\xbb", [1], 25)
@example(b"data\n\nevent: payment-receipt\n\n", [6, 100], 25)
def test_any_bytes_in_any_pieces(body: bytes, cut: list[int], limit: int) -> None:
    assert run(body, cut, limit) == reference(body, limit)


# --- never late ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(ends, other_names, st.lists(fields | comments, max_size=3))), st.integers(1, 9))
def test_what_begins_with_another_name_comes_out_as_it_comes_in(
    parts: list[tuple[bytes, bytes, list[bytes]]], size: int
) -> None:
    body = b"".join(block([name, *lines], end) for end, name, lines in parts)
    filter_, out = EventFilter(), b""
    for position in range(0, len(body), size):
        out += filter_.feed(body[position : position + size]).out
        waiting = body[len(out) : position + size]
        # Only the beginning of a line that may still become a payment event's name.
        assert waiting in BEGINNINGS
        assert body.startswith(out)


@given(st.lists(st.tuples(ends, others() | st.lists(comments, min_size=1, max_size=2))))
def test_what_is_complete_never_waits(parts: list[tuple[bytes, list[bytes]]]) -> None:
    filter_ = EventFilter()
    for end, lines in parts:
        assert filter_.feed(block(lines, end)) == Fed(block(lines, end))


@given(payments(), ends)
def test_a_payment_event_is_told_with_its_empty_line(
    payment: tuple[list[bytes], PaymentEvent], end: bytes
) -> None:
    """At its first byte: the LF of a CRLF may be a packet away, and a stream waits for its voucher."""
    lines, event = payment
    piece = block(lines, end)
    cut = len(piece) - len(end)
    filter_ = EventFilter()
    assert filter_.feed(piece[:cut]) == Fed(b"")
    assert filter_.feed(piece[cut : cut + 1]) == Fed(b"", (event,))
    assert filter_.feed(piece[cut + 1 :] + b"data: 1") == Fed(b"")
    assert filter_.end() == Fed(b"data: 1")


@given(bodies, limits)
def test_no_more_is_held_than_allowed(body: bytes, limit: int) -> None:
    filter_, out = EventFilter(held_limit=limit), 0
    for position in range(len(body)):
        out += len(filter_.feed(body[position : position + 1]).out)
        assert len(filter_._held) <= limit
