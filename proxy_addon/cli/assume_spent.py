"""The conservative way out of a doubt: whatever the old copy does not know of is taken for spent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxy_addon.audit import amount_fields, utc_date
from proxy_addon.core.policy import Origin, SpendPolicy
from proxy_addon.payer.parts import LONGEST_CHALLENGE_MS, Parts
from store import account, budgets
from store.account import UNKNOWN_MARGIN_MS
from store.lifecycle import FINAL
from store.records import Channel, CounterMove, PaymentScope

if TYPE_CHECKING:
    from proxy_addon.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Assumed:
    """One channel, of which `amount` (base units) more counts as authorised, and all that is not paid as uncertain."""

    channel: Channel
    amount: int


async def assume_spent(runtime: Runtime) -> list[Assumed]:
    """Take every channel of a store in doubt for used up, and end the doubt.

    ``authorised`` rises to the deposit, which no voucher can pass; what of it was spent is uncertain until a receipt
    or the close tells. The budgets of today and of the lifetime count it, over their limits if need be. Raises
    `ChannelBusy`. Each channel is one commit: after a crash the command goes on where it was.
    """
    found = []
    for channel_id in await runtime.store.commits.left_in_doubt():
        found.append(await _assume(runtime.parts, runtime.settings.spend_policy(), channel_id))
    await runtime.presence.lift()
    return found


async def _assume(parts: Parts, policy: SpendPolicy, channel_id: str) -> Assumed:
    before = await parts.claim(channel_id)
    if before.status in FINAL:  # closed since, by another command
        await parts.store.absorb(before, reconciles=True)
        await parts.store.release(before)
        return Assumed(before, 0)
    eligible_at = parts.now() + LONGEST_CHALLENGE_MS + UNKNOWN_MARGIN_MS
    channel = account.assume_authorised(before, before.ceiling, eligible_at)
    channel = replace(channel, folded=parts.audit.journal.mark, updated_at=parts.now())
    amount = channel.authorised - before.authorised
    counters = raised_counters(policy, channel.scope, amount, utc_date(parts.now()))
    await parts.store.absorb(channel, counters, reconciles=True)
    await parts.store.release(channel)
    token = parts.token(channel.scope.chain, channel.scope.token)
    parts.audit.note(
        "assumed-spent",
        f"channel {channel_id} of {channel.scope.host}: {token.show(amount)} more counts as authorised,"
        f" {token.show(channel.uncertain)} as uncertain",
        channel_id=channel_id,
        host=channel.scope.host,
        uncertain=str(channel.uncertain),
        fields=amount_fields(token, amount),
    )
    return Assumed(channel, amount)


def raised_counters(
    policy: SpendPolicy, scope: PaymentScope, amount: int, date: str
) -> tuple[CounterMove, ...]:
    """The counters of a raise that no limit may refuse, because it has happened."""
    if not amount:
        return ()
    host = counter_host(policy, scope)
    keys = (
        budgets.host_day(scope.token, host, date),
        budgets.total_day(scope.token, date),
        budgets.lifetime(scope.token),
    )
    return tuple(CounterMove(key, amount) for key in keys)


def counter_host(policy: SpendPolicy, scope: PaymentScope) -> str:
    """The host of a scope as the budgets name it."""
    rule = policy.rule_for(origin_of(scope))
    return rule.pattern if rule is not None and rule.pattern.startswith("*.") else scope.host


def origin_of(scope: PaymentScope) -> Origin:
    scheme, _, authority = scope.origin.partition("://")
    host, _, port = authority.rpartition(":")
    return Origin(scheme, host.strip("[]"), int(port))
