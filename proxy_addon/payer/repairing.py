"""A payment that the server refused: carries out what `core.repair` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from proxy_addon.core.errors import BursarError, LocalRefusal
from proxy_addon.core.headers import parse_retry_after
from proxy_addon.core.messages import Challenge
from proxy_addon.core.repair import HOLD_BACK_AFTER, Way, way_out
from proxy_addon.mitm.gate import Outgoing
from proxy_addon.payer import booking, snapshots
from proxy_addon.payer.offers import Offers
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.ticket import Attempt, Offer, PayTicket
from store import account
from store.account import Ending

if TYPE_CHECKING:
    from mitmproxy import http

_ASIDE: Final = frozenset({Way.DEPOSIT, Way.GONE, Way.DISTRUST})


class Payments(Protocol):
    """How a request is paid for."""

    async def pay(
        self, ticket: PayTicket, offer: Offer, *, bump: bool = False, write_off: bool = False
    ) -> Outgoing:
        """A new hold. Raises `LocalRefusal`; then nothing was signed for this attempt."""

    def resend(self, ticket: PayTicket, attempt: Attempt, offer: Offer) -> Outgoing:
        """The same hold with the current voucher. Raises `LocalRefusal`."""


class Repairs:
    """What is done about refusals. How often, and with how much money, is for `Tries` and the limits to say."""

    def __init__(self, parts: Parts, offers: Offers, payments: Payments) -> None:
        self._parts = parts
        self._offers = offers
        self._payments = payments

    async def mend(
        self,
        ticket: PayTicket,
        attempt: Attempt,
        response: http.Response,
        kind: str | None,
        challenges: tuple[Challenge, ...],
    ) -> Outgoing:
        """Ends the attempt's hold, unless it is sent again. Raises the reason why the refusal goes to the client."""
        grant, old, tries = attempt.grant, attempt.offer, ticket.tries
        till = grant.till
        self._offers.refused(ticket.route, old, kind)
        fresh = self._payable(ticket, attempt, response, kind, challenges)
        offer = fresh if isinstance(fresh, Offer) else None
        if offer is not None:
            await snapshots.heed(self._parts, offer, response.headers.get(snapshots.FIELD))
        new_terms = offer is not None and (offer.desk is not old.desk or offer.terms.price != old.terms.price)
        way = way_out(
            response.status_code,
            kind,
            grant.amount,
            till.channel,
            tries,
            usable=till.usable or attempt.opening,
            new_terms=new_terms,
            payable=offer is not None,
        )
        if way is Way.ANEW and not challenges:
            way = Way.GIVE_UP  # there is nothing new to decide on
        again = way is Way.RESEND or (way is Way.ANEW and not new_terms)
        if attempt.opening and not again:
            attempt.offer.desk.opening_ended(till, sent=True, told=False)
            booking.end(ticket, attempt, Ending.FREE, kind)
            raise LocalRefusal(
                "open-refused",
                f"{ticket.facts.host} did not take the opening of {grant.channel.channel_id} ({kind or 'no reason'});"
                " only the chain knows whether it landed, and `bursar channels list` shows it",
            )
        tries.count(way)
        if again:
            assert offer is not None
            if tries.resends >= HOLD_BACK_AFTER:
                till.hold_back_for(ticket.facts.request_id)
            try:
                return self._payments.resend(ticket, attempt, offer)
            except BaseException:
                booking.end(ticket, attempt, Ending.FREE, kind)
                raise
        booking.end(ticket, attempt, Ending.FREE, kind)
        if way in _ASIDE:
            await self._set_aside(attempt, kind or str(response.status_code))
        if offer is None or way in (Way.DISTRUST, Way.GIVE_UP):
            await self._bad_row(ticket, attempt, kind)
            raise fresh if isinstance(fresh, BursarError) else _refused(ticket, attempt, kind)
        if way is Way.BUMP and kind == "session/delta-too-small":
            till.channel = account.learn_delta(till.channel, grant.amount, old.caps.per_request)
        try:
            return await self._payments.pay(
                ticket, offer, bump=way is Way.BUMP, write_off=way is Way.WRITE_OFF
            )
        except LocalRefusal as error:
            if error.reason == "over-max-price":  # where a server led it
                await self._bad_row(ticket, attempt, kind)
            raise

    def _payable(
        self,
        ticket: PayTicket,
        attempt: Attempt,
        response: http.Response,
        kind: str | None,
        challenges: tuple[Challenge, ...],
    ) -> Offer | BursarError:
        """What may be paid now: the challenge that came with the refusal, else the old one while it is good."""
        wait = response.headers.get("Retry-After")
        seconds = None if wait is None else parse_retry_after(wait, ticket.dated or self._parts.now())
        if seconds:
            self._offers.pause(ticket.route, seconds)
            return LocalRefusal(
                "retry-after",
                f"{ticket.facts.host} refused a payment ({kind or 'no reason given'}) and wants to be left alone"
                f" for {seconds} s",
            )
        if challenges:
            try:
                return self._offers.choose(ticket, challenges)
            except BursarError as error:
                return error
        if attempt.offer.live(self._parts.latest(ticket.origin)):
            return attempt.offer
        return _refused(ticket, attempt, kind)

    async def _bad_row(self, ticket: PayTicket, attempt: Attempt, kind: str | None) -> None:
        """A request that ended unpaid although we believed the server: after two in a row, no more of this channel."""
        if not ticket.tries.repaired:
            return
        till = attempt.grant.till
        till.channel = account.count_bad_row(till.channel, ticket.dispatched_at, self._parts.now())
        if account.is_spoiled(till.channel):
            await self._set_aside(attempt, f"{kind}, again and again")

    async def _set_aside(self, attempt: Attempt, reason: str) -> None:
        want = attempt.want
        await booking.set_aside(
            self._parts.audit, attempt.grant.till, reason, token=want.caps.token, host=want.facts.host
        )


def _refused(ticket: PayTicket, attempt: Attempt, kind: str | None) -> LocalRefusal:
    grant = attempt.grant
    return LocalRefusal(
        "refused-by-server",
        f"{ticket.facts.host} refused a voucher of {attempt.want.caps.token.show(grant.amount)} on"
        f" {grant.channel.channel_id} ({kind or 'no reason given'}); its answer goes to the client",
    )
