"""What a raise is charged to: the budgets of its host and of the whole, and the days of the clients it is for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy_addon.core.policy import Caps
from proxy_addon.payer.clients import Cover
from proxy_addon.payer.wants import Want, limit_refusal, store_refusal
from store.channels import LimitExceeded
from store.contract import StoreError
from store.records import CounterMove

if TYPE_CHECKING:
    from proxy_addon.payer.till import Till


async def charge(till: Till, raised: int, caps: Caps, date: str, cover: Cover) -> None:
    """Raise by `raised` (base units; none is needed where only a client's day is short) and reserve for `cover`.

    When this returns, all of it is durable. Raises `StoreError`, `LocalRefusal`: then nothing of it is.
    """

    async def commit(reserving: tuple[CounterMove, ...]) -> None:
        counters = (*caps.raise_moves(raised, date), *reserving) if raised else reserving
        if counters:
            await till.commit(raised=raised, counters=counters, pin=caps.pin_payee)

    await cover.reserve(commit, anyway=raised > 0)


async def charge_stream(till: Till, sizes: Sequence[int], amount: int, want: Want) -> None:
    """The same for a stream whose hold grows by `amount`, by the first of `sizes` that fits. Raises `LocalRefusal`."""
    date = await till.calendar.today(till.channel.scope.chain)
    cover = till.clients.cover(date, till.ticks())
    cover.grow(want, amount)
    *preferred, least = sizes
    try:
        for raised in preferred:
            with contextlib.suppress(LimitExceeded):
                await charge(till, raised, want.caps, date, cover)
                return
        await charge(till, least, want.caps, date, cover)
    except BaseException as error:
        cover.undo()
        match error:
            case LimitExceeded():
                raise limit_refusal(error, want.facts.host, want.caps.token) from None
            case StoreError():
                raise store_refusal(error, want) from None
        raise
