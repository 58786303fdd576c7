"""Requests that want to be paid for, and the reasons why one is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from proxy_addon.audit import RequestFacts
from proxy_addon.core.dispatch import Demand
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Caps
from proxy_addon.core.repair import Tries
from store.amounts import Token
from store.channels import LimitExceeded
from store.records import Channel

_OF_OPENINGS: Final = ("opens/", "deposits/")


class OpeningLimited(LocalRefusal):
    """No more channels, or deposits, today; one that another process has may still pay."""


class ChannelUnusable(LocalRefusal):
    """This channel cannot pay (any more); another one of the scope may."""


@dataclass(slots=True, eq=False)
class Want:
    """One request that wants to be paid for. `price` in base units; `tries` is shared by all its attempts."""

    facts: RequestFacts
    price: int
    caps: Caps
    tries: Tries
    challenge_id: str
    expires_at: int  # ms; of the challenge
    fingerprint: str
    resource: str = ""  # URL without query that the challenge is from: where to manage the channel
    bump: bool = False
    write_off: bool = False
    metered: bool = False  # most likely a stream that asks for more: it gets a channel to itself
    topped_up: bool = False  # a top-up was tried for it, and did not help

    @property
    def demand(self) -> Demand:
        return Demand(self.price, self.bump, self.write_off)


class NoRoom(Exception):
    """The deposit, or the limit of one of several requests, does not cover it."""


def over_limit(wants: Sequence[Want], shares: Sequence[int]) -> LocalRefusal | NoRoom | None:
    """Would a share take a request over its own limit? `NoRoom` if another part of the group may do without it."""
    for want, one in zip(wants, shares, strict=True):
        if want.tries.new_money + one > want.caps.per_request:
            if len(wants) > 1:
                return NoRoom("a request of the group is over its limit")
            return over_max_price(want, one)
    return None


def over_max_price(want: Want, more: int) -> LocalRefusal:
    """One request would authorise more than its limit, all repairs together."""
    caps = want.caps
    return LocalRefusal(
        "over-max-price",
        f"{want.facts.host} made one request cost {caps.token.show(want.tries.new_money + more)}, over max_price"
        f" {caps.token.show(caps.per_request)} ({caps.rule})",
    )


def deposit_used_up(channel: Channel, want: Want) -> ChannelUnusable:
    """The channel cannot pay this; a top-up, or another channel, may."""
    show = want.caps.token.show
    return ChannelUnusable(
        "deposit-used-up",
        f"channel {channel.channel_id} has {show(channel.ceiling - channel.authorised)}"
        f" left of its deposit, {want.facts.host} asks {show(want.price)}",
    )


def limit_refusal(error: LimitExceeded, host: str, token: Token) -> LocalRefusal:
    """A limit that was reached, in the token's own units."""
    move = error.move
    is_count = move.key.startswith("opens/")

    def show(amount: int) -> str:
        return str(amount) if is_count else token.show(amount)

    rule = move.rule or move.key
    kind = OpeningLimited if move.key.startswith(_OF_OPENINGS) else LocalRefusal
    return kind(
        "limit-reached",
        f"{host} asks for {show(move.amount)} more, but {show(error.used)} of {rule} ="
        f" {show(move.limit or 0)} are used; raise it, or wait until the day (UTC) is over",
    )
