"""Names of the budget counters. They live in the store and move in the commit that authorises money.

The rules, first:

- For each family in `RAISED` the counters' sum equals the sum of ``authorised`` over all channels, failed
  openings apart (`LIFETIME` together with `REFUNDED`).
- `escrow` equals the sum of `locked` over all channels: it rises with a deposit, before the transaction
  leaves, and falls when the chain has proven the close (or that the deposit never left).
- `client_day` is reserved in blocks by the process that serves the client: at least what the client's requests
  of that date hold or held. What was reserved and not used is given back to the same date, or lost to it.
- A date counter is kept for ever, and nothing is charged to a date that is older than the day before the
  newest on record: a clock that is set back opens no window.

All are base units, except `opens`, which counts. Limits apply per token: a base unit of one token is not a base
unit of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import date as calendar_date
from typing import Final

from store.lifecycle import FINAL
from store.records import Channel, CounterMove

DAY_MS: Final = 86_400_000
_EPOCH: Final = calendar_date(1970, 1, 1).toordinal()
_PLAIN_CLIENT: Final = 64  # bytes; longer names are hashed, since a store's keys have a length


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


def client_day(token: str, client: str, date: str) -> str:
    name = client.encode("utf-8", "backslashreplace")
    shown = name.decode() if len(name) <= _PLAIN_CLIENT else f"sha256:{hashlib.sha256(name).hexdigest()}"
    return f"{CLIENT}{token}/{date}/{shown}"


def escrow(token: str) -> str:
    return f"{ESCROW}{token}"


def undelivered(token: str, host: str, date: str) -> str:
    """What an origin took, or may have taken, without delivering; for the breaker, never limited here."""
    return f"undelivered/{token}/{date}/{host}"


CLIENT: Final = "client-day/"
ESCROW: Final = "escrow/"
LIFETIME: Final = "lifetime/"
REFUNDED: Final = "refunded/"

DATED: Final = {"host-day/": 2, "total-day/": 2, CLIENT: 2, "opens/": 1, "deposits/": 2}
"""The families whose limits are per date, and which part of their keys is the date."""

RAISED: Final = ("host-day/", "total-day/", LIFETIME)
"""The families that every raise of ``authorised`` moves, each by exactly the raise."""


def is_raise(key: str) -> bool:
    return key.startswith(RAISED)


def locked(channel: Channel) -> int:
    """What of ours this channel has in the escrow, or may have once its pending transaction has landed."""
    if channel.status in FINAL:
        return 0
    return channel.deposit + (channel.pending.deposit if channel.pending is not None else 0)


def day_number(iso: str) -> int:
    """Days since the epoch of an ISO date. Raises ``ValueError`` for anything else."""
    return calendar_date.fromisoformat(iso).toordinal() - _EPOCH


def iso_date(day: int) -> str:
    """The ISO date of a day number."""
    return calendar_date.fromordinal(day + _EPOCH).isoformat()


def charged_days(moves: Iterable[CounterMove]) -> tuple[int, int] | None:
    """The oldest and the newest day number that these moves charge; None if they charge no date."""
    days = [
        day_number(move.key.split("/", part + 1)[part])
        for move in moves
        if move.amount > 0 and (part := DATED.get(move.key.partition("/")[0] + "/", 0))
    ]
    return (min(days), max(days)) if days else None


def refund_moves(token: str, amount: int) -> tuple[CounterMove, ...]:
    """What a proven close gives back to `lifetime`: ``authorised − captured``. Dates get nothing back."""
    return (CounterMove(lifetime(token), -amount), CounterMove(refunded(token), amount))


def reversed_moves(moves: Iterable[CounterMove]) -> tuple[CounterMove, ...]:
    """What gives back what `moves` took, on the same counters and so on the same dates."""
    return tuple(CounterMove(key=move.key, amount=-move.amount, rule=move.rule) for move in moves)
