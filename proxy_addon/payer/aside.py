"""A channel that has no future is set aside: nothing more is dispatched on it, and its deposit stays on record."""

from __future__ import annotations

from dataclasses import replace

from proxy_addon.payer.till import Till
from store.lifecycle import ChannelStatus
from store.records import Channel


async def put_aside(till: Till, note: str) -> bool:
    """Set an open channel aside, durably. False: it was not open any more, so that somebody else has a reason.

    Raises `StoreError`; then the record is as it was, also after a crash, and it is the caller's to see that this
    process dispatches nothing on it all the same.
    """
    ours = False

    def change(record: Channel) -> Channel:
        nonlocal ours
        ours = record.status is ChannelStatus.OPEN
        return replace(record, status=ChannelStatus.ASIDE, note=note) if ours else record

    await till.commit(change=change)
    return ours
