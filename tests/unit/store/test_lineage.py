"""What a store says of itself: read back as it was written; a store in doubt authorises nothing."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from store import lineage, rows
from store.codec import seal
from store.contract import Transaction, UnknownVersion
from store.lifecycle import FINAL, ChannelStatus
from store.lineage import BACKUP_KEY, Backup, NotReconciled, OldCopy, Stamp
from store.memory_store import MemoryBackend
from tests.properties.bank import proposed, scope_of


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.mark.parametrize("in_use", [True, False])
async def test_a_backup_says_what_it_is_until_it_was_judged(backend: MemoryBackend, in_use: bool) -> None:
    one = Backup(1_800_000_000_000, 7, in_use)
    assert await backend.view(lineage.backup) is None
    await backend.transact(lambda txn: txn.put(BACKUP_KEY, lineage.encode_backup(one)))
    assert await backend.view(lineage.backup) == one
    assert (await backend.view(lineage.standing)).backup == one
    await backend.transact(lineage.judged)
    await backend.transact(lineage.judged)
    assert await backend.view(lineage.backup) is None


@pytest.mark.parametrize(
    "row", [[], {}, None, [1, 2], [1, 2, 1], ["1", 2, True], [1, "2", True], [1, 2, True, 0]]
)
async def test_a_backup_of_another_kind_is_refused(backend: MemoryBackend, row: object) -> None:
    await backend.transact(lambda txn: txn.put(BACKUP_KEY, seal(orjson.dumps(row))))
    with pytest.raises(UnknownVersion, match="the mark of a backup"):
        await backend.view(lineage.backup)


async def test_a_stamp_is_read_back(backend: MemoryBackend) -> None:
    assert await backend.view(lineage.stamp) is None
    for one in (Stamp("a"), Stamp("b", "a")):
        await backend.transact(lambda txn, one=one: lineage.set_stamp(txn, one))  # type: ignore[misc]
        assert await backend.view(lineage.stamp) == one


@pytest.mark.parametrize("row", [[], {}, "ab", ["a"], ["a", "b", "c"], ["a", None], [1, "b"]])
async def test_a_stamp_of_another_kind_is_refused(backend: MemoryBackend, row: object) -> None:
    await backend.transact(lambda txn: txn.put(b"l/stamp", seal(orjson.dumps(row))))
    with pytest.raises(UnknownVersion, match="a row of the store's standing"):
        await backend.view(lineage.stamp)


async def test_a_doubt_is_lifted_when_nothing_is_left_of_it(backend: MemoryBackend) -> None:
    channels = [
        replace(proposed(f"0x{index:02}", scope_of(), authorised=10), status=status)
        for index, status in enumerate(ChannelStatus)
    ]
    waiting = tuple(one.channel_id for one in channels if one.status not in FINAL)

    def begin(txn: Transaction) -> None:
        lineage.set_stamp(txn, Stamp("old"))
        for one in channels:
            rows.store(txn, one)
        lineage.check(txn)
        lineage.put_in_doubt(txn, "it is an older copy")

    await backend.transact(begin)
    assert await backend.view(lineage.doubt) == "it is an older copy"
    assert await backend.view(lineage.left) == waiting
    with pytest.raises(OldCopy, match="it is an older copy"):
        await backend.transact(lineage.check)
    for count, name in enumerate(waiting):
        remaining = waiting[count:]
        says = f"^{len(remaining)} channels are not reconciled yet: {', '.join(remaining[:5])}"
        with pytest.raises(NotReconciled, match=says + ("…$" if len(remaining) > 5 else "$")):
            await backend.transact(lambda txn: lineage.lift(txn, "new"))
        assert await backend.view(lineage.doubt) is not None
        await backend.transact(lambda txn, name=name: lineage.settle(txn, name))  # type: ignore[misc]
    assert await backend.transact(lambda txn: lineage.lift(txn, "new")) == Stamp("new", "old")
    assert await backend.view(lineage.stamp) == Stamp("new", "old")
    assert await backend.view(lineage.doubt) is None
    await backend.transact(lineage.check)


async def test_a_store_without_a_stamp_gets_its_first(backend: MemoryBackend) -> None:
    assert await backend.transact(lambda txn: lineage.lift(txn, "new")) == Stamp("new", "")
