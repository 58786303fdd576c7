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

from proxy_addon.audit import amount_fields
from proxy_addon.chain import fee_of
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal, OutcomeUnknown, RemoteProtocolError
from proxy_addon.core.messages import (
    Challenge,
    Receipt,
    build_credential,
    parse_challenges,
    parse_problem,
    parse_receipt,
)
from proxy_addon.methods import registry
from proxy_addon.methods.contract import ChainState, Closing
from proxy_addon.outbound import Answer
from proxy_addon.payer import opening, topping
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


async def close_channel(parts: Parts, channel_id: str) -> CloseResult:
    """Close `channel_id` and wait until the chain says so.

    Raises `ChannelBusy` while another process has it, `LocalRefusal` if the server does not help or the chain
    does not confirm; then the channel stays on record as it is, and calling this again goes on from there.
    """
    channel = await parts.store.find(channel_id)
    if channel is None:
        raise LocalRefusal("no-channel", f"no channel {channel_id} on record; see `bursar channels list`")
    if channel.status in FINAL:
        return result_of(channel, None)
    till = parts.till(await parts.claim(channel_id))
    try:
        return await _close(parts, till)
    except ChainUnavailable as error:
        raise LocalRefusal("chain-unavailable", f"{channel_id} is {till.channel.status}: {error}") from None
    finally:
        if till.channel.status not in FINAL:
            await till.release()


async def _close(parts: Parts, till: Till) -> CloseResult:
    chain, channel_id = parts.chain(till.channel.scope.chain), till.channel.channel_id
    if not await settle_pending(parts, till):
        return result_of(till.channel, None)
    state = await till.method.read_channel(chain, till.channel)
    if not state.exists:
        return await closed(parts, till, state)
    deposit = state.deposit
    if till.channel.status is ChannelStatus.OPEN:
        await till.commit(change=lambda record: replace(record, status=ChannelStatus.DRAINING))
    if till.channel.status in (ChannelStatus.DRAINING, ChannelStatus.ASIDE):
        try:
            challenge = await fresh_challenge(parts, till.channel)
            amount = await _amount(parts, till, challenge, state)
        except LocalRefusal:
            if till.channel.status is ChannelStatus.DRAINING:  # nothing was signed: it may go on paying
                await till.commit(change=lambda record: replace(record, status=ChannelStatus.OPEN))
            raise

        def change(record: Channel) -> Channel:
            return replace(
                record,
                status=ChannelStatus.CLOSING,
                close_amount=amount,
                deposit=deposit,
                settled=state.settled,
            )

        await till.commit(change=change)
    else:
        if till.channel.close_amount is None:
            raise LocalRefusal(
                "closing-by-force",
                f"{channel_id} is closing by force: go on with: bursar channels close --force {channel_id}",
            )
        challenge = await fresh_challenge(parts, till.channel)
    answer = await _send_close(parts, till, challenge)
    return await _await_close(parts, till, answer)


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


async def fresh_challenge(parts: Parts, channel: Channel) -> Challenge:
    """A fresh challenge of the channel's own scope, from the place where it was opened."""
    for method in ("HEAD", "GET"):
        try:
            answer = await parts.outbound.send(
                method, channel.resource, {"accept-payment": registry.accept_payment()}
            )
        except OutcomeUnknown as error:
            raise LocalRefusal(
                "server-unreachable",
                f"{channel.resource}: {error}; try again later, or close it without the server:"
                f" bursar channels close --force {channel.channel_id}",
            ) from None
        for challenge in parse_challenges(answer.all("www-authenticate")).challenges:
            try:
                terms = registry.resolve(challenge).terms(challenge)
            except RemoteProtocolError:
                continue
            if (terms.chain, terms.escrow, terms.payee) == (
                channel.scope.chain,
                channel.scope.escrow,
                channel.scope.payee,
            ):
                return challenge
    raise LocalRefusal(
        "no-challenge",
        f"{channel.resource} does not ask for payment to {channel.scope.payee} any more, so it cannot help with"
        f" {channel.channel_id}; nothing was signed. Without it: bursar channels close --force {channel.channel_id}",
    )


def _field(till: Till, challenge: Challenge, payload: dict[str, object]) -> dict[str, str]:
    scope = till.channel.scope
    value = build_credential(challenge, payload, f"did:pkh:{scope.chain}:{scope.payer}")
    return {challenge.credential_header: value}


async def _amount(parts: Parts, till: Till, challenge: Challenge, state: ChainState) -> int:
    """What to sign for the close: what the server says was spent, if a probe tells; else all that is authorised.

    Between what was spent and the highest voucher every amount is honoured, and the server takes what was
    spent, so the lowest is the safest to hand out. Where the contract pays out the voucher itself (v1), nothing
    but a probe will do. Raises `LocalRefusal`; then nothing was signed for a close.
    """
    channel, takes_voucher = till.channel, till.method.close_takes_voucher
    spent = await _probe(parts, till, challenge) if channel.status is ChannelStatus.DRAINING else None
    if spent is not None:
        return min(max(spent, state.settled + takes_voucher, 1), channel.authorised)
    if takes_voucher:
        raise LocalRefusal(
            "no-proof",
            f"{channel.scope.host} does not say what was spent on {channel.channel_id}, and its contract would pay out"
            f" all that is authorised; bring the deposit home with: bursar channels close --force {channel.channel_id}",
        )
    return channel.authorised


async def _probe(parts: Parts, till: Till, challenge: Challenge) -> int | None:
    """What the server says was spent, asked with the current voucher, which costs nothing."""
    channel = till.channel
    sent_at, seq = parts.now(), channel.seq
    if channel.equal_refused or not channel.authorised:
        return None
    signer = parts.need_signer()
    digest = till.method.voucher_digest(channel, channel.authorised)
    payload = till.method.voucher_payload(
        channel, channel.authorised, signer.sign_voucher(digest, channel, channel.authorised)
    )
    try:
        answer = await parts.outbound.send("HEAD", channel.resource, _field(till, challenge, payload))
    except OutcomeUnknown as error:
        log.info("bursar: the probe of %s told nothing: %s", channel.channel_id, error)
        return None
    receipt = _receipt(answer, channel)
    if receipt is None or receipt.spent is None:
        return None
    spent = min(receipt.spent, channel.authorised)
    move = Probed(seq=seq, sent_at=sent_at, at=parts.now(), spent=spent, voucher=channel.authorised)
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
        return await parts.outbound.send("POST", channel.resource, _field(till, challenge, payload))
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
        f" {till.channel.scope.chain}; its deposit stays on record, run `bursar channels close` again later",
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


async def book_fees(parts: Parts, till: Till) -> None:
    """What our transactions for this channel have cost by the chain, as far as nobody has written it down yet.

    A process that dies, or a chain that does not answer, between a transaction and its receipt leaves a fee out.
    The lines come before the record: after a crash between, a line may be there twice, and counts once by its hash.
    """
    channel, chain = till.channel, parts.chain(till.channel.scope.chain)
    receipts = [await chain.receipt(tx_hash) for tx_hash in channel.transactions]
    fees = [(receipt.tx_hash, fee_of(receipt)) for receipt in receipts if receipt is not None]
    more = total = sum(fee for _, fee in fees)
    more -= channel.fees
    if more <= 0:  # the chain forgets old receipts
        return
    token = parts.token(channel.scope.chain, channel.scope.token)
    for tx_hash, fee in reversed(fees):  # the newest are missing
        if more <= 0:
            break
        more -= fee
        parts.audit.note(
            "fee",
            f"network fee of {token.show(fee)} for channel {channel.channel_id} of {channel.scope.host}",
            channel_id=channel.channel_id,
            host=channel.scope.host,
            tx=tx_hash,
            fee=str(fee),
            fields=amount_fields(token, fee),
        )
    await till.commit(change=lambda record: replace(record, fees=total))


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
            holds={},
            held=0,
            settled=captured,
            captured=captured,
            refunded=refunded,
            deposit=captured + refunded,
            transactions=(*record.transactions, closing.tx_hash),
        )

    await till.commit(change=change, counters=counters)
    shown = parts.token(before.scope.chain, token)
    parts.audit.note(
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


def result_of(channel: Channel, tx_hash: str | None) -> CloseResult:
    return CloseResult(
        channel=channel,
        deposit=channel.deposit,
        captured=channel.captured or 0,
        refunded=channel.refunded or 0,
        tx_hash=tx_hash or (channel.transactions[-1] if channel.captured is not None else None),
    )
