"""What the memory store has beyond the contract: processes that die, commits that fail."""

from __future__ import annotations

import asyncio

import pytest

from store import marker
from store.codec import decode_int
from store.contract import StoreUnavailable, Transaction
from store.memory_store import MemoryBackend, SharedMemory
from tests.contract.suite import get, increment, put


def commits(txn: Transaction) -> int:
    return decode_int(txn.get(marker.COMMITS_KEY) or b"")


async def test_a_kill_loses_what_was_not_committed() -> None:
    shared = SharedMemory()
    dying, other = MemoryBackend(shared), MemoryBackend(shared)
    await dying.transact(put(b"a", b"1"))
    waiting = asyncio.ensure_future(dying.transact(put(b"a", b"2")))
    await asyncio.sleep(0)
    dying.kill()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    waiting.cancel()
    assert not other.alive(dying.owner_id)
    assert await other.view(get(b"a")) == b"1"
    with pytest.raises(StoreUnavailable, match="killed"):
        await dying.view(get(b"a"))
    with pytest.raises(StoreUnavailable, match="killed"):
        await dying.transact(increment)
    await dying.close()
    dying.kill(landed=True)


async def test_a_kill_may_come_after_the_commit_and_before_the_answer() -> None:
    shared = SharedMemory()
    dying, other = MemoryBackend(shared), MemoryBackend(shared)
    waiting = asyncio.ensure_future(dying.transact(put(b"a", b"2")))
    await asyncio.sleep(0)
    dying.kill(landed=True)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    waiting.cancel()
    assert await other.view(get(b"a")) == b"2"


async def test_a_failed_commit_keeps_nothing() -> None:
    shared = SharedMemory()
    backend = MemoryBackend(shared)
    before = await backend.view(commits)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    def raising(txn: Transaction) -> None:
        txn.put(b"b", b"1")
        raise LookupError

    shared.before_commit = fail
    results = await asyncio.gather(
        *(backend.transact(work) for work in (put(b"a", b"1"), increment, raising)), return_exceptions=True
    )
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable, LookupError]
    assert results[0] is not results[1]
    assert "No space left" in str(results[0])
    assert await backend.transact(get(b"a")) is None, "nothing to commit, so nothing can fail"
    shared.before_commit = None
    assert await backend.transact(increment) == 1
    assert await backend.view(commits) == before + 1


async def test_one_turn_of_the_loop_is_one_commit() -> None:
    backend = MemoryBackend()
    before = await backend.view(commits)
    await asyncio.gather(*(backend.transact(increment) for _ in range(64)))
    assert await backend.view(commits) == before + 1
    assert await backend.view(get(b"n")) == b"64"


async def test_transact_lets_others_run() -> None:
    """As a store on a disk does: code that only works when nothing can come between shows in tests."""
    backend = MemoryBackend()
    seen: list[str] = []

    async def other() -> None:
        seen.append("other")

    task = asyncio.ensure_future(other())
    await backend.transact(increment)
    seen.append("back")
    await task
    assert seen == ["other", "back"]


@pytest.mark.parametrize("key", sorted(marker.KEYS))
async def test_its_own_keys_are_only_read(key: bytes) -> None:
    backend = MemoryBackend()
    for work in (put(key, b"1"), lambda txn: txn.delete(key)):
        with pytest.raises(Exception, match="kept by the store itself"):
            await backend.transact(work)
    assert await backend.view(get(key)) is not None
