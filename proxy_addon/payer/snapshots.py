"""What a server tells of our channels by itself: a claim that moves nothing, unless our own signature is in it."""

from __future__ import annotations

import logging
from typing import Final

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import Challenge
from proxy_addon.core.snapshot import SessionSnapshot, parse_snapshot, snapshot_from
from proxy_addon.methods.tempo_session.proof import proves
from proxy_addon.payer import booking
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.ticket import Offer
from store import account

log: Final = logging.getLogger("bursar")

FIELD: Final = "Payment-Session-Snapshot"


async def heed(parts: Parts, offer: Offer, field: str | None = None) -> None:
    """Learn from the snapshot in a challenge that is about to be paid, and from the header `field` beside it.

    A voucher of ours in it proves that the server has taken it: then it is known to be accepted, and no more than
    that. One over what is on record proves that the record is not the last one (an old copy was put back, or
    another machine pays from the same channel): the channel is set aside, and nothing more is signed on it.
    """
    for snapshot in (of_challenge(offer.challenge), of_field(field)):
        if snapshot is not None:
            await _heed(parts, offer, snapshot)


async def _heed(parts: Parts, offer: Offer, snapshot: SessionSnapshot) -> None:
    voucher = snapshot.highest_voucher
    if voucher is None:
        return
    for till in offer.desk.tills:
        channel = till.channel
        if channel.channel_id != snapshot.channel_id or voucher.cumulative_amount <= channel.accepted:
            continue
        proven = proves(channel, snapshot)
        if proven is None:
            log.debug("bursar: a snapshot of %s proves nothing", channel.channel_id)
        elif proven > channel.authorised:
            await booking.set_aside(
                parts.audit,
                till,
                f"the server has a voucher of ours for {offer.caps.token.show(proven)}, over the"
                f" {offer.caps.token.show(channel.authorised)} on record: this is an old copy of the store, or"
                " another machine pays from the same channel",
                token=offer.caps.token,
                host=offer.desk.scope.host,
            )
        else:
            till.channel = account.proven_accepted(channel, proven)


def of_field(value: str | None) -> SessionSnapshot | None:
    try:
        return None if value is None else parse_snapshot(value)
    except RemoteProtocolError as error:
        log.debug("bursar: %s", error)
        return None


def of_challenge(challenge: Challenge) -> SessionSnapshot | None:
    details = challenge.request_json.get("methodDetails")
    told = details.get("sessionSnapshot") if isinstance(details, dict) else None
    if told is None:
        return None
    try:
        return snapshot_from(told)
    except RemoteProtocolError as error:
        log.debug("bursar: %s", error)
        return None
