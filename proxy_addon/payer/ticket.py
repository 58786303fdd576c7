"""What the payer remembers of one client request while it is on its way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from proxy_addon.audit import RequestFacts
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.messages import PAYMENT_REQUEST_FIELDS, Challenge, Receipt, is_payment_credential
from proxy_addon.core.policy import Caps, Origin
from proxy_addon.core.repair import Tries
from proxy_addon.core.terms import Terms
from proxy_addon.methods.contract import Method
from proxy_addon.payer.desk import Desk
from proxy_addon.payer.fields import names_of
from proxy_addon.payer.retries import Unknown
from proxy_addon.payer.till import Grant
from proxy_addon.payer.wants import Want
from store.account import Ending

if TYPE_CHECKING:
    from mitmproxy import http

    from proxy_addon.payer.streams import MeteredStream

Route = tuple[Origin, str, str]  # origin, method, path without query

_PAYS_ITSELF: Final = frozenset(name.lower().encode() for name in PAYMENT_REQUEST_FIELDS) - {
    b"accept-payment"
}

EXPIRY_SKEW_MS = 5_000
"""A challenge is not used in its last seconds: the server's clock may be ahead of ours."""


def live(expires_at: int, now: int) -> bool:
    return now < expires_at - EXPIRY_SKEW_MS


class ChallengeExpired(LocalRefusal):
    """Its time ran out while the payment waited, for the chain or for other requests. Nothing was sent."""

    def __init__(self, host: str) -> None:
        super().__init__(
            "expired", f"the challenge of {host} expired before the payment could be sent; try again"
        )


@dataclass(slots=True, eq=False)
class Offer:
    """A challenge that we have judged and may pay; good for the next requests of its route until it expires."""

    challenge: Challenge
    terms: Terms
    method: Method
    caps: Caps
    desk: Desk
    expires_at: int  # ms
    resource: str  # URL without query
    used: int = 0
    refused: bool = False  # after it had been taken
    credential: tuple[tuple[str, bytes], str] | None = field(
        default=None, repr=False
    )  # the last one, and of what

    def live(self, now: int) -> bool:
        return live(self.expires_at, now)


@dataclass(slots=True, eq=False)
class Attempt:
    """A credential that is about to leave, or has left, and whose answer is awaited."""

    offer: Offer
    want: Want
    grant: Grant
    opening: bool  # it carries the opening of its channel
    ending: Ending | None = None
    receipt: Receipt | None = None
    stream: MeteredStream | None = None  # its answer is an event stream

    @property
    def ended(self) -> bool:
        return self.ending is not None


@dataclass(slots=True, eq=False, kw_only=True)
class PayTicket:
    """The gate's `Ticket`: one client request, through all its attempts."""

    facts: RequestFacts
    origin: Origin
    url: str = field(repr=False)
    repeatable_method: bool
    own_authorization: bool  # the client sent an Authorization of its own; it is never overwritten
    own_idempotency_key: str | None = field(default=None, repr=False)
    watches_body: bool = False
    body_sha256: str | None = None  # hex; set by the layer when the body is complete
    offer: Offer | None = None  # of the route, at the time the headers arrived
    attempt: Attempt | None = None
    tries: Tries = field(default_factory=Tries)
    status: int | None = None
    dated: int | None = None  # ms; the server's time at its last answer, if it tells
    dispatched_at: int = 0
    admitted: int = 0  # when, by the breaker's count of events; 0: never
    at_stake: int = 0  # base units that its attempts held, and may have been charged for nothing
    streamed: bool = False  # a metered stream that delivered something
    refusal: str | None = None  # the last reason why its 402 was not paid
    client_left: bool = False
    repeats: Unknown | None = None  # what this is a client's own retry of
    probed: bool = False  # it was asked what became of that
    refused: str | None = None
    in_band: bool = False  # a WebSocket that pays by frames: always metered

    @property
    def route(self) -> Route:
        return self.origin, self.facts.method, self.facts.path

    @property
    def fingerprint(self) -> str:
        """Method, URL and body: what makes a client's own retry the same request. Hashed: URLs hold secrets.

        So does the client's own Idempotency-Key: where it differs, the client says that it is another request.
        """
        text = f"{self.facts.method}\n{self.url}\n{self.body_sha256 or ''}"
        if self.own_idempotency_key is not None:
            text += f"\n{self.own_idempotency_key}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def origin_of(request: http.Request) -> Origin:
    return _origin(request.scheme, request.host, request.port)


@lru_cache(maxsize=1024)  # asked for each request; and what is the same object is found faster
def _origin(scheme: str, host: str, port: int) -> Origin:
    return Origin(scheme, host.lower().rstrip("."), port)


def facts_of(flow: http.HTTPFlow, origin: Origin, user: str | None = None) -> RequestFacts:
    peer = flow.client_conn.peername
    return RequestFacts(
        request_id=os.urandom(16).hex(),
        client=f"{peer[0]}:{peer[1]}" if peer else "unknown",
        host=origin.shown,
        method=flow.request.method,
        path=flow.request.path.partition("?")[0],
        user=user,
    )


def pays_itself(request: http.Request, names: AbstractSet[bytes] | None = None) -> bool:
    """Does the client speak the Payment scheme (or x402)? Then its payments are its own. `names`: of its fields."""
    if names is None:
        names = names_of(request.headers)
    if not names.isdisjoint(_PAYS_ITSELF):
        return True
    return b"authorization" in names and is_payment_credential(request.headers["authorization"])
