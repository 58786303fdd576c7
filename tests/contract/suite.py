"""What a store must show before it may be trusted with a wallet: every sentence of `store.contract.Backend`.

For a store of your own, subclass in a test module and say how to open it::

    class TestMine(ProcessContract):
        spec = "mine.store:Store"

`BackendContract` needs `opened` only: each call acts as another process on the same store. `ProcessContract` adds what
only real processes can show; it takes the store by its name in the config.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.backends import open_backend
from store.contract import Backend, StoreError, StoreUnavailable, Transaction
from tests.contract.peers import Peer, peers_on, until

Open = Callable[[], Awaitable[Backend]]


class Refused(Exception):
    """Raised by work on purpose."""


def put(key: bytes, value: bytes) -> Callable[[Transaction], None]:
    return lambda txn: txn.put(key, value)


def get(key: bytes) -> Callable[[Transaction], bytes | None]:
    return lambda txn: txn.get(key)


def scan(prefix: bytes) -> Callable[[Transaction], list[tuple[bytes, bytes]]]:
    return lambda txn: list(txn.scan(prefix))


def increment(txn: Transaction) -> int:
    value = int(txn.get(b"n") or b"0") + 1
    txn.put(b"n", b"%d" % value)
    return value


class BackendContract:
    """One event loop; several openings of one store."""

    spec: str

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Open:
        """How to open the store once more, as another process would."""
        return lambda: open_backend(self.spec, tmp_path / "store")

    @pytest.fixture
    async def opened(self, open_store: Open) -> AsyncIterator[Open]:
        backends: list[Backend] = []

        async def opened() -> Backend:
            backends.append(await open_store())
            return backends[-1]

        yield opened
        for backend in backends:
            await backend.close()

    @pytest.fixture
    async def backend(self, opened: Open) -> Backend:
        return await opened()

    # -- a transaction

    async def test_returns_what_the_work_returned(self, backend: Backend) -> None:
        assert await backend.transact(lambda txn: ("a", 1)) == ("a", 1)
        assert await backend.view(lambda txn: [txn.get(b"absent")]) == [None]

    async def test_keeps_opaque_bytes(self, backend: Backend) -> None:
        pairs = {b"\x00": b"", b"\xff" * 511: b"\x00\xff" * 3000, b"a": bytes(range(256)), b"a\x00": b"1"}

        def work(txn: Transaction) -> None:
            for key, value in pairs.items():
                txn.put(key, value)

        await backend.transact(work)
        for key, value in pairs.items():
            assert await backend.view(get(key)) == value
        assert await backend.view(scan(b"a")) == [(b"a", bytes(range(256))), (b"a\x00", b"1")]

    async def test_empty_and_absent_differ(self, backend: Backend) -> None:
        await backend.transact(put(b"empty", b""))
        assert await backend.view(get(b"empty")) == b""
        assert await backend.view(get(b"absent")) is None

    async def test_sees_what_it_has_put_and_deleted(self, backend: Backend) -> None:
        await backend.transact(put(b"old", b"1"))

        def work(txn: Transaction) -> list[object]:
            seen: list[object] = [txn.get(b"old"), txn.get(b"new")]
            txn.put(b"new", b"2")
            txn.put(b"old", b"3")
            seen += [txn.get(b"old"), txn.get(b"new")]
            txn.delete(b"old")
            txn.delete(b"never was")
            return [*seen, txn.get(b"old")]

        assert await backend.transact(work) == [b"1", None, b"3", b"2", None]
        assert await backend.view(get(b"old")) is None
        assert await backend.view(get(b"new")) == b"2"

    async def test_scans_in_key_order_with_its_own_changes(self, backend: Backend) -> None:
        def fill(txn: Transaction) -> None:
            for key in (b"p/b", b"p/d", b"p/f", b"p0", b"o/z", b"p"):
                txn.put(key, b"stored")

        await backend.transact(fill)

        def work(txn: Transaction) -> list[tuple[bytes, bytes]]:
            txn.put(b"p/a", b"first")
            txn.put(b"p/d", b"changed")
            txn.put(b"p/e", b"between")
            txn.put(b"p/g", b"last")
            txn.put(b"q", b"outside")
            txn.delete(b"p/b")
            txn.delete(b"p/x")
            return list(txn.scan(b"p/"))

        expected = [
            (b"p/a", b"first"),
            (b"p/d", b"changed"),
            (b"p/e", b"between"),
            (b"p/f", b"stored"),
            (b"p/g", b"last"),
        ]
        assert await backend.transact(work) == expected
        assert await backend.view(scan(b"p/")) == expected
        assert await backend.view(scan(b"nothing")) == []
        assert [key for key, _ in await backend.view(scan(b"p"))] == [
            *(b"p", b"p/a", b"p/d", b"p/e", b"p/f", b"p/g", b"p0")
        ]

    async def test_may_change_what_it_scans(self, backend: Backend) -> None:
        def fill(txn: Transaction) -> None:
            for index in range(20):
                txn.put(b"s/%02d" % index, b"x")

        def empty(txn: Transaction) -> int:
            seen = 0
            for key, value in txn.scan(b"s/"):
                seen += 1
                txn.delete(key)
                txn.put(key + b"+", value)
            return seen

        await backend.transact(fill)
        assert await backend.transact(empty) == 20
        assert [key for key, _ in await backend.view(scan(b"s/"))] == [b"s/%02d+" % n for n in range(20)]

    @pytest.mark.parametrize("key", [b"", b"k" * 512])
    async def test_refuses_keys_it_cannot_keep(self, backend: Backend, key: bytes) -> None:
        def work(txn: Transaction) -> None:
            txn.put(b"before", b"1")
            txn.put(key, b"1")

        with pytest.raises((ValueError, StoreError)):
            await backend.transact(work)
        assert await backend.view(get(b"before")) is None

    # -- all or nothing

    async def test_work_that_raises_leaves_nothing(self, backend: Backend) -> None:
        await backend.transact(put(b"a", b"before"))
        error = Refused()

        def work(txn: Transaction) -> None:
            txn.put(b"a", b"after")
            txn.put(b"b", b"after")
            raise error

        with pytest.raises(Refused) as raised:
            await backend.transact(work)
        assert raised.value is error
        assert await backend.view(get(b"a")) == b"before"
        assert await backend.view(get(b"b")) is None

    @pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError(), SystemExit(3)], ids=repr)
    async def test_awkward_exceptions_reach_their_caller(
        self, backend: Backend, error: BaseException
    ) -> None:
        def work(txn: Transaction) -> None:
            txn.put(b"a", b"1")
            raise error

        with pytest.raises((type(error), RuntimeError)):
            await asyncio.wait_for(asyncio.ensure_future(_shielded(backend.transact(work))), 30)
        assert await backend.view(get(b"a")) is None
        assert await backend.transact(increment) == 1

    async def test_work_that_raises_does_not_touch_its_neighbours(self, backend: Backend) -> None:
        def work(index: int) -> Callable[[Transaction], int]:
            def run(txn: Transaction) -> int:
                txn.put(b"x", b"%d" % index)
                txn.put(b"w/%03d" % index, b"1")
                if index % 3 == 0:
                    raise Refused(index)
                return increment(txn)

            return run

        results = await asyncio.gather(
            *(backend.transact(work(index)) for index in range(60)), return_exceptions=True
        )
        for index, result in enumerate(results):
            if index % 3 == 0:
                assert isinstance(result, Refused)
                assert result.args == (index,)
        counted = [result for result in results if isinstance(result, int)]
        assert sorted(counted) == list(range(1, 41))
        assert {int(key[2:]) for key, _ in await backend.view(scan(b"w/"))} == {
            index for index in range(60) if index % 3
        }
        last = await backend.view(get(b"x"))
        assert last is not None
        assert int(last) % 3

    async def test_runs_each_work_alone(self, opened: Open) -> None:
        first, second = await opened(), await opened()
        results = await asyncio.gather(
            *(backend.transact(increment) for _ in range(50) for backend in (first, second))
        )
        assert sorted(results) == list(range(1, 101))

    async def test_sees_every_commit_that_returned(self, opened: Open) -> None:
        first, second = await opened(), await opened()
        for index in range(1, 11):
            writer, reader = (first, second) if index % 2 else (second, first)
            assert await writer.transact(increment) == index
            assert await reader.view(get(b"n")) == b"%d" % index

    async def test_a_cancelled_caller_leaves_all_or_nothing(self, backend: Backend) -> None:
        def work(txn: Transaction) -> None:
            txn.put(b"one", b"1")
            txn.put(b"two", b"1")

        task = asyncio.ensure_future(backend.transact(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await backend.transact(increment) == 1
        assert await backend.view(get(b"one")) == await backend.view(get(b"two"))

    async def test_a_transaction_ends_with_its_work(self, backend: Backend) -> None:
        kept: list[Transaction] = []
        await backend.transact(put(b"a", b"1"))

        def leak(txn: Transaction) -> Iterator[tuple[bytes, bytes]]:
            kept.append(txn)
            return txn.scan(b"a")

        scans = [await backend.transact(leak), await backend.view(leak)]
        for txn in kept:
            with pytest.raises(StoreError):
                txn.get(b"a")
            with pytest.raises(StoreError):
                txn.put(b"a", b"2")
            with pytest.raises(StoreError):
                txn.delete(b"a")
            with pytest.raises(StoreError):
                txn.scan(b"a")
        for scanned in scans:
            with pytest.raises(StoreError):
                next(scanned)
        assert await backend.view(get(b"a")) == b"1"

    # -- a view

    @pytest.mark.parametrize(
        "write", [lambda txn: txn.put(b"a", b"2"), lambda txn: txn.delete(b"a")], ids=["put", "delete"]
    )
    async def test_a_view_refuses_to_write(
        self, backend: Backend, write: Callable[[Transaction], Any]
    ) -> None:
        await backend.transact(put(b"a", b"1"))
        with pytest.raises(StoreError):
            await backend.view(write)
        assert await backend.view(get(b"a")) == b"1"

    async def test_a_view_raises_what_its_work_raised(self, backend: Backend) -> None:
        def work(txn: Transaction) -> None:
            raise Refused

        with pytest.raises(Refused):
            await backend.view(work)
        assert await backend.view(get(b"a")) is None

    async def test_views_while_commits_run_are_consistent(self, backend: Backend) -> None:
        def both(index: int) -> Callable[[Transaction], None]:
            def work(txn: Transaction) -> None:
                txn.put(b"left", b"%d" % index)
                txn.put(b"right", b"%d" % index)

            return work

        def look(txn: Transaction) -> tuple[bytes | None, bytes | None]:
            return txn.get(b"left"), txn.get(b"right")

        writing = asyncio.gather(*(backend.transact(both(index)) for index in range(100)))
        looked = 0
        while not writing.done() or not looked:
            left, right = await backend.view(look)
            assert left == right
            looked += 1
            await asyncio.sleep(0)
        await writing
        assert await backend.view(look) == (b"99", b"99")

    # -- owners, and the end

    async def test_an_owner_lives_until_it_closes(self, opened: Open) -> None:
        first, second = await opened(), await opened()
        assert first.owner_id != second.owner_id
        assert first.alive(first.owner_id)
        assert first.alive(second.owner_id)
        assert second.alive(first.owner_id)
        await second.close()
        assert not first.alive(second.owner_id)
        assert not second.alive(second.owner_id)
        assert second.owner_id  # still readable
        third = await opened()
        assert third.owner_id not in (first.owner_id, second.owner_id)

    @pytest.mark.parametrize("owner_id", ["", "0" * 32, "../" * 5, "\x00", "n" * 1000, "../store"])
    async def test_nobody_is_dead(self, backend: Backend, owner_id: str) -> None:
        assert not backend.alive(owner_id)

    async def test_close_finishes_what_was_handed_in(self, opened: Open) -> None:
        backend, other = await opened(), await opened()

        def slowly(txn: Transaction) -> int:
            time.sleep(0.02)  # so that close overtakes, if it can
            return increment(txn)

        works = [increment, slowly, increment, slowly]
        tasks = [asyncio.ensure_future(backend.transact(work)) for work in works * 5]
        await asyncio.sleep(0)
        await backend.close()
        assert await other.view(get(b"n")) == b"20", "close returned before it had finished"
        assert sorted(await asyncio.gather(*tasks)) == list(range(1, 21))

    async def test_close_is_idempotent_and_final(self, opened: Open) -> None:
        backend, other = await opened(), await opened()
        await asyncio.gather(backend.close(), backend.close())
        await backend.close()
        with pytest.raises(StoreUnavailable):
            await backend.transact(increment)
        with pytest.raises(StoreUnavailable):
            await backend.view(get(b"n"))
        assert await other.transact(increment) == 1  # the other one goes on


async def _shielded(call: Awaitable[Any]) -> Any:
    """Exceptions that would end the loop, as others."""
    try:
        return await call
    except (SystemExit, asyncio.CancelledError) as error:
        raise RuntimeError from error


class ProcessContract(BackendContract):
    """What only real processes can show. They run `tests.contract.peer`."""

    kills = 3

    @pytest.fixture
    async def peer(self, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Peer]]]:
        async with peers_on(self.spec, tmp_path / "store") as start:
            yield start

    async def test_keeps_what_it_acknowledged(self, opened: Open) -> None:
        backend = await opened()
        await backend.transact(put(b"a", b"1"))
        await backend.close()
        gc.collect()
        again = await opened()
        assert await again.view(get(b"a")) == b"1"

    async def test_a_killed_process_has_lost_nothing(
        self, opened: Open, peer: Callable[[], Awaitable[Peer]]
    ) -> None:
        acknowledged: set[int] = set()
        for _ in range(self.kills):
            writer = await peer()
            await writer.send("load", max(acknowledged, default=0) + 1, 16)
            acknowledged |= await writer.kill_after_acks(100)
        backend = await opened()
        left = {int(key[2:]) for key, _ in await backend.view(scan(b"l/"))}
        right = {int(key[2:]) for key, _ in await backend.view(scan(b"r/"))}
        assert len(acknowledged) >= self.kills * 100
        assert acknowledged <= left
        assert left == right, "half of a transaction is there"
        assert await backend.transact(increment) == 1, "the dead process's lock is in the way"

    async def test_a_dead_owner_is_not_alive(
        self, backend: Backend, peer: Callable[[], Awaitable[Peer]]
    ) -> None:
        one, two = await peer(), await peer()
        assert backend.alive(one.owner_id)
        assert await two.call("alive", one.owner_id)
        assert await two.call("alive", backend.owner_id)
        await one.call("child")  # a process it started, which outlives it
        await one.kill()
        assert not backend.alive(one.owner_id)
        assert not await two.call("alive", one.owner_id)
        assert backend.alive(two.owner_id)
        await two.call("close")
        assert not backend.alive(two.owner_id)

    async def test_commits_are_seen_by_all_processes(
        self, backend: Backend, peer: Callable[[], Awaitable[Peer]]
    ) -> None:
        one, two = await peer(), await peer()
        await backend.transact(put(b"a", b"1"))
        assert await one.call("get", "a") == "1"
        await one.call("put", "a", "2")
        assert await two.call("get", "a") == "2"
        assert await backend.view(get(b"a")) == b"2"

    async def test_an_open_transaction_is_seen_by_nobody(
        self, backend: Backend, peer: Callable[[], Awaitable[Peer]], tmp_path: Path
    ) -> None:
        await backend.transact(put(b"a", b"before"))
        inside, gate = tmp_path / "inside", tmp_path / "gate"
        writer = await peer()
        await writer.send("slow", "a", "after", str(inside), str(gate))
        await until(inside.exists)
        assert await backend.view(get(b"a")) == b"before"
        waiting = asyncio.ensure_future(backend.transact(get(b"a")))
        gate.touch()
        assert await waiting == b"after", "work ran beside an open transaction"
        assert await writer.answer() is None
        assert await backend.view(get(b"a")) == b"after"

    async def test_a_process_killed_inside_its_work_leaves_nothing(
        self, backend: Backend, peer: Callable[[], Awaitable[Peer]], tmp_path: Path
    ) -> None:
        inside = tmp_path / "inside"
        writer = await peer()
        await writer.send("slow", "a", "1", str(inside), str(tmp_path / "never"))
        await until(inside.exists)
        await writer.kill()
        assert await asyncio.wait_for(backend.transact(get(b"a")), 30) is None

    async def test_processes_take_turns(self, backend: Backend, peer: Callable[[], Awaitable[Peer]]) -> None:
        one, two = await peer(), await peer()
        await one.send("increment", 100, 8)
        await two.send("increment", 100, 8)
        mine = await asyncio.gather(*(backend.transact(increment) for _ in range(100)))
        seen = [*mine, *await one.answer(), *await two.answer()]
        assert sorted(seen) == list(range(1, 301))
