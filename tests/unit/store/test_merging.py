"""What an import makes of a record: watermarks never fall, nothing becomes free, twice is once, budgets follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import account, budgets
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus, advance
from store.merging import (
    NOT_MOVED,
    Charged,
    Incoming,
    merged,
    opening_moves,
    refund_of,
    taken_in,
    without_holds,
)
from store.records import Channel, CounterMove, Hold, JournalMark
from tests.properties.bank import proposed, scope_of

S = ChannelStatus
NOW = 1_000_000
TOKEN = scope_of().token
HOST = scope_of().host


def channel(**changes: Any) -> Channel:
    usual: dict[str, Any] = {
        "status": S.OPEN,
        "pending": None,
        "deposit": 100,
        "authorised": 30,
        "paid": 20,
        "uncertain": 4,
        "updated_at": 500,
    }
    return replace(proposed("0xc1", scope_of()), **(usual | changes))


@st.composite
def channels(draw: st.DrawFn, statuses: st.SearchStrategy[S] | None = None) -> Channel:
    deposit = draw(st.integers(1, 100))
    authorised = draw(st.integers(0, deposit))
    paid = draw(st.integers(0, authorised))
    uncertain = draw(st.integers(0, authorised - paid))
    status = draw(statuses or st.sampled_from([S.OPEN, S.DRAINING, S.CLOSING, S.ASIDE, S.CLOSED, S.MOVED]))
    return channel(
        deposit=deposit,
        authorised=authorised,
        paid=paid,
        uncertain=uncertain,
        status=status,
        captured=paid if status is S.CLOSED else None,
        accepted=draw(st.integers(0, authorised)),
        settled=draw(st.integers(0, authorised)),
        updated_at=draw(st.integers(0, 1000)),
        close_amount=draw(st.integers(0, authorised)) if status is S.CLOSING else None,
    )


# -- a channel that is on record


@given(channels(), channels(), st.booleans())
def test_watermarks_never_fall_and_nothing_becomes_free(mine: Channel, theirs: Channel, moved: bool) -> None:
    incoming = Incoming(replace(theirs, status=S.OPEN) if moved else theirs, moved)
    after = merged(mine, incoming, NOW)
    account.check(after)
    advance(mine.status, after.status)
    assert after.free <= mine.free
    for name in ("authorised", "paid", "deposit", "accepted", "settled"):
        assert getattr(after, name) >= getattr(mine, name)
        if mine.status not in FINAL:
            assert getattr(after, name) >= min(getattr(theirs, name), after.authorised)
    if mine.status not in FINAL:
        # Whatever either of them takes for possibly charged stays counted.
        assert after.paid + after.uncertain >= mine.paid + mine.uncertain
        if theirs.updated_at > mine.updated_at or theirs.authorised > mine.authorised:
            assert after.paid + after.uncertain >= theirs.paid + theirs.uncertain


@given(channels(), channels(), st.booleans())
def test_twice_is_once(mine: Channel, theirs: Channel, moved: bool) -> None:
    incoming = Incoming(replace(theirs, status=S.OPEN) if moved else theirs, moved)
    once = merged(mine, incoming, NOW)
    assert merged(once, incoming, NOW) == once
    later = replace(once, updated_at=2000)
    assert merged(later, incoming, NOW) == later


@given(channels())
def test_what_is_the_same_changes_nothing(mine: Channel) -> None:
    assert merged(mine, Incoming(mine, moved=False), NOW) in (
        mine,
        replace(mine, status=S.ASIDE, note="closed, as an import says: a close asks the chain"),
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        # They authorised more: nothing of ours is known to be free.
        ({}, {"authorised": 50, "paid": 25, "uncertain": 0}, {"authorised": 50, "paid": 25, "uncertain": 25}),
        # They know of more that was paid: it was uncertain here.
        ({}, {"paid": 23, "uncertain": 0}, {"authorised": 30, "paid": 23, "uncertain": 1}),
        # More than was uncertain: the rest was thought free.
        ({}, {"paid": 29, "uncertain": 0}, {"paid": 29, "uncertain": 0}),
        # They are older, and in doubt where we are not any more.
        ({}, {"paid": 10, "uncertain": 20, "updated_at": 400}, {"paid": 20, "uncertain": 4}),
        # They are newer, and in doubt where we are not yet.
        ({}, {"paid": 20, "uncertain": 9, "updated_at": 600}, {"paid": 20, "uncertain": 9}),
        # A deposit that was topped up elsewhere.
        ({}, {"deposit": 200}, {"deposit": 200, "authorised": 30}),
        ({"min_delta": 3}, {"min_delta": 7, "equal_refused": True}, {"min_delta": 7, "equal_refused": True}),
    ],
)
def test_whose_word_counts(mine: dict[str, Any], theirs: dict[str, Any], expected: dict[str, Any]) -> None:
    after = merged(channel(**mine), Incoming(channel(**theirs), moved=False), NOW)
    assert {name: getattr(after, name) for name in expected} == expected
    assert after.status is S.OPEN


@pytest.mark.parametrize("theirs", [S.DRAINING, S.CLOSING, S.ASIDE, S.CLOSED])
def test_what_another_store_has_stopped_paying_with_is_set_aside(theirs: S) -> None:
    after = merged(channel(), Incoming(channel(status=theirs), moved=False), NOW)
    assert after.status is S.ASIDE
    assert after.note


def test_a_tombstone_stays_what_it_is() -> None:
    for status in (S.CLOSED, S.FAILED, S.MOVED):
        mine = channel(status=status, captured=5)
        assert merged(mine, Incoming(channel(authorised=90), moved=False), NOW) is mine
    closed = channel(status=S.CLOSED)
    assert merged(closed, Incoming(channel(), moved=True), NOW) is closed


def test_one_that_was_moved_away_comes_back() -> None:
    away = channel(status=S.MOVED, note="moved to another store")
    after = merged(away, Incoming(channel(authorised=60, paid=55, uncertain=0), moved=True), NOW)
    assert (after.status, after.note) == (S.OPEN, "")
    assert (after.authorised, after.paid, after.uncertain, after.free) == (60, 55, 5, 0)


def test_a_pending_top_up_keeps_its_status() -> None:
    mine = replace(channel(), pending=replace(proposed("0xc1", scope_of()).pending, kind="top_up"))  # type: ignore[type-var]
    assert merged(mine, Incoming(channel(status=S.CLOSED), moved=False), NOW).status is S.OPEN


# -- one that is not


def test_one_that_was_moved_goes_on_where_it_was() -> None:
    theirs = channel(owner="other", epoch=7, folded=JournalMark("other", 9, "boot"))
    after = taken_in(Incoming(theirs, moved=True), take_over=False, eligible_at=NOW)
    assert after == replace(theirs, owner=None, epoch=0, folded=None)
    assert after.free == theirs.free == 6


@given(channels(), st.booleans())
def test_of_a_copy_nothing_is_free(theirs: Channel, take_over: bool) -> None:
    after = taken_in(Incoming(theirs, moved=False), take_over=take_over, eligible_at=NOW)
    account.check(after)
    if theirs.status in FINAL:
        assert after == theirs
        return
    assert after.free == 0
    assert after.eligible_at >= NOW
    if theirs.status is S.OPEN and take_over:
        assert after.status is S.OPEN
    else:
        assert after.status in (S.ASIDE, S.CLOSING)


def test_it_says_why_a_copy_is_not_used() -> None:
    assert taken_in(Incoming(channel(), moved=False), take_over=False, eligible_at=NOW).note == NOT_MOVED


@pytest.mark.parametrize("status", sorted(PENDING_OPEN))
def test_an_opening_on_its_way_is_for_the_chain_to_decide(status: S) -> None:
    theirs = replace(proposed("0xc1", scope_of()), status=status, authorised=5)
    after = taken_in(Incoming(theirs, moved=False), take_over=True, eligible_at=NOW)
    assert (after.status, after.uncertain, after.ceiling) == (S.UNKNOWN, 5, theirs.ceiling)


def test_what_was_in_flight_may_have_been_charged() -> None:
    hold = Hold("r", 2, 30, 1, 2, 1, "f")
    theirs = channel(holds={"r": hold}, held=2)
    after = without_holds(theirs, NOW)
    account.check(after)
    assert (after.held, after.uncertain, after.eligible_at, after.free) == (0, 6, NOW, theirs.free)
    assert without_holds(channel(), NOW) == channel()


# -- budgets


def counted(moves: tuple[CounterMove, ...]) -> dict[str, int]:
    return {move.key: move.amount for move in moves}


COUNTERS = {
    budgets.host_day(TOKEN, HOST, "2026-01-01"): 10,
    budgets.host_day(TOKEN, HOST, "2026-01-03"): 5,
    budgets.host_day(TOKEN, HOST, "2026-01-02"): 7,
    budgets.host_day(TOKEN, "other.example.com:443", "2026-01-03"): 100,
    budgets.host_day("0xother", HOST, "2026-01-03"): 100,
    budgets.total_day(TOKEN, "2026-01-03"): 105,
    budgets.lifetime(TOKEN): 122,
}


def test_a_raise_is_charged_to_the_newest_dates_of_the_other_store() -> None:
    charged = Charged(COUNTERS)
    first = charged.moves(channel(), 9, host=HOST, date="2026-02-01")
    assert counted(first) == {
        budgets.host_day(TOKEN, HOST, "2026-01-03"): 5,
        budgets.host_day(TOKEN, HOST, "2026-01-02"): 4,
        budgets.total_day(TOKEN, "2026-01-03"): 5,
        budgets.total_day(TOKEN, "2026-01-02"): 4,
        budgets.lifetime(TOKEN): 9,
    }
    second = charged.moves(channel(), 20, host="*.example.com", date="2026-02-01")
    assert counted(second) == {
        budgets.host_day(TOKEN, "*.example.com", "2026-01-02"): 3,
        budgets.host_day(TOKEN, "*.example.com", "2026-01-01"): 10,
        budgets.host_day(TOKEN, "*.example.com", "2026-02-01"): 7,
        budgets.total_day(TOKEN, "2026-01-02"): 3,
        budgets.total_day(TOKEN, "2026-01-01"): 10,
        budgets.total_day(TOKEN, "2026-02-01"): 7,
        budgets.lifetime(TOKEN): 20,
    }
    assert charged.moves(channel(), 0, host=HOST, date="2026-02-01") == ()


@given(st.lists(st.integers(0, 40), max_size=5), st.lists(st.integers(0, 30), max_size=5))
def test_each_family_is_charged_exactly(days: list[int], raises: list[int]) -> None:
    counters = {
        budgets.host_day(TOKEN, HOST, f"2026-01-{day + 1:02}"): amount for day, amount in enumerate(days)
    }
    charged = Charged(counters)
    used: dict[str, int] = {}
    for amount in raises:
        moves = charged.moves(channel(), amount, host=HOST, date="2026-02-01")
        for family in budgets.RAISED:
            assert sum(move.amount for move in moves if move.key.startswith(family)) == amount
        for move in moves:
            used[move.key] = used.get(move.key, 0) + move.amount
    for key, amount in counters.items():
        assert used.get(key, 0) <= amount
    if sum(raises) == sum(days):  # a whole store: its dates are taken over as they were
        assert {key: used.get(key, 0) for key in counters} == counters


@pytest.mark.parametrize(
    ("counted_as", "host", "same"),
    [
        ("api.example.com:443", "api.example.com:443", True),
        ("api.example.com:443", "api.example.com:8443", False),
        ("*.example.com", "api.example.com:443", True),
        ("*.example.com:8443", "api.example.com:443", False),
        ("*.example.com:443", "api.example.com:443", True),
        ("*.example.com", "example.com:443", False),
        ("*.example.com", "notexample.com:443", False),
    ],
)
def test_wildcards_of_the_other_config_are_understood(counted_as: str, host: str, same: bool) -> None:
    charged = Charged({budgets.host_day(TOKEN, counted_as, "2026-01-01"): 10})
    theirs = channel(scope=scope_of(origin=f"https://{host}"))
    moves = charged.moves(theirs, 10, host=host, date="2026-02-01")
    date = "2026-01-01" if same else "2026-02-01"
    assert counted(moves)[budgets.total_day(TOKEN, date)] == 10


def test_an_opening_counts_where_it_was_made() -> None:
    assert counted(opening_moves(channel(), host=HOST, date="2026-01-01")) == {
        budgets.opens(HOST, "2026-01-01"): 1,
        budgets.deposits(TOKEN, HOST, "2026-01-01"): 100,
    }
    assert opening_moves(channel(status=S.FAILED), host=HOST, date="2026-01-01") == ()


def test_what_a_close_gave_back() -> None:
    assert refund_of(channel(status=S.CLOSED, captured=12)) == 18
    assert refund_of(channel(status=S.CLOSED, captured=99)) == 0
    assert refund_of(channel(status=S.CLOSED)) == 0
    assert refund_of(channel()) == 0


def test_of_two_names_for_one_host_its_own_is_taken_first() -> None:
    """On one date; a wildcard's hosts share its counter, and others may have charged it."""
    wildcard, own = (budgets.host_day(TOKEN, name, "2026-01-01") for name in ("*.example.com", HOST))
    for order in ((wildcard, own), (own, wildcard)):
        charged = Charged(dict.fromkeys(order, 10))
        assert charged._take(channel(), 4) == [("2026-01-01", 4)]
        assert charged._left == {(TOKEN, "*.example.com", "2026-01-01"): 10, (TOKEN, HOST, "2026-01-01"): 6}


def test_an_opening_with_a_top_up_on_its_way_counts_both_deposits() -> None:
    pending = proposed("0xc1", scope_of()).pending
    assert pending is not None
    topped = channel(deposit=100, pending=replace(pending, kind="top_up", deposit=30))
    assert counted(opening_moves(topped, host=HOST, date="2026-01-01")) == {
        budgets.opens(HOST, "2026-01-01"): 1,
        budgets.deposits(TOKEN, HOST, "2026-01-01"): 130,
    }
