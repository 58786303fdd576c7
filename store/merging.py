"""Taking in what another store knows of a channel. Pure; nothing is ever lowered, and nothing becomes free by it.

Watermarks only rise: ``authorised`` to the higher of both, ``paid`` to what either has proven. Whatever the two do
not agree on may have been charged, so it is uncertain until a receipt or the close tells. Doing it twice changes
nothing more.

Budgets follow: each raise is charged to the dates on which the other store had charged it, as far as its counters
say so, the newest first. So a limit that was used up there today is used up here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from store import account, budgets
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus
from store.records import Channel, CounterMove

NOT_MOVED: Final = "imported from a copy: another store may pay with it"
CLOSED_ELSEWHERE: Final = "closed, as an import says: a close asks the chain"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A channel as another store has it.

    `moved`: that store has given it up; it is this store's from now on. Else it is a copy of what is known of it.
    """

    channel: Channel
    moved: bool


def taken_in(incoming: Incoming, *, take_over: bool, eligible_at: int) -> Channel:
    """The record of a channel that was not on record here.

    One that was moved goes on where it was. Of a copy nothing is free, and unless its user says that no other
    store uses it (`take_over`) it is set aside: not paid with, but there to be closed.
    """
    # What is reserved is not told to other stores: as far as this one knows, vouchers may have carried it.
    channel = replace(
        without_holds(incoming.channel, eligible_at), owner=None, epoch=0, folded=None, reserved=0
    )
    if channel.status in FINAL or incoming.moved:
        return channel
    channel = account.doubt_everything(channel, eligible_at)
    channel = replace(
        channel, eligible_at=max(eligible_at, channel.eligible_at)
    )  # it may be in use until now
    if channel.status in PENDING_OPEN:
        return replace(channel, status=ChannelStatus.UNKNOWN)
    if channel.status is ChannelStatus.OPEN and take_over:
        return channel
    if channel.status in (ChannelStatus.OPEN, ChannelStatus.DRAINING):
        return replace(channel, status=ChannelStatus.ASIDE, note=NOT_MOVED)
    return channel


def merged(current: Channel, incoming: Incoming, eligible_at: int) -> Channel:
    """What the record `current`, which has nothing in flight, becomes by what another store knows."""
    theirs = without_holds(incoming.channel, eligible_at)
    if current.status in FINAL and not _comes_back(current, incoming):
        return current
    deposit = max(current.deposit, theirs.deposit)
    authorised = max(current.authorised, theirs.authorised)
    paid = min(max(current.paid, theirs.paid), authorised)
    # What either thinks may have been charged; of what only they had authorised, all that is not paid.
    raised = authorised - current.authorised
    free = current.free if not raised else 0
    if theirs.updated_at > current.updated_at:
        free = min(free, max(0, authorised - theirs.paid - theirs.uncertain))
    uncertain = max(0, authorised - paid - free)
    channel = replace(
        current,
        deposit=deposit,
        authorised=authorised,
        paid=paid,
        uncertain=uncertain,
        reserved=0,
        eligible_at=max(current.eligible_at, theirs.eligible_at, eligible_at)
        if uncertain > current.uncertain
        else current.eligible_at,
        accepted=min(max(current.accepted, theirs.accepted), authorised),
        settled=max(current.settled, theirs.settled),
        min_delta=max(current.min_delta, theirs.min_delta),
        equal_refused=current.equal_refused or theirs.equal_refused,
    )
    return _with_status(channel, incoming)


def _comes_back(current: Channel, incoming: Incoming) -> bool:
    return current.status is ChannelStatus.MOVED and incoming.moved


def _with_status(channel: Channel, incoming: Incoming) -> Channel:
    theirs = incoming.channel.status
    if _comes_back(channel, incoming):
        return replace(channel, status=ChannelStatus.OPEN, note="")
    if channel.status is not ChannelStatus.OPEN or channel.pending is not None:
        return channel
    if theirs is ChannelStatus.CLOSED:
        return replace(channel, status=ChannelStatus.ASIDE, note=CLOSED_ELSEWHERE)
    if theirs in (ChannelStatus.DRAINING, ChannelStatus.CLOSING, ChannelStatus.ASIDE):
        note = incoming.channel.note or f"{theirs} in another store, as an import says"
        return replace(channel, status=ChannelStatus.ASIDE, note=note)
    return channel


def without_holds(channel: Channel, eligible_at: int) -> Channel:
    """What was in flight may have been charged."""
    if not channel.holds:
        return channel
    uncertain = channel.uncertain + channel.held
    until = max(channel.eligible_at, eligible_at)
    return replace(channel, holds={}, held=0, uncertain=uncertain, eligible_at=until)


def refund_of(channel: Channel) -> int:
    """What the lifetime budget got back when the channel was closed."""
    if channel.status is not ChannelStatus.CLOSED or channel.captured is None:
        return 0
    return max(0, channel.authorised - channel.captured)


class Charged:
    """On which dates another store has charged what, by its counters; each unit is handed out once."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._left: dict[tuple[str, str, str], int] = {}  # token, host, date
        for key, amount in counters.items():
            family, _, rest = key.partition("/")
            token, _, dated = rest.partition("/")
            date, _, host = dated.partition("/")
            if family == "host-day" and host and amount > 0:
                self._left[token, host, date] = amount

    def moves(self, channel: Channel, amount: int, *, host: str, date: str) -> tuple[CounterMove, ...]:
        """The counters of a raise by `amount`, under the name `host`; `date` where no counter tells another."""
        if not amount:
            return ()
        token, parts = channel.scope.token, Counter[str]()
        for when, part in self._take(channel, amount):
            parts[when] += part
        parts[date] += amount - parts.total()
        dated = [(when, part) for when, part in sorted(parts.items()) if part]
        return (
            *(CounterMove(budgets.host_day(token, host, when), part) for when, part in dated),
            *(CounterMove(budgets.total_day(token, when), part) for when, part in dated),
            CounterMove(budgets.lifetime(token), amount),
        )

    def _take(self, channel: Channel, amount: int) -> list[tuple[str, int]]:
        token, host = channel.scope.token, channel.scope.host
        mine = [key for key in self._left if key[0] == token and _same_host(key[1], host)]
        taken = []
        for key in sorted(mine, key=lambda key: (key[2], key[1] == host, key[1]), reverse=True):
            part = min(amount, self._left[key])
            if part:
                self._left[key] -= part
                amount -= part
                taken.append((key[2], part))
        return taken


def opening_moves(channel: Channel, *, host: str, date: str) -> tuple[CounterMove, ...]:
    """The counters of an opening that another store has made."""
    if channel.status is ChannelStatus.FAILED:
        return ()
    deposit = channel.deposit + (channel.pending.deposit if channel.pending is not None else 0)
    return (
        CounterMove(budgets.opens(host, date), 1),
        CounterMove(budgets.deposits(channel.scope.token, host, date), deposit),
    )


def _same_host(counted: str, host: str) -> bool:
    """Is `counted`, a host or a wildcard of another config, what `host` (with its port) was charged to?"""
    if not counted.startswith("*."):
        return counted == host
    name, _, port = host.rpartition(":")
    pattern, colon, wanted = counted.partition(":")
    return name.endswith(pattern[1:]) and len(name) >= len(pattern) and (not colon or wanted == port)
