"""The breaker: which endings count, when it opens and closes, and what it forgets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy_addon.audit import Audit
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Caps, Trip
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.breaker import MOST_ORIGINS, Breaker, Verdict, verdict_of
from proxy_addon.payer.calendar import Calendar
from store import budgets
from store.journal import Journal
from tests.properties.bank import CAPS

HOST = "api.example.com"
DELIVERED, DOUBTFUL, UNDELIVERED, NOTHING = Verdict
TRIP = Trip(failures=3, undelivered=1_000, retry_after_ms=60_000)
NOW = 1_772_000_000_000  # 2026-02-25
KEY = budgets.undelivered(CAPS.token.address, CAPS.host, "2026-02-25")


@pytest.mark.parametrize(
    ("outcome", "status", "receipt", "left", "verdict"),
    [
        # Whole answers: an error of the application after a charge is an answer; so is 404.
        (Outcome.COMPLETE, 200, True, False, DELIVERED),
        (Outcome.COMPLETE, 200, False, False, DELIVERED),
        (Outcome.COMPLETE, 204, False, False, DELIVERED),
        (Outcome.COMPLETE, 304, True, False, DELIVERED),
        (Outcome.COMPLETE, 404, True, False, DELIVERED),
        (Outcome.COMPLETE, 404, False, False, DOUBTFUL),
        (Outcome.COMPLETE, 400, False, False, DOUBTFUL),
        (Outcome.COMPLETE, 500, True, False, DOUBTFUL),
        (Outcome.COMPLETE, 500, False, False, UNDELIVERED),
        (Outcome.COMPLETE, 503, False, False, UNDELIVERED),
        (Outcome.COMPLETE, 402, True, False, DOUBTFUL),
        (Outcome.COMPLETE, 402, False, False, UNDELIVERED),
        (Outcome.COMPLETE, 410, False, False, UNDELIVERED),
        (Outcome.COMPLETE, None, False, False, DELIVERED),
        # Broken ones: who broke them?
        (Outcome.CUT, 200, True, False, UNDELIVERED),
        (Outcome.CUT, 200, False, True, NOTHING),
        (Outcome.LOST, None, False, False, UNDELIVERED),
        (Outcome.LOST, None, False, True, DOUBTFUL),
        (Outcome.NOT_SENT, None, False, False, NOTHING),
        (Outcome.NOT_SENT, 402, False, True, NOTHING),
    ],
)
def test_verdicts(outcome: Outcome, status: int | None, receipt: bool, left: bool, verdict: Verdict) -> None:
    assert verdict_of(outcome, status, receipt=receipt, client_left=left) is verdict


@pytest.mark.parametrize("outcome", [Outcome.CUT, Outcome.LOST, Outcome.COMPLETE])
def test_a_stream_that_delivered_something_has_delivered(outcome: Outcome) -> None:
    assert verdict_of(outcome, 200, receipt=False, client_left=False, streamed=True) is DELIVERED


class Bench:
    """A breaker with clocks of its own, and a store that is a dict."""

    def __init__(self, directory: Path, trip: Trip = TRIP) -> None:
        self.ticks, self.wall = 5_000, NOW
        self.counters: dict[str, int] = {}
        self.caps: Caps = replace(CAPS, trip=trip)
        self.journal = Journal(directory / "ledger", "me", "boot")

        async def nobody(*arguments: Any) -> int:
            raise AssertionError("nobody is asked for the date")

        calendar = Calendar(lambda: self.wall, nobody, nobody, lambda: self.ticks)
        self.breaker = Breaker(
            Audit(self.journal, lambda: self.wall), calendar, lambda: self.ticks, self._read
        )
        self._requests = 0

    async def _read(self, prefix: str) -> dict[str, int]:
        return {key: value for key, value in self.counters.items() if key.startswith(prefix)}

    def admit(self, host: str = HOST) -> tuple[str, int]:
        self._requests += 1
        name = f"r{self._requests}"
        return name, self.breaker.admit(host, name)

    def end(self, admitted: tuple[str, int], verdict: Verdict, amount: int = 0, host: str = HOST) -> None:
        self.breaker.ended(host, admitted[0], verdict, amount, admitted=admitted[1], caps=self.caps)

    def one(self, verdict: Verdict, amount: int = 0, host: str = HOST) -> None:
        self.end(self.admit(host), verdict, amount, host)

    def store(self) -> None:
        for move in self.breaker.take_waiting():
            self.counters[move.key] = self.counters.get(move.key, 0) + move.amount

    def refusal(self) -> str:
        with pytest.raises(LocalRefusal) as caught:
            self.admit()
        assert caught.value.reason == "breaker-open"
        return str(caught.value)

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        found = [orjson.loads(line) for line in self.journal.path.read_bytes().splitlines()]
        return [line for line in found if line.get("kind") == "breaker"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_so_many_in_a_row_open_it(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.one(UNDELIVERED, 10)
    bench.one(UNDELIVERED, 10)
    assert not bench.breaker.is_open(HOST)
    with caplog.at_level(logging.WARNING):
        bench.one(UNDELIVERED, 10)
    assert bench.breaker.is_open(HOST)
    rule = (
        "3 payments in a row brought nothing, as many as failures = 3 allows ([breaker] or policy.hosts[0])"
    )
    assert bench.refusal() == f"{HOST} is not paid: {rule}; it is tried again in 60 s"
    told = f"{HOST} is not paid any more: {rule}; one payment is tried in 60 s"
    assert told in caplog.text
    (line,) = bench.lines
    assert (line["message"], line["reason"], line["outcome"], line["host"]) == (
        told,
        "breaker-open",
        "opened",
        HOST,
    )
    assert (line["amount"], line["symbol"]) == ("30", "pathUSD")


@pytest.mark.parametrize("between", [DELIVERED])
def test_a_delivery_begins_the_row_anew(bench: Bench, between: Verdict) -> None:
    for _ in range(20):
        bench.one(UNDELIVERED)
        bench.one(UNDELIVERED)
        bench.one(between)
    assert not bench.breaker.is_open(HOST)
    assert bench.lines == []


@pytest.mark.parametrize("between", [NOTHING, DOUBTFUL])
def test_what_says_nothing_changes_nothing(bench: Bench, between: Verdict) -> None:
    for _ in range(2):
        bench.one(UNDELIVERED)
        bench.one(between)
    assert not bench.breaker.is_open(HOST)
    bench.one(UNDELIVERED)
    assert bench.breaker.is_open(HOST)


def test_those_that_were_under_way_together_count_once(bench: Bench) -> None:
    """A server's restart cuts all that it was answering."""
    for _ in range(2):
        together = [bench.admit() for _ in range(64)]
        for one in together:
            bench.end(one, UNDELIVERED)
    assert not bench.breaker.is_open(HOST)
    bench.end(bench.admit(), UNDELIVERED)
    assert bench.breaker.is_open(HOST)


def test_origins_are_apart(bench: Bench) -> None:
    for _ in range(3):
        bench.one(UNDELIVERED, host="bad.example.com")
    assert bench.breaker.is_open("bad.example.com")
    assert not bench.breaker.is_open(HOST)
    bench.one(DELIVERED)


def opened(bench: Bench) -> None:
    for _ in range(3):
        bench.one(UNDELIVERED)
    assert bench.breaker.is_open(HOST)


def test_half_open_tries_one_at_a_time(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    opened(bench)
    bench.ticks += 59_999
    assert "again in 1 s" in bench.refusal()
    bench.ticks += 1
    trial = bench.admit()
    assert "it is tried by one request at this moment" in bench.refusal()
    assert bench.breaker.admit(HOST, trial[0]) > trial[1]  # the same request, once more: a repair
    assert bench.breaker.is_open(HOST)  # nothing is paid in advance
    with caplog.at_level(logging.INFO):
        bench.end(trial, DELIVERED)
    assert not bench.breaker.is_open(HOST)
    assert f"{HOST} delivers again, and is paid as before" in caplog.text
    assert [line["outcome"] for line in bench.lines] == ["opened", "closed"]
    bench.one(UNDELIVERED)
    assert not bench.breaker.is_open(HOST)


def test_half_open_opens_again(bench: Bench) -> None:
    opened(bench)
    for _ in range(3):
        bench.ticks += 60_000
        bench.end(bench.admit(), UNDELIVERED)
        assert "again in 60 s" in bench.refusal()
    assert [line["outcome"] for line in bench.lines] == ["opened"] * 4


@pytest.mark.parametrize("how", ["nothing", "doubtful", "not paid"])
def test_a_trial_that_tells_nothing_lets_another_one_try(bench: Bench, how: str) -> None:
    opened(bench)
    bench.ticks += 60_000
    for _ in range(3):
        trial = bench.admit()
        if how == "not paid":
            bench.breaker.let_go(HOST, trial[0])
        else:
            bench.end(trial, NOTHING if how == "nothing" else DOUBTFUL)
    bench.end(bench.admit(), DELIVERED)
    assert not bench.breaker.is_open(HOST)


def test_a_trial_that_never_ends_is_not_waited_for(bench: Bench) -> None:
    """A stream may go on for hours."""
    opened(bench)
    bench.ticks += 60_000
    stream = bench.admit()
    bench.ticks += 59_999
    bench.refusal()
    bench.ticks += 1
    other = bench.admit()
    bench.end(stream, NOTHING)
    bench.refusal()  # the other one's turn is not over
    bench.end(other, DELIVERED)
    assert not bench.breaker.is_open(HOST)


def test_what_was_under_way_when_it_opened(bench: Bench) -> None:
    late = [bench.admit() for _ in range(4)]
    opened(bench)
    bench.end(late[0], UNDELIVERED)
    bench.end(late[1], NOTHING)
    assert "again in 60 s" in bench.refusal()
    assert len(bench.lines) == 1
    bench.end(late[2], DELIVERED)  # so it does deliver
    assert not bench.breaker.is_open(HOST)
    bench.end(late[3], DELIVERED)


# -- the amount


async def test_an_amount_opens_it(bench: Bench) -> None:
    bench.one(DOUBTFUL, 1_000)
    assert not bench.breaker.is_open(HOST)
    bench.one(DOUBTFUL, 1)
    assert bench.breaker.is_open(HOST)
    assert bench.refusal() == (
        f"{HOST} is not paid: 0.001001 pathUSD were paid today, or may have been, for which it delivered nothing, over"
        " max_undelivered 0.001 pathUSD ([breaker] or policy.hosts[0]); it is tried again in 60 s"
    )


def test_deliveries_do_not_pay_back(bench: Bench) -> None:
    """One that delivers now and then, and keeps the rest, is paid once a minute at most."""
    taken = 0
    for _ in range(100):
        try:
            admitted = bench.admit()
        except LocalRefusal:
            bench.ticks += 1_000
            continue
        bench.end(admitted, UNDELIVERED, 100)
        taken += 100
        if not bench.breaker.is_open(HOST):
            bench.one(DELIVERED)
    assert taken <= 1_100 + 100 * (100 // 60 + 1)


async def test_the_amount_is_of_a_day_and_outlives_the_process(bench: Bench, tmp_path: Path) -> None:
    bench.one(UNDELIVERED, 999)
    bench.store()
    assert bench.counters == {KEY: 999}
    assert bench.breaker.take_waiting() == ()
    again = Bench(tmp_path / "next")
    again.counters = bench.counters
    await again.breaker.heed(again.caps)
    again.one(UNDELIVERED, 1)
    assert not again.breaker.is_open(HOST)
    again.one(DELIVERED)
    again.one(DOUBTFUL, 1)
    assert again.breaker.is_open(HOST)
    again.store()
    assert again.counters == {KEY: 1_001}
    tomorrow = Bench(tmp_path / "tomorrow")
    tomorrow.counters, tomorrow.wall = again.counters, NOW + budgets.DAY_MS
    await tomorrow.breaker.heed(tomorrow.caps)
    tomorrow.one(UNDELIVERED, 1_000)
    assert not tomorrow.breaker.is_open(HOST)


async def test_what_waits_is_counted_once(bench: Bench) -> None:
    bench.one(DOUBTFUL, 600)
    bench.store()
    await bench.breaker.heed(bench.caps)
    bench.one(DOUBTFUL, 400)
    assert not bench.breaker.is_open(HOST)


def test_no_memory_is_filled_by_names(bench: Bench) -> None:
    for number in range(MOST_ORIGINS + 50):
        bench.one(UNDELIVERED, host=f"n{number}.example.com")
    assert len(bench.breaker._troubles) <= MOST_ORIGINS
