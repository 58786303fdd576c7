"""A breaker per origin: stops paying one that takes money and delivers nothing.

The rules, first:

- Each client request that was paid for ends in a `Verdict`. *Undelivered* is what a server does to a payment: a 402
  or 410 after it, a 5xx without a receipt, an answer that it cut, none at all. *Doubtful* is what an honest one does
  too: an error with a receipt, a 4xx without one, silence until the client left. What the client did says nothing.
- So many undelivered in a row open it, those that were under way together counted once: one restart of a server
  cuts many. An answer that is delivered begins the row anew.
- What was paid, or may have been, for nothing is added up per origin and day, in the store: once that is over its
  limit, every undelivered or doubtful request opens it at once, in this process and in those after it.
- Open, it pays nothing. After a while it is half open: one request at a time is paid for. Delivered, it closes;
  undelivered, it opens again.

The row is in memory: a process that starts anew gives an origin its failures again, but not its amount.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from proxy_addon.audit import Audit, Clock, amount_fields
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Caps
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.calendar import Calendar
from store import budgets
from store.records import CounterMove

log: Final = logging.getLogger("bursar")

MOST_ORIGINS: Final = 10_000
_ASKS_AGAIN: Final = (402, 410)

Read = Callable[[str], Awaitable[dict[str, int]]]  # counters by the start of their keys


class Verdict(Enum):
    """What a paid request came to."""

    DELIVERED = auto()
    DOUBTFUL = auto()  # counts by its amount only
    UNDELIVERED = auto()
    NOTHING = auto()  # says nothing about the server


def verdict_of(
    outcome: Outcome, status: int | None, *, receipt: bool, client_left: bool, streamed: bool = False
) -> Verdict:
    """The verdict on a request that carried a credential. `streamed`: a metered stream that delivered something."""
    match outcome:
        case Outcome.NOT_SENT:
            return Verdict.NOTHING
        case _ if streamed:
            return Verdict.DELIVERED
        case Outcome.LOST:
            return Verdict.DOUBTFUL if client_left else Verdict.UNDELIVERED
        case Outcome.CUT:
            return Verdict.NOTHING if client_left else Verdict.UNDELIVERED
        case Outcome.COMPLETE:
            return _of_answer(status or 0, receipt=receipt)


def _of_answer(status: int, *, receipt: bool) -> Verdict:
    if status < 400:
        return Verdict.DELIVERED
    if status >= 500 or status in _ASKS_AGAIN:
        return Verdict.DOUBTFUL if receipt else Verdict.UNDELIVERED
    return Verdict.DELIVERED if receipt else Verdict.DOUBTFUL


@dataclass(slots=True, eq=False)
class _Trouble:
    """An origin that has failed since it last delivered."""

    failures: int = 0
    last: int = 0  # when the failure that was counted last ended, in the breaker's own count of events
    until: int | None = None  # ticks (ms): open, and half open from then on; None: closed
    pause_ms: int = 0
    trial: str | None = None  # the request that is paid for while it is half open
    tried_at: int = 0  # ticks
    why: str = ""


class Breaker:
    """All origins' breakers of one process."""

    def __init__(self, audit: Audit, calendar: Calendar, ticks: Clock, read: Read) -> None:
        self._audit = audit
        self._calendar = calendar
        self._ticks = ticks
        self._read = read
        self._troubles: OrderedDict[str, _Trouble] = OrderedDict()
        self._stored: dict[str, int] = {}  # undelivered amounts by their counters, as last read
        self._waiting: dict[str, int] = {}  # what is not in the store yet
        self._events = 0

    # -- before a payment

    def is_open(self, host: str) -> bool:
        """Is nothing to be paid in advance? Costs next to nothing while nobody is in trouble."""
        trouble = self._troubles.get(host)
        return trouble is not None and trouble.until is not None

    def admit(self, host: str, request_id: str) -> int:
        """When this request was admitted, for `ended`. While half open, it becomes the one that is paid for.

        Raises `LocalRefusal` if it may not be paid for.
        """
        self._events += 1
        trouble = self._troubles.get(host)
        if trouble is None or trouble.until is None or trouble.trial == request_id:
            return self._events
        now = self._ticks()
        left = trouble.until - now
        # A stream, or a server that never answers, does not keep the others waiting for ever.
        if left <= 0 and (trouble.trial is None or now - trouble.tried_at >= trouble.pause_ms):
            trouble.trial, trouble.tried_at = request_id, now
            log.info("bursar: %s is tried again with one payment", host)
            return self._events
        again = f"again in {-(-left // 1000)} s" if left > 0 else "by one request at this moment"
        raise LocalRefusal("breaker-open", f"{host} is not paid: {trouble.why}; it is tried {again}")

    async def heed(self, caps: Caps) -> None:
        """Learn what other processes, or those before, have counted for this origin today."""
        key = self._key(caps)
        self._stored[key] = (await self._read(key)).get(key, 0)
        if len(self._stored) > MOST_ORIGINS:
            self._stored.clear()

    # -- after it

    def ended(
        self, host: str, request_id: str, verdict: Verdict, amount: int, *, admitted: int, caps: Caps
    ) -> None:
        """A paid request has its verdict. `amount` (base units) is what it cost, or may have."""
        self._events += 1
        trouble = self._troubles.get(host)
        if trouble is None and verdict in (Verdict.DELIVERED, Verdict.NOTHING):
            return
        if trouble is not None and trouble.trial == request_id:
            trouble.trial = None
        match verdict:
            case Verdict.NOTHING:
                pass
            case Verdict.DELIVERED:
                self._troubles.pop(host)
                assert trouble is not None
                if trouble.until is not None:
                    self._tell(host, f"{host} delivers again, and is paid as before", logging.INFO, caps)
            case Verdict.DOUBTFUL | Verdict.UNDELIVERED:
                self._failed(host, verdict, amount, admitted, caps)

    def let_go(self, host: str, request_id: str) -> None:
        """A request that was admitted was not paid for after all."""
        trouble = self._troubles.get(host)
        if trouble is not None and trouble.trial == request_id:
            trouble.trial = None

    def _failed(self, host: str, verdict: Verdict, amount: int, admitted: int, caps: Caps) -> None:
        key, now = self._key(caps), self._ticks()
        if amount:
            self._waiting[key] = self._waiting.get(key, 0) + amount
        lost = self._stored.get(key, 0) + self._waiting.get(key, 0)
        trouble = self._troubles.setdefault(host, _Trouble())
        self._troubles.move_to_end(host)
        if len(self._troubles) > MOST_ORIGINS:
            self._troubles.popitem(last=False)
        half_open = trouble.until is not None and now >= trouble.until
        if verdict is Verdict.UNDELIVERED and admitted > trouble.last:
            trouble.failures += 1
            trouble.last = self._events
        trip, show = caps.trip, caps.token.show
        if lost > trip.undelivered:
            trouble.why = (
                f"{show(lost)} were paid today, or may have been, for which it delivered nothing, over"
                f" max_undelivered {show(trip.undelivered)} ([breaker] or {caps.rule})"
            )
        elif verdict is Verdict.UNDELIVERED and trouble.failures >= trip.failures:
            trouble.why = (
                f"{trouble.failures} payments in a row brought nothing, as many as failures = {trip.failures} allows"
                f" ([breaker] or {caps.rule})"
            )
        else:
            return
        if trouble.until is not None and not half_open:
            return  # others that were under way
        trouble.until, trouble.pause_ms = now + trip.retry_after_ms, trip.retry_after_ms
        message = f"{host} is not paid any more: {trouble.why}; one payment is tried in {trip.retry_after_ms // 1000} s"
        self._tell(host, message, logging.WARNING, caps, lost)

    def _key(self, caps: Caps) -> str:
        return budgets.undelivered(caps.token.address, caps.host, self._calendar.date())

    def _tell(self, host: str, message: str, level: int, caps: Caps, lost: int = 0) -> None:
        opened = level == logging.WARNING
        self._audit.note(
            "breaker",
            message,
            level=level,
            host=host,
            reason="breaker-open" if opened else None,
            outcome="opened" if opened else "closed",
            fields=amount_fields(caps.token, lost) if opened else None,
        )

    # -- upkeep

    def take_waiting(self) -> tuple[CounterMove, ...]:
        """What is to be added to the store's counters; from now on it is counted as being there."""
        moves = tuple(CounterMove(key, amount) for key, amount in self._waiting.items())
        for move in moves:
            self._stored[move.key] = self._stored.get(move.key, 0) + move.amount
        self._waiting.clear()
        return moves
