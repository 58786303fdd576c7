"""The rows of channels inside a transaction: the record by its id, and the two indexes that find it by its scope."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from store.charging import CHANNEL, Conflict
from store.codec import decode_channel, encode_channel
from store.contract import Transaction
from store.lifecycle import FINAL
from store.records import Channel, PaymentScope

_SCOPE: Final = b"s/"
_SHORT: Final = b"k/"


def age(channel: Channel) -> tuple[int, str]:
    """For sorting, oldest first."""
    return channel.opened_at, channel.channel_id


def all_of(txn: Transaction) -> tuple[Channel, ...]:
    return tuple(sorted((decode_channel(value) for _, value in txn.scan(CHANNEL)), key=age))


def unfinished_ids(txn: Transaction) -> list[str]:
    """Of those that are no tombstones."""
    return [key.rpartition(b"/")[2].decode() for key, _ in txn.scan(_SCOPE)]


def unfinished(txn: Transaction, ids: Iterable[str]) -> list[Channel]:
    """Those of them that are no tombstones by now."""
    found = (load(txn, channel_id) for channel_id in ids)
    return [channel for channel in found if channel.status not in FINAL]


def find(txn: Transaction, channel_id: str) -> Channel | None:
    value = txn.get(CHANNEL + channel_id.encode())
    return None if value is None else decode_channel(value)


def load(txn: Transaction, channel_id: str) -> Channel:
    """Raises `Conflict` if it is not on record."""
    channel = find(txn, channel_id)
    if channel is None:
        raise Conflict(f"no channel {channel_id} on record")
    return channel


def of_scope(txn: Transaction, scope: PaymentScope) -> tuple[Channel, ...]:
    """Those that are no tombstones, oldest first."""
    prefix = _scope_prefix(scope)
    found = (load(txn, key[len(prefix) :].decode()) for key, _ in txn.scan(prefix))
    return tuple(sorted((channel for channel in found if channel.scope == scope), key=age))


def of_short_key(txn: Transaction, short_key: str) -> tuple[Channel, ...]:
    """All, tombstones too, oldest first."""
    prefix = _SHORT + short_key.encode() + b"/"
    ids = (key[len(prefix) :].decode() for key, _ in txn.scan(prefix))
    return tuple(sorted((load(txn, one) for one in ids), key=age))


def store(txn: Transaction, channel: Channel) -> None:
    """Write the record; a tombstone is not found by its scope any more."""
    name = channel.channel_id.encode()
    txn.put(CHANNEL + name, encode_channel(channel))
    by_scope = _scope_prefix(channel.scope) + name
    indexed = txn.get(by_scope) is not None
    if channel.status in FINAL:
        if indexed:
            txn.delete(by_scope)
    elif not indexed:
        txn.put(by_scope, b"")
        txn.put(_SHORT + channel.scope.short_key.encode() + b"/" + name, b"")


def _scope_prefix(scope: PaymentScope) -> bytes:
    # Hashed: a scope's readable key can be longer than a store's keys may be. The record has it in full.
    return _SCOPE + hashlib.sha256(scope.key.encode()).hexdigest().encode() + b"/"
