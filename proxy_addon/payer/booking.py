"""What an attempt leaves behind: the receipt it brought, the end of its hold, a channel set aside."""

from __future__ import annotations

import logging
from typing import Final

from proxy_addon.audit import Audit
from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import Receipt, parse_receipt
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.aside import put_aside
from proxy_addon.payer.retries import is_open
from proxy_addon.payer.ticket import Attempt, PayTicket
from proxy_addon.payer.till import Till
from store.account import Ending
from store.amounts import Token
from store.contract import StoreError
from store.lifecycle import ChannelStatus

log: Final = logging.getLogger("bursar")


def read_receipt(attempt: Attempt, value: str) -> Receipt | None:
    """The receipt of an answer's header or trailers, if it is readable and about this attempt's channel."""
    host, channel_id = attempt.want.facts.host, attempt.grant.channel.channel_id
    try:
        receipt = parse_receipt(value)
    except RemoteProtocolError as error:
        log.warning("bursar: %s sent a receipt that cannot be read: %s", host, error)
        return None
    if receipt.channel_id not in (None, channel_id):
        log.warning("bursar: %s sent a receipt for another channel than %s", host, channel_id)
        return None
    return receipt


def end(
    ticket: PayTicket,
    attempt: Attempt,
    ending: Ending,
    reason: str | None,
    charged: int = 0,
    *,
    answered: bool = True,
) -> None:
    """End the attempt's hold; never twice. `charged` is for a metered stream. `answered`: is its client?"""
    if attempt.ended:
        return
    attempt.ending = ending
    receipt = attempt.receipt
    held = attempt.grant.till.channel.holds.get(attempt.grant.hold.request_id, attempt.grant.hold)
    ticket.at_stake += held.amount - charged if ending is not Ending.FREE else 0
    ticket.streamed = ticket.streamed or charged > 0
    attempt.grant.till.end(
        attempt.grant.hold,
        ending,
        attempt.want,
        spent=receipt.spent if receipt is not None else None,
        accepted=receipt is not None or ending is Ending.METERED,
        status=ticket.status,
        reason=reason,
        charged=charged,
        dated=ticket.dated,
        unanswered=_if_open(ticket, ending, answered=answered),
    )
    attempt.grant.till.vacate(ticket.facts.request_id)


def _if_open(ticket: PayTicket, ending: Ending, *, answered: bool) -> str | None:
    """The fingerprint of a request that its client may send again, if its whole body is known."""
    if ticket.body_sha256 is None or not is_open(ending, answered=answered, status=ticket.status):
        return None
    return ticket.fingerprint


def finish(ticket: PayTicket, attempt: Attempt, outcome: Outcome) -> None:
    """Book an attempt by how its answer ended on the wire."""
    if attempt.ended:
        return
    if attempt.opening:
        sent = outcome is not Outcome.NOT_SENT
        attempt.offer.desk.opening_ended(attempt.grant.till, sent=sent, told=attempt.receipt is not None)
    stream, answered = attempt.stream, outcome is Outcome.COMPLETE
    charged = stream.close() if stream is not None else 0
    if stream is not None and stream.metered:
        reason = None if answered else outcome.value
        end(ticket, attempt, Ending.METERED, reason, charged, answered=answered)
    else:
        end(ticket, attempt, *_ending(ticket, attempt, outcome), answered=answered)


def _ending(ticket: PayTicket, attempt: Attempt, outcome: Outcome) -> tuple[Ending, str | None]:
    match outcome:
        case Outcome.NOT_SENT:
            return Ending.FREE, "not sent"
        case Outcome.CUT:
            return Ending.UNDELIVERED, "cut"
        case Outcome.LOST:
            return Ending.UNKNOWN, "no answer"
        case Outcome.COMPLETE if attempt.receipt is None:
            return Ending.UNDELIVERED, "no receipt"
        case Outcome.COMPLETE if ticket.facts.method == "HEAD" or ticket.status == 204:
            # May be the answer to a voucher that was taken and not charged for.
            return Ending.UNDELIVERED, "nothing delivered"
        case _:
            return Ending.PAID, None


async def set_aside(audit: Audit, till: Till, reason: str, *, token: Token, host: str) -> None:
    """Dispatch nothing more on this channel; its deposit stays on record, to be brought home by a close."""
    if till.channel.status is not ChannelStatus.OPEN:
        return

    try:
        ours = await put_aside(till, reason)
    except StoreError as error:
        till.fenced = True  # dispatch nothing on it in any case
        log.error("bursar: %s; nothing more is paid with %s", error, till.channel.channel_id)
        return
    if not ours:  # another request's refusal was faster
        return
    channel = till.channel
    audit.note(
        "set-aside",
        f"set aside channel {channel.channel_id} of {host}: {reason}."
        f" Up to {token.show(channel.deposit - channel.paid)} of its deposit can be brought back:"
        f" bursar channels close {channel.channel_id}",
        level=logging.WARNING,
        channel_id=channel.channel_id,
        host=host,
        reason=reason,
    )
