"""One client request as the gate knows it: its ticket, whether the gate still answers, and the one end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mitmproxy import http

from proxy_addon.mitm.gate import BodyFilter, Gate, Outcome, Outgoing, Ticket
from proxy_addon.mitm.guard import describe

logger = logging.getLogger(__name__)


class Case:
    """Calls the gate. Once it has failed, it is not asked for money again; the traffic goes on."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._subject: tuple[object, ...] = ()  # what the ticket was given for
        self.ticket: Ticket | None = None
        self.failed = False
        self.ended = False

    def open(self, flow: http.HTTPFlow) -> None:
        self.ended = True  # until there is a ticket
        self._subject = _subject(flow.request)
        self.ticket = self._ask(None, self._gate.consider, flow)
        self.ended = self.ticket is None

    def elsewhere(self, flow: http.HTTPFlow) -> bool:
        """Has an addon sent the request elsewhere since? Then the ticket is not for it."""
        return self.ticket is not None and _subject(flow.request) != self._subject

    def knows_body(self, sha256: str | None) -> None:
        if self.ticket is not None and self.ticket.body_sha256 is None:
            self.ticket.body_sha256 = sha256

    def prepare_now(self) -> Outgoing | None:
        return self._ask(None, self._gate.prepare_now, self.ticket)  # type: ignore[no-any-return]

    def wants(self, response: http.Response) -> bool:
        if self.ticket is None or self.failed:
            return False
        return bool(self._ask(False, self._gate.wants, self.ticket, response))

    def received(self, response: http.Response) -> BodyFilter | None:
        if self.ticket is None:
            return None
        return self._ask(None, self._gate.received, self.ticket, response)  # type: ignore[no-any-return]

    def trailers(self, trailers: http.Headers) -> None:
        if self.ticket is not None:
            self._ask(None, self._gate.trailers, self.ticket, trailers)

    def end(self, outcome: Outcome) -> None:
        """Once per ticket."""
        if self.ended:
            return
        self.ended = True
        self._ask(None, self._gate.finished, self.ticket, outcome)

    def _ask(self, otherwise: Any, method: Callable[..., Any], *args: object) -> Any:
        try:
            return method(*args)
        except Exception as error:
            self.failed = True
            logger.error("The payment gate failed, the request goes on without: %s", describe(error))
            return otherwise


def _subject(request: http.Request) -> tuple[object, ...]:
    return (request.method, request.scheme, request.host, request.port, request.path)
