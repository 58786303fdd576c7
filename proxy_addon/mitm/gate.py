"""What the replay needs to know of paying: the `Gate`. The layer knows streams, the gate knows money.

The layer calls the gate at five points of a request's life, in this order:

1. ``consider``: the request's headers are here. No ticket: the stream behaves as mitmproxy's own.
2. ``prepare_now`` / ``prepare``: the connection is up and the request's headers leave next.
3. ``received``: a final answer's headers are here, and it is not one that the gate asks to see whole.
4. ``answered``: an answer that may ask for money, its body drained, and nothing of it sent to the client.
5. ``finished``: nothing more will happen. Called exactly once per ticket, whatever went wrong.

Nothing that a gate hands out is ever put on a flow: the layer adds it to the copy of the request that is
serialised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mitmproxy import http

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What to add to the upstream request. `sets` replace a field of that name, `adds` give way to one."""

    sets: Fields = field(default=(), repr=False)  # may hold a credential
    adds: Fields = ()


NOTHING = Outgoing()


@dataclass(frozen=True, slots=True)
class Again:
    """Send the request once more, with `outgoing`; on a connection of its own if `fresh`."""

    outgoing: Outgoing
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Deliver:
    """The stored answer goes to the client, byte for byte, with `adds` to its header (a reason, if enabled)."""

    adds: Fields = ()


class Outcome(StrEnum):
    """How a ticket ended, as far as the wire shows."""

    NOT_SENT = "not-sent"  # provably no byte of the last attempt left (or h2 REFUSED_STREAM, GOAWAY below it)
    COMPLETE = "complete"  # the answer's last byte is here
    CUT = "cut"  # the answer began and did not end; or the client left meanwhile
    LOST = "lost"  # no answer: reset, timeout, protocol error, the client left before


class Ticket(Protocol):
    """The gate's own state of one client request; opaque to the layer except for these."""

    repeatable_method: bool  # GET, HEAD, OPTIONS (safe): may run once more on a lost keep-alive connection
    watches_body: bool  # the gate wants the request's body digest before `prepare` (spool, then send)
    body_sha256: str | None
    """Hex digest of the request's body. Set by the layer: before `prepare` for a request without a body, with a
    small one, or with `watches_body`; else when the upload is complete. None until then."""
    client_left: bool
    """Set by the layer before `finished`: the client gave up, whatever the server would have done."""


class BodyFilter(Protocol):
    """Takes what is the gate's out of an answer's body, piece by piece. Never raises."""

    def feed(self, data: bytes) -> bytes:
        """What of this piece, and of what was held back before, goes to the client now."""

    def end(self) -> bytes:
        """The rest."""

    @property
    def waiting(self) -> bool:
        """Does the server wait for something that the gate is about to do? Then look again soon."""

    @property
    def stopped(self) -> bytes | None:
        """The answer ends here, with these bytes; None while it goes on."""


class Gate(Protocol):
    def consider(self, flow: http.HTTPFlow) -> Ticket | None:
        """May this request be paid for at all? Cheap; no I/O. Never raises."""

    def wants(self, ticket: Ticket, response: http.Response) -> bool:
        """Must the whole answer be seen before the client gets any of it? (402; 410 to a credential of ours.)"""

    def prepare_now(self, ticket: Ticket) -> Outgoing | None:
        """What to add, if that is known without waiting (no commit, no signature); else None. Never raises."""

    async def prepare(self, ticket: Ticket) -> Outgoing:
        """What to add; may commit and sign. `NOTHING` if nothing is to be paid in advance."""

    async def lost(self, ticket: Ticket) -> Outgoing | None:
        """The connection broke before any byte of the answer to a request with a repeatable method.

        What to send it with once more, which is a new payment; None: it is not sent again.
        """

    def received(self, ticket: Ticket, response: http.Response) -> BodyFilter | None:
        """Final answer: take its receipt and strip what must not reach the client, in place. Never raises.

        With a filter, the body goes through it (decoded, if it has a content encoding).
        """

    def trailers(self, ticket: Ticket, trailers: http.Headers) -> None:
        """The same for the final answer's trailers. Never raises."""

    async def answered(self, ticket: Ticket, response: http.Response, body: bytes | None) -> Again | Deliver:
        """What a payable-looking answer calls for. `body` is None where it broke the size or time limit."""

    def finished(self, ticket: Ticket, outcome: Outcome) -> None:
        """The end of it. Exactly once. Never raises."""
