"""Seats and attempts: how much at once, how fast."""

from __future__ import annotations

import pytest

from proxy_addon.audit import RequestFacts
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Rates
from proxy_addon.core.repair import Tries
from proxy_addon.payer.limits import MOST_BUCKETS, Attempts, Seats
from proxy_addon.payer.wants import Want
from tests.properties.bank import CAPS

HOST, OTHER = "api.example.com", "other.example.com"


def want(host: str = HOST) -> Want:
    facts = RequestFacts("r", "127.0.0.1:1", host, "GET", "/")
    return Want(facts, 1, CAPS, Tries(), "c", 10**15, "f")


def test_seats_per_origin_and_over_all() -> None:
    seats = Seats(Rates(in_flight_per_origin=2, in_flight=3))
    taken = [want(), want()]
    for one in taken:
        seats.enter(one)
    with pytest.raises(LocalRefusal) as caught:
        seats.enter(want())
    assert caught.value.reason == "too-many-in-flight"
    assert str(caught.value) == (
        f"{HOST} has 2 paid requests in flight, all that limits.in_flight_per_origin = 2 allows; raise it, or send"
        " fewer at once"
    )
    seats.enter(want(OTHER))
    with pytest.raises(LocalRefusal) as caught:
        seats.enter(want(OTHER))
    assert str(caught.value) == (
        f"{OTHER}: 3 paid requests are in flight, all that limits.in_flight = 3 allows; raise it, or send fewer at once"
    )
    for one in taken:
        one.let_go(charged=True)
        one.let_go(charged=True)
    assert len(seats) == 1
    seats.enter(want())
    assert seats._taken == {HOST: 1, OTHER: 1}


def test_a_seat_is_taken_once() -> None:
    seats, one = Seats(Rates(in_flight_per_origin=1)), want()
    seats.enter(one)
    seats.enter(one)
    assert len(seats) == 1
    one.let_go(charged=False)
    assert (len(seats), seats._taken) == (0, {})


class Clock:
    ms = 7

    def __call__(self) -> int:
        return self.ms


def drain(attempts: Attempts, client: str = "local", host: str = HOST) -> int:
    done = 0
    while True:
        try:
            attempts.take(client, host)
        except LocalRefusal as error:
            assert error.reason == "too-many-attempts"  # noqa: PT017
            return done
        done += 1


def test_a_burst_and_then_so_many_a_minute() -> None:
    clock = Clock()
    attempts = Attempts(Rates(attempts_per_minute=60), clock)
    assert drain(attempts) == 60
    clock.ms += 999
    assert drain(attempts) == 0
    clock.ms += 1
    assert drain(attempts) == 1
    clock.ms += 30_000
    assert drain(attempts) == 30
    clock.ms += 10**9
    assert drain(attempts) == 60  # never more than a minute's


def test_clients_and_origins_are_apart() -> None:
    attempts = Attempts(Rates(attempts_per_minute=3), Clock())
    assert [drain(attempts, client, host) for client in "ab" for host in (HOST, OTHER)] == [3] * 4


def test_what_is_counted_only_is_owed() -> None:
    clock = Clock()
    attempts = Attempts(Rates(attempts_per_minute=60), clock)
    for _ in range(63):
        attempts.count("local", HOST)
    clock.ms += 3_000
    assert drain(attempts) == 0
    clock.ms += 1_000
    assert drain(attempts) == 1


def test_the_words() -> None:
    attempts = Attempts(Rates(attempts_per_minute=1), Clock())
    attempts.take("alice", HOST)
    with pytest.raises(LocalRefusal) as caught:
        attempts.take("alice", HOST)
    assert str(caught.value) == (
        f"{HOST} has made alice pay anew more than 1 times a minute (limits.attempts_per_minute); raise it, or look why"
        " its payments are refused"
    )


def test_no_memory_is_filled_by_names() -> None:
    attempts = Attempts(Rates(), Clock())
    for number in range(MOST_BUCKETS + 100):
        attempts.take("local", f"n{number}.example.com")
    assert len(attempts._buckets) == MOST_BUCKETS
