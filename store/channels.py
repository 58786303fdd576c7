"""The channel store: every rule about durable money, over any `Backend`.

``get`` / ``set`` / ``delete`` by payment scope, plus what several processes need: one owner per channel, an
epoch that each commit checks, budget counters that move in the same commit as ``authorised``.

Each coroutine is one transaction: when it returns, all of it is durable; if it raises, nothing of it was
written; after a crash inside it, all or nothing is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from store import account, budgets
from store.codec import decode_channel, decode_int, encode_channel, encode_int
from store.contract import Backend, StoreError, Transaction
from store.lifecycle import FINAL, PENDING_OPEN, REUSABLE, ChannelStatus, advance
from store.records import Channel, CounterMove, JournalMark, PaymentScope

_CHANNEL: Final = b"c/"
_SCOPE: Final = b"s/"
_SHORT: Final = b"k/"
_COUNTER: Final = b"b/"

Recover = Callable[[Channel], Channel]


class LimitExceeded(StoreError):
    """A budget counter would pass its limit; nothing moved."""

    def __init__(self, move: CounterMove, used: int) -> None:
        self.move, self.used = move, used
        super().__init__(
            f"{move.rule or move.key}: {used} used of {move.limit}, {move.amount} more would pass it (base units)"
        )


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


class Conflict(StoreError):
    """The record was not what the caller believed it to be."""


class ChannelStore:
    """What the payer knows of durable money."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def owner_id(self) -> str:
        return self._backend.owner_id

    # -- reading

    async def get(self, scope: PaymentScope) -> Channel | None:
        """The channel to go on with: an open one before one whose opening is pending; else None."""
        found = await self.of_scope(scope)
        usable = [channel for channel in found if channel.status in REUSABLE]
        return min(usable, key=lambda c: (c.status in PENDING_OPEN, c.opened_at), default=None)

    async def of_scope(self, scope: PaymentScope) -> tuple[Channel, ...]:
        """All channels of the scope that are not tombstones, oldest first."""
        return await self._backend.view(lambda txn: _of_scope(txn, scope))

    async def of_short_key(self, short_key: str) -> tuple[Channel, ...]:
        """All channels, tombstones too, under ``payee:token:escrow:chainId``: the payer, signer and origin differ."""

        def work(txn: Transaction) -> tuple[Channel, ...]:
            prefix = _SHORT + short_key.encode() + b"/"
            ids = (key[len(prefix) :].decode() for key, _ in txn.scan(prefix))
            return tuple(sorted((_load(txn, one) for one in ids), key=_age))

        return await self._backend.view(work)

    async def find(self, channel_id: str) -> Channel | None:
        return await self._backend.view(lambda txn: _maybe(txn, channel_id))

    async def all(self) -> tuple[Channel, ...]:
        """Every channel on record, tombstones too, oldest first."""

        def work(txn: Transaction) -> tuple[Channel, ...]:
            return tuple(sorted((decode_channel(value) for _, value in txn.scan(_CHANNEL)), key=_age))

        return await self._backend.view(work)

    async def counters(self, prefix: str = "") -> dict[str, int]:
        """Budget counters by key (see `budgets`)."""

        def work(txn: Transaction) -> dict[str, int]:
            pairs = txn.scan(_COUNTER + prefix.encode())
            return {key[len(_COUNTER) :].decode(): decode_int(value) for key, value in pairs}

        return await self._backend.view(work)

    def is_busy(self, channel: Channel) -> bool:
        """Does a living process other than this one own the channel?"""
        owner = channel.owner
        return owner is not None and owner != self.owner_id and self._backend.alive(owner)

    # -- writing

    async def propose(
        self, channel: Channel, counters: Iterable[CounterMove], *, max_channels: int
    ) -> Channel:
        """Put a new opening on record, owned by this process, before anything of it leaves.

        After a crash the opening transaction and the salt are in the record: the deposit can be found.
        Raises `ScopeFull` (also while another opening of the scope is pending) and `LimitExceeded`.
        """
        moves = tuple(counters)
        channel = replace(channel, owner=self.owner_id, epoch=1)
        account.check(channel)

        def work(txn: Transaction) -> Channel:
            if _maybe(txn, channel.channel_id) is not None:
                raise Conflict(f"channel {channel.channel_id} is on record already")
            others = _of_scope(txn, channel.scope)
            if any(other.status in PENDING_OPEN for other in others):
                raise ScopeFull("an opening of this scope is on its way; its outcome decides")
            if sum(other.status in REUSABLE for other in others) >= max_channels:
                raise ScopeFull(f"the scope has max_channels_per_scope = {max_channels} channels, all in use")
            _charge(txn, moves, raised=channel.authorised, returnable={})
            _store(txn, channel)
            return channel

        return await self._backend.transact(work)

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
            channel = _load(txn, channel_id)
            if channel.owner is not None:
                if channel.owner != self.owner_id and self._backend.alive(channel.owner):
                    raise ChannelBusy(channel)
                recovered = recover(channel)
                account.check(recovered)
                if recovered.authorised != channel.authorised:
                    raise Conflict(f"recovery must not change authorised of {channel_id}")
                if _identity(recovered) != _identity(channel):
                    raise Conflict(f"recovery must not change what channel {channel_id} is")
                advance(channel.status, recovered.status)
                channel = recovered if mark is None else replace(recovered, folded=mark)
            else:
                # The record's mark is in the journal of whoever gave it back; what comes now is in ours.
                channel = replace(channel, folded=mark)
            channel = replace(channel, owner=self.owner_id, epoch=channel.epoch + 1)
            _store(txn, channel)
            return channel

        return await self._backend.transact(work)

    async def set(self, channel: Channel, counters: Iterable[CounterMove] = ()) -> None:
        """Write the record back, and with it the counters that its raise moves.

        Raises `Fenced` (another owner), `LimitExceeded`, `Conflict` (``authorised`` would fall, or was raised
        without its counters or on a channel that pays nothing any more; counters would get back what was not
        taken, or twice), `lifecycle.IllegalTransition`. Only after it returned may anything up to the new
        ``authorised`` be signed.
        """
        moves = tuple(counters)
        account.check(channel)

        def work(txn: Transaction) -> None:
            current = _load(txn, channel.channel_id)
            if current.owner != self.owner_id or current.epoch != channel.epoch:
                raise Fenced(f"channel {channel.channel_id} has another owner now (epoch {current.epoch})")
            if channel.owner != self.owner_id:
                raise Conflict(f"channel {channel.channel_id} is given back by release, and given to nobody")
            if _identity(channel) != _identity(current):
                raise Conflict(f"channel {channel.channel_id} cannot change its scope or descriptor")
            if channel.authorised < current.authorised:
                raise Conflict(f"authorised of {channel.channel_id} would fall below {current.authorised}")
            advance(current.status, channel.status)
            raised = channel.authorised - current.authorised
            if raised and channel.status not in REUSABLE:
                raise Conflict(
                    f"channel {channel.channel_id} is {channel.status}: nothing is authorised on it"
                )
            ends = current.status not in FINAL and channel.status in FINAL
            _charge(txn, moves, raised=raised, returnable=_returnable(channel) if ends else {})
            _store(txn, channel)

        await self._backend.transact(work)

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
            current = _load(txn, channel.channel_id)
            if current.owner != self.owner_id or current.epoch != channel.epoch:
                raise Fenced(f"channel {channel.channel_id} has another owner now (epoch {current.epoch})")
            unwritten = channel.authorised != current.authorised or channel.status is not current.status
            if unwritten or _identity(channel) != _identity(current):
                raise Conflict(f"channel {channel.channel_id} has changes that were not written")
            _store(txn, replace(channel, owner=None))

        await self._backend.transact(work)

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


def _age(channel: Channel) -> tuple[int, str]:
    return channel.opened_at, channel.channel_id


def _maybe(txn: Transaction, channel_id: str) -> Channel | None:
    value = txn.get(_CHANNEL + channel_id.encode())
    return None if value is None else decode_channel(value)


def _load(txn: Transaction, channel_id: str) -> Channel:
    channel = _maybe(txn, channel_id)
    if channel is None:
        raise Conflict(f"no channel {channel_id} on record")
    return channel


def _scope_prefix(scope: PaymentScope) -> bytes:
    # Hashed: a scope's readable key can be longer than a store's keys may be. The record has it in full.
    return _SCOPE + hashlib.sha256(scope.key.encode()).hexdigest().encode() + b"/"


def _of_scope(txn: Transaction, scope: PaymentScope) -> tuple[Channel, ...]:
    prefix = _scope_prefix(scope)
    found = (_load(txn, key[len(prefix) :].decode()) for key, _ in txn.scan(prefix))
    return tuple(sorted((channel for channel in found if channel.scope == scope), key=_age))


def _store(txn: Transaction, channel: Channel) -> None:
    name = channel.channel_id.encode()
    txn.put(_CHANNEL + name, encode_channel(channel))
    by_scope = _scope_prefix(channel.scope) + name
    indexed = txn.get(by_scope) is not None
    if channel.status in FINAL:
        if indexed:
            txn.delete(by_scope)
    elif not indexed:
        txn.put(by_scope, b"")
        txn.put(_SHORT + channel.scope.short_key.encode() + b"/" + name, b"")


def _charge(
    txn: Transaction, moves: tuple[CounterMove, ...], *, raised: int, returnable: Mapping[str, int]
) -> None:
    """Move the counters, each within its limit; money that is authorised must be on all of them."""
    charged = {
        family: sum(move.amount for move in moves if move.key.startswith(family)) for family in budgets.RAISED
    }
    for family, amount in charged.items():
        # A raise is charged exactly; only a close or a failed opening gives back, once.
        if amount != raised and (raised or not -returnable.get(family, 0) <= amount <= 0):
            raise Conflict(f"a raise of {raised} was charged as {amount} to the {family.rstrip('/')} budget")
    refunded = sum(move.amount for move in moves if move.key.startswith(budgets.REFUNDED))
    if refunded and refunded != -charged[budgets.LIFETIME]:
        raise Conflict(
            f"{refunded} refunded, but {-charged[budgets.LIFETIME]} given back to the lifetime budget"
        )
    for move in moves:
        key = _COUNTER + move.key.encode()
        value = txn.get(key)
        used = 0 if value is None else decode_int(value)
        if move.amount > 0 and move.limit is not None and used + move.amount > move.limit:
            raise LimitExceeded(move, used)
        if used + move.amount < min(used, 0):
            raise Conflict(f"{move.key} has {used}, {-move.amount} cannot be given back to it")
        txn.put(key, encode_int(used + move.amount))


__all__ = [
    "ChannelBusy",
    "ChannelStatus",
    "ChannelStore",
    "Conflict",
    "Fenced",
    "LimitExceeded",
    "ScopeFull",
]
