"""Closing a channel with the server's help, so that what is left of its deposit comes home.

``open`` → ``draining`` (nothing is dispatched) → a probe asks what was spent → ``closing`` with the amount
durable → the close voucher leaves → the chain decides → ``closed``. After a crash anywhere, calling it again
goes on from what is on record: the same amount is signed again, never a higher one than authorised.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Final

from proxy_addon.audit import amount_fields, iso
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal, OutcomeUnknown, RemoteProtocolError
from proxy_addon.core.messages import (
    Challenge,
    Receipt,
    parse_problem,
    parse_receipt,
)
from proxy_addon.methods.contract import ChainState, Closing
from proxy_addon.outbound import Answer
from proxy_addon.payer import asking, noticing, opening, topping
from proxy_addon.payer.asking import Asked
from proxy_addon.payer.fees import book_fees
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from store import account, budgets
from store.account import Probed
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus
from store.records import Channel

log: Final = logging.getLogger("bursar")

CHAIN_WAIT_S: Final = 30.0
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class CloseResult:
    """What the chain says became of a deposit. Base units; `fee` is what we paid the network for the channel."""

    channel: Channel
    deposit: int
    captured: int
    refunded: int
    tx_hash: str | None


async def close_channel(parts: Parts, channel_id: str, *, up_to: int = 0) -> CloseResult:
    """Close `channel_id` and wait until the chain says so.

    Of a channel that was set aside no more is signed for than the server provably has; `up_to` (base units, of the
    whole channel) is what somebody allows it beyond that. Raises `ChannelBusy` while another process, or a request,
    has it, `LocalRefusal` if the server does not help or the chain does not confirm; then the channel stays on
    record as it is, and calling this again goes on from there.
    """
    channel = await parts.store.find(channel_id)
    if channel is None:
        raise LocalRefusal("no-channel", f"no channel {channel_id} on record; see `bursar channels list`")
    if channel.status in FINAL:
        return result_of(channel, None)
    till = parts.till(await parts.claim(channel_id, also_ours=False))
    try:
        return await _close(parts, till, up_to)
    except ChainUnavailable as error:
        raise LocalRefusal("chain-unavailable", f"{channel_id} is {till.channel.status}: {error}") from None
    finally:
        await give_back(parts, till)


async def give_back(parts: Parts, till: Till) -> None:
    """After a close, or a step of one: unless it is closed, the channel is as idle as it was before."""
    parts.closing.discard(till.channel.channel_id)
    if till.channel.status not in FINAL:
        await till.release(used=False)


async def _close(parts: Parts, till: Till, up_to: int) -> CloseResult:
    chain, idle_since = parts.chain(till.channel.scope.chain), till.channel.updated_at
    if not await settle_pending(parts, till):
        return result_of(till.channel, None)
    state = await till.method.read_channel(chain, till.channel)
    if not state.exists:
        return await closed(parts, till, state)
    if state.close_requested_at is not None:
        await _refuse_requested(parts, till, state)
    match till.channel.status:
        case ChannelStatus.OPEN:
            asked = await asking.ask(parts, till.channel)  # nothing is written down for a server that is gone
            await stop_dispatch(parts, till)
            await _decide(parts, till, asked, state, idle_since)
        case ChannelStatus.DRAINING:
            await stop_dispatch(parts, till)
            try:
                asked = await asking.ask(parts, till.channel)
            except LocalRefusal:
                await _reopen(till, idle_since)
                raise
            await _decide(parts, till, asked, state, idle_since)
        case ChannelStatus.ASIDE:
            asked = await asking.ask(parts, till.channel)
            await _commit_amount(till, state, _provable(till, asked, up_to))
        case _:
            if till.channel.close_amount is None:
                raise LocalRefusal(
                    "closing-by-force",
                    f"{till.channel.channel_id} is closing by force: go on with: bursar channels close --force"
                    f" {till.channel.channel_id}",
                )
            asked = await asking.ask(parts, till.channel)
    answer = await _send_close(parts, till, asked.challenge)
    return await _await_close(parts, till, answer)


async def stop_dispatch(parts: Parts, till: Till) -> None:
    """From here on no request is paid with the channel, and none of this process may claim it."""
    parts.closing.add(till.channel.channel_id)
    if till.channel.status is ChannelStatus.OPEN:
        await till.commit(change=lambda record: replace(record, status=ChannelStatus.DRAINING))


async def _reopen(till: Till, idle_since: int) -> None:
    """Nothing was signed for a close: it may go on paying, and is as idle as it was."""
    await till.commit(change=lambda record: replace(record, status=ChannelStatus.OPEN, updated_at=idle_since))


async def _decide(parts: Parts, till: Till, asked: Asked, state: ChainState, idle_since: int) -> None:
    try:
        amount = await _amount(parts, till, asked.challenge, state)
    except LocalRefusal:
        await _reopen(till, idle_since)
        raise
    await _commit_amount(till, state, amount)


async def _commit_amount(till: Till, state: ChainState, amount: int) -> None:
    """What the close voucher will say, durable before it is signed. The deposit stays what we have signed for."""

    def change(record: Channel) -> Channel:
        settled = max(record.settled, min(state.settled, record.deposit))
        return replace(record, status=ChannelStatus.CLOSING, close_amount=amount, settled=settled)

    await till.commit(change=change)


async def _refuse_requested(parts: Parts, till: Till, state: ChainState) -> None:
    """The close was requested on the chain: servers take no voucher any more, and we sign none."""
    await noticing.notice(parts, till, state)
    ready = noticing.ready_at(state) or 0
    when = "now" if state.block.timestamp >= ready else f"after {iso(ready * 1000)}"
    raise LocalRefusal(
        "close-requested",
        f"the close of {till.channel.channel_id} was requested on {till.channel.scope.chain}: withdraw its deposit"
        f" {when} with: bursar channels close --force {till.channel.channel_id}",
    )


async def settle_pending(parts: Parts, till: Till) -> bool:
    """Wait for what the chain says of a pending opening or top-up. False: there is no channel to close."""
    try:
        async with asyncio.timeout(2 * CHAIN_WAIT_S):
            if till.channel.status in PENDING_OPEN:
                return await opening.settle(parts, till)
            if till.channel.pending is not None:
                await topping.settle(parts, till)
            return True
    except TimeoutError:
        raise LocalRefusal(
            "pending-unknown",
            f"the chain has not decided yet on a transaction of {till.channel.channel_id}; try again",
        ) from None


def _provable(till: Till, asked: Asked, up_to: int) -> int:
    """What to sign for the close of a channel that was set aside: what the server has anyway, and no more.

    That is what it took from us as far as we know, and what it shows over our own signature; not what an endpoint
    says was settled. Raises `LocalRefusal` where that is nothing, or where the contract would pay out the voucher's
    whole amount.
    """
    channel = till.channel
    amount = max(channel.accepted, asking.proven(channel, asked), up_to)
    if amount and not till.method.close_takes_voucher:
        return min(amount, channel.authorised)
    raise LocalRefusal(
        "no-proof",
        f"{channel.scope.host} does not prove what it has of {channel.channel_id}, which was set aside"
        f" ({channel.note or 'no reason on record'}): nothing was signed. Bring the deposit home with:"
        f" bursar channels close --force {channel.channel_id}",
    )


async def _amount(parts: Parts, till: Till, challenge: Challenge, state: ChainState) -> int:
    """What to sign for the close: what the server says was spent, if a probe tells; else all that vouchers carried.

    Between what was spent and the highest voucher every amount is honoured, and the server takes what was
    spent, so the lowest is the safest to hand out. Where the contract pays out the voucher itself (v1), nothing
    but a probe will do. No more was settled than vouchers carried, whatever an endpoint says: what is reserved is
    not handed out. Raises `LocalRefusal`; then nothing was signed for a close.
    """
    channel, takes_voucher = till.channel, till.method.close_takes_voucher
    spent = await _probe(parts, till, challenge)
    if spent is not None:
        settled = min(state.settled, till.channel.issued)
        return min(max(spent, settled + takes_voucher, 1), channel.authorised)
    if takes_voucher:
        raise LocalRefusal(
            "no-proof",
            f"{channel.scope.host} does not say what was spent on {channel.channel_id}, and its contract would pay out"
            f" all that is authorised; bring the deposit home with: bursar channels close --force {channel.channel_id}",
        )
    return channel.issued


async def _probe(parts: Parts, till: Till, challenge: Challenge) -> int | None:
    """What the server says was spent, asked with a voucher that it has or may have, which costs nothing.

    The highest that it is known to have comes first: that hands out nothing at all.
    """
    channel = till.channel
    if channel.equal_refused:
        return None
    for voucher in dict.fromkeys((channel.accepted, channel.issued)):
        if voucher and (spent := await _probe_with(parts, till, challenge, voucher)) is not None:
            return spent
    return None


async def _probe_with(parts: Parts, till: Till, challenge: Challenge, voucher: int) -> int | None:
    channel, signer = till.channel, parts.need_signer()
    sent_at, seq = parts.now(), channel.seq
    digest = till.method.voucher_digest(channel, voucher)
    payload = till.method.voucher_payload(channel, voucher, signer.sign_voucher(digest, channel, voucher))
    try:
        credential = asking.credential_field(channel, challenge, payload)
        answer = await parts.outbound.send("HEAD", channel.resource, credential)
    except OutcomeUnknown as error:
        log.info("bursar: the probe of %s told nothing: %s", channel.channel_id, error)
        return None
    receipt = _receipt(answer, channel)
    if receipt is None or receipt.spent is None:
        return None
    spent = min(receipt.spent, voucher)
    move = Probed(seq=seq, sent_at=sent_at, at=parts.now(), spent=spent, voucher=voucher)
    till.channel = account.probed(till.channel, move)
    parts.audit.note(
        "probe",
        f"{channel.scope.host} says that {receipt.spent} base units were spent on {channel.channel_id}",
        channel_id=channel.channel_id,
        move=move,
        host=channel.scope.host,
    )
    return spent


def _receipt(answer: Answer, channel: Channel) -> Receipt | None:
    value = answer.get("payment-receipt")
    if value is None:
        return None
    try:
        receipt = parse_receipt(value)
    except RemoteProtocolError:
        return None
    return receipt if receipt.channel_id in (None, channel.channel_id) else None


async def _send_close(parts: Parts, till: Till, challenge: Challenge) -> Answer | None:
    channel = till.channel
    assert channel.close_amount is not None
    signer = parts.need_signer()
    digest = till.method.voucher_digest(channel, channel.close_amount)
    signature = signer.sign_voucher(digest, channel, channel.close_amount)
    payload = till.method.close_payload(channel, channel.close_amount, signature)
    token = parts.token(channel.scope.chain, channel.scope.token)
    parts.audit.move(
        "close-sent",
        {
            "host": channel.scope.host,
            "cumulative": str(channel.close_amount),
            **amount_fields(token, channel.close_amount),
        },
        channel_id=channel.channel_id,
    )
    try:
        return await parts.outbound.send(
            "POST", channel.resource, asking.credential_field(channel, challenge, payload)
        )
    except OutcomeUnknown as error:
        log.info("bursar: the answer to the close of %s is not known: %s", channel.channel_id, error)
        return None


async def _await_close(parts: Parts, till: Till, answer: Answer | None) -> CloseResult:
    """Whatever the server answered, only the chain says that the channel is closed."""
    chain = parts.chain(till.channel.scope.chain)
    loop = asyncio.get_running_loop()
    refused = answer is not None and answer.status >= 400
    deadline = loop.time() + (2.0 if refused else CHAIN_WAIT_S)
    while True:
        state = await till.method.read_channel(chain, till.channel)
        if not state.exists:
            return await closed(parts, till, state)
        if loop.time() > deadline:
            break
        await asyncio.sleep(POLL_S)
    why = "did not answer" if answer is None else f"answered {answer.status}{_problem(answer)}"
    raise LocalRefusal(
        "close-not-confirmed",
        f"{till.channel.scope.host} {why}, and {till.channel.channel_id} is still open on"
        f" {till.channel.scope.chain}; its deposit stays on record: run `bursar channels close` again later, or do"
        f" without the server: bursar channels close --force {till.channel.channel_id}",
    )


def _problem(answer: Answer) -> str:
    try:
        problem = parse_problem(answer.get("content-type") or "", answer.body)
    except RemoteProtocolError:
        return ""
    return f" ({problem.kind})" if problem is not None and problem.kind else ""


async def closed(parts: Parts, till: Till, state: ChainState) -> CloseResult:
    """The chain no longer has the channel: book what it says was captured and what came back."""
    chain = parts.chain(till.channel.scope.chain)
    closing = await till.method.read_closing(chain, till.channel, state.block)
    if closing is None:
        raise LocalRefusal(
            "close-not-found",
            f"{till.channel.channel_id} is gone from {till.channel.scope.chain}, but no event says what became of its"
            " deposit; an RPC endpoint that keeps more blocks can tell",
        )
    await book_fees(parts, till)
    await book_closing(parts, till, closing)
    return result_of(till.channel, closing.tx_hash)


async def book_closing(parts: Parts, till: Till, closing: Closing) -> None:
    """A proven close: what was captured is what was paid, and the rest of the lifetime budget comes back."""
    before = till.channel
    captured, refunded = closing.captured, closing.refunded
    token = before.scope.token
    back = before.authorised - min(captured, before.authorised)
    counters = budgets.refund_moves(token, back)

    def change(record: Channel) -> Channel:
        return replace(
            record,
            status=ChannelStatus.CLOSED,
            paid=min(captured, record.authorised),
            uncertain=0,
            reserved=0,
            holds={},
            held=0,
            settled=captured,
            captured=captured,
            refunded=refunded,
            deposit=captured + refunded,
            transactions=(*record.transactions, closing.tx_hash),
        )

    shown = parts.token(before.scope.chain, token)
    parts.audit.note(  # before the record: who dies in between does it again, and the line counts once
        "closed",
        f"closed channel {before.channel_id} of {before.scope.host}: captured {shown.show(captured)},"
        f" refunded {shown.show(refunded)}",
        level=logging.INFO if captured <= before.authorised else logging.ERROR,
        channel_id=before.channel_id,
        host=before.scope.host,
        tx=closing.tx_hash,
        captured=str(captured),
        refunded=str(refunded),
        adjustment=str(min(captured, before.authorised) - before.paid),
        fields=amount_fields(shown, captured),
    )
    await till.commit(change=change, counters=counters)


def result_of(channel: Channel, tx_hash: str | None) -> CloseResult:
    return CloseResult(
        channel=channel,
        deposit=channel.deposit,
        captured=channel.captured or 0,
        refunded=channel.refunded or 0,
        tx_hash=tx_hash or (channel.transactions[-1] if channel.captured is not None else None),
    )
