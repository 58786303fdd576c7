"""The `Gate`: a client request's way from a 402 to a paid answer.

Fail closed on money, open on traffic: whatever goes wrong in here, nothing is signed and the upstream's own
answer reaches the client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from mitmproxy import http

from proxy_addon.core.errors import BursarError, LocalRefusal, RemoteProtocolError
from proxy_addon.core.headers import is_event_stream
from proxy_addon.core.messages import (
    PAYMENT_RESPONSE_FIELDS,
    Problem,
    build_credential,
    parse_challenges,
    parse_problem,
)
from proxy_addon.core.policy import LOCAL_CLIENT, SpendPolicy
from proxy_addon.core.repair import Way
from proxy_addon.methods import registry
from proxy_addon.mitm.gate import NOTHING, Again, BodyFilter, Deliver, Fields, Outcome, Outgoing, Ticket
from proxy_addon.outbound import Answer
from proxy_addon.payer import booking, snapshots
from proxy_addon.payer.fields import names_of, scan, text, without
from proxy_addon.payer.guard import Guard
from proxy_addon.payer.offers import Offers
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.refusing import Refusals
from proxy_addon.payer.repairing import Repairs
from proxy_addon.payer.repeating import Repeats
from proxy_addon.payer.sockets import Sockets
from proxy_addon.payer.streams import MeteredStream, StreamFilter, StreamLimits
from proxy_addon.payer.ticket import (
    Attempt,
    ChallengeExpired,
    Offer,
    PayTicket,
    facts_of,
    origin_of,
    pays_itself,
)
from proxy_addon.payer.till import Grant, Till
from proxy_addon.payer.wants import Want
from store.account import Ending
from store.lifecycle import PENDING_OPEN

log: Final = logging.getLogger("bursar")

_OURS: Final = frozenset(name.lower().encode() for name in PAYMENT_RESPONSE_FIELDS)
_RECEIPT: Final = b"payment-receipt"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class PaymentGate:
    """Implements `proxy_addon.mitm.gate.Gate`. `why_not` says why a client is not paid for, or None; `user_of`, as
    whom it has shown itself to the proxy, or None."""

    def __init__(
        self,
        parts: Parts,
        policy: SpendPolicy,
        *,
        reason_header: bool = False,
        locate: Callable[[str], str] = str,
        strict_retries: bool = False,
        why_not: Callable[[http.HTTPFlow], str | None] = lambda flow: None,
        user_of: Callable[[http.HTTPFlow], str | None] = lambda flow: None,
    ) -> None:
        self._user_of = user_of
        self._parts = parts
        self._policy = policy
        self._refusals = Refusals(parts.audit, locate=locate, reason_header=reason_header)
        self._why_not = why_not
        self._offers = Offers(parts, policy)
        self._repairs = Repairs(parts, self._offers, self)
        self.repeats = Repeats(parts, strict=strict_retries)
        self.guard = Guard(parts, policy)
        self.sockets = Sockets(parts, policy, self._offers, self, why_not, user_of)
        self._accept: Fields = (("Accept-Payment", registry.accept_payment()),)

    # -- 1: the request's headers are here

    def consider(self, flow: http.HTTPFlow) -> Ticket | None:
        try:
            return self._consider(flow)
        except Exception:
            log.exception("bursar: %s is passed through unpaid", flow.request.host)
            return None

    def _consider(self, flow: http.HTTPFlow) -> PayTicket | None:
        request = flow.request
        if request.scheme not in ("http", "https"):
            return None
        origin = origin_of(request)
        if self._policy.rule_for(origin) is None:
            return None
        names = names_of(request.headers)
        if pays_itself(request, names) or (b"upgrade" in names and self.sockets.pays_for(flow)):
            return None
        ticket = PayTicket(
            facts=facts_of(flow, origin, self._user_of(flow)),
            origin=origin,
            url=f"{origin}{request.path}",
            repeatable_method=request.method in SAFE_METHODS,
            own_authorization=b"authorization" in names,
            own_idempotency_key=request.headers["idempotency-key"] if b"idempotency-key" in names else None,
            refused=self._why_not(flow),
        )
        ticket.watches_body = self.repeats.awaits_body(ticket)
        if ticket.refused is None and not self._policy.shadow and self.guard.in_advance(ticket):
            ticket.offer = self._offers.of_route(ticket)
        return ticket

    def wants(self, ticket: Ticket, response: http.Response) -> bool:
        assert isinstance(ticket, PayTicket)
        if response.status_code == 402:
            return True
        return response.status_code == 410 and ticket.attempt is not None and not ticket.attempt.ended

    def stranger(self, flow: http.HTTPFlow) -> None:
        """The header of a 402 that nothing but the config's silence on its host has kept from us: say so.

        Not part of `Gate`: a request that no rule is about has no ticket, and costs nothing until it gets a 402.
        """
        request, response = flow.request, flow.response
        if response is None or request.scheme not in ("http", "https") or pays_itself(request):
            return
        origin = origin_of(request)
        parsed = parse_challenges(response.headers.get_all("www-authenticate"))
        if self._policy.rule_for(origin) is not None or not (parsed.challenges or parsed.problems):
            return
        refusal = self._policy.unknown(origin)
        facts = facts_of(flow, origin)
        for name, value in self._refusals.refuse(
            facts, response.status_code, refusal.reason, refusal.message
        ).adds:
            response.headers.add(name, value)

    # -- 2: the request leaves next

    def prepare_now(self, ticket: Ticket) -> Outgoing | None:
        assert isinstance(ticket, PayTicket)
        offer = ticket.offer
        if offer is None:
            return self._unpaid(ticket)
        try:
            till = offer.desk.till
            if (
                till is None
                or till.busy
                or self.repeats.may_be(ticket)
                or not offer.live(self._parts.latest(ticket.origin))
            ):
                return None
            want = self._want(ticket, offer)
            self.guard.admit(ticket, want)
            grant = till.take_now(want)
            if grant is None:
                want.let_go(charged=False)  # `prepare` comes next
                return None
            return self._dispatch(ticket, offer, want, grant)
        except LocalRefusal:
            return self._unpaid(ticket)  # its 402 will ask again, and then the reason is written down
        except Exception:
            log.exception("bursar: nothing is paid in advance")
            return NOTHING

    async def lost(self, ticket: Ticket) -> Outgoing | None:
        assert isinstance(ticket, PayTicket)
        attempt = ticket.attempt
        if attempt is None or attempt.ended:
            return self._unpaid(ticket)
        if attempt.opening:
            return None
        booking.end(ticket, attempt, Ending.UNKNOWN, "connection lost, sent again")
        try:
            return await self.pay(ticket, attempt.offer)
        except LocalRefusal:
            return None

    async def prepare(self, ticket: Ticket) -> Outgoing:
        assert isinstance(ticket, PayTicket)
        if ticket.offer is None or not ticket.offer.live(self._parts.latest(ticket.origin)):
            return self._unpaid(ticket)
        try:
            return await self.pay(ticket, ticket.offer)
        except LocalRefusal:
            return self._unpaid(ticket)

    def _unpaid(self, ticket: PayTicket) -> Outgoing:
        """No credential: say what we can pay, and which channel is live here, so that the server may offer it."""
        if ticket.refused is not None or self._policy.shadow:
            return NOTHING
        channel_id = self._offers.live_channel(ticket.origin)
        if channel_id is None:
            return Outgoing(adds=self._accept)
        return Outgoing(adds=(*self._accept, ("Payment-Session", channel_id)))

    # -- 3: a final answer's headers are here

    def received(self, ticket: Ticket, response: http.Response) -> BodyFilter | None:
        assert isinstance(ticket, PayTicket)
        ticket.status = response.status_code
        found = scan(response.headers)
        self._date(ticket, text(found.get(b"date")))
        attempt = ticket.attempt
        if attempt is None or attempt.ended:
            return None
        try:
            if (value := text(found.get(_RECEIPT))) is not None:
                attempt.receipt = booking.read_receipt(attempt, value)
        finally:
            if not _OURS.isdisjoint(found):
                without(response.headers, _OURS)
        if attempt.opening:
            attempt.offer.desk.opening_ended(attempt.grant.till, sent=True, told=attempt.receipt is not None)
        if attempt.receipt is not None:
            attempt.grant.till.answer_came(ticket.facts.request_id)
        streams = response.status_code == 200 and is_event_stream(text(found.get(b"content-type")) or "")
        if attempt.receipt is not None or streams:
            self._offers.taken(ticket.route, attempt.offer, streams=streams)
        return self._stream(ticket, attempt) if streams else None

    def _date(self, ticket: PayTicket, date: str | None) -> None:
        ticket.dated = self._parts.clocks.heard(ticket.origin, date, self._parts.now())

    def _stream(self, ticket: PayTicket, attempt: Attempt) -> BodyFilter:
        caps, till = attempt.want.caps, attempt.grant.till
        attempt.stream = MeteredStream(
            parts=self._parts,
            ticket=ticket,
            attempt=attempt,
            limits=StreamLimits(caps.stream_step, caps.stream_per_second, caps.per_stream),
            url=ticket.url,
            refresh=self.refresh,
        )
        till.answer_came(ticket.facts.request_id)
        if till.exclusive is None:  # nobody knew that it would be one: from here on nothing joins it
            till.exclusive = ticket.facts.request_id
        return StreamFilter(attempt.stream)

    def refresh(self, ticket: PayTicket, attempt: Attempt, answer: Answer) -> Offer | None:
        """A payable offer on the same channel out of a refusal's own challenge."""
        try:
            fresh = self._offers.choose(ticket, parse_challenges(answer.all("www-authenticate")).challenges)
        except BursarError:
            return None
        return fresh if fresh.desk is attempt.offer.desk else None

    def trailers(self, ticket: Ticket, trailers: http.Headers) -> None:
        assert isinstance(ticket, PayTicket)
        attempt = ticket.attempt
        if attempt is None or attempt.ended:
            return
        if attempt.receipt is None and (value := text(scan(trailers).get(_RECEIPT))) is not None:
            attempt.receipt = booking.read_receipt(attempt, value)
        for name in PAYMENT_RESPONSE_FIELDS:
            trailers.pop(name, None)

    # -- 4: an answer that may ask for money

    async def answered(self, ticket: Ticket, response: http.Response, body: bytes | None) -> Again | Deliver:
        assert isinstance(ticket, PayTicket)
        ticket.status = response.status_code
        self._date(ticket, response.headers.get("date"))
        try:
            outgoing = await self._answered(ticket, response, body)
        except ChallengeExpired as error:
            if ticket.tries.anew:
                return self._refusals.refuse(ticket.facts, ticket.status, error.reason, str(error))
            ticket.tries.count(Way.ANEW)
            outgoing = self._unpaid(ticket)  # to be asked again
        except LocalRefusal as error:
            ticket.refusal = error.reason
            return self._refusals.refuse(ticket.facts, ticket.status, error.reason, str(error))
        except BursarError as error:
            return self._refusals.refuse(ticket.facts, ticket.status, "protocol", str(error))
        return outgoing if isinstance(outgoing, Deliver) else Again(outgoing)

    async def _answered(
        self, ticket: PayTicket, response: http.Response, body: bytes | None
    ) -> Outgoing | Deliver:
        attempt = ticket.attempt
        parsed = parse_challenges(response.headers.get_all("www-authenticate"))
        if attempt is None or attempt.ended:
            if not parsed.challenges and not parsed.problems:
                return Deliver()  # a 402 that is no business of ours
            if ticket.refused is not None:
                raise LocalRefusal("client-not-allowed", ticket.refused)
            if not parsed.challenges:
                raise RemoteProtocolError(f"{ticket.facts.host} sent a bad challenge: {parsed.problems[0]}")
            await self.guard.learn(ticket.origin)
            offer = self._offers.choose(ticket, parsed.challenges)
            if self._policy.shadow:
                return self._refusals.shadow(ticket, offer)
            await self.guard.attempt(ticket, offer)
            await snapshots.heed(self._parts, offer, response.headers.get(snapshots.FIELD))
            return await self.pay(ticket, offer)
        if "Payment-Receipt" in response.headers:  # an application's own 402, after it charged for it
            self.received(ticket, response)
            return Deliver()
        problem = _problem(response, body)
        kind = problem.kind if problem is not None else None
        if not parsed.challenges and kind is None:
            # Not an answer of the Payment scheme: nothing says whether it was charged.
            self.received(ticket, response)
            return Deliver()
        self.guard.repair(ticket)
        return await self._repairs.mend(ticket, attempt, response, kind, parsed.challenges)

    # -- paying

    def _want(self, ticket: PayTicket, offer: Offer) -> Want:
        return Want(
            facts=ticket.facts,
            price=offer.terms.price,
            caps=offer.caps,
            tries=ticket.tries,
            challenge_id=offer.challenge.id,
            # By our clock not before the server's says so: until then it may still take it.
            expires_at=offer.expires_at + self._parts.clocks.behind(ticket.origin),
            expires_there=offer.challenge.expires_at or 0,
            fingerprint=ticket.fingerprint,
            retry_of=ticket.repeats.first if ticket.repeats is not None else None,
            resource=offer.resource,
            metered=ticket.in_band or self._offers.metered(ticket.route, offer.terms.unit_type),
            client_cap=self._policy.client_cap(ticket.facts.user or LOCAL_CLIENT, offer.caps.token),
        )

    async def pay(
        self, ticket: PayTicket, offer: Offer, *, bump: bool = False, write_off: bool = False
    ) -> Outgoing:
        """A new hold. Raises `LocalRefusal`; then nothing was signed for this attempt."""
        self._parts.need_signer()
        want = self._want(ticket, offer)
        want.bump, want.write_off = bump, write_off
        await self.repeats.before(ticket, offer, want)
        self.guard.admit(ticket, want)
        try:
            grant = await offer.desk.take(want, offer.terms, offer.challenge, offer.resource)
        except BaseException:
            want.let_go(charged=False)
            raise
        if not offer.live(self._parts.latest(ticket.origin)):
            if grant.channel.status in PENDING_OPEN:
                offer.desk.opening_ended(grant.till, sent=False, told=False)
            grant.till.end(grant.hold, Ending.FREE, want, reason="not sent")
            raise ChallengeExpired(ticket.facts.host)
        return self._dispatch(ticket, offer, want, grant)

    def resend(self, ticket: PayTicket, attempt: Attempt, offer: Offer) -> Outgoing:
        """The same hold with the current voucher, against a fresh challenge. No new money. Raises `LocalRefusal`."""
        attempt.offer = offer
        fresh = self._want(ticket, offer)
        attempt.want.challenge_id, attempt.want.expires_at = fresh.challenge_id, fresh.expires_at
        attempt.want.expires_there = max(attempt.want.expires_there, fresh.expires_there)
        attempt.grant = attempt.grant.till.resend(attempt.grant, attempt.want)
        return self._credential(ticket, attempt)

    def _dispatch(self, ticket: PayTicket, offer: Offer, want: Want, grant: Grant) -> Outgoing:
        """The very last step: the hold is booked and the ledger's line is written; now the credential."""
        ticket.attempt = Attempt(offer, want, grant, opening=grant.channel.status in PENDING_OPEN)
        if not ticket.dispatched_at:
            ticket.dispatched_at = grant.hold.sent_at
        offer.desk.top_up_soon(grant.till, want, offer.terms, offer.challenge)
        return self._credential(ticket, ticket.attempt)

    def _credential(self, ticket: PayTicket, attempt: Attempt) -> Outgoing:
        offer, grant = attempt.offer, attempt.grant
        # Requests that share a voucher and a challenge send the same bytes.
        key = (grant.channel.channel_id, grant.signature)
        if attempt.opening or offer.credential is None or offer.credential[0] != key:
            build = offer.method.open_payload if attempt.opening else offer.method.voucher_payload
            scope = grant.channel.scope
            value = build_credential(
                offer.challenge,
                build(grant.channel, grant.amount, grant.signature),
                f"did:pkh:{scope.chain}:{scope.payer}",
            )
            offer.credential = None if attempt.opening else (key, value)
        else:
            value = offer.credential[1]
        adds: Fields = ()
        if not ticket.repeatable_method and ticket.own_idempotency_key is None:
            first = ticket.repeats.first if ticket.repeats is not None else ticket.facts.request_id
            adds = (("Idempotency-Key", first),)
        return Outgoing(sets=((offer.challenge.credential_header, value),), adds=adds)

    # -- 5: the end

    def finished(self, ticket: Ticket, outcome: Outcome) -> None:
        assert isinstance(ticket, PayTicket)
        try:
            if ticket.attempt is not None:
                booking.finish(ticket, ticket.attempt, outcome)
            self.booked(ticket, outcome)
            self.repeats.after(ticket, outcome)
        except Exception:
            log.exception("bursar: the end of a payment could not be booked; it stays counted as spent")

    def booked(self, ticket: PayTicket, outcome: Outcome) -> None:
        self.guard.finished(ticket, outcome)

    # -- upkeep

    @property
    def tills(self) -> tuple[Till, ...]:
        """The channels that this process uses."""
        return tuple(till for desk in self._offers.desks for till in desk.tills)

    async def release_idle(self, idle_ms: int) -> None:
        """Give back channels that were not used for `idle_ms`, so that other processes can have them."""
        self.repeats.look()
        before = self._parts.ticks() - idle_ms
        for desk in self._offers.desks:
            await desk.release_idle(before)
        self._offers.rest()
        await self.guard.tidy(before)

    async def close(self) -> None:
        await asyncio.gather(*(desk.close() for desk in self._offers.desks))
        await self.guard.tidy(self._parts.ticks() + 1)


def _problem(response: http.Response, body: bytes | None) -> Problem | None:
    if body is None:
        return None
    try:
        return parse_problem(response.headers.get("content-type", ""), body)
    except RemoteProtocolError:
        return None
