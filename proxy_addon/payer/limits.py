"""How much at once, and how fast: what bounds the damage before any budget is reached. All of it in memory.

`Seats` bounds the requests that hold money at one time; one that finds no seat is not paid for and gets the
upstream's 402, rather than wait behind requests whose server may never answer. `Attempts` is a token bucket per
client and origin, for what needs a decision: payments after a 402, openings, repairs. Warm requests, which carry
their credential at once, are not counted.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from proxy_addon.audit import Clock
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Rates
from proxy_addon.payer.wants import Want

MOST_BUCKETS: Final = 10_000
MINUTE_MS: Final = 60_000


class Seats:
    """Requests in flight that hold money, per origin and over all."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._taken: dict[str, int] = {}
        self._all = 0

    def enter(self, want: Want) -> None:
        """Take a seat for `want`, which leaves with its hold (`Want.let_go`). Raises `LocalRefusal`."""
        if want.seats is not None:
            return
        host, rates = want.facts.host, self._rates
        taken = self._taken.get(host, 0)
        if taken >= rates.in_flight_per_origin:
            raise LocalRefusal(
                "too-many-in-flight",
                f"{host} has {taken} paid requests in flight, all that limits.in_flight_per_origin ="
                f" {rates.in_flight_per_origin} allows; raise it, or send fewer at once",
            )
        if self._all >= rates.in_flight:
            raise LocalRefusal(
                "too-many-in-flight",
                f"{host}: {self._all} paid requests are in flight, all that limits.in_flight = {rates.in_flight}"
                " allows; raise it, or send fewer at once",
            )
        self._taken[host] = taken + 1
        self._all += 1
        want.seats = self

    def leave(self, host: str) -> None:
        self._all -= 1
        taken = self._taken[host] - 1
        if taken:
            self._taken[host] = taken
        else:
            del self._taken[host]

    def __len__(self) -> int:
        return self._all


class Attempts:
    """Payments that needed a decision, per client and origin: so many a minute, in bursts of as many."""

    def __init__(self, rates: Rates, ticks: Clock) -> None:
        self._most = rates.attempts_per_minute
        self._ticks = ticks
        self._buckets: OrderedDict[tuple[str, str], tuple[int, int]] = (
            OrderedDict()
        )  # what is left × 60,000; when

    def count(self, client: str, host: str) -> None:
        """One more, whatever is left: of a payment that is being made already."""
        self._put(client, host, self._left(client, host) - MINUTE_MS)

    def take(self, client: str, host: str) -> None:
        """One more. Raises `LocalRefusal` if there were too many."""
        left = self._left(client, host)
        if left < MINUTE_MS:
            raise LocalRefusal(
                "too-many-attempts",
                f"{host} has made {client} pay anew more than {self._most} times a minute"
                " (limits.attempts_per_minute); raise it, or look why its payments are refused",
            )
        self._put(client, host, left - MINUTE_MS)

    def _left(self, client: str, host: str) -> int:
        full = self._most * MINUTE_MS
        left, when = self._buckets.get((client, host), (full, 0))
        return min(full, left + (self._ticks() - when) * self._most)

    def _put(self, client: str, host: str, left: int) -> None:
        self._buckets[client, host] = (left, self._ticks())
        self._buckets.move_to_end((client, host))
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
