"""Requests that want to be paid for, and the reasons why one is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy_addon.audit import RequestFacts
from proxy_addon.core.dispatch import Demand
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import Caps, ClientCap, payee_changed
from proxy_addon.core.repair import Tries
from store import budgets
from store.amounts import Token
from store.charging import ClockWentBack, LimitExceeded
from store.contract import StoreError
from store.pins import PayeeChanged
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.payer.clients import ClientDay
    from proxy_addon.payer.limits import Seats

_OF_OPENINGS: Final = ("opens/", "deposits/", budgets.ESCROW)
_PER_DAY: Final = "raise it, or wait until the day (UTC) is over"


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
    expires_there: int = 0  # ms; the same by the server's clock, 0 if it named no time
    retry_of: str | None = (
        None  # the request that this one is a client's own retry of, if its outcome is not known
    )
    resource: str = ""  # URL without query that the challenge is from: where to manage the channel
    bump: bool = False
    write_off: bool = False
    metered: bool = False  # most likely a stream that asks for more: it gets a channel to itself
    topped_up: bool = False  # a top-up was tried for it, and did not help
    client_cap: ClientCap | None = None  # what its client may spend a day, if that has a limit of its own
    client_day: ClientDay | None = None  # where it is counted, once it is; `claimed` base units
    claimed: int = 0
    seats: Seats | None = None  # where it takes up a place among the requests in flight

    @property
    def demand(self) -> Demand:
        return Demand(self.price, self.bump, self.write_off)

    def unclaim(self) -> None:
        """Nothing was charged for it: its client's day gets back what it held. Safe to call again."""
        day, self.client_day = self.client_day, None
        if day is not None:
            day.used -= self.claimed

    def let_go(self, *, charged: bool) -> None:
        """It holds nothing any more, or never did. `charged`: its client's day keeps it. Safe to call again."""
        if charged:
            self.client_day = None
        else:
            self.unclaim()
        seats, self.seats = self.seats, None
        if seats is not None:
            seats.leave(self.facts.host)


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
        f" {show(move.limit or 0)} are used; {_way_out(move.key)}",
    )


def _way_out(key: str) -> str:
    if key.startswith(budgets.ESCROW):
        return "raise it, or bring deposits home: bursar channels close"
    if key.startswith(budgets.LIFETIME):
        return "raise it, or close channels: what was not captured comes back"
    return _PER_DAY


def store_refusal(error: StoreError, want: Want) -> LocalRefusal:
    """Why the store did not write what a payment needs; nothing was signed for it."""
    match error:
        case ClockWentBack():
            return LocalRefusal("clock-went-back", str(error))
        case PayeeChanged(pin=pin, payee=payee):
            refusal = payee_changed(want.facts.host, pin.payee, payee, want.caps.rule)
            return LocalRefusal(refusal.reason, refusal.message)
        case _:
            return LocalRefusal("store", str(error))
