"""How much to authorise for the requests that wait on one channel: pure arithmetic on its record.

Two amounts rise. The next voucher is higher than the last by a *step*: so much more a server can take. For it
``authorised`` is *raised*, in a commit that comes first, unless enough is reserved already. What one who is alone has
raised beyond the step is the *reserve*: on record, counted by every limit, signed for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from store.records import Channel

AHEAD_PER_REQUEST: Final = 2
"""Prices authorised ahead for each other request in flight: measured to keep re-sent vouchers rare."""

RESERVE_AFTER: Final = 8
"""So many raises for one request alone, one after another, before anything is reserved for the next ones."""
RESERVE_PRICES: Final = 31
"""The most that is reserved: with the one that is asked for, 32 requests share a commit."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one waiting request needs of its channel. Base units."""

    price: int
    bump: bool = False  # repair c: raise even if enough seems free
    write_off: bool = False  # repair d: what seems free is not


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done for those who wait. Base units."""

    step: int  # the next voucher is so much higher than the last
    raised: int  # ``authorised`` rises by so much first; 0: no commit


def can_reuse(channel: Channel, price: int) -> bool:
    """May a request of `price` go with the voucher that is already out? No commit, no signature."""
    return (
        channel.spare >= price
        and not channel.equal_refused
        and channel.issued > channel.settled  # there is a voucher, and one that is settled is refused
    )


def voucher_steps(
    channel: Channel, demands: Sequence[Demand], *, others_in_flight: int, ahead_limit: int
) -> tuple[int, ...]:
    """How far the voucher rises for `demands` together, the preferred step first; (0,) if none is needed."""
    forced = _forced(channel, demands)
    wanted = sum(one.price for one in demands) - channel.spare

    def size(ahead: int) -> int:
        amount = max(0, wanted + ahead)
        return max(amount, channel.min_delta) if amount or forced else 0

    # With no step there is no commit to share, so nothing is authorised ahead either.
    if not size(0):
        return (0,)
    ahead = 0
    if not (forced or channel.clean_needed or channel.equal_refused) and demands:
        price = max(one.price for one in demands)
        ahead = min(AHEAD_PER_REQUEST * others_in_flight * price, ahead_limit)
    return tuple(dict.fromkeys((size(ahead), size(0))))


def plans(channel: Channel, steps: Sequence[int], *, reserve: int = 0) -> tuple[Plan, ...]:
    """What each of `steps` takes, the preferred one first, and before it the same with a `reserve` for the next."""
    found = [Plan(step, max(0, step - channel.reserved)) for step in steps]
    if reserve:
        found.insert(0, Plan(found[0].step, found[0].raised + reserve))
    return tuple(found)


def reserve_for(channel: Channel, step: int, price: int, *, alone: int, limit: int) -> int:
    """How much to reserve for the requests after this one, which takes `step` and is the `alone`-th in a row to wait
    for a commit of its own; 0 if it needs none.

    Whole prices, or steps that the server takes if they are larger: what is less would serve nobody. At most `limit`,
    and what the deposit has room for.
    """
    raised = max(0, step - channel.reserved)
    if not raised or alone < RESERVE_AFTER or price <= 0:
        return 0
    unit = max(price, channel.min_delta)
    room = channel.ceiling - channel.authorised - raised
    return unit * min(RESERVE_PRICES, max(0, min(limit, room)) // unit)


def needed(channel: Channel, demand: Demand) -> int:
    """How far `demand` alone makes ``authorised`` rise, with nothing ahead: what the deposit must have room for."""
    spare = 0 if demand.write_off else channel.spare
    missing = max(0, demand.price - spare)
    step = max(missing, channel.min_delta) if missing or _forced(channel, (demand,)) else 0
    return max(0, step - channel.reserved)


def _forced(channel: Channel, demands: Sequence[Demand]) -> bool:
    """Is a higher voucher needed although the last one may cover it?"""
    return (
        channel.equal_refused
        or channel.issued <= channel.settled
        or any(one.bump or one.write_off for one in demands)
    )


def share(channel: Channel, price: int, step: int) -> int:
    """What of a shared step counts against one request's limit."""
    return min(step, max(price, channel.min_delta))
