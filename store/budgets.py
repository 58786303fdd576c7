"""Names of the budget counters. They live in the store and move in the commit that authorises money.

For each family in `RAISED` the counters' sum equals the sum of ``authorised`` over all channels, failed
openings apart (`LIFETIME` together with `REFUNDED`). All are base units, except `opens`, which counts.
Limits apply per token: a base unit of one token is not a base unit of another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from store.records import CounterMove

DAY_MS: Final = 86_400_000


def host_day(token: str, host: str, date: str) -> str:
    return f"host-day/{token}/{date}/{host}"


def total_day(token: str, date: str) -> str:
    return f"total-day/{token}/{date}"


def lifetime(token: str) -> str:
    return f"lifetime/{token}"


def refunded(token: str) -> str:
    """What `lifetime` got back at proven closes; never limited."""
    return f"refunded/{token}"


def opens(host: str, date: str) -> str:
    return f"opens/{date}/{host}"


def deposits(token: str, host: str, date: str) -> str:
    return f"deposits/{token}/{date}/{host}"


LIFETIME: Final = "lifetime/"
REFUNDED: Final = "refunded/"

RAISED: Final = ("host-day/", "total-day/", LIFETIME)
"""The families that every raise of ``authorised`` moves, each by exactly the raise."""


def is_raise(key: str) -> bool:
    return key.startswith(RAISED)


def refund_moves(token: str, amount: int) -> tuple[CounterMove, ...]:
    """What a proven close gives back to `lifetime`: ``authorised − captured``. Dates get nothing back."""
    return (CounterMove(lifetime(token), -amount), CounterMove(refunded(token), amount))


def reversed_moves(moves: Iterable[CounterMove]) -> tuple[CounterMove, ...]:
    """What gives back what `moves` took, on the same counters and so on the same dates."""
    return tuple(CounterMove(key=move.key, amount=-move.amount, rule=move.rule) for move in moves)
