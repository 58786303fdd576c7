"""Who may be paid for, now: what the gate asks before each payment and tells after it. All of it is in memory.

The breaker of the origin, the seats of the requests in flight, the rate of attempts, the payee that the origin is
held to. What money may be spent is for the store to say, in the transaction that moves it.
"""

from __future__ import annotations

import logging
from typing import Final

from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import LOCAL_CLIENT, Origin, SpendPolicy
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.breaker import Breaker, Verdict, verdict_of
from proxy_addon.payer.limits import Attempts, Seats
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.ticket import Offer, PayTicket
from proxy_addon.payer.wants import Want
from store.account import Ending
from store.contract import StoreError

log: Final = logging.getLogger("bursar")

_NOT_ITS_FAULT: Final = frozenset(
    {"retry-after", "store", "ledger", "internal", "chain-unavailable", "no-key", "breaker-open"}
)
"""Why a payment that was refused was not made again: the server asked for patience, or we could not."""


class Guard:
    """One per gate."""

    def __init__(self, parts: Parts, policy: SpendPolicy) -> None:
        self._parts = parts
        self._policy = policy
        self.seats = Seats(policy.rates)
        self.attempts = Attempts(policy.rates, parts.ticks)
        self.breaker = Breaker(parts.audit, parts.calendar, parts.ticks, parts.store.counters)

    # -- before a payment

    def in_advance(self, ticket: PayTicket) -> bool:
        """May a request of this ticket's origin carry its credential at once?"""
        return not self.breaker.is_open(ticket.facts.host)

    async def learn(self, origin: Origin) -> None:
        """Before a challenge is judged: which payee is this origin held to?"""
        rule = self._policy.rule_for(origin)
        if rule is None or not rule.pin_payee:
            return
        name = str(origin)
        try:
            pin = await self._parts.store.pin_of(name)
        except StoreError as error:
            raise LocalRefusal("store", str(error)) from None
        if pin is None:
            self._parts.pins.pop(name, None)
        else:
            self._parts.pins[name] = pin.payee

    async def attempt(self, ticket: PayTicket, offer: Offer) -> None:
        """A payment that needed a decision. Raises `LocalRefusal` if there were too many of late."""
        self.attempts.take(_client(ticket), ticket.facts.host)
        try:
            await self.breaker.heed(offer.caps)
        except StoreError as error:
            raise LocalRefusal("store", str(error)) from None

    def repair(self, ticket: PayTicket) -> None:
        """One more attempt at the same payment: `Tries` bounds these, so they are counted only."""
        self.attempts.count(_client(ticket), ticket.facts.host)

    def admit(self, ticket: PayTicket, want: Want) -> None:
        """The last word before `want` takes money. Raises `LocalRefusal`. Its seat leaves with `Want.let_go`."""
        admitted = self.breaker.admit(ticket.facts.host, ticket.facts.request_id)
        self.seats.enter(want)
        ticket.admitted = ticket.admitted or admitted

    # -- after it

    def finished(self, ticket: PayTicket, outcome: Outcome) -> None:
        """The ticket's last attempt is booked; `outcome` is how its answer ended on the wire."""
        facts, attempt = ticket.facts, ticket.attempt
        if attempt is None:
            self.breaker.let_go(facts.host, facts.request_id)
            return
        lost = ticket.at_stake
        if attempt.ending is Ending.FREE and ticket.tries.repaired:
            lost += ticket.tries.new_money  # for a server that made us pay again, and refused that, too
        self.breaker.ended(
            facts.host,
            facts.request_id,
            _verdict(ticket, outcome),
            lost,
            admitted=ticket.admitted,
            caps=attempt.offer.caps,
        )

    # -- upkeep

    async def tidy(self, before: int) -> None:
        """Write down what was not delivered; give back what clients have not used since `before` (ticks)."""
        parts = self._parts
        moves = self.breaker.take_waiting() + parts.clients.surplus(parts.calendar.date(), before)
        if not moves:
            return
        try:
            await parts.store.count(moves)
        except StoreError as error:
            log.warning("bursar: what clients did not use is lost for today: %s", error)


def _client(ticket: PayTicket) -> str:
    return ticket.facts.user or LOCAL_CLIENT


def _verdict(ticket: PayTicket, outcome: Outcome) -> Verdict:
    attempt = ticket.attempt
    assert attempt is not None
    if attempt.ending is Ending.FREE and ticket.refusal in _NOT_ITS_FAULT:
        return Verdict.NOTHING
    if attempt.stream is not None and not ticket.streamed:
        stopped = attempt.stream.stop_reason
        if stopped is not None:  # by us; a server that refuses its own stream's vouchers is another matter
            return Verdict.UNDELIVERED if stopped.reason == "refused-by-server" else Verdict.NOTHING
    return verdict_of(
        outcome,
        ticket.status,
        receipt=attempt.receipt is not None,
        client_left=ticket.client_left,
        streamed=ticket.streamed,
    )
