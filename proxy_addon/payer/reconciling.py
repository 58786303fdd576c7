"""Making what is uncertain on a channel known, because somebody asks: by the chain, then by the server's word.

The chain decides on what is pending, and on a channel that is gone: what was captured is what was paid. Of a
channel that is open a probe asks what was spent. What the server does not claim is free again, as after any probe;
what it does claim, of what was uncertain before, is paid: a receipt alone never says so, a person's decision to
take the server's word does (`account.reconciled`). Nothing is authorised, and no voucher leaves that the next
request would not carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy_addon.audit import amount_fields, iso
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.core.policy import Origin
from proxy_addon.payer import asking, noticing, probing
from proxy_addon.payer.closing import closed, give_back, settle_pending
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.probing import Told
from proxy_addon.payer.till import Till
from store import account
from store.account import Reconciled
from store.lifecycle import FINAL
from store.records import Channel

_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A channel before and after; `why` says why something is still uncertain, and what to do. Empty: nothing is."""

    before: Channel
    after: Channel
    why: str = ""


async def reconcile(parts: Parts, channel_id: str) -> Reconciliation:
    """Find out what can be found out about `channel_id`, and write it down.

    Raises `ChannelBusy` while a proxy has it, `LocalRefusal` if neither chain nor server could be asked; then the
    record is as its last owner left it. Each step is durable by itself: calling it again goes on.
    """
    channel = await parts.store.find(channel_id)
    if channel is None:
        raise LocalRefusal("no-channel", f"no channel {channel_id} on record; see `bursar channels list`")
    if channel.status in FINAL:
        return Reconciliation(channel, channel)
    till = parts.till(await parts.claim(channel_id, also_ours=False))
    before = till.channel
    try:
        why = await _reconcile(parts, till)
    except ChainUnavailable as error:
        raise LocalRefusal("chain-unavailable", f"{channel_id} is {till.channel.status}: {error}") from None
    finally:
        await give_back(parts, till)
    return Reconciliation(before, till.channel, why if till.channel.uncertain else "")


async def _reconcile(parts: Parts, till: Till) -> str:
    """Why something is still uncertain."""
    chain = parts.chain(till.channel.scope.chain)
    if not await settle_pending(parts, till):
        return ""  # the opening has failed: nothing of it was ever charged
    state = await till.method.read_channel(chain, till.channel)
    if not state.exists:
        await closed(parts, till, state)
        return ""
    channel = till.channel
    if await noticing.notice(parts, till, state):
        close = f"bursar channels close {channel.channel_id[:_SHOWN]}"
        return f"it is {till.channel.status}, and its close decides: {close}"
    settled = max(channel.settled, min(state.settled, channel.issued))
    if settled != channel.settled:
        await till.commit(change=lambda record: account.proven_settled(record, settled))
    return await _ask_server(parts, till) if channel.uncertain else ""


async def _ask_server(parts: Parts, till: Till) -> str:
    channel = till.channel
    close = f"bursar channels close {channel.channel_id[:_SHOWN]}"
    if channel.eligible_at > parts.now():
        return (
            f"it may still be charged until {iso(channel.eligible_at)}: run this again after that; {close} decides"
            " at once"
        )
    if not probing.may_probe(till, parts.now()):
        return f"its server takes no voucher twice, so it cannot be asked: {close} decides"
    asked = await asking.ask(parts, channel)
    told = await probing.probe(parts, till, asked.challenge, channel.resource, origin_of(channel))
    if told is None:
        return f"{channel.scope.host} did not say what was spent: {close} decides"
    if not told.believed:
        return f"what {channel.scope.host} says of it contradicts what is known: {close} decides"
    _write_down(parts, till, told)
    if till.channel.uncertain:
        token = parts.token(channel.scope.chain, channel.scope.token)
        more = token.show(till.channel.uncertain)
        return f"{channel.scope.host} claims {more} more than all requests can have cost: {close} decides"
    return ""


def _write_down(parts: Parts, till: Till, told: Told) -> None:
    """The line first: after a crash the fold moves the same money again."""
    channel = till.channel
    move = Reconciled(min(told.after, told.before))
    token = parts.token(channel.scope.chain, channel.scope.token)
    after = account.reconciled(channel, move.amount)
    parts.audit.move(
        "reconciled",
        {
            "host": channel.scope.host,
            "adjustment": str(move.amount),
            "released": str(max(0, told.before - told.after)),
            "uncertain_now": str(after.uncertain),
            "message": f"by the word of {channel.scope.host}, {token.show(move.amount)} of what was uncertain were"
            f" charged, {token.show(max(0, told.before - told.after))} were not",
            **amount_fields(token, move.amount),
        },
        channel_id=channel.channel_id,
        move=move,
    )
    till.channel = after


def origin_of(channel: Channel) -> Origin:
    scheme, _, authority = channel.scope.origin.partition("://")
    host, _, port = authority.rpartition(":")
    return Origin(scheme, host.strip("[]"), int(port))
