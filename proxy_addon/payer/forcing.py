"""Bringing a deposit home without the server: `requestClose` on the chain, fifteen minutes' grace, `withdraw`.

Each step is read from the chain, not remembered: calling this again, after a crash or a day, goes on from where
the channel really is. From the first step on nothing is signed on the channel any more. Until the grace is
over the server may still settle the highest voucher that it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from proxy_addon.audit import iso
from proxy_addon.chain import ChainClient
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.methods.contract import ChainState, TransactionPlan
from proxy_addon.payer import closing, noticing
from proxy_addon.payer.closing import CHAIN_WAIT_S, POLL_S, CloseResult
from proxy_addon.payer.fees import book_fees
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel


@dataclass(frozen=True, slots=True)
class GraceRunning:
    """The close is requested; the deposit can be withdrawn from `ready_at` (Unix seconds, block time) on."""

    channel: Channel
    ready_at: int
    wait_s: int


async def force_close(
    parts: Parts, channel_id: str, *, most_fee: int | None = None
) -> CloseResult | GraceRunning:
    """The next step of a forced close, at our own cost for gas: at most `most_fee` base units for each transaction.

    Raises `ChannelBusy` while another process, or a request, has the channel, `LocalRefusal` if a step costs more,
    the wallet cannot pay for it, or the chain does not take it (also if it does not answer); then the channel is on
    record as it was, and calling this again goes on.
    """
    channel = await parts.store.find(channel_id)
    if channel is None:
        raise LocalRefusal("no-channel", f"no channel {channel_id} on record; see `bursar channels list`")
    if channel.status in FINAL:
        return closing.result_of(channel, None)
    till = parts.till(await parts.claim(channel_id, also_ours=False))
    try:
        return await _step(parts, till, most_fee)
    except ChainUnavailable as error:
        raise LocalRefusal("chain-unavailable", f"{channel_id} is {till.channel.status}: {error}") from None
    finally:
        await closing.give_back(parts, till)


async def _step(parts: Parts, till: Till, most_fee: int | None) -> CloseResult | GraceRunning:
    chain = parts.chain(till.channel.scope.chain)
    if not await closing.settle_pending(parts, till):
        return closing.result_of(till.channel, None)
    state = await till.method.read_channel(chain, till.channel)
    if not state.exists:
        return await closing.closed(parts, till, state)
    if state.close_requested_at is None:
        signer = parts.need_payer_key("a forced close").requesting_close(till.channel)
        plan = till.method.plan_request_close(till.channel, await chain.head(), signer)
        await _check_fee(parts, till, chain, plan, most_fee)
        await _stop_paying(parts, till, state)
        state = await _send(
            parts, till, chain, plan, lambda now: now.close_requested_at is not None or not now.exists
        )
        if not state.exists:  # the server was quicker, and closed it
            return await closing.closed(parts, till, state)
    else:
        await _stop_paying(parts, till, state)
    ready_at = noticing.ready_at(state)
    assert ready_at is not None
    await _tell_requested(parts, till, ready_at)
    if state.block.timestamp < ready_at:
        await book_fees(parts, till)  # its own, or those of a process that died
        return GraceRunning(till.channel, ready_at, ready_at - state.block.timestamp)
    signer = parts.need_payer_key("a withdrawal").withdrawing(till.channel)
    plan = till.method.plan_withdraw(till.channel, await chain.head(), signer)
    await _check_fee(parts, till, chain, plan, most_fee)
    state = await _send(parts, till, chain, plan, lambda now: not now.exists)
    return await closing.closed(parts, till, state)


async def _tell_requested(parts: Parts, till: Till, ready_at: int) -> None:
    """Once, in the ledger and on the record; the line first, so that a crash between leaves one too many."""
    channel = till.channel
    told = f"withdraw from {iso(ready_at * 1000)} on"
    if told in channel.note:
        return
    parts.audit.note(
        "close-requested",
        f"the close of {channel.channel_id} is requested on {channel.scope.chain}; its deposit: {told}",
        channel_id=channel.channel_id,
        host=channel.scope.host,
        tx=channel.transactions[-1] if channel.transactions else None,
        ready_at=ready_at,
    )
    note = f"{channel.note}; {told}" if channel.note else told
    await till.commit(change=lambda record: replace(record, note=note))


async def _check_fee(
    parts: Parts, till: Till, chain: ChainClient, plan: TransactionPlan, most_fee: int | None
) -> None:
    """Nothing has been sent, nor changed, for a transaction that is too dear, or that the wallet cannot pay for."""
    scope, name = till.channel.scope, till.channel.channel_id
    show = parts.token(scope.chain, scope.token).show
    if most_fee is not None and plan.max_fee > most_fee:
        raise LocalRefusal(
            "fee-too-high",
            f"the next step of closing {name} by force may cost {show(plan.max_fee)}, over [watchdog].max_fee"
            f" {show(most_fee)}: it waits; or pay it with: bursar channels close --force {name}",
        )
    balance = await chain.balance(scope.token, scope.payer)
    if balance < plan.max_fee:
        raise LocalRefusal(
            "unfunded",
            f"the wallet {scope.payer} has {show(balance)} on {scope.chain}; to close {name} by force it must have"
            f" {show(plan.max_fee)} for the network's fee, of which the most part stays: fund it, and try again",
        )


async def _stop_paying(parts: Parts, till: Till, state: ChainState) -> None:
    """``closing`` without an amount: the signer signs no voucher for such a channel."""
    await closing.stop_dispatch(parts, till)
    if till.channel.status is not ChannelStatus.CLOSING:

        def change(record: Channel) -> Channel:
            settled = max(record.settled, min(state.settled, record.deposit))
            return replace(record, status=ChannelStatus.CLOSING, settled=settled)

        await till.commit(change=change)


async def _send(
    parts: Parts, till: Till, chain: ChainClient, plan: TransactionPlan, done: Callable[[ChainState], bool]
) -> ChainState:
    """Broadcast, and wait until the chain shows it. The hash is durable first, so that its fee can be found."""
    await till.commit(
        change=lambda record: replace(record, transactions=(*record.transactions, plan.tx_hash))
    )
    await chain.send_raw(plan.transaction)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CHAIN_WAIT_S
    while True:
        state = await till.method.read_channel(chain, till.channel)
        if done(state):
            return state
        if loop.time() > deadline:
            raise LocalRefusal(
                "not-mined",
                f"{till.channel.scope.chain} has not taken {plan.tx_hash} for {till.channel.channel_id};"
                " is there enough in the wallet for its fee? Try again",
            )
        await asyncio.sleep(POLL_S)
