"""What would be done about a challenge, without doing it: `bursar inspect`'s answer.

The same judgement as the payer's, on what the store says at this moment. It reserves nothing, so a request that
comes later may find less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from proxy_addon.core.dispatch import Demand, can_reuse, needed
from proxy_addon.core.policy import Caps, Origin
from proxy_addon.core.terms import Terms
from proxy_addon.payer import topping
from store.lifecycle import PENDING_OPEN, ChannelStatus
from store.records import Channel, CounterMove


class Step(StrEnum):
    """How it would be paid."""

    USE = "use"  # out of what is authorised already: no limit is touched
    RAISE = "raise"  # a new voucher on a channel that is open
    TOP_UP = "top-up"
    WAIT = "wait"  # an opening is on its way
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Use:
    """A limit, what is used of it, and what this would add. Base units, or a count."""

    move: CounterMove
    used: int

    @property
    def fits(self) -> bool:
        limit = self.move.limit
        return limit is None or self.used + self.move.amount <= limit


@dataclass(frozen=True, slots=True)
class Prospect:
    step: Step
    channel: Channel | None
    new_money: int  # what would be authorised for it
    deposit: int  # what would go into escrow for it
    uses: tuple[Use, ...]

    @property
    def over(self) -> Use | None:
        """The first limit that is in the way."""
        return next((use for use in self.uses if not use.fits), None)


def same_terms(channel: Channel, terms: Terms, origin: Origin) -> bool:
    """Is the channel of these terms' scope, whoever pays?"""
    scope = channel.scope
    return (
        scope.family,
        scope.version,
        scope.chain,
        scope.escrow,
        scope.token,
        scope.payee,
        scope.discriminator,
        scope.origin,
    ) == (
        terms.family,
        terms.version,
        terms.chain,
        terms.escrow,
        terms.token,
        terms.payee,
        terms.discriminator,
        str(origin),
    )


def foresee(
    terms: Terms, caps: Caps, channels: Iterable[Channel], counters: Mapping[str, int], date: str
) -> Prospect:
    """The next request of these terms. `channels`: those of its scope; `counters`: as the store has them."""
    found = list(channels)
    usable = [one for one in found if one.status is ChannelStatus.OPEN]

    def uses(moves: Iterable[CounterMove]) -> tuple[Use, ...]:
        return tuple(Use(move, counters.get(move.key, 0)) for move in moves if move.limit is not None)

    for channel in usable:
        if can_reuse(channel, terms.price):
            return Prospect(Step.USE, channel, 0, 0, ())
    for channel in usable:
        size = needed(channel, Demand(terms.price))
        if not size:  # it is reserved already
            return Prospect(Step.USE, channel, 0, 0, ())
        if channel.authorised + size <= channel.ceiling:
            return Prospect(Step.RAISE, channel, size, 0, uses(caps.raise_moves(size, date)))
    for channel in usable:
        added = topping.size(channel, caps, terms, topping.shortfall(channel, Demand(terms.price)))
        if added:
            size = needed(channel, Demand(terms.price))
            moves = (*caps.raise_moves(size, date), *caps.deposit_moves(added, date))
            return Prospect(Step.TOP_UP, channel, size, added, uses(moves))
    for channel in found:
        if channel.status in PENDING_OPEN:
            return Prospect(Step.WAIT, channel, 0, 0, ())
    first, deposit = max(terms.price, terms.min_delta), caps.deposit_for(terms)
    return Prospect(Step.OPEN, None, first, deposit, uses(caps.open_moves(deposit, first, date)))
