"""Is this store the last one, or an older copy of it? What the store itself keeps for the answer.

A store carries a *stamp*, made at random. The seal beside the key (`seal`) remembers it, with a lower bound of the
number of commits. An old copy has fewer commits than that; and since a store that was reconciled after it had been
put back gets a new stamp, copies from before are told from it for ever.

A store that is found to be old is *in doubt*, durably: nothing is authorised in it (`channels`) or signed
(`payer`). Each channel that may hold a deposit has to be reconciled; with the last one the doubt can be lifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from store import marker
from store.charging import CHANNEL
from store.codec import decode_channel, decode_int, seal, unseal
from store.contract import StoreError, Transaction, UnknownVersion
from store.lifecycle import FINAL

_STAMP: Final = b"l/stamp"
_DOUBT: Final = b"l/doubt"
_LEFT: Final = b"l/left/"
BACKUP_KEY: Final = b"l/backup"
"""Written into a backup, and nowhere else; gone once a process has judged whether it is the last copy."""


class OldCopy(StoreError):
    """The store is in doubt: nothing is authorised in it until it is reconciled. The message says why."""


class NotReconciled(StoreError):
    """The doubt cannot be lifted yet; the message names the channels that are left."""


@dataclass(frozen=True, slots=True)
class Stamp:
    current: str
    former: str = ""  # the one before it, if there was: a crash may come before the seal has the new one


@dataclass(frozen=True, slots=True)
class Backup:
    """This is a backup that was put in place: as the store was at that time (ms), after so many commits."""

    taken_at: int
    commits: int
    in_use: bool  # by a process that may have gone on


@dataclass(frozen=True, slots=True)
class Standing:
    """What a store says of itself."""

    store_id: str
    commits: int | None  # None: a third party's store, which counts none
    stamp: Stamp | None  # None: no process has sealed it yet
    doubt: str | None  # why nothing is authorised in it
    backup: Backup | None = None


def standing(txn: Transaction) -> Standing:
    store_id = txn.get(marker.STORE_ID_KEY)
    return Standing(
        store_id="" if store_id is None else store_id.decode(),
        commits=commits(txn),
        stamp=stamp(txn),
        doubt=doubt(txn),
        backup=backup(txn),
    )


def commits(txn: Transaction) -> int | None:
    """How many commits there were before this one."""
    value = txn.get(marker.COMMITS_KEY)
    return None if value is None else decode_int(value)


def stamp(txn: Transaction) -> Stamp | None:
    value = txn.get(_STAMP)
    if value is None:
        return None
    current, former = _texts(value, 2)
    return Stamp(current, former)


def set_stamp(txn: Transaction, new: Stamp) -> None:
    txn.put(_STAMP, seal(orjson.dumps([new.current, new.former])))


def backup(txn: Transaction) -> Backup | None:
    value = txn.get(BACKUP_KEY)
    if value is None:
        return None
    row: Any = orjson.loads(unseal(value, "backup's mark"))
    match row:
        case [int(taken_at), int(commits_then), bool(in_use)]:
            return Backup(taken_at, commits_then, in_use)
        case _:
            raise UnknownVersion("the mark of a backup in the store is none that this bursar writes")


def encode_backup(one: Backup) -> bytes:
    return seal(orjson.dumps([one.taken_at, one.commits, one.in_use]))


def judged(txn: Transaction) -> None:
    """It was looked whether the store is the last one: it is no backup any more, but the store, or in doubt."""
    if txn.get(BACKUP_KEY) is not None:
        txn.delete(BACKUP_KEY)


def doubt(txn: Transaction) -> str | None:
    value = txn.get(_DOUBT)
    return None if value is None else _texts(value, 1)[0]


def check(txn: Transaction) -> None:
    """Raises `OldCopy` if the store is in doubt."""
    why = doubt(txn)
    if why is not None:
        raise OldCopy(why)


def put_in_doubt(txn: Transaction, why: str) -> None:
    """From this commit on nothing is authorised, and each channel that may hold a deposit is to be reconciled."""
    txn.put(_DOUBT, seal(orjson.dumps([why])))
    for key, value in txn.scan(CHANNEL):
        if decode_channel(value).status not in FINAL:
            txn.put(_LEFT + key[len(CHANNEL) :], b"")


def left(txn: Transaction) -> tuple[str, ...]:
    """The channels that are still to be reconciled."""
    return tuple(key[len(_LEFT) :].decode() for key, _ in txn.scan(_LEFT))


def settle(txn: Transaction, channel_id: str) -> None:
    """This channel is reconciled."""
    txn.delete(_LEFT + channel_id.encode())


def lift(txn: Transaction, new_stamp: str) -> Stamp:
    """End the doubt. Raises `NotReconciled` while a channel is left.

    The new stamp tells this store from every copy that was made of it before.
    """
    remaining = left(txn)
    if remaining:
        raise NotReconciled(
            f"{len(remaining)} channels are not reconciled yet: {', '.join(remaining[:5])}"
            + ("…" if len(remaining) > 5 else "")
        )
    txn.delete(_DOUBT)
    before = stamp(txn)
    after = Stamp(new_stamp, "" if before is None else before.current)
    set_stamp(txn, after)
    return after


def _texts(value: bytes, count: int) -> list[str]:
    row: Any = orjson.loads(unseal(value, "row of the store's standing"))
    if type(row) is not list or len(row) != count or any(type(one) is not str for one in row):
        raise UnknownVersion("a row of the store's standing is none that this bursar writes")
    return row
