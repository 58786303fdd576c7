"""The channel store: every rule about durable money, over any `Backend`.

``get`` / ``set`` / ``delete`` by payment scope, plus what several processes need: one owner per channel, an
epoch that each commit checks, budget counters that move in the same commit as ``authorised``.

Each coroutine that writes is one transaction: when it returns, all of it is durable; if it raises, nothing of it was
written; after a crash inside it, all or nothing is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from store import account, budgets, charging, lineage, pins, reviving, rows
from store.charging import Conflict, LimitExceeded
from store.commits import Commits
from store.contract import Backend, StoreError, Transaction
from store.lifecycle import FINAL, PENDING_OPEN, REUSABLE, ChannelStatus, advance
from store.pins import Pin
from store.records import Channel, CounterMove, JournalMark, PaymentScope

Recover = Callable[[Channel], Channel]

_AT_ONCE: Final = 256  # records that are decoded in one turn of the event loop: some 10 ms


class Fenced(StoreError):
    """Another process owns the channel now: this one signs nothing more on it."""


class ChannelBusy(StoreError):
    """A living process owns the channel."""

    def __init__(self, channel: Channel) -> None:
        self.owner = channel.owner
        super().__init__(
            f"channel {channel.channel_id} is in use by process {channel.owner};"
            " it is given back a few seconds after its last request"
        )


class ScopeFull(StoreError):
    """The scope has as many channels as it may have, or an opening is already on its way."""


class ChannelStore:
    """What the payer knows of durable money."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.commits = Commits(backend)

    @property
    def owner_id(self) -> str:
        return self._backend.owner_id

    @property
    def sealed_against(self) -> str | None:
        """Why nothing may be signed on what is in this store: it is an old copy. None: it is in order."""
        return self.commits.sealed_against

    # -- reading

    async def get(self, scope: PaymentScope) -> Channel | None:
        """The channel to go on with: an open one before one whose opening is pending; else None."""
        found = await self.of_scope(scope)
        usable = [channel for channel in found if channel.status in REUSABLE]
        return min(usable, key=lambda c: (c.status in PENDING_OPEN, c.opened_at), default=None)

    async def of_scope(self, scope: PaymentScope) -> tuple[Channel, ...]:
        """All channels of the scope that are not tombstones, oldest first."""
        return await self._backend.view(lambda txn: rows.of_scope(txn, scope))

    async def of_short_key(self, short_key: str) -> tuple[Channel, ...]:
        """All channels, tombstones too, under ``payee:token:escrow:chainId``: the payer, signer and origin differ."""
        return await self._backend.view(lambda txn: rows.of_short_key(txn, short_key))

    async def find(self, channel_id: str) -> Channel | None:
        return await self._backend.view(lambda txn: rows.find(txn, channel_id))

    async def unfinished(self) -> tuple[Channel, ...]:
        """Every channel that is no tombstone, oldest first: there may be many more of those.

        Each as it was at some moment of the call: a hundred thousand of them are not decoded in one go, since
        requests wait meanwhile.
        """
        ids = await self._backend.view(rows.unfinished_ids)
        found: list[Channel] = []
        for first in range(0, len(ids), _AT_ONCE):
            part = ids[first : first + _AT_ONCE]
            found += await self._backend.view(partial(rows.unfinished, ids=part))
            await asyncio.sleep(0)
        return tuple(sorted(found, key=rows.age))

    async def all(self) -> tuple[Channel, ...]:
        """Every channel on record, tombstones too, oldest first."""
        return await self._backend.view(rows.all_of)

    async def counters(self, prefix: str = "") -> dict[str, int]:
        """Budget counters by key (see `budgets`)."""
        return await self._backend.view(lambda txn: charging.counters(txn, prefix))

    async def newest_day(self) -> int | None:
        """The newest date that was ever charged, in days since the epoch; None in a new store."""
        return await self._backend.view(charging.newest_day)

    async def pins(self) -> tuple[Pin, ...]:
        """The payees that origins are held to, by origin."""
        return await self._backend.view(pins.all_of)

    async def pin_of(self, origin: str) -> Pin | None:
        return await self._backend.view(lambda txn: pins.find(txn, origin))

    async def books(self) -> tuple[tuple[Channel, ...], dict[str, int]]:
        """All channels and all counters, as of one moment."""
        return await self._backend.view(lambda txn: (rows.all_of(txn), charging.counters(txn, "")))

    def is_busy(self, channel: Channel) -> bool:
        """Does a living process other than this one own the channel?"""
        owner = channel.owner
        return owner is not None and owner != self.owner_id and self._backend.alive(owner)

    # -- writing

    async def propose(
        self, channel: Channel, counters: Iterable[CounterMove], *, max_channels: int, pin: bool = False
    ) -> Channel:
        """Put a new opening on record, owned by this process, before anything of it leaves.

        After a crash the opening transaction and the salt are in the record: the deposit can be found. With `pin`
        the origin is held to this payee from now on; of several processes that open at once, one is the first.
        Raises `ScopeFull` (also while another opening of the scope is pending), `LimitExceeded`,
        `ClockWentBack` and `PayeeChanged`.
        """
        moves = tuple(counters)
        channel = replace(channel, owner=self.owner_id, epoch=1)
        account.check(channel)

        def work(txn: Transaction) -> Channel:
            if rows.find(txn, channel.channel_id) is not None:
                raise Conflict(f"channel {channel.channel_id} is on record already")
            others = rows.of_scope(txn, channel.scope)
            if any(other.status in PENDING_OPEN for other in others):
                raise ScopeFull("an opening of this scope is on its way; its outcome decides")
            if sum(other.status in REUSABLE for other in others) >= max_channels:
                raise ScopeFull(f"the scope has max_channels_per_scope = {max_channels} channels, all in use")
            lineage.check(txn)
            if pin:
                pins.hold(txn, channel)
            charging.charge(txn, moves, raised=channel.authorised, returnable={}, before=None, after=channel)
            rows.store(txn, channel)
            return channel

        return await self.commits.transact(work)

    async def claim(self, channel_id: str, recover: Recover, *, mark: JournalMark | None = None) -> Channel:
        """Become the owner: bump the epoch and fold what a dead owner left, in one commit.

        `recover` gets the record of an owner that did not give it back (it died; or this process let go of the
        channel without writing that down), and returns the folded one. It may read that owner's journal, which
        says nothing new of this channel any more. From the commit on, the former owner's writes are fenced.
        Raises `ChannelBusy` while another owner lives.

        `mark` is where this process's journal stands: should it die before its next commit, the one after it
        folds from there on. Without it (and where `recover` sets none) that one has to doubt everything.
        """

        def work(txn: Transaction) -> Channel:
            channel = rows.load(txn, channel_id)
            if channel.owner is not None:
                if channel.owner != self.owner_id and self._backend.alive(channel.owner):
                    raise ChannelBusy(channel)
                recovered = recover(channel)
                account.check(recovered)
                if recovered.authorised != channel.authorised or recovered.issued < channel.issued:
                    raise Conflict(f"recovery must not change authorised of {channel_id}")
                if _identity(recovered) != _identity(channel):
                    raise Conflict(f"recovery must not change what channel {channel_id} is")
                advance(channel.status, recovered.status)
                channel = recovered if mark is None else replace(recovered, folded=mark)
            else:
                # The record's mark is in the journal of whoever gave it back; what comes now is in ours.
                channel = replace(channel, folded=mark)
            channel = replace(channel, owner=self.owner_id, epoch=channel.epoch + 1)
            rows.store(txn, channel)
            return channel

        return await self.commits.transact(work)

    async def set(self, channel: Channel, counters: Iterable[CounterMove] = (), pin: bool = False) -> None:
        """Write the record back, and with it the counters that its raise moves, and its payee's `pin`.

        Raises `Fenced` (another owner), `LimitExceeded`, `ClockWentBack`, `PayeeChanged`, `Conflict`
        (``authorised`` or ``issued`` would fall; ``authorised`` was raised without its counters or on a channel that
        pays nothing any more; counters would get back what was not taken, or twice),
        `lifecycle.IllegalTransition`. Only after it returned may anything up to the new ``authorised`` be signed.
        """
        moves = tuple(counters)
        account.check(channel)

        def work(txn: Transaction) -> None:
            current = rows.load(txn, channel.channel_id)
            if current.owner != self.owner_id or current.epoch != channel.epoch:
                raise Fenced(f"channel {channel.channel_id} has another owner now (epoch {current.epoch})")
            if channel.owner != self.owner_id:
                raise Conflict(f"channel {channel.channel_id} is given back by release, and given to nobody")
            if _identity(channel) != _identity(current):
                raise Conflict(f"channel {channel.channel_id} cannot change its scope or descriptor")
            if channel.authorised < current.authorised:
                raise Conflict(f"authorised of {channel.channel_id} would fall below {current.authorised}")
            if channel.issued < current.issued:
                raise Conflict(f"a voucher of {current.issued} may have left on {channel.channel_id}")
            advance(current.status, channel.status)
            raised = channel.authorised - current.authorised
            if raised and channel.status not in REUSABLE:
                raise Conflict(
                    f"channel {channel.channel_id} is {channel.status}: nothing is authorised on it"
                )
            if raised:
                lineage.check(txn)
            ends = current.status not in FINAL and channel.status in FINAL
            if pin:
                pins.hold(txn, channel)
            charging.charge(
                txn,
                moves,
                raised=raised,
                returnable=_returnable(channel) if ends else {},
                before=current,
                after=channel,
            )
            rows.store(txn, channel)

        await self.commits.transact(work)

    async def delete(self, channel: Channel, counters: Iterable[CounterMove] = ()) -> None:
        """Retire a channel that is closed or failed: no look-up by scope finds it again, a tombstone stays."""
        if channel.status not in FINAL:
            raise Conflict(f"channel {channel.channel_id} is {channel.status}: it may still hold a deposit")
        await self.set(replace(channel, holds={}, held=0), counters)

    async def release(self, channel: Channel) -> None:
        """Give the channel back, with nothing in flight; any process may claim it from now on."""
        if channel.holds:
            raise Conflict(f"channel {channel.channel_id} has requests in flight")
        account.check(channel)

        def work(txn: Transaction) -> None:
            current = rows.load(txn, channel.channel_id)
            if current.owner != self.owner_id or current.epoch != channel.epoch:
                raise Fenced(f"channel {channel.channel_id} has another owner now (epoch {current.epoch})")
            unwritten = channel.authorised != current.authorised or channel.status is not current.status
            unwritten = unwritten or channel.issued < current.issued
            if unwritten or _identity(channel) != _identity(current):
                raise Conflict(f"channel {channel.channel_id} has changes that were not written")
            rows.store(txn, replace(channel, owner=None))

        await self.commits.transact(work)

    async def absorb(
        self, channel: Channel, counters: Iterable[CounterMove] = (), *, reconciles: bool = False
    ) -> None:
        """Write what is known of a channel from elsewhere: an import, a reconciliation.

        ``authorised`` may rise in any status and in a store in doubt, with its counters on whatever dates, but
        nothing becomes free by it. `reconciles`: no voucher over it can have left, so that the channel's part of a
        doubt is settled. Raises `Fenced`, `Conflict`, `lifecycle.IllegalTransition`.
        """
        moves = tuple(counters)
        account.check(channel)

        def work(txn: Transaction) -> None:
            current = rows.load(txn, channel.channel_id)
            if current.owner != self.owner_id or current.epoch != channel.epoch:
                raise Fenced(f"channel {channel.channel_id} has another owner now (epoch {current.epoch})")
            if _identity(channel) != _identity(current) or channel.owner != self.owner_id:
                raise Conflict(f"channel {channel.channel_id} cannot change its scope, descriptor or owner")
            raised = channel.authorised - current.authorised
            if raised < 0 or channel.free > current.free or channel.issued < current.issued:
                raise Conflict(
                    f"nothing from elsewhere lowers or frees what {channel.channel_id} has authorised"
                )
            advance(current.status, channel.status)
            charging.charge(
                txn, moves, raised=raised, returnable={}, before=current, after=channel, of_any_date=True
            )
            rows.store(txn, channel)
            if reconciles:
                lineage.settle(txn, channel.channel_id)

        await self.commits.transact(work)

    async def adopt(self, channel: Channel, counters: Iterable[CounterMove], refund: int = 0) -> None:
        """Put a channel on record that another store had, owned by nobody.

        `counters` take its ``authorised``, on whatever dates; `refund` of it the lifetime budget got back when the
        channel was closed. Raises `Conflict` if the channel is on record.
        """
        moves = tuple(counters)
        channel = replace(channel, owner=None)
        account.check(channel)
        raised = 0 if channel.status is ChannelStatus.FAILED else channel.authorised

        def work(txn: Transaction) -> None:
            if rows.find(txn, channel.channel_id) is not None:
                raise Conflict(f"channel {channel.channel_id} is on record already")
            charging.charge(
                txn, moves, raised=raised, returnable={}, before=None, after=channel, of_any_date=True
            )
            if refund:
                back = budgets.refund_moves(channel.scope.token, refund)
                charging.charge(txn, back, returnable=_returnable(channel), before=None, after=None)
            rows.store(txn, channel)

        await self.commits.transact(work)

    async def revive(self, channel_id: str, change: Callable[[Channel], Channel]) -> Channel | None:
        """Take a tombstone up again that the chain contradicts; `change` is `reviving.revived`.

        Nobody owns it then. None, and nothing is written, if it is no tombstone any more, or was moved elsewhere.
        """

        def work(txn: Transaction) -> Channel | None:
            tombstone = rows.load(txn, channel_id)
            if tombstone.status not in (ChannelStatus.CLOSED, ChannelStatus.FAILED):
                return None
            channel = change(tombstone)
            if _identity(channel) != _identity(tombstone) or channel.status is not ChannelStatus.ASIDE:
                raise Conflict(f"channel {channel_id} can only be set aside when it is taken up again")
            reviving.revive(txn, tombstone, channel)
            return channel

        return await self.commits.transact(work)

    async def count(self, counters: Iterable[CounterMove]) -> None:
        """Move counters that no raise goes with: what a client's day gets back, what an origin did not deliver.

        Raises `LimitExceeded`, `Conflict`; then nothing moved.
        """
        moves = tuple(counters)
        await self.commits.transact(
            lambda txn: charging.charge(txn, moves, returnable={}, before=None, after=None)
        )

    async def forget_pin(self, origin: str) -> bool:
        """The origin's next payee is its first again. False if it was held to none."""
        return await self.commits.transact(lambda txn: pins.forget(txn, origin))

    async def close(self) -> None:
        await self._backend.close()


def _identity(channel: Channel) -> tuple[str, PaymentScope, Mapping[str, str]]:
    return channel.channel_id, channel.scope, channel.descriptor


def _returnable(channel: Channel) -> dict[str, int]:
    """The most that each family of counters gets back as the channel ends: what nobody can take any more."""
    if channel.status is ChannelStatus.FAILED:
        return dict.fromkeys(budgets.RAISED, channel.authorised)
    if channel.captured is None:  # not proven
        return {}
    return {budgets.LIFETIME: max(0, channel.authorised - channel.captured)}


__all__ = [
    "ChannelBusy",
    "ChannelStatus",
    "ChannelStore",
    "Conflict",
    "Fenced",
    "LimitExceeded",
    "ScopeFull",
]
