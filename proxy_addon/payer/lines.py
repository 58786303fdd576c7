"""What the ledger and the log say of an attempt: when its voucher leaves, and when it ends."""

from __future__ import annotations

import logging
from typing import Any

from proxy_addon.audit import Audit, amount_fields
from proxy_addon.payer.wants import Want
from store.account import Ended, Ending, WrittenOff
from store.records import Hold


def voucher_fields(want: Want, *, cumulative: int, amount: int) -> dict[str, Any]:
    """Of a voucher that is about to leave for `amount` more. Base units."""
    fields = {
        **want.facts.fields(),
        "challenge": want.challenge_id,
        "cumulative": str(cumulative),
        **amount_fields(want.caps.token, amount),
    }
    if want.retry_of is not None:
        fields["retry_of"] = want.retry_of
    return fields


def write_ending(
    audit: Audit,
    want: Want,
    hold: Hold,
    move: Ended,
    *,
    channel_id: str,
    status: int | None,
    reason: str | None,
    unanswered: str | None,
    uncertain: int | None,
) -> None:
    """The end of `hold`, after the account has moved. Never raises.

    `unanswered` is its fingerprint, where its client may try again. `uncertain` is what is so on the channel from
    now on, where the receipt has made it less.
    """
    token, facts = want.caps.token, want.facts
    metered = move.ending is Ending.METERED
    amount = min(move.charged, hold.amount) if metered else hold.amount
    message = (
        f"{facts.method} {facts.host}{facts.path}: {move.ending} {token.show(amount)} on {channel_id[:10]}…"
        + (f" ({reason})" if reason else "")
    )
    fields = {
        **voucher_fields(want, cumulative=hold.voucher, amount=amount),
        "outcome": Ending.PAID.value if metered else move.ending.value,
        "uncertain": str(hold.amount - amount) if metered else None,
        "status": status,
        "reason": reason,
        "spent": None if move.spent is None else str(move.spent),
    }
    if unanswered is not None:
        fields["unanswered"] = unanswered
    if uncertain is not None:
        fields["uncertain_now"] = str(uncertain)
    # A hold that the server did not take is free again: of interest to the account, not to people.
    level = logging.DEBUG if move.ending is Ending.FREE else logging.INFO
    audit.note("ended", message, level=level, channel_id=channel_id, move=move, fields=fields)


def write_written_off(audit: Audit, want: Want, move: WrittenOff, *, channel_id: str) -> None:
    """What was free is uncertain, since a server says that nothing is left. Never raises."""
    token, host = want.caps.token, want.facts.host
    audit.note(
        "written-off",
        f"{host} says that nothing is left on {channel_id[:10]}…: {token.show(move.amount)} that seemed free may"
        " have been charged",
        channel_id=channel_id,
        move=move,
        fields={"request": want.facts.request_id, "host": host, **amount_fields(token, move.amount)},
    )
