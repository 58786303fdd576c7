"""What each client may spend a day, exactly, though clients share vouchers and several processes serve them.

The rules, first:

- A client's use of a day is what its requests of that day hold, or held: their prices, a stream's growth, and
  what a refusal made us authorise anew for it (repairs c and d). What provably was not charged comes back.
- A request holds nothing before its client's use is covered by what this process has *reserved* for the client
  on that day: a counter in the store, within the client's limit, that moves in the commits which are made anyway.
- Reserved in blocks, somewhat ahead, so that money which another client left over needs no commit of its own; to
  the unit where the limit is near.
- What was reserved and is not used goes back to its day when the client has been idle, and at the end. A process
  that dies loses it for that day: a limit may then be reached early, never late.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from proxy_addon.core.policy import ClientCap
from proxy_addon.payer.wants import Want
from store import budgets
from store.charging import LimitExceeded
from store.records import CounterMove

T = TypeVar("T")

SPARE_PRICES: Final = 64
SPARE_SHARE: Final = 32
"""Reserved ahead: so many prices, but never more than this part of the client's limit."""


@dataclass(slots=True, eq=False)
class ClientDay:
    """One client's day in this process. Base units; ``used ≤ reserved``, and that much of the counter is ours."""

    cap: ClientCap
    date: str
    reserved: int = 0  # durable
    used: int = 0
    exact: bool = False  # the limit is near: nothing is reserved ahead any more
    touched_at: int = 0  # ticks

    @property
    def key(self) -> str:
        return budgets.client_day(self.cap.token, self.cap.client, self.date)

    @property
    def left(self) -> int:
        return self.reserved - self.used


class ClientDays:
    """All of them. Everything but the commits themselves happens at once, between two turns of the loop."""

    def __init__(self) -> None:
        self._days: dict[tuple[ClientCap, str], ClientDay] = {}

    def day(self, cap: ClientCap, date: str, now: int) -> ClientDay:
        found = self._days.get((cap, date))
        if found is None:
            found = self._days[cap, date] = ClientDay(cap, date)
        found.touched_at = now
        return found

    def take_now(self, want: Want, date: str, now: int) -> bool:
        """Cover `want`'s price out of what is reserved; False if that needs a commit."""
        if want.client_cap is None or want.client_day is not None:
            return True
        day = self.day(want.client_cap, date, now)
        if day.left < want.price:
            return False
        day.used += want.price
        want.client_day, want.claimed = day, want.price
        return True

    def cover(self, date: str, now: int) -> Cover:
        return Cover(self, date, now)

    def surplus(self, date: str, before: int) -> tuple[CounterMove, ...]:
        """What goes back to its day: all of past days, and of `date` what was not touched since `before` (ticks).

        From now on it is not ours any more. Should the commit that moves it fail, it is lost for that day.
        """
        moves = []
        for key, day in tuple(self._days.items()):
            if day.date == date and day.touched_at >= before:
                continue
            if day.left > 0:
                moves.append(CounterMove(day.key, -day.left))
                day.reserved = day.used
            if day.date != date:
                del self._days[key]
        return tuple(moves)


class Cover:
    """What one commit must reserve, so that all its requests are within their clients' days.

    Either `reserve` returns, or `undo` is called.
    """

    def __init__(self, days: ClientDays, date: str, now: int) -> None:
        self._days = days
        self._date = date
        self._now = now
        self._needs: list[tuple[Want, ClientDay, int, int]] = []  # with what is claimed, and what was taken
        self._missing: dict[ClientDay, tuple[int, int]] = {}  # and the highest price

    def add(self, want: Want, *, beyond: int = 0) -> None:
        """`want`'s price, which comes back if it proves not to be charged; `beyond` does not."""
        if want.client_day is None:  # else it was covered when it first waited
            self._need(want, want.price, beyond)

    def grow(self, want: Want, amount: int) -> None:
        """`amount` more for a stream that holds something already."""
        self._need(want, amount, 0)

    def _need(self, want: Want, amount: int, beyond: int) -> None:
        if want.client_cap is None:
            return
        day = self._days.day(want.client_cap, self._date, self._now)
        taken = min(amount + beyond, day.left)
        day.used += taken
        self._needs.append((want, day, amount, taken))
        missing, price = self._missing.get(day, (0, 0))
        self._missing[day] = (missing + amount + beyond - taken, max(price, want.price))

    async def reserve(
        self, commit: Callable[[tuple[CounterMove, ...]], Awaitable[T]], *, anyway: bool = False
    ) -> T:
        """Run `commit` with the counters that it must move. When this returns, all is covered.

        `anyway`: it is made whether something is missing or not. Raises whatever `commit` raises; then nothing is
        reserved, and `undo` is still to be called.
        """
        moves = self._moves(anyway)
        try:
            result = await commit(tuple(moves.values()))
        except LimitExceeded as error:
            near = [day for day in moves if day.key == error.move.key and not day.exact]
            if not near:
                raise
            for day in near:
                day.exact = True
            moves = self._moves(anyway)
            result = await commit(tuple(moves.values()))
        self._done(moves)
        return result

    def _moves(self, anyway: bool) -> dict[ClientDay, CounterMove]:
        """What is missing, and in the same commit something more for the next requests."""
        moves = {}
        for day, (missing, price) in self._missing.items():
            spare = _spare(day, price)
            ahead = spare - day.left if (missing or anyway) and 2 * day.left <= spare else 0
            if missing + ahead > 0:
                moves[day] = CounterMove(day.key, missing + ahead, day.cap.per_day, day.cap.rule)
        return moves

    def _done(self, moves: dict[ClientDay, CounterMove]) -> None:
        for day, move in moves.items():
            day.reserved += move.amount
        for day, (missing, _) in self._missing.items():
            day.used += missing
        for want, day, amount, _ in self._needs:
            if want.client_day is None:
                want.client_day, want.claimed = day, amount
            elif want.client_day is day:
                want.claimed += amount

    def undo(self) -> None:
        """Nothing of it came to pass."""
        for _, day, _, taken in self._needs:
            day.used -= taken


def _spare(day: ClientDay, price: int) -> int:
    """In whole prices: what is less serves nobody."""
    if day.exact or not price:
        return 0
    return min(SPARE_PRICES, day.cap.per_day // SPARE_SHARE // price) * price
