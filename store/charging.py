"""Moving the budget counters inside a transaction: each within its limit, or nothing moves at all.

The payer says what it wants to charge, and under which limits; what is checked here is checked against the
counters as they are at this moment, whatever was read before. After a crash the counters and the record that
they go with are both there, or neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from store import budgets
from store.codec import decode_channel, decode_int, encode_int
from store.contract import StoreError, Transaction
from store.records import Channel, CounterMove

CHANNEL: Final = b"c/"
COUNTER: Final = b"b/"
_NEWEST_DAY: Final = b"d/newest"


class LimitExceeded(StoreError):
    """A budget counter would pass its limit; nothing moved."""

    def __init__(self, move: CounterMove, used: int) -> None:
        self.move, self.used = move, used
        super().__init__(
            f"{move.rule or move.key}: {used} used of {move.limit}, {move.amount} more would pass it (base units)"
        )


class ClockWentBack(StoreError):
    """Something was to be charged to a date long before the newest that was ever charged; nothing moved."""

    def __init__(self, day: int, newest: int) -> None:
        self.day, self.newest = day, newest
        super().__init__(
            f"the clock went back: it says {budgets.iso_date(day)}, but {budgets.iso_date(newest)} was charged"
            " already; set this machine's clock right. Nothing is paid on an older date"
        )


class Conflict(StoreError):
    """The record was not what the caller believed it to be."""


def charge(
    txn: Transaction,
    moves: tuple[CounterMove, ...],
    *,
    raised: int = 0,
    returnable: Mapping[str, int],
    before: Channel | None,
    after: Channel | None,
    of_any_date: bool = False,
) -> None:
    """Move the counters that go with a change of a record from `before` to `after` (base units).

    Money that is authorised must be on all the families of `budgets.RAISED`, by exactly `raised`; `returnable`
    is the most that each of them may get back. The escrow counter follows the record by itself; a move of it
    names the limit. What comes with a channel from another store may be `of_any_date`. Raises `LimitExceeded`,
    `ClockWentBack`, `Conflict`; then the transaction is dropped.
    """
    charged = {
        family: sum(move.amount for move in moves if move.key.startswith(family)) for family in budgets.RAISED
    }
    for family, amount in charged.items():
        # A raise is charged exactly; only a close or a failed opening gives back, once.
        if amount != raised and (raised or not -returnable.get(family, 0) <= amount <= 0):
            raise Conflict(f"a raise of {raised} was charged as {amount} to the {family.rstrip('/')} budget")
    refunded = sum(move.amount for move in moves if move.key.startswith(budgets.REFUNDED))
    if refunded and refunded != -charged[budgets.LIFETIME]:
        raise Conflict(
            f"{refunded} refunded, but {-charged[budgets.LIFETIME]} given back to the lifetime budget"
        )
    if not of_any_date:
        _check_dates(txn, moves)
    for move in moves:
        if not move.key.startswith(budgets.ESCROW):
            _move(txn, move)
    _follow_escrow(txn, moves, before, after)


def counters(txn: Transaction, prefix: str) -> dict[str, int]:
    """The counters whose names begin like this."""
    pairs = txn.scan(COUNTER + prefix.encode())
    return {key[len(COUNTER) :].decode(): decode_int(value) for key, value in pairs}


def take_back(txn: Transaction, moves: tuple[CounterMove, ...]) -> None:
    """Undo a refund of the lifetime budget, whose proof was none. Raises `Conflict` if there was none."""
    for move in moves:
        _move(txn, move)


def newest_day(txn: Transaction) -> int | None:
    """The day number of the newest date that was ever charged."""
    value = txn.get(_NEWEST_DAY)
    return None if value is None else decode_int(value)


def _check_dates(txn: Transaction, moves: tuple[CounterMove, ...]) -> None:
    """The newest date never falls, so no clock that is set back opens a window that nobody used in its time.

    The day before it may still be charged: at midnight, what one process dated before it may be written after
    what another dated behind it. Its counters are those of its time, and keep their limits.
    """
    days = budgets.charged_days(moves)
    if days is None:
        return
    oldest, latest = days
    newest = newest_day(txn)
    if newest is not None and oldest < newest - 1:
        raise ClockWentBack(oldest, newest)
    if newest is None or latest > newest:
        txn.put(_NEWEST_DAY, encode_int(latest))


def _move(txn: Transaction, move: CounterMove) -> None:
    key = COUNTER + move.key.encode()
    value = txn.get(key)
    used = 0 if value is None else decode_int(value)
    if move.amount > 0 and move.limit is not None and used + move.amount > move.limit:
        raise LimitExceeded(move, used)
    if used + move.amount < min(used, 0):
        raise Conflict(f"{move.key} has {used}, {-move.amount} cannot be given back to it")
    txn.put(key, encode_int(used + move.amount))


def _follow_escrow(
    txn: Transaction, moves: tuple[CounterMove, ...], before: Channel | None, after: Channel | None
) -> None:
    """What a deposit adds, a proven close or failure takes off again; what the chain says beyond, too."""
    if after is None:
        return
    change = budgets.locked(after) - (budgets.locked(before) if before is not None else 0)
    if not change:
        return
    name = budgets.escrow(after.scope.token)
    key = COUNTER + name.encode()
    value = txn.get(key)
    # A store from before there was this counter: the records know.
    used = _all_locked(txn, after.scope.token) if value is None else decode_int(value)
    limited = next((move for move in moves if move.key == name and move.amount > 0), None)
    if change > 0 and limited is not None and limited.limit is not None and used + change > limited.limit:
        raise LimitExceeded(limited, used)
    txn.put(key, encode_int(used + change))


def _all_locked(txn: Transaction, token: str) -> int:
    channels = (decode_channel(value) for _, value in txn.scan(CHANNEL))
    return sum(budgets.locked(channel) for channel in channels if channel.scope.token == token)
