"""A top-up that a person asks for, outside of any request: under the same rules as the proxy's own."""

from __future__ import annotations

from proxy_addon.core.errors import ChainUnavailable, LocalRefusal, RemoteProtocolError
from proxy_addon.core.policy import Origin, Refusal, SpendPolicy
from proxy_addon.methods import registry
from proxy_addon.payer import topping
from proxy_addon.payer.asking import fresh_challenge
from proxy_addon.payer.closing import settle_pending
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel


async def top_up_channel(parts: Parts, policy: SpendPolicy, channel_id: str, amount: int) -> Channel:
    """Add `amount` (base units) to the deposit of `channel_id`; returns the record once the chain says so.

    Raises `ChannelBusy` while another process has it, `LocalRefusal` with the limit's name if a limit is against
    it, or if the server or the chain did not take it; then the deposit is what it was. After a crash the
    transaction is on record, and whoever has the channel next learns from the chain what became of it.
    """
    channel = await parts.store.find(channel_id)
    if channel is None:
        raise LocalRefusal("no-channel", f"no channel {channel_id} on record; see `bursar channels list`")
    if channel.status in FINAL:
        raise _not_open(channel)
    till = parts.till(await parts.claim(channel_id, also_ours=False))
    try:
        return await _top_up(parts, policy, till, amount)
    except ChainUnavailable as error:
        raise LocalRefusal("chain-unavailable", f"{channel_id} is {till.channel.status}: {error}") from None
    except RemoteProtocolError as error:
        raise LocalRefusal("protocol", f"{channel.scope.host}: {error}; nothing was signed") from None
    finally:
        if till.channel.status not in FINAL:
            await till.release(used=False)


async def _top_up(parts: Parts, policy: SpendPolicy, till: Till, amount: int) -> Channel:
    if not await settle_pending(parts, till) or till.channel.status is not ChannelStatus.OPEN:
        raise _not_open(till.channel)
    channel = till.channel
    challenge = await fresh_challenge(parts, channel)
    method = registry.resolve(challenge)
    terms = method.terms(challenge)
    origin = Origin.parse(channel.scope.origin)
    caps = policy.judge(origin, terms, method.escrows)
    if isinstance(caps, Refusal):
        raise LocalRefusal(caps.reason, caps.message)
    most = min(caps.max_deposit, terms.amount_limit)
    if channel.deposit + amount > most:
        raise LocalRefusal(
            "over-max-deposit",
            f"{origin.shown}: {caps.token.show(amount)} more would take the deposit to"
            f" {caps.token.show(channel.deposit + amount)}, over max_deposit {caps.token.show(most)} ({caps.rule})",
        )
    await topping.top_up(
        parts,
        till,
        caps,
        challenge,
        amount=amount,
        fee_payer=terms.fee_payer,
        host=origin.shown,
        resource=channel.resource,
    )
    return till.channel


def _not_open(channel: Channel) -> LocalRefusal:
    return LocalRefusal(
        "channel-not-open",
        f"channel {channel.channel_id} is {channel.status}: nothing is added to its deposit"
        + (f" ({channel.note})" if channel.note else ""),
    )
