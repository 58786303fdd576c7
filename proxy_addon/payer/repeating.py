"""What is done about a client's own retry of a request whose outcome is not known, before it is paid for.

It is a new request with a hold of its own: taking over the old one would count too little if both are served.
But first, if its channel is idle, a probe asks what the lost one has cost, so that what was not charged is used
again. With ``strict_retries`` a method that changes something is not paid for a second time before that is known.
"""

from __future__ import annotations

from typing import Final

from proxy_addon.audit import iso
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer import probing
from proxy_addon.payer.neighbours import Neighbours
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.retries import Place, Retries, Unknown, is_open
from proxy_addon.payer.ticket import Offer, PayTicket
from proxy_addon.payer.till import Till
from proxy_addon.payer.wants import Want
from store.account import Ending
from store.contract import StoreError
from store.lifecycle import FINAL
from store.records import Channel

_ID_SHOWN: Final = 10


class Repeats:
    """Tells retries from new requests. `known` is the index; it may be filled from the ledger at the start."""

    def __init__(self, parts: Parts, *, strict: bool = False) -> None:
        self.known = Retries(parts.now)
        self._parts = parts
        self._strict = strict
        self._neighbours = Neighbours(
            self.known,
            parts.ledger,
            mine=parts.audit.journal.name,
            alive=parts.store.commits.alive,
            now=parts.now,
        )

    def recall(self) -> None:
        """What other processes on this store left open. Reads files: not on the event loop."""
        self._neighbours.look()
        self.known.recall(self._parts.ledger, self._parts.store.commits.alive)

    def look(self) -> None:
        """What processes beside this one have left open since. Often, so that there is never much to read."""
        self._neighbours.look()

    def awaits_body(self, ticket: PayTicket) -> bool:
        """Must the whole body be here before anything is decided on this request?"""
        if ticket.repeatable_method:
            return False
        self.look()  # its client may have lost the answer of another worker a moment ago
        return self.known.at(_place(ticket))

    def may_be(self, ticket: PayTicket) -> bool:
        """Is this a retry? Costs next to nothing while nothing is unknown."""
        # Of a body that nobody has seen the end of, nobody can say that it is the same.
        if not len(self.known) or ticket.body_sha256 is None:
            return False
        return self.known.find(ticket.fingerprint) is not None

    async def before(self, ticket: PayTicket, offer: Offer, want: Want) -> None:
        """`ticket` is about to be paid for, for the first time. Raises `LocalRefusal`; then it is not."""
        if ticket.attempt is not None or ticket.repeats is not None or not self.may_be(ticket):
            return
        one = self.known.find(ticket.fingerprint)
        assert one is not None
        known, record = await self._ask(one, ticket, offer, want)
        if self._strict and not known and not ticket.repeatable_method:
            raise self._refusal(one, record, ticket, want)
        # Who else has come meanwhile may have been it: an entry serves once.
        ticket.repeats = self.known.forget(one.fingerprint)
        if ticket.repeats is not None:
            want.retry_of = ticket.repeats.first

    def after(self, ticket: PayTicket, outcome: Outcome) -> None:
        """The end of `ticket`: may a retry of it come?"""
        attempt = ticket.attempt
        ending = attempt.ending if attempt is not None else None
        answered = outcome is Outcome.COMPLETE
        if (
            attempt is not None
            and ticket.body_sha256 is not None
            and is_open(ending, answered=answered, status=ticket.status)
        ):
            request_id = ticket.facts.request_id
            self.known.note(
                Unknown(
                    fingerprint=ticket.fingerprint,
                    first=ticket.repeats.first if ticket.repeats is not None else request_id,
                    request_id=request_id,
                    channel_id=attempt.grant.channel.channel_id,
                    place=_place(ticket),
                    amount=attempt.grant.hold.amount,
                    at=self._parts.now(),
                )
            )
        elif ticket.repeats is not None and ending in (None, Ending.FREE):
            self.known.note(
                ticket.repeats
            )  # it did nothing: what it would have repeated is as open as before

    async def _ask(
        self, one: Unknown, ticket: PayTicket, offer: Offer, want: Want
    ) -> tuple[bool, Channel | None]:
        """Is it known whether `one` was charged? Asks, once for each request, where an answer would tell."""
        try:
            till = await offer.desk.till_of(one.channel_id, want, offer.terms)
            if till is None:
                record = await self._parts.store.find(one.channel_id)
                # What another process has not committed yet is not in the record: it proves nothing while that lives.
                busy = record is not None and self._parts.store.is_busy(record)
                return not busy and _is_settled(record, one), record
        except StoreError:
            return False, None
        if _is_settled(till.channel, one):
            return True, till.channel
        if not self._may_ask(till, ticket, offer):
            return False, till.channel
        ticket.probed = True
        told = await probing.probe(self._parts, till, offer.challenge, ticket.url, ticket.origin)
        return told is not None and told.decided, till.channel

    def _may_ask(self, till: Till, ticket: PayTicket, offer: Offer) -> bool:
        return (
            not ticket.probed
            and offer.challenge.digest is None  # which would bind it to a body
            and offer.live(self._parts.latest(ticket.origin))
            and probing.may_probe(till, self._parts.now())
        )

    def _refusal(self, one: Unknown, record: Channel | None, ticket: PayTicket, want: Want) -> LocalRefusal:
        channel_id = one.channel_id[:_ID_SHOWN]
        when = ""
        if record is not None and record.eligible_at > self._parts.now():
            when = f" after {iso(record.eligible_at)}"
        facts = ticket.facts
        return LocalRefusal(
            "strict-retries",
            f"{facts.host}: this {facts.method} of {facts.path} repeats request {one.request_id}, for which up to"
            f" {want.caps.token.show(one.amount)} may have been charged; with strict_retries it is paid for when that"
            f" is known. Try again{when}, or run `bursar reconcile {channel_id}`, or send it with an Idempotency-Key"
            " of its own if it is another request",
        )


def _is_settled(record: Channel | None, one: Unknown) -> bool:
    """Is nothing in doubt on its channel any more?"""
    if record is None or record.status in FINAL:
        return True
    return not record.uncertain and one.request_id not in record.holds


def _place(ticket: PayTicket) -> Place:
    facts = ticket.facts
    return facts.host, facts.method, facts.path
