"""A gate without money: it does what the test says, and writes down every call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from mitmproxy import http

from proxy_addon.mitm.gate import NOTHING, Again, BodyFilter, Deliver, Outcome, Outgoing, Ticket

CANARY = "Payment c4n4ry-credential-never-to-be-seen"
PAY = Outgoing(sets=(("Authorization", CANARY),), adds=(("Idempotency-Key", "key-1"),))
PAY_AGAIN = Outgoing(sets=(("Authorization", CANARY + "-2"),))


@dataclass
class FakeTicket:
    number: int
    repeatable_method: bool
    watches_body: bool
    body_sha256: str | None = None
    client_left: bool = False
    calls: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    bodies: list[bytes | None] = field(default_factory=list)
    digests: list[tuple[str, str | None]] = field(default_factory=list)


Verdict = Again | Deliver


class FakeGate:
    """By default: nothing in advance, and a 402 is paid once."""

    def __init__(self) -> None:
        self.tickets: list[FakeTicket] = []
        self.watch: Callable[[http.HTTPFlow], bool] = lambda flow: True
        self.watches_body = False
        self.now: Outgoing | None = NOTHING
        self.in_time: Callable[[FakeTicket], Awaitable[Outgoing]] | None = None
        self.verdict: Callable[[FakeTicket, int], Verdict | Awaitable[Verdict]] = self.pay_once
        self.receive: Callable[[http.Response], None] | None = None
        self.after_loss: Outgoing | None = PAY_AGAIN
        self.body_filter: Callable[[], BodyFilter] | None = None
        self.fail: dict[str, Exception] = {}
        self.changed = asyncio.Event()

    @staticmethod
    def pay_once(ticket: FakeTicket, n: int) -> Verdict:
        return Again(PAY) if n == 1 else Deliver()

    def _note(self, ticket: FakeTicket, call: str) -> None:
        ticket.calls.append(call)
        ticket.digests.append((call, ticket.body_sha256))
        self.changed.set()
        if call in self.fail:
            raise self.fail[call]

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)

    async def all_finished(self) -> None:
        await self.until(lambda: self.tickets and all(t.outcome for t in self.tickets))

    # -- the Gate protocol

    def consider(self, flow: http.HTTPFlow) -> FakeTicket | None:
        if not self.watch(flow):
            return None
        ticket = FakeTicket(
            len(self.tickets), flow.request.method in ("GET", "HEAD", "OPTIONS"), self.watches_body
        )
        self.tickets.append(ticket)
        self._note(ticket, "consider")
        return ticket

    def wants(self, ticket: Ticket, response: http.Response) -> bool:
        assert isinstance(ticket, FakeTicket)
        self._note(ticket, "wants")
        return response.status_code == 402

    def prepare_now(self, ticket: Ticket) -> Outgoing | None:
        assert isinstance(ticket, FakeTicket)
        self._note(ticket, "prepare_now")
        return self.now

    async def prepare(self, ticket: Ticket) -> Outgoing:
        assert isinstance(ticket, FakeTicket)
        self._note(ticket, "prepare")
        assert self.in_time is not None
        return await self.in_time(ticket)

    async def lost(self, ticket: Ticket) -> Outgoing | None:
        assert isinstance(ticket, FakeTicket)
        self._note(ticket, "lost")
        return self.after_loss

    def trailers(self, ticket: Ticket, trailers: http.Headers) -> None:
        assert isinstance(ticket, FakeTicket)
        self._note(ticket, "trailers")
        trailers.pop("payment-receipt", None)

    def received(self, ticket: Ticket, response: http.Response) -> BodyFilter | None:
        assert isinstance(ticket, FakeTicket)
        self._note(ticket, "received")
        response.headers.pop("payment-receipt", None)
        if self.receive:
            self.receive(response)
        return self.body_filter() if self.body_filter else None

    async def answered(self, ticket: Ticket, response: http.Response, body: bytes | None) -> Verdict:
        assert isinstance(ticket, FakeTicket)
        self._note(ticket, "answered")
        ticket.bodies.append(body)
        verdict = self.verdict(ticket, ticket.calls.count("answered"))
        return verdict if isinstance(verdict, (Again, Deliver)) else await verdict

    def finished(self, ticket: Ticket, outcome: Outcome) -> None:
        assert isinstance(ticket, FakeTicket)
        assert ticket.outcome is None, "finished twice"
        ticket.outcome = outcome
        self._note(ticket, "finished")
