"""How much to authorise for the requests that wait on one channel: pure arithmetic on its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from store.records import Channel

AHEAD_PER_REQUEST: Final = 2
"""Prices authorised ahead for each other request in flight: measured to keep re-sent vouchers rare."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one waiting request needs of its channel. Base units."""

    price: int
    bump: bool = False  # repair c: raise even if enough seems free
    write_off: bool = False  # repair d: what seems free is not


def can_reuse(channel: Channel, price: int) -> bool:
    """May a request of `price` go with the voucher that is already out? No commit, no signature."""
    return (
        channel.free >= price
        and not channel.equal_refused
        and channel.authorised > channel.settled  # there is a voucher, and one that is settled is refused
    )


def raise_sizes(
    channel: Channel, demands: Sequence[Demand], *, others_in_flight: int, ahead_limit: int
) -> tuple[int, ...]:
    """How far to raise ``authorised`` for `demands` together, the preferred size first; (0,) if nothing is needed."""
    forced = _forced(channel, demands)
    wanted = sum(one.price for one in demands) - channel.free

    def size(ahead: int) -> int:
        amount = max(0, wanted + ahead)
        return max(amount, channel.min_delta) if amount or forced else 0

    # With nothing to raise there is no commit to share, so nothing is authorised ahead either.
    if not size(0):
        return (0,)
    ahead = 0
    if not (forced or channel.clean_needed or channel.equal_refused) and demands:
        price = max(one.price for one in demands)
        ahead = min(AHEAD_PER_REQUEST * others_in_flight * price, ahead_limit)
    return tuple(dict.fromkeys((size(ahead), size(0))))


def needed(channel: Channel, demand: Demand) -> int:
    """How far `demand` alone makes ``authorised`` rise, with nothing ahead: what the deposit must have room for."""
    free = 0 if demand.write_off else channel.free
    missing = max(0, demand.price - free)
    return max(missing, channel.min_delta) if missing or _forced(channel, (demand,)) else 0


def _forced(channel: Channel, demands: Sequence[Demand]) -> bool:
    """Is a raise needed although enough may be free?"""
    return (
        channel.equal_refused
        or channel.authorised <= channel.settled
        or any(one.bump or one.write_off for one in demands)
    )


def share(channel: Channel, price: int, raised: int) -> int:
    """What of a shared raise counts against one request's limit."""
    return min(raised, max(price, channel.min_delta))
