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

from proxy_addon.audit import amount_fields
from proxy_addon.chain import ChainClient, fee_of
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.core.terms import Terms
from proxy_addon.methods.contract import ChainState, Method
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from proxy_addon.payer.wants import Want, limit_refusal, over_max_price, store_refusal
from store import budgets
from store.charging import ClockWentBack, LimitExceeded
from store.contract import StoreError
from store.lifecycle import PENDING_OPEN, ChannelStatus
from store.pins import PayeeChanged
from store.records import Channel, CounterMove, PaymentScope, PendingTransaction

log: Final = logging.getLogger("bursar")

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 2.0
_LOOK_BLOCKS: Final = 10_000  # what endpoints allow at least for one look at the logs
_MOST_LOOKS: Final = 50
_BLOCKS_PER_S: Final = 4  # Tempo makes two at most
_MARGIN_S: Final = 60

Sleep = Callable[[float], Awaitable[None]]


async def propose(
    parts: Parts, scope: PaymentScope, method: Method, terms: Terms, want: Want, resource: str
) -> Till:
    """Sign an opening and put it on record; nothing has left when this returns.

    The record allows the first voucher: `want`'s price. Raises `LocalRefusal` (limits, unfunded wallet, an
    opening already on its way), `ChainUnavailable`; then nothing is on record, and what was signed is dropped.
    """
    signer = parts.need_payer_key(f"opening a channel for {want.facts.host}")
    chain, caps = parts.chain(scope.chain), want.caps
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
    parts.calendar.heard(head.timestamp)
    date = await parts.calendar.today(scope.chain)
    counters = caps.open_moves(deposit, first, date)
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
    # What its client's day reserves is not given back if the opening fails: by then it may cover other requests.
    cover = parts.clients.cover(date, parts.ticks())
    cover.add(want)

    async def commit(reserving: tuple[CounterMove, ...]) -> Channel:
        return await parts.store.propose(
            channel, (*counters, *reserving), max_channels=caps.channels_per_scope, pin=caps.pin_payee
        )

    try:
        proposed = await cover.reserve(commit, anyway=True)
    except BaseException as error:
        cover.undo()
        match error:
            case LimitExceeded():
                raise limit_refusal(error, want.facts.host, caps.token) from None
            case ClockWentBack() | PayeeChanged():
                raise store_refusal(error, want) from None
        raise
    want.tries.new_money += first
    return parts.till(proposed)


async def settle(parts: Parts, till: Till, *, sleep: Sleep = asyncio.sleep) -> bool:
    """Wait until the chain has decided on a pending opening, and write the answer down.

    True: the channel is there (or was: closed again at once, it is set aside until its end is booked). False: it is
    provably not there and never will be; its counters are given back. What counts is firm (`contract.ChainReader`).
    Goes on for as long as no endpoint answers; cancel it to stop.
    """
    channel = till.channel
    chain = parts.chain(channel.scope.chain)
    wait, complained = FIRST_WAIT_S, False
    while True:
        try:
            state = await till.method.read_channel(chain, channel)
            assert channel.pending is not None
            if state.exists:
                _check_deposit(channel, state)
                await _opened(parts, till, chain, state)
                return True
            if state.block.timestamp > channel.pending.valid_before:
                if not await _landed(chain, channel, state):
                    await fail(parts, till, "absent in a block past its validity")
                    return False
                if await till.method.read_closing(chain, channel, state.block) is not None:
                    await _opened(parts, till, chain, state)
                    await _gone(till)
                    return True
        except ChainUnavailable as error:
            if not complained:
                log.warning("bursar: the opening of %s waits for the chain: %s", channel.channel_id, error)
                complained = True
        await sleep(wait)
        wait = min(wait * 1.5, LONGEST_WAIT_S)


def _check_deposit(channel: Channel, state: ChainState) -> None:
    """Less in the escrow than we have signed for cannot be; more is no reason to authorise more."""
    assert channel.pending is not None
    if state.deposit < channel.pending.deposit:
        raise ChainUnavailable(
            f"{channel.scope.chain} shows a deposit of {state.deposit} for {channel.channel_id}, whose opening"
            f" deposits {channel.pending.deposit}: that cannot be; check [chains].rpc in the config"
        )


async def _landed(chain: ChainClient, channel: Channel, state: ChainState) -> bool:
    """Did the opening land although the channel is not there (closed again at once)? Then it is no failure."""
    pending = channel.pending
    assert pending is not None
    receipt = await chain.firm_receipt(pending.tx_hash, state.block)
    if receipt is not None:
        return receipt.succeeded
    # A sponsored transaction has another hash; the channel's own events name it whoever sent it.
    last = state.block.number
    first = last - (state.block.timestamp - pending.valid_before + _MARGIN_S) * _BLOCKS_PER_S
    for _ in range(_MOST_LOOKS):
        if last < max(0, first):
            break
        start = max(0, last - _LOOK_BLOCKS + 1)
        topics = (None, channel.channel_id)
        if await chain.firm_logs(channel.scope.escrow, topics, from_block=start, to_block=last):
            return True
        last = start - 1
    return False


async def _gone(till: Till) -> None:
    """It landed, and is closed already: nothing is paid with it, and the next close books its end."""
    note = "it was closed on the chain as soon as it was opened"
    await till.commit(change=lambda record: replace(record, status=ChannelStatus.ASIDE, note=note))


async def _opened(parts: Parts, till: Till, chain: ChainClient, state: ChainState) -> None:
    channel = till.channel
    fee = 0
    assert channel.pending is not None
    deposit = channel.pending.deposit  # never more than we have signed for, whatever an endpoint says
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
            deposit=deposit,
            settled=min(state.settled, deposit),
            pending=None,
            fees=record.fees + fee,
        )

    token = parts.token(channel.scope.chain, channel.scope.token)
    parts.audit.note(  # before the record: who dies in between does it again, and the line counts once
        "opened",
        f"opened channel {channel.channel_id} for {channel.scope.host}: deposit {token.show(deposit)},"
        f" network fee {token.show(fee)}",
        channel_id=channel.channel_id,
        host=channel.scope.host,
        tx=channel.pending.tx_hash,
        fee=str(fee),
        fields=amount_fields(token, deposit),
    )
    await till.commit(change=change)


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
