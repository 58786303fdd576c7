"""Which day it is, as far as budgets are concerned: a new one opens only when it can be shown to have come.

A day's budget is there once. The store keeps each date's counters and refuses what is dated long before the
newest (`store.charging`); here it is the other direction: a clock that is set ahead must open no window. So a date
that nothing was charged to yet needs a witness, either the chain (its newest block), or the time that has passed
here since the chain was asked, by a clock that nobody can set. Both may be late, so a date may be opened one day
before they say so; and no date twice. Whatever is on the newest date already needs no witness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from proxy_addon.audit import Clock
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.payer.clocks import ticks_ms
from store.budgets import DAY_MS, iso_date

ASK_AGAIN_MS: Final = 5_000
"""After a witness that did not help; each question may take as long as the chain's endpoints do."""

BlockTime = Callable[[str], Awaitable[int]]  # of a chain's newest block, in Unix seconds, by its CAIP-2 name
NewestDay = Callable[[], Awaitable[int | None]]


class Calendar:
    """The date for new charges. One per process."""

    def __init__(
        self, now: Clock, newest_day: NewestDay, block_time: BlockTime, ticks: Clock = ticks_ms
    ) -> None:
        self._now = now
        self._newest_day = newest_day
        self._block_time = block_time
        self._ticks = ticks
        self._open = -1  # the newest day that is known to have come
        self._heard: tuple[int, int] | None = None  # what a block said (ms), and our ticks then
        self._refused: tuple[int, int, str, str] | None = None  # the day, our ticks then, why
        self._asking = asyncio.Lock()
        self._name: tuple[int, str] = (-1, "")

    def date(self) -> str:
        """Today (UTC), by this machine's clock."""
        day = self._now() // DAY_MS
        if day != self._name[0]:
            self._name = (day, iso_date(day))
        return self._name[1]

    async def today(self, chain: str) -> str:
        """The same, for new charges; `chain` is the one to ask if it is a new date.

        Raises `LocalRefusal`: then nothing may be charged, and so nothing signed.
        """
        if self._now() // DAY_MS > self._open:
            async with self._asking:  # one for all
                await self._witness(self._now() // DAY_MS, chain)
        return self.date()

    def heard(self, block_time: int) -> None:
        """A block of this time (Unix seconds) has been seen."""
        if self._heard is None or block_time * 1000 > self._come():
            self._heard = (block_time * 1000, self._ticks())

    def _come(self) -> int:
        """The time by what was heard, and what has passed since (ms)."""
        return -DAY_MS if self._heard is None else self._heard[0] + self._ticks() - self._heard[1]

    def _has_come(self, day: int) -> bool:
        if day > self._open and day * DAY_MS <= self._come() + DAY_MS:
            self._open = day
        return day <= self._open

    async def _witness(self, day: int, chain: str) -> None:
        if self._has_come(day):
            return
        newest = await self._newest_day()
        if newest is not None:
            self._open = max(self._open, newest)  # it had its witness
            if day <= newest:
                return
        if self._refused is not None:
            refused_day, when, reason, message = self._refused
            if refused_day == day and self._ticks() - when < ASK_AGAIN_MS:
                raise LocalRefusal(reason, message)
        try:
            self.heard(await self._block_time(chain))
        except ChainUnavailable as unavailable:
            self._refuse(
                day,
                "clock-unconfirmed",
                f"it is {iso_date(day)} by this machine's clock, a day that nothing was paid on yet, and {chain} does"
                f" not answer to confirm it ({unavailable}); a new day's budget waits for that",
            )
        if not self._has_come(day):
            assert self._heard is not None
            self._refuse(
                day,
                "clock-ahead",
                f"it is {iso_date(day)} by this machine's clock, but the newest block of {chain} is of"
                f" {iso_date(self._heard[0] // DAY_MS)}; set the clock right. No budget of a day to come is used",
            )

    def _refuse(self, day: int, reason: str, message: str) -> NoReturn:
        self._refused = (day, self._ticks(), reason, message)
        raise LocalRefusal(reason, message)
