"""Bringing a deposit home without the server: `requestClose` on the chain, fifteen minutes' grace, `withdraw`.

Each step is read from the chain, not remembered: calling this again, after a crash or a day, goes on from where
the channel really is. From the first step on nothing is signed on the channel any more. Until the grace is
over the server may still settle the highest voucher that it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from proxy_addon.audit import iso
from proxy_addon.chain import ChainClient
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.methods.contract import ChainState, TransactionPlan
from proxy_addon.payer import closing
from proxy_addon.payer.closing import CHAIN_WAIT_S, POLL_S, CloseResult
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel

GRACE_S: Final = 16 * 60
"""The contract's fifteen minutes and one more: a withdrawal that comes too early costs its fee."""


@dataclass(frozen=True, slots=True)
class GraceRunning:
    """The close is requested; the deposit can be withdrawn from `ready_at` (Unix seconds, block time) on."""

    channel: Channel
    ready_at: int
    wait_s: int


async def force_close(parts: Parts, channel_id: str) -> CloseResult | GraceRunning:
    """The next step of a forced close, at our own cost for gas.

    Raises `ChannelBusy` while another process has the channel, `LocalRefusal` if the chain does not take the step
    (also if it does not answer); then the channel is on record as it was, and calling this again goes on.
    """
    channel = await parts.store.find(channel_id)
    if channel is None:
        raise LocalRefusal("no-channel", f"no channel {channel_id} on record; see `bursar channels list`")
    if channel.status in FINAL:
        return closing.result_of(channel, None)
    till = parts.till(await parts.claim(channel_id))
    try:
        return await _step(parts, till)
    except ChainUnavailable as error:
        raise LocalRefusal("chain-unavailable", f"{channel_id} is {till.channel.status}: {error}") from None
    finally:
        if till.channel.status not in FINAL:
            await till.release()


async def _step(parts: Parts, till: Till) -> CloseResult | GraceRunning:
    chain = parts.chain(till.channel.scope.chain)
    if not await closing.settle_pending(parts, till):
        return closing.result_of(till.channel, None)
    state = await till.method.read_channel(chain, till.channel)
    if not state.exists:
        return await closing.closed(parts, till, state)
    await _stop_paying(till, state)
    if state.close_requested_at is None:
        signer = parts.need_signer().requesting_close(till.channel)
        plan = till.method.plan_request_close(till.channel, state.block, signer)
        state = await _send(
            parts, till, chain, plan, lambda now: now.close_requested_at is not None or not now.exists
        )
        if not state.exists:  # the server was quicker, and closed it
            return await closing.closed(parts, till, state)
        _tell_requested(parts, till, state, plan.tx_hash)
    ready_at = _ready_at(state)
    if state.block.timestamp < ready_at:
        await closing.book_fees(parts, till)  # its own, or those of a process that died
        return GraceRunning(till.channel, ready_at, ready_at - state.block.timestamp)
    signer = parts.need_signer().withdrawing(till.channel)
    plan = till.method.plan_withdraw(till.channel, state.block, signer)
    state = await _send(parts, till, chain, plan, lambda now: not now.exists)
    return await closing.closed(parts, till, state)


def _ready_at(state: ChainState) -> int:
    assert state.close_requested_at is not None
    return state.close_requested_at + GRACE_S


def _tell_requested(parts: Parts, till: Till, state: ChainState, tx_hash: str) -> None:
    channel, ready_at = till.channel, _ready_at(state)
    parts.audit.note(
        "close-requested",
        f"requested the close of {channel.channel_id} on {channel.scope.chain};"
        f" its deposit can be withdrawn from {iso(ready_at * 1000)} on",
        channel_id=channel.channel_id,
        host=channel.scope.host,
        tx=tx_hash,
        ready_at=ready_at,
    )


async def _stop_paying(till: Till, state: ChainState) -> None:
    """``closing`` without an amount: the signer signs no voucher for such a channel."""

    def change(status: ChannelStatus) -> Callable[[Channel], Channel]:
        return lambda record: replace(
            record, status=status, deposit=max(state.deposit, record.deposit), settled=state.settled
        )

    if till.channel.status is ChannelStatus.OPEN:
        await till.commit(change=change(ChannelStatus.DRAINING))
    if till.channel.status is not ChannelStatus.CLOSING:
        await till.commit(change=change(ChannelStatus.CLOSING))


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
