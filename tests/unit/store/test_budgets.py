"""The counters' names are in every store: they stay as they are; and dates are the ones that people mean."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import budgets
from store.lifecycle import FINAL, ChannelStatus
from store.records import CounterMove
from tests.properties.bank import proposed, scope_of

DAY, HOST = "2026-01-31", "api.example.com:443"


def test_the_names_of_the_counters() -> None:
    assert [
        budgets.host_day("0xt", HOST, DAY),
        budgets.total_day("0xt", DAY),
        budgets.lifetime("0xt"),
        budgets.refunded("0xt"),
        budgets.opens(HOST, DAY),
        budgets.deposits("0xt", HOST, DAY),
        budgets.client_day("0xt", "laptop", DAY),
        budgets.escrow("0xt"),
        budgets.undelivered("0xt", HOST, DAY),
    ] == [
        "host-day/0xt/2026-01-31/api.example.com:443",
        "total-day/0xt/2026-01-31",
        "lifetime/0xt",
        "refunded/0xt",
        "opens/2026-01-31/api.example.com:443",
        "deposits/0xt/2026-01-31/api.example.com:443",
        "client-day/0xt/2026-01-31/laptop",
        "escrow/0xt",
        "undelivered/0xt/2026-01-31/api.example.com:443",
    ]


def test_which_counters_a_raise_moves() -> None:
    raised = [budgets.host_day("t", HOST, DAY), budgets.total_day("t", DAY), budgets.lifetime("t")]
    assert all(map(budgets.is_raise, raised))
    others = [
        budgets.refunded("t"),
        budgets.opens(HOST, DAY),
        budgets.escrow("t"),
        budgets.client_day("t", "c", DAY),
    ]
    assert not any(map(budgets.is_raise, others))


@pytest.mark.parametrize(("length", "plain"), [(1, True), (63, True), (64, True), (65, False), (500, False)])
def test_a_long_name_of_a_client_is_hashed(length: int, plain: bool) -> None:
    """In bytes: a store's keys have a length."""
    for name in ("a" * length, "é" * (length // 2) + "a" * (length % 2)):
        key = budgets.client_day("t", name, DAY)
        assert key.endswith(f"/{name}") is plain
        assert len(key.encode()) < 120
    assert budgets.client_day("t", "\udce9", DAY) == f"client-day/t/{DAY}/\\udce9"


@pytest.mark.parametrize(
    ("iso", "number"), [("1970-01-01", 0), ("1970-01-02", 1), ("1969-12-31", -1), ("2026-01-31", 20_484)]
)
def test_days_are_counted_from_the_epoch(iso: str, number: int) -> None:
    assert budgets.day_number(iso) == number
    assert budgets.iso_date(number) == iso
    assert budgets.DAY_MS == 24 * 3600 * 1000


@given(st.dates())
def test_a_day_is_its_date(day: date) -> None:
    assert budgets.iso_date(budgets.day_number(day.isoformat())) == day.isoformat()


@pytest.mark.parametrize(
    ("moves", "days"),
    [
        ([], None),
        ([CounterMove("lifetime/t", 5)], None),
        ([CounterMove("total-day/t/1970-01-05", 0)], None),
        ([CounterMove("total-day/t/1970-01-05", -1)], None),  # given back: charges no date
        ([CounterMove("total-day/t/1970-01-05", 1)], (4, 4)),
        ([CounterMove("host-day/t/1970-01-05/h", 1), CounterMove("opens/1970-01-03/h", 1)], (2, 4)),
        ([CounterMove("client-day/t/1970-01-09/c/1970-01-01", 1), CounterMove("escrow/t", 9)], (8, 8)),
        ([CounterMove("deposits/t/1970-01-07/h", 1), CounterMove("undelivered/t/1970-01-01/h", 1)], (6, 6)),
    ],
)
def test_which_dates_are_charged(moves: list[CounterMove], days: tuple[int, int] | None) -> None:
    assert budgets.charged_days(moves) == days


@pytest.mark.parametrize("status", ChannelStatus)
def test_what_is_locked(status: ChannelStatus) -> None:
    one = proposed("0xc1", scope_of())
    assert one.pending is not None
    one = replace(one, status=status, deposit=100, pending=replace(one.pending, deposit=30))
    assert budgets.locked(one) == (0 if status in FINAL else 130)
    assert budgets.locked(replace(one, pending=None)) == (0 if status in FINAL else 100)


def test_what_is_given_back() -> None:
    moves = (CounterMove("opens/1970-01-05/h", 1, 3, "rule"), CounterMove("lifetime/t", 7, 9, "other"))
    assert budgets.reversed_moves(moves) == (
        CounterMove("opens/1970-01-05/h", -1, None, "rule"),
        CounterMove("lifetime/t", -7, None, "other"),
    )
    assert budgets.refund_moves("t", 4) == (CounterMove("lifetime/t", -4), CounterMove("refunded/t", 4))
