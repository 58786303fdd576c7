"""What is not paid: the ledger and the log say why, and the upstream's own answer reaches the client."""

from __future__ import annotations

import logging
from collections.abc import Callable

from proxy_addon.audit import Audit, RequestFacts, amount_fields
from proxy_addon.mitm.gate import Deliver
from proxy_addon.payer.ticket import Offer, PayTicket


class Refusals:
    """One per gate."""

    def __init__(self, audit: Audit, *, locate: Callable[[str], str], reason_header: bool) -> None:
        self._audit = audit
        self._locate = locate  # says where in the config the keys are that a message names
        self._reason_header = reason_header

    def refuse(self, facts: RequestFacts, status: int | None, reason: str, message: str) -> Deliver:
        """A request that is not paid for, and `reason`, one of those that ``bursar explain`` knows."""
        if facts.host not in message:
            message = f"{facts.host}: {message}"
        fields = {**facts.fields(), "outcome": "refused", "reason": reason, "status": status}
        told = f"not paid: {self._locate(message)} (bursar explain {reason})"
        self._audit.note("decision", told, level=logging.WARNING, fields=fields)
        return Deliver((("Bursar-Reason", reason),) if self._reason_header else ())

    def shadow(self, ticket: PayTicket, offer: Offer) -> Deliver:
        """In shadow mode nothing is paid; what would have been is said."""
        token, terms = offer.caps.token, offer.terms
        self._audit.note(
            "decision",
            f"shadow: would have paid {token.show(terms.price)} to {terms.payee} for"
            f" {ticket.facts.method} {ticket.facts.host}{ticket.facts.path}",
            fields={
                **ticket.facts.fields(),
                "challenge": offer.challenge.id,
                "outcome": "shadow",
                **amount_fields(token, terms.price),
            },
        )
        return Deliver()
