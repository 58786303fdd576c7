"""What a raise is charged to: the budgets of its host and of the whole, and the days of the clients it is for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy_addon.core.dispatch import plans
from proxy_addon.core.policy import Caps
from proxy_addon.payer.clients import Cover
from proxy_addon.payer.wants import Want, deposit_used_up, limit_refusal, store_refusal
from store.channels import LimitExceeded
from store.contract import StoreError
from store.records import CounterMove, Hold

if TYPE_CHECKING:
    from proxy_addon.payer.till import Grant, Till


async def charge(till: Till, raised: int, caps: Caps, date: str, cover: Cover) -> None:
    """Raise by `raised` (base units; none is needed where only a client's day is short) and reserve for `cover`.

    When this returns, all of it is durable. Raises `StoreError`, `LocalRefusal`: then nothing of it is.
    """

    async def commit(reserving: tuple[CounterMove, ...]) -> None:
        counters = (*caps.raise_moves(raised, date), *reserving) if raised else reserving
        if counters:
            await till.commit(raised=raised, counters=counters, pin=caps.pin_payee)

    await cover.reserve(commit, anyway=raised > 0)


async def grow(till: Till, hold: Hold, amount: int, want: Want) -> Grant:
    """A voucher for `amount` more on a stream's hold, out of what the last one covers and a step for the rest.

    What the step takes is durable, and the ledger has the voucher's line, before the signature is handed out.
    Raises `LocalRefusal` (limits, deposit used up, fenced): then nothing was signed.
    """
    await till.written()
    till.check_usable()
    step = max(0, amount - till.channel.spare)
    if step:
        step = max(step, till.channel.min_delta)
    room = till.channel.ceiling - till.channel.authorised
    found = plans(till.channel, (step,), reserve=till.reserve_for_stream(step, want))
    sizes = [one.raised for one in found if one.raised <= room]
    if not sizes:
        raise deposit_used_up(till.channel, want)
    if sizes[-1] or want.client_cap is not None:
        await charge_stream(till, sizes, amount, want)
        till.check_usable()  # it may be another process's by now, or set aside
    return till.grow(hold, amount, step, want)


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
