from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.cli.lines import Entry
from proxy_addon.cli.sums import Difference, add_up, differences
from store.journal import Line
from store.lifecycle import ChannelStatus
from tests.unit.methods import samples

ONE = "0x" + "c1" * 32


def entry(number: int, journal: str = "j", **fields: Any) -> Entry:
    return Entry(journal, Line(number, fields, fields.get("channel"), None))


@given(
    st.lists(
        st.tuples(st.integers(0, 2**96), st.sampled_from(["paid", "free", "undelivered", "unknown", None])),
        max_size=20,
    )
)
def test_every_request_is_counted_once(requests: list[tuple[int, str | None]]) -> None:
    """Sent twice (with another voucher) it is still one; and paid + uncertain + unfinished + free is all."""
    entries = []
    for number, (amount, outcome) in enumerate(requests):
        facts = {
            "request": f"r{number}",
            "channel": ONE,
            "token": "0xt",
            "symbol": "T",
            "amount": str(amount),
        }
        entries += [entry(1, kind="sent", **facts), entry(2, kind="sent", **facts)]
        if outcome is not None:
            entries.append(entry(3, kind="ended", outcome=outcome, **facts))
    sums = add_up(entries)

    def total(*outcomes: str | None) -> tuple[int, int]:
        amounts = [amount for amount, outcome in requests if outcome in outcomes]
        return sum(amounts), len(amounts)

    token = sums.tokens.get("0xt")
    if token is None:
        assert total("paid", "undelivered", "unknown", None) == (0, 0)
        return
    assert (token.paid, token.paid_requests) == total("paid")
    assert (token.uncertain, token.uncertain_requests) == total("undelivered", "unknown")
    assert (token.unfinished, token.unfinished_requests) == total(None)


@pytest.mark.parametrize(("left", "requests"), [(None, 1), (7, 1), (3, 1), (0, 0)])
def test_what_a_streams_events_do_not_account_for_is_uncertain(left: int | None, requests: int) -> None:
    """Six were paid for and came; of seven more nobody knows, until a receipt says how much is `left`."""
    facts = {"channel": ONE, "token": "0xt", "symbol": "T"}
    ended = {"kind": "ended", "outcome": "paid", "request": "1", "amount": "6", "uncertain": "7"}
    later = {"kind": "ended", "outcome": "paid", "request": "2", "amount": "1", "uncertain_now": str(left)}
    sums = add_up([entry(1, **facts, **ended), *([] if left is None else [entry(2, **facts, **later)])])
    token = sums.tokens["0xt"]
    assert token.paid == 6 + (left is not None)
    assert (token.uncertain, token.uncertain_requests) == (7 if left is None else left, requests)


def test_tokens_are_never_added_to_one_another() -> None:
    lines = [
        entry(1, kind="ended", outcome="paid", token="0xa", symbol="A", amount="5", channel=ONE, request="1"),
        entry(2, kind="ended", outcome="paid", token="0xb", symbol="B", amount="7", channel=ONE, request="2"),
    ]
    assert {name: one.paid for name, one in add_up(lines).tokens.items()} == {"0xa": 5, "0xb": 7}


def test_the_same_request_id_in_two_journals_is_two() -> None:
    facts = {"kind": "sent", "request": "r", "channel": ONE, "token": "t", "amount": "3"}
    sums = add_up([entry(1, "a", **facts), entry(1, "b", **facts)])
    assert sums.tokens["t"].unfinished == 6


@pytest.mark.parametrize(
    ("ledger", "paid", "uncertain", "expected"),
    [
        (100, 100, 0, None),
        (0, 0, 50, None),
        (100, 90, 10, True),  # the record was written before the last answer, and then the power failed
        (100, 90, 9, False),
        (90, 100, 50, False),
    ],
)
def test_differences(ledger: int, paid: int, uncertain: int, expected: bool | None) -> None:
    channel = samples.channel(paid=paid, uncertain=uncertain)
    found = differences({channel.channel_id: ledger} if ledger else {}, [channel])
    assert [one.doubted for one in found] == ([] if expected is None else [expected])


def test_lines_of_a_channel_that_the_store_does_not_know() -> None:
    assert differences({ONE: 5}, []) == [Difference(ONE, 5, None, doubted=False)]


def test_what_was_told_twice_counts_once() -> None:
    """The line of an opening, a top-up or a close comes before the record; who dies in between tells it again."""
    opened = {"kind": "opened", "channel": ONE, "token": "t", "amount": "100", "tx": "0x1", "fee": "3"}
    more = {"kind": "topped-up", "channel": ONE, "token": "t", "amount": "50", "tx": "0x2", "fee": "2"}
    ended = {"kind": "ended", "outcome": "paid", "channel": ONE, "token": "t", "amount": "30", "request": "r"}
    closed = {
        "kind": "closed",
        "channel": ONE,
        "token": "t",
        "tx": "0x3",
        "refunded": "110",
        "adjustment": "10",
    }
    for times in (1, 2):
        journals = [f"j{number}" for number in range(times)]
        lines = [entry(1, name, **fields) for fields in (opened, more) for name in journals]
        lines.append(entry(2, **ended))
        lines += [entry(3, name, **closed) for name in journals]
        sums = add_up(lines)
        token = sums.tokens["t"]
        assert (token.deposited, token.fees, token.adjusted, token.refunded) == (150, 5, 10, 110)
        assert (sums.opened, sums.closed, sums.paid_by_channel) == ([ONE], [ONE], {ONE: 40})


@pytest.mark.parametrize(
    ("status", "paid", "agrees"), [("closed", 40, True), ("closing", 30, True), ("closing", 40, False)]
)
def test_a_close_that_is_not_on_record_yet(status: str, paid: int, agrees: bool) -> None:
    channel = samples.channel(
        channel_id=ONE, status=ChannelStatus(status), authorised=100, deposit=1000, paid=paid
    )
    assert (differences({ONE: 40}, [channel], closing={ONE: 10}) == []) is agrees
