"""Asking a server what it has charged so far: HEAD with the current voucher, which costs nothing.

The answer moves money between *uncertain* and *free* only, and only where it can be about nothing else: the
channel was idle from question to answer, and nothing in doubt can still become charged (`account.probed`). It
authorises nothing: the voucher is the one that the next request would carry.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from proxy_addon.core.errors import OutcomeUnknown, RemoteProtocolError
from proxy_addon.core.messages import Challenge, Receipt, build_credential, parse_receipt
from proxy_addon.core.policy import Origin
from proxy_addon.outbound import Answer
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from store import account
from store.account import Probed

log: Final = logging.getLogger("bursar")

PROBE_S: Final = 5.0
"""A client waits meanwhile."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a probe said, in base units. `before` and `after` are what was, and is, uncertain."""

    spent: int
    before: int
    after: int
    believed: bool

    @property
    def decided(self) -> bool:
        """Is it known of each request in doubt whether it was charged: none of them was, or all?"""
        return self.believed and (self.after == 0 or self.after >= self.before)


def may_probe(till: Till, now: int) -> bool:
    """Would an answer be believed? Not on a busy channel, nor while something in doubt may still be charged."""
    channel = till.channel
    return (
        till.usable
        and till.idle
        and till.exclusive is None
        and not till.runs_probes
        and channel.eligible_at <= now
        and channel.issued > channel.settled  # a voucher that is settled is refused
        and not channel.equal_refused
    )


async def probe(parts: Parts, till: Till, challenge: Challenge, url: str, origin: Origin) -> Told | None:
    """Ask, with a `challenge` of the channel's own scope; None if nothing was told. Raises `LocalRefusal`.

    After a crash the ledger's line, written before this returns, moves the same money again.
    """
    channel = till.channel
    sent_at, seq, before = parts.now(), channel.seq, channel.uncertain
    till.last_used = parts.ticks()
    try:
        async with asyncio.timeout(PROBE_S):
            answer = await parts.outbound.send("HEAD", url, _field(till, challenge))
    except (OutcomeUnknown, TimeoutError) as error:
        log.info("bursar: a probe of %s told nothing: %s", channel.channel_id, error or "no answer in time")
        return None
    dated = parts.clocks.heard(origin, answer.get("date"), parts.now())
    if answer.status == 200:
        till.runs_probes = True  # it serves HEAD like GET, and may charge for it: not again
    receipt = _receipt(answer, channel.channel_id)
    if receipt is None or receipt.spent is None or answer.status >= 300:
        log.info("bursar: a probe of %s told nothing: status %d", channel.channel_id, answer.status)
        return None
    if till.fenced or not till.closed_there(dated):
        return Told(receipt.spent, before, till.channel.uncertain, believed=False)
    spent = min(receipt.spent, till.channel.issued)
    move = Probed(seq=seq, sent_at=sent_at, at=parts.now(), spent=spent, voucher=channel.issued)
    till.channel = after = account.probed(till.channel, move)
    believed = after.seq == seq and not after.holds and after.uncertain == spent - after.paid
    token = parts.token(channel.scope.chain, channel.scope.token)
    parts.audit.note(
        "probe",
        f"{channel.scope.host} says that {token.show(receipt.spent)} were spent on {channel.channel_id}:"
        f" {token.show(before)} were uncertain, {token.show(after.uncertain)} are",
        channel_id=channel.channel_id,
        move=move,
        host=channel.scope.host,
        uncertain_now=str(after.uncertain),
    )
    return Told(spent, before, after.uncertain, believed)


def _field(till: Till, challenge: Challenge) -> dict[str, str]:
    channel, scope = till.channel, till.channel.scope
    payload = till.method.voucher_payload(channel, channel.issued, till.sign_current())
    value = build_credential(challenge, payload, f"did:pkh:{scope.chain}:{scope.payer}")
    return {challenge.credential_header: value}


def _receipt(answer: Answer, channel_id: str) -> Receipt | None:
    value = answer.get("payment-receipt")
    if value is None:
        return None
    try:
        receipt = parse_receipt(value)
    except RemoteProtocolError:
        return None
    return receipt if receipt.channel_id in (None, channel_id) else None
