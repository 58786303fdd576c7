"""Opening a channel so that the deposit is either not made, or findable.

``proposed`` (durable, with the signed transaction and the salt) → sent on the request itself → the chain
decides: the channel is there → ``open``; absent **in a block** past the transaction's validity → ``failed``.
No answer of a server, and no clock of ours, ever says that an opening failed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from proxy_addon.audit import amount_fields, utc_date
from proxy_addon.chain import ChainClient, fee_of
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.core.terms import Terms
from proxy_addon.methods.contract import ChainState, Method
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from proxy_addon.payer.wants import Want, limit_refusal, over_max_price
from store import budgets
from store.channels import LimitExceeded
from store.contract import StoreError
from store.lifecycle import PENDING_OPEN, ChannelStatus
from store.records import Channel, PaymentScope, PendingTransaction

log: Final = logging.getLogger("bursar")

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 2.0

Sleep = Callable[[float], Awaitable[None]]


async def propose(
    parts: Parts, scope: PaymentScope, method: Method, terms: Terms, want: Want, resource: str
) -> Till:
    """Sign an opening and put it on record; nothing has left when this returns.

    The record allows the first voucher: `want`'s price. Raises `LocalRefusal` (limits, unfunded wallet, an
    opening already on its way), `ChainUnavailable`; then nothing is on record, and what was signed is dropped.
    """
    signer, chain, caps = parts.need_signer(), parts.chain(scope.chain), want.caps
    deposit = caps.deposit_for(terms)
    first = max(want.price, terms.min_delta)
    if want.tries.new_money + first > caps.per_request:
        raise over_max_price(want, first)
    head, balance = await asyncio.gather(chain.head(), chain.balance(scope.token, scope.payer))
    plan = method.plan_open(
        scope,
        deposit=deposit,
        salt=parts.salt(),
        head=head,
        fee_payer=terms.fee_payer,
        signer=signer.opening(scope, deposit=deposit, sponsored=terms.fee_payer),
    )
    needed = deposit + plan.max_fee
    if balance < needed:
        raise LocalRefusal(
            "unfunded",
            f"the wallet {scope.payer} has {caps.token.show(balance)} on {scope.chain}, an opening for"
            f" {want.facts.host} needs {caps.token.show(needed)}; fund it, or lower {caps.rule}.max_deposit",
        )
    counters = caps.open_moves(deposit, first, utc_date(parts.now()))
    channel = Channel(
        channel_id=plan.channel_id,
        scope=scope,
        descriptor=plan.descriptor,
        resource=resource,
        status=ChannelStatus.PROPOSED,
        authorised=first,
        min_delta=max(1, terms.min_delta),
        pending=PendingTransaction(
            kind="open",
            raw=plan.transaction,
            tx_hash=plan.tx_hash,
            valid_before=plan.valid_before,
            deposit=deposit,
            fee_sponsored=terms.fee_payer,
            counters=counters,
        ),
        transactions=(plan.tx_hash,),
        folded=parts.audit.journal.mark,
        opened_at=parts.now(),
        updated_at=parts.now(),
    )
    try:
        channel = await parts.store.propose(channel, counters, max_channels=caps.channels_per_scope)
    except LimitExceeded as error:
        raise limit_refusal(error, want.facts.host, caps.token) from None
    want.tries.new_money += first
    return parts.till(channel)


async def settle(parts: Parts, till: Till, *, sleep: Sleep = asyncio.sleep) -> bool:
    """Wait until the chain has decided on a pending opening, and write the answer down.

    True: the channel is open. False: it is provably not there and never will be; its counters are given back.
    Goes on for as long as no endpoint answers; cancel it to stop.
    """
    channel = till.channel
    chain = parts.chain(channel.scope.chain)
    wait, complained = FIRST_WAIT_S, False
    while True:
        try:
            state = await till.method.read_channel(chain, channel)
            if state.exists:
                await _opened(parts, till, chain, state)
                return True
            assert channel.pending is not None
            if state.block.timestamp > channel.pending.valid_before and not await _landed(
                chain, channel, state
            ):
                await fail(parts, till, "absent in a block past its validity")
                return False
        except ChainUnavailable as error:
            if not complained:
                log.warning("bursar: the opening of %s waits for the chain: %s", channel.channel_id, error)
                complained = True
        await sleep(wait)
        wait = min(wait * 1.5, LONGEST_WAIT_S)


async def _landed(chain: ChainClient, channel: Channel, state: ChainState) -> bool:
    """Did the opening land although the channel is not there (closed again at once)? Then it is no failure."""
    assert channel.pending is not None
    receipt = await chain.receipt(channel.pending.tx_hash)
    if receipt is not None:
        return receipt.succeeded
    from_block = max(0, state.block.number - 500)
    # A sponsored transaction has another hash; the channel's own events name it whoever sent it.
    logs = await chain.logs(channel.scope.escrow, (None, channel.channel_id), from_block=from_block)
    return bool(logs)


async def _opened(parts: Parts, till: Till, chain: ChainClient, state: ChainState) -> None:
    channel = till.channel
    fee = 0
    assert channel.pending is not None
    if not channel.pending.fee_sponsored:
        try:
            receipt = await chain.receipt(channel.pending.tx_hash)
            fee = fee_of(receipt) if receipt is not None else 0
        except ChainUnavailable:
            log.warning(
                "bursar: the fee of %s is not known; the chain does not answer", channel.pending.tx_hash
            )

    def change(record: Channel) -> Channel:
        return replace(
            record,
            status=ChannelStatus.OPEN,
            deposit=state.deposit,
            settled=state.settled,
            pending=None,
            fees=record.fees + fee,
        )

    tx_hash = channel.pending.tx_hash
    await till.commit(change=change)
    token = parts.token(channel.scope.chain, channel.scope.token)
    parts.audit.note(
        "opened",
        f"opened channel {channel.channel_id} for {channel.scope.host}: deposit {token.show(state.deposit)},"
        f" network fee {token.show(fee)}",
        channel_id=channel.channel_id,
        host=channel.scope.host,
        tx=tx_hash,
        fee=str(fee),
        fields=amount_fields(token, state.deposit),
    )


async def fail(parts: Parts, till: Till, reason: str) -> None:
    """The opening provably never landed: give back its counters and keep a tombstone."""
    channel = till.channel
    assert channel.pending is not None
    counters = budgets.reversed_moves(channel.pending.counters)

    def change(record: Channel) -> Channel:
        return replace(record, status=ChannelStatus.FAILED, note=reason, holds={}, held=0)

    await till.commit(change=change, counters=counters)
    parts.audit.note(
        "open-failed",
        f"the opening of {channel.channel_id} for {channel.scope.host} failed ({reason}); its deposit never left",
        level=logging.WARNING,
        channel_id=channel.channel_id,
        host=channel.scope.host,
        tx=channel.pending.tx_hash,
        reason=reason,
    )


async def doubt(till: Till) -> None:
    """The answer was no success: only the chain knows. Never `failed`: servers broadcast late."""

    def change(record: Channel) -> Channel:
        return replace(record, status=ChannelStatus.UNKNOWN) if record.status in PENDING_OPEN else record

    try:
        await till.commit(change=change)
    except StoreError as error:
        log.warning("bursar: %s", error)
