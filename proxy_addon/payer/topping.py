"""Raising the deposit of an open channel before it is used up.

The same rules as for an opening: the signed transaction and its counters are durable before anything leaves,
one is pending per channel, ``deposit`` rises only when the chain says so, and a top-up has failed only when it
is absent in a block past its validity. Meanwhile the channel pays out of what it has.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

from proxy_addon.audit import amount_fields
from proxy_addon.chain import ChainClient, fee_of
from proxy_addon.core.dispatch import Demand, needed
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal, OutcomeUnknown
from proxy_addon.core.messages import Challenge, build_credential
from proxy_addon.core.policy import Caps
from proxy_addon.core.terms import Terms
from proxy_addon.payer import noticing
from proxy_addon.payer.opening import FIRST_WAIT_S, LONGEST_WAIT_S, Sleep
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from proxy_addon.payer.wants import limit_refusal
from store import budgets
from store.channels import LimitExceeded
from store.records import Channel, PendingTransaction

log: Final = logging.getLogger("bursar")

LOW_SHARE: Final = 8
"""A channel with less than one eighth of its deposit left is topped up before a request has to wait for it."""


def shortfall(channel: Channel, demand: Demand) -> int:
    """How much deposit is missing for one more such request; 0 if none is."""
    return max(0, channel.authorised + needed(channel, demand) - channel.ceiling)


def size(channel: Channel, caps: Caps, terms: Terms, need: int) -> int:
    """What to add: as much as an opening would deposit, at least `need`; 0 if max_deposit leaves no room for it."""
    room = min(caps.max_deposit, terms.amount_limit) - channel.deposit
    amount = min(max(caps.deposit_for(terms), need), room)
    return amount if amount >= max(need, 1) else 0


def is_low(channel: Channel, caps: Caps, terms: Terms, price: int) -> bool:
    """Is it time to top up in the background?"""
    left = channel.ceiling - channel.authorised + channel.free
    return left < max(2 * price, channel.deposit // LOW_SHARE) and size(channel, caps, terms, price) > 0


async def top_up(
    parts: Parts,
    till: Till,
    caps: Caps,
    challenge: Challenge,
    *,
    amount: int,
    fee_payer: bool,
    host: str,
    resource: str,
) -> bool:
    """Add `amount` (base units) to the deposit, and wait until the chain has decided.

    It goes to `resource`, the place that the challenge is from. Raises `LocalRefusal` if nothing was sent (limits,
    unfunded wallet, chain not reachable) or the top-up failed. After a crash the transaction is in the record, and
    `settle` goes on.
    """
    keys = parts.need_payer_key(f"a top-up for {host}")
    channel, chain = till.channel, parts.chain(till.channel.scope.chain)
    scope, token = channel.scope, caps.token
    try:
        head, balance, state = await asyncio.gather(
            chain.head(), chain.balance(scope.token, scope.payer), till.method.read_channel(chain, channel)
        )
    except ChainUnavailable as error:
        raise LocalRefusal("chain-unavailable", str(error)) from None
    if await noticing.notice(parts, till, state):  # a top-up would cancel a close that somebody has asked for
        raise LocalRefusal(
            "close-begun",
            f"nothing is added to {channel.channel_id} of {host}: {till.channel.note or till.channel.status}",
        )
    signer = keys.topping_up(channel, amount=amount, sponsored=fee_payer)
    plan = till.method.plan_top_up(channel, amount=amount, head=head, fee_payer=fee_payer, signer=signer)
    if balance < amount + plan.max_fee:
        raise LocalRefusal(
            "unfunded",
            f"the wallet {scope.payer} has {token.show(balance)} on {scope.chain}, a top-up for {host} needs"
            f" {token.show(amount + plan.max_fee)}; fund it, or lower {caps.rule}.deposit",
        )
    parts.calendar.heard(head.timestamp)
    counters = caps.deposit_moves(amount, await parts.calendar.today(scope.chain))
    pending = PendingTransaction(
        kind="top_up",
        raw=plan.transaction,
        tx_hash=plan.tx_hash,
        valid_before=plan.valid_before,
        deposit=amount,
        fee_sponsored=fee_payer,
        counters=counters,
    )

    def propose(record: Channel) -> Channel:
        return replace(record, pending=pending, transactions=(*record.transactions, plan.tx_hash))

    try:
        await till.commit(change=propose, counters=counters)
    except LimitExceeded as error:
        raise limit_refusal(error, host, token) from None
    await _send(parts, till, challenge, host, resource)
    if not await settle(parts, till):
        raise LocalRefusal(
            "top-up-failed", f"{host} did not take a top-up of {channel.channel_id}; nothing was added"
        )
    return True


async def _send(parts: Parts, till: Till, challenge: Challenge, host: str, resource: str) -> None:
    """Whatever the server answers, the chain decides."""
    channel = till.channel
    assert channel.pending is not None
    pending, scope = channel.pending, channel.scope
    token = parts.token(scope.chain, scope.token)
    parts.audit.move(
        "top-up-sent",
        {"host": host, "tx": pending.tx_hash, **amount_fields(token, pending.deposit)},
        channel_id=channel.channel_id,
    )
    payload = till.method.top_up_payload(channel, amount=pending.deposit, transaction=pending.raw)
    value = build_credential(challenge, payload, f"did:pkh:{scope.chain}:{scope.payer}")
    try:
        answer = await parts.outbound.send("POST", resource, {challenge.credential_header: value})
    except OutcomeUnknown as error:
        log.info("bursar: the answer to the top-up of %s is not known: %s", channel.channel_id, error)
        return
    if answer.status >= 400:
        log.warning("bursar: %s answered %d to a top-up of %s", host, answer.status, channel.channel_id)


async def settle(parts: Parts, till: Till, *, sleep: Sleep = asyncio.sleep) -> bool:
    """Wait until the chain has decided on a pending top-up. True: the deposit has grown, by what we signed for.

    More than that (somebody else's top-up) is in the escrow too, and comes back with the close; it is no reason to
    authorise more. What counts is firm (`contract.ChainReader`).
    Goes on for as long as no endpoint answers; cancel it to stop, the record keeps the top-up pending.
    """
    chain = parts.chain(till.channel.scope.chain)
    wait, complained = FIRST_WAIT_S, False
    while (pending := till.channel.pending) is not None:
        try:
            state = await till.method.read_channel(chain, till.channel)
            if state.deposit >= till.channel.deposit + pending.deposit:
                await _landed(parts, till, chain, pending)
                return True
            if state.block.timestamp > pending.valid_before:
                await _failed(parts, till, pending)
                return False
        except ChainUnavailable as error:
            if not complained:
                log.warning("bursar: a top-up of %s waits for the chain: %s", till.channel.channel_id, error)
                complained = True
        await sleep(wait)
        wait = min(wait * 1.5, LONGEST_WAIT_S)
    return False


async def _landed(parts: Parts, till: Till, chain: ChainClient, pending: PendingTransaction) -> None:
    fee = 0
    if not pending.fee_sponsored:
        try:
            receipt = await chain.receipt(pending.tx_hash)
            fee = fee_of(receipt) if receipt is not None else 0
        except ChainUnavailable:
            log.warning("bursar: the fee of %s is not known; the chain does not answer", pending.tx_hash)

    def change(record: Channel) -> Channel:
        deposit = record.deposit + pending.deposit
        return replace(record, pending=None, deposit=deposit, fees=record.fees + fee)

    channel = till.channel
    token = parts.token(channel.scope.chain, channel.scope.token)
    parts.audit.note(  # before the record: who dies in between does it again, and the line counts once
        "topped-up",
        f"topped up channel {channel.channel_id} of {channel.scope.host} by {token.show(pending.deposit)} to"
        f" {token.show(change(channel).deposit)}, network fee {token.show(fee)}",
        channel_id=channel.channel_id,
        host=channel.scope.host,
        tx=pending.tx_hash,
        fee=str(fee),
        fields=amount_fields(token, pending.deposit),
    )
    await till.commit(change=change)


async def _failed(parts: Parts, till: Till, pending: PendingTransaction) -> None:
    await till.commit(
        change=lambda record: replace(record, pending=None), counters=budgets.reversed_moves(pending.counters)
    )
    channel = till.channel
    parts.audit.note(
        "top-up-failed",
        f"a top-up of {channel.channel_id} of {channel.scope.host} is absent past its validity; nothing was added",
        level=logging.WARNING,
        channel_id=channel.channel_id,
        host=channel.scope.host,
        tx=pending.tx_hash,
    )
