"""Which day it is for the budgets: tables around midnight UTC, clocks that are set, chains that are late or silent."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.payer.calendar import ASK_AGAIN_MS, Calendar
from store.budgets import day_number

CHAIN = "eip155:4217"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class World:
    """A wall clock that can be set, a clock that cannot, a chain with a clock of its own, a store's newest date."""

    def __init__(self, wall: str, *, block: str | None = None, newest: str | None = None) -> None:
        self.wall, self.ticks = ms(wall), 1_000_000
        self.block = None if block is None else ms(block) // 1000
        self.newest = None if newest is None else day_number(newest)
        self.asked = 0
        self.calendar = Calendar(lambda: self.wall, self._newest, self._block_time, lambda: self.ticks)

    async def _newest(self) -> int | None:
        return self.newest

    async def _block_time(self, chain: str) -> int:
        assert chain == CHAIN
        self.asked += 1
        await asyncio.sleep(0)
        if self.block is None:
            raise ChainUnavailable("no endpoint answered")
        return self.block

    def passes(self, seconds: float) -> None:
        """Time that really passes, for every clock but a chain that stands still."""
        self.wall += int(seconds * 1000)
        self.ticks += int(seconds * 1000)

    async def today(self) -> str:
        """The date, or the reason why there is none."""
        try:
            return await self.calendar.today(CHAIN)
        except LocalRefusal as error:
            return error.reason


@pytest.mark.parametrize(
    ("wall", "block", "newest", "says", "asked"),
    [
        # A new store: the chain is the witness.
        ("2026-03-01T12:00:00", "2026-03-01T11:59:59", None, "2026-03-01", 1),
        ("2026-03-01T00:00:00", "2026-02-28T23:59:59", None, "2026-03-01", 1),
        ("2026-02-28T23:59:59", "2026-02-28T23:59:59", None, "2026-02-28", 1),
        # A chain that is late by up to a day, and by more.
        ("2026-03-01T23:59:59", "2026-02-28T00:00:00", None, "2026-03-01", 1),
        ("2026-03-01T00:00:00", "2026-02-27T23:59:59", None, "clock-ahead", 1),
        # A clock that is ahead: a day at most is used before it has come.
        ("2026-03-02T00:00:00", "2026-03-01T00:00:00", None, "2026-03-02", 1),
        ("2026-03-03T00:00:00", "2026-03-01T23:59:59", None, "clock-ahead", 1),
        ("2031-01-01T00:00:00", "2026-03-01T12:00:00", None, "clock-ahead", 1),
        ("2031-01-01T00:00:00", "2026-03-01T12:00:00", "2026-03-01", "clock-ahead", 1),
        # A clock that is behind: dates of the past are the store's to refuse.
        ("2026-02-01T00:00:00", "2026-03-01T12:00:00", "2026-03-01", "2026-02-01", 0),
        ("2026-02-01T00:00:00", "2026-03-01T12:00:00", None, "2026-02-01", 1),
        # What was charged already needs no witness.
        ("2026-03-01T12:00:00", None, "2026-03-01", "2026-03-01", 0),
        ("2026-02-28T23:59:59", None, "2026-03-01", "2026-02-28", 0),
        # A new day, and nobody to ask.
        ("2026-03-02T00:00:00", None, "2026-03-01", "clock-unconfirmed", 1),
        ("2026-03-01T12:00:00", None, None, "clock-unconfirmed", 1),
    ],
)
async def test_the_first_payment_of_a_process(
    wall: str, block: str | None, newest: str | None, says: str, asked: int
) -> None:
    world = World(wall, block=block, newest=newest)
    assert await world.today() == says
    assert world.asked == asked


async def test_midnight_in_a_process_that_runs_on_needs_nobody() -> None:
    world = World("2026-03-01T23:59:00", block="2026-03-01T23:59:00")
    assert await world.today() == "2026-03-01"
    world.block = None  # the chain is gone
    world.passes(59.999)
    assert await world.today() == "2026-03-01"
    world.passes(0.001)
    assert await world.today() == "2026-03-02"
    world.passes(10 * 86_400)
    assert await world.today() == "2026-03-12"
    assert world.asked == 1


async def test_a_clock_that_is_set_ahead_gains_a_day_at_most() -> None:
    """Over and over: the days that are opened are those that came, and one."""
    world = World("2026-03-01T12:00:00", block="2026-03-01T12:00:00")
    opened = set()
    for _ in range(50):
        opened.add(await world.today())
        world.wall += 12 * 3_600_000
        world.ticks += ASK_AGAIN_MS
    assert opened == {"2026-03-01", "2026-03-02", "clock-ahead"}


async def test_a_clock_that_is_set_right_again_pays_again() -> None:
    world = World("2027-03-01T12:00:00", block="2026-03-01T12:00:00")
    assert await world.today() == "clock-ahead"
    world.wall = ms("2026-03-01T12:00:01")
    assert await world.today() == "2026-03-01"


async def test_a_machine_that_slept_asks_again() -> None:
    """Its ticks may have stood still meanwhile; the wall clock is right."""
    world = World("2026-03-01T12:00:00", block="2026-03-01T12:00:00")
    assert await world.today() == "2026-03-01"
    world.wall = ms("2026-03-09T07:00:00")
    world.block = ms("2026-03-09T06:59:58") // 1000
    assert await world.today() == "2026-03-09"
    assert world.asked == 2


async def test_who_is_refused_asks_now_and_then() -> None:
    world = World("2026-03-02T12:00:00", newest="2026-03-01")
    for _ in range(20):
        assert await world.today() == "clock-unconfirmed"
    assert world.asked == 1
    world.block = ms("2026-03-02T12:00:00") // 1000
    world.ticks += ASK_AGAIN_MS
    assert await world.today() == "2026-03-02"
    assert world.asked == 2


async def test_another_process_may_have_opened_the_day() -> None:
    world = World("2026-03-02T12:00:00", newest="2026-03-01")
    assert await world.today() == "clock-unconfirmed"
    world.newest = day_number("2026-03-02")
    assert await world.today() == "2026-03-02"


async def test_many_at_once_ask_once() -> None:
    world = World("2026-03-02T12:00:00", block="2026-03-02T12:00:00")
    assert await asyncio.gather(*(world.today() for _ in range(64))) == ["2026-03-02"] * 64
    assert world.asked == 1


async def test_a_block_that_somebody_saw_spares_the_question() -> None:
    world = World("2026-03-02T12:00:00")
    world.calendar.heard(ms("2026-03-02T11:00:00") // 1000)
    world.calendar.heard(ms("2026-02-02T11:00:00") // 1000)  # an older one changes nothing
    assert await world.today() == "2026-03-02"
    assert world.asked == 0


async def test_the_words() -> None:
    world = World("2026-03-05T12:00:00", newest="2026-03-01")
    with pytest.raises(LocalRefusal) as silent:
        await world.calendar.today(CHAIN)
    assert str(silent.value) == (
        "it is 2026-03-05 by this machine's clock, a day that nothing was paid on yet, and eip155:4217 does not answer"
        " to confirm it (no endpoint answered); a new day's budget waits for that"
    )
    world = World("2026-03-05T12:00:00", block="2026-03-01T00:00:00")
    with pytest.raises(LocalRefusal) as ahead:
        await world.calendar.today(CHAIN)
    assert str(ahead.value) == (
        "it is 2026-03-05 by this machine's clock, but the newest block of eip155:4217 is of 2026-03-01; set the clock"
        " right. No budget of a day to come is used"
    )


def test_the_date_of_now() -> None:
    world = World("2026-12-31T23:59:59.999")
    assert world.calendar.date() == "2026-12-31"
    world.wall += 1
    assert world.calendar.date() == "2027-01-01"
    world.wall -= 1
    assert world.calendar.date() == "2026-12-31"
