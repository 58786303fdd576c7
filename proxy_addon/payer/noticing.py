"""A close that somebody else began: the payee, or another tool that has our key. Nothing more is signed on it."""

from __future__ import annotations

import logging
from typing import Final

from proxy_addon.audit import iso
from proxy_addon.methods.contract import ChainState
from proxy_addon.payer.aside import put_aside
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from store.contract import StoreError
from store.lifecycle import ChannelStatus

log: Final = logging.getLogger("bursar")

GRACE_S: Final = 16 * 60
"""The contract's fifteen minutes and one more: a withdrawal that comes too early costs its fee."""


def ready_at(state: ChainState) -> int | None:
    """From when on (Unix seconds, block time) the deposit can be withdrawn; None if no close was requested."""
    return None if state.close_requested_at is None else state.close_requested_at + GRACE_S


def begun(state: ChainState) -> bool:
    """Has the channel no future, by the chain?"""
    return not state.exists or state.close_requested_at is not None


async def notice(parts: Parts, till: Till, state: ChainState) -> bool:
    """Set an open channel aside whose close has begun on the chain. True if nothing may be signed on it any more.

    From the moment this is called no request is dispatched on it, also if the store does not take the record; what
    is in flight ends as it ends. A top-up would even cancel the close that somebody has asked for.
    """
    channel = till.channel
    if channel.status is not ChannelStatus.OPEN:
        return True
    if not begun(state):
        return False
    ready = ready_at(state)
    told = (
        "the chain does not have it any more"
        if not state.exists
        else f"its close was requested on the chain, and not by this proxy: withdraw from {iso((ready or 0) * 1000)} on"
    )
    till.halt(told)
    try:
        ours = await put_aside(till, told)
    except StoreError as error:
        log.error("bursar: %s; nothing more is paid with %s", error, channel.channel_id)
        return True
    if ours:
        token = parts.token(channel.scope.chain, channel.scope.token)
        parts.audit.note(
            "close-noticed",
            f"nothing more is paid with channel {channel.channel_id} of {channel.scope.host}: {told}."
            f" Its deposit of {token.show(channel.deposit)} is on record; see bursar channels show"
            f" {channel.channel_id[:10]}",
            level=logging.WARNING,
            channel_id=channel.channel_id,
            host=channel.scope.host,
            ready_at=ready,
        )
    return True
