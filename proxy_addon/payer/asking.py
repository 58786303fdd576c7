"""Asking a channel's server for what a close or a top-up by hand needs: a challenge, and what it has of the channel."""

from __future__ import annotations

from dataclasses import dataclass

from proxy_addon.core.errors import LocalRefusal, OutcomeUnknown, RemoteProtocolError
from proxy_addon.core.messages import Challenge, build_credential, parse_challenges
from proxy_addon.methods import registry
from proxy_addon.methods.tempo_session.proof import proves
from proxy_addon.payer import snapshots
from proxy_addon.payer.parts import Parts
from store.records import Channel


@dataclass(frozen=True, slots=True)
class Asked:
    """A server's challenge of the channel's own scope, and the snapshot field beside it."""

    challenge: Challenge
    snapshot: str | None


async def fresh_challenge(parts: Parts, channel: Channel) -> Challenge:
    """A fresh challenge of the channel's own scope, from the place where it was opened."""
    return (await ask(parts, channel)).challenge


async def ask(parts: Parts, channel: Channel) -> Asked:
    """The same, with the server told which channel it is about: some then show what they have of it."""
    if not channel.resource:
        raise LocalRefusal(
            "server-unknown",
            f"nobody knows which server {channel.channel_id} was opened for; name it with: bursar channels recover"
            f" --server URL, or do without it: bursar channels close --force {channel.channel_id}",
        )
    headers = {"accept-payment": registry.accept_payment(), "payment-session": channel.channel_id}
    for method in ("HEAD", "GET"):
        try:
            answer = await parts.outbound.send(method, channel.resource, headers)
        except OutcomeUnknown as error:
            raise LocalRefusal(
                "server-unreachable",
                f"{channel.resource}: {error}; try again later, or close it without the server:"
                f" bursar channels close --force {channel.channel_id}",
            ) from None
        for challenge in parse_challenges(answer.all("www-authenticate")).challenges:
            if asks_for(challenge, channel):
                return Asked(challenge, answer.get(snapshots.FIELD.lower()))
    raise LocalRefusal(
        "no-challenge",
        f"{channel.resource} does not ask for payment to {channel.scope.payee} any more, so it cannot help with"
        f" {channel.channel_id}; nothing was signed. Without it: bursar channels close --force {channel.channel_id}",
    )


def asks_for(challenge: Challenge, channel: Channel) -> bool:
    """Is the challenge from the payee of this channel, on its chain and escrow?"""
    try:
        terms = registry.resolve(challenge).terms(challenge)
    except RemoteProtocolError:
        return False
    scope = channel.scope
    return (terms.chain, terms.escrow, terms.payee) == (scope.chain, scope.escrow, scope.payee)


def proven(channel: Channel, asked: Asked) -> int:
    """The cumulative amount (base units) of the highest voucher that the server shows over our own signature."""
    shown = [snapshots.of_challenge(asked.challenge), snapshots.of_field(asked.snapshot)]
    return max((proves(channel, one) or 0 for one in shown if one is not None), default=0)


def credential_field(channel: Channel, challenge: Challenge, payload: dict[str, object]) -> dict[str, str]:
    scope = channel.scope
    value = build_credential(challenge, payload, f"did:pkh:{scope.chain}:{scope.payer}")
    return {challenge.credential_header: value}
