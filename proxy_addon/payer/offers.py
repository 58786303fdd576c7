"""Which challenges may be paid, by whom, and which may be used again.

A challenge that is judged payable becomes an `Offer`. The last one of each route is kept, because servers take
a challenge again until it expires: a warm request then carries its credential at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from proxy_addon.core.errors import BursarError, LocalRefusal, RemoteProtocolError, UnsupportedChallenge
from proxy_addon.core.headers import digest_matches
from proxy_addon.core.messages import Challenge
from proxy_addon.core.policy import Caps, Origin, Refusal, SpendPolicy
from proxy_addon.core.terms import Terms
from proxy_addon.methods import registry
from proxy_addon.methods.contract import Method
from proxy_addon.payer.desk import Desk
from proxy_addon.payer.parts import LONGEST_CHALLENGE_MS, Parts
from proxy_addon.payer.ticket import Offer, PayTicket, Route, live

MOST_OFFERS: Final = 10_000
MOST_BYTES: Final = 16 * 2**20
"""Of the challenges that are kept, together: each may have 16 KB, and how many there are is for clients to say."""
REUSE_REFUSALS: Final = 2
"""So often may a server refuse a challenge that it gave before it expired; then its route's are used once only."""

_REUSE_REFUSED: Final = frozenset({"invalid-challenge", "session/challenge-not-found", "payment-required"})
_OF_THE_VOUCHER: Final = frozenset(
    {
        "verification-failed",
        "payment-insufficient",
        "session/delta-too-small",
        "session/insufficient-balance",
        "session/amount-exceeds-deposit",
    }
)
"""Refusals that say nothing against the challenge: it stays good for the route's next request."""
_NOBODY: Final = "0x" + "00" * 20


@dataclass(frozen=True, slots=True)
class Payable:
    """A challenge that the policy allows, whoever asks for it."""

    method: Method
    terms: Terms
    caps: Caps
    expires_at: int  # ms


def judge(
    policy: SpendPolicy, origin: Origin, challenge: Challenge, now: int, pinned: str | None = None
) -> Payable:
    """What paying `challenge` to `origin` must fit. Raises `BursarError`: why it is not paid."""
    method = registry.resolve(challenge)
    terms = method.terms(challenge)
    verdict = policy.judge(origin, terms, method.escrows, pinned)
    if isinstance(verdict, Refusal):
        raise LocalRefusal(verdict.reason, verdict.message)
    expires_at = challenge.expires_at
    if expires_at is None:
        expires_at = now + LONGEST_CHALLENGE_MS
    elif expires_at > now + LONGEST_CHALLENGE_MS:
        raise LocalRefusal(
            "expires-too-late",
            f"{origin.shown} sent a challenge that is good until {challenge.expires}; one hour is the most that is"
            " paid, since a lost payment stays uncertain for that long",
        )
    if not live(expires_at, now):
        raise LocalRefusal(
            "expired",
            f"{origin.shown} sent a challenge that expired at {challenge.expires}; check this machine's clock",
        )
    return Payable(method, terms, verdict, expires_at)


class _Kept(MutableMapping[Route, Offer]):
    """The last offer of each route, the oldest out first: at most `MOST_OFFERS`, with challenges of `MOST_BYTES`."""

    def __init__(self) -> None:
        self._offers: OrderedDict[Route, Offer] = OrderedDict()
        self.bytes = 0

    def find(self, route: Route) -> Offer | None:
        """As `get`, without its detour by an exception: each request asks."""
        return self._offers.get(route)

    def __getitem__(self, route: Route) -> Offer:
        return self._offers[route]

    def __setitem__(self, route: Route, offer: Offer) -> None:
        offer.challenge.forget_reading()
        before = self._offers.get(route)
        if before is not offer:
            self._offers[route] = offer
            self.bytes += _size(offer) - (0 if before is None else _size(before))
        self._offers.move_to_end(route)
        while len(self._offers) > MOST_OFFERS or self.bytes > MOST_BYTES:
            del self[next(iter(self._offers))]

    def __delitem__(self, route: Route) -> None:
        self.bytes -= _size(self._offers.pop(route))

    def __iter__(self) -> Iterator[Route]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)


def _size(offer: Offer) -> int:
    return len(offer.challenge.echo_bytes)


class Offers:
    """Judges challenges, and remembers the good ones."""

    def __init__(self, parts: Parts, policy: SpendPolicy) -> None:
        self._parts = parts
        self._policy = policy
        self._desks: dict[str, Desk] = {}  # those that have a channel, or are about to
        self._resting: WeakValueDictionary[str, Desk] = (
            WeakValueDictionary()
        )  # as long as an offer is for one
        self._by_origin: WeakValueDictionary[Origin, Desk] = WeakValueDictionary()
        self._kept = _Kept()
        self._refused_reuse: OrderedDict[Route, int] = OrderedDict()
        self._streams: dict[Route, bool] = {}  # did an answer of this route ever stream?
        self._paused: OrderedDict[Route, int] = OrderedDict()  # ticks; nothing is paid in advance before

    @property
    def desks(self) -> tuple[Desk, ...]:
        return tuple(self._desks.values())

    def rest(self) -> None:
        """Keep those that have nothing only while somebody may come to them: of one scope there is one at a time."""
        for key, desk in tuple(self._desks.items()):
            if desk.at_rest:
                self._resting[key] = self._desks.pop(key)

    def _keep(self, desk: Desk) -> None:
        self._desks[desk.scope.key] = desk

    # -- judging

    def choose(self, ticket: PayTicket, challenges: Iterable[Challenge]) -> Offer:
        """The first challenge that we can and may pay.

        Raises the reason against the first that we could pay but may not, else that we can pay none.
        """
        failure: BursarError | None = None
        for challenge in challenges:
            try:
                return self._judge(ticket, challenge)
            except UnsupportedChallenge as error:
                failure = failure or error
            except BursarError as error:
                if failure is None or isinstance(failure, UnsupportedChallenge):
                    failure = error
        raise failure or RemoteProtocolError(f"{ticket.facts.host} sent no challenge")

    def _judge(self, ticket: PayTicket, challenge: Challenge) -> Offer:
        host = ticket.facts.host
        pinned = self._parts.pins.get(str(ticket.origin))
        payable = judge(self._policy, ticket.origin, challenge, self._parts.now(), pinned)
        if not live(payable.expires_at, self._parts.latest(ticket.origin)):
            raise LocalRefusal(
                "expired",
                f"{host} sent a challenge that has expired by its own clock, at {challenge.expires}",
            )
        if blocks_client(ticket, challenge):
            raise LocalRefusal(
                "client-authorization",
                f"{host} wants the payment in Authorization, where the client has its own; it is never overwritten."
                " The server could ask for Payment-Authorization, or the client leave its own out",
            )
        if challenge.digest is not None and not _digest_fits(ticket, challenge.digest):
            raise RemoteProtocolError(f"{host} sent a challenge for another request body than this one's")
        return Offer(
            challenge=challenge,
            terms=payable.terms,
            method=payable.method,
            caps=payable.caps,
            desk=self._desk(ticket.origin, payable.method, payable.terms),
            expires_at=payable.expires_at,
            resource=f"{ticket.origin}{ticket.facts.path}",
        )

    def _desk(self, origin: Origin, method: Method, terms: Terms) -> Desk:
        signer = self._parts.signer
        scope = method.scope(
            terms,
            payer=signer.address if signer is not None else _NOBODY,
            voucher_signer=signer.voucher_signer if signer is not None else _NOBODY,
            origin=str(origin),
        )
        desk = self._desks.get(scope.key) or self._resting.get(scope.key)
        if desk is None:
            desk = Desk(self._parts, scope, method, in_use=self._keep)
            self._resting[scope.key] = desk
        return desk

    # -- remembering

    def of_route(self, ticket: PayTicket) -> Offer | None:
        """The offer that a request of this route may use at once."""
        route = ticket.route
        offer = self._kept.find(route)
        if offer is None or blocks_client(ticket, offer.challenge):
            return None
        if self._paused and self._paused.get(route, 0) > self._parts.ticks():
            return None
        if not offer.live(self._parts.latest(ticket.origin)):
            del self._kept[route]
            return None
        return offer

    def live_channel(self, origin: Origin) -> str | None:
        """A channel that is live in this process and was paid with at `origin`: worth a hint to the server."""
        desk = self._by_origin.get(origin)
        till = desk.till if desk is not None else None
        return till.channel.channel_id if till is not None else None

    def metered(self, route: Route, unit_type: str | None) -> bool:
        """Is the answer most likely a stream that asks for more while it flows?

        A route that ever streamed may do so again. Where the price is not that of a whole request, one that
        nobody has seen yet is taken for a stream, since streams that share a channel can cut each other off.
        """
        known = self._streams.get(route)
        return known if known is not None else unit_type not in (None, "request")

    def taken(self, route: Route, offer: Offer, *, streams: bool = False) -> None:
        """The server took a payment against this offer: keep it for the next request of its route."""
        offer.used += 1
        if self._by_origin.get(route[0]) is not offer.desk:
            self._by_origin[route[0]] = offer.desk
        known = self._streams.get(route)
        if known is None or (streams and not known):
            if len(self._streams) > MOST_OFFERS:
                self._streams.clear()
            self._streams[route] = streams
        if self._paused:
            self._paused.pop(route, None)
        if self._refused_reuse:
            if offer.used > 1:  # so it does take a challenge again
                self._refused_reuse.pop(route, None)
            if self._refused_reuse.get(route, 0) >= REUSE_REFUSALS:
                return
        if offer.challenge.digest is None:
            self._kept[route] = offer

    def refused(self, route: Route, offer: Offer, kind: str | None) -> None:
        """The server refused a payment against this offer; some servers take a challenge once only."""
        if kind in _OF_THE_VOUCHER:
            return
        if self._kept.find(route) is offer:
            del self._kept[route]
        # Requests in flight together are refused together, and a new secret ends any challenge: neither says
        # that this server never takes one again.
        if offer.used == 1 and not offer.refused and kind in _REUSE_REFUSED:
            offer.refused = True
            _put(self._refused_reuse, route, self._refused_reuse.get(route, 0) + 1)

    def pause(self, route: Route, seconds: int) -> None:
        """The server wants no payment for so long: the route's requests go unpaid first, and are asked again."""
        _put(self._paused, route, self._parts.ticks() + seconds * 1000)


def _put(kept: OrderedDict[Route, int], route: Route, value: int) -> None:
    """The last ones only: a client that walks through paths must not fill our memory."""
    kept[route] = value
    kept.move_to_end(route)
    if len(kept) > MOST_OFFERS:
        kept.popitem(last=False)


def blocks_client(ticket: PayTicket, challenge: Challenge) -> bool:
    """Would the credential have to go where the client's own Authorization is?"""
    return ticket.own_authorization and challenge.credential_header == "Authorization"


def _digest_fits(ticket: PayTicket, digest: str) -> bool:
    return ticket.body_sha256 is not None and digest_matches(digest, bytes.fromhex(ticket.body_sha256))
