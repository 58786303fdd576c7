"""The LMDB store beside its contract: what it shares between callers, what it holds on to, what it lets go of."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import lmdb
import pytest

from store import lmdb_store, marker
from store.codec import decode_int
from store.contract import StoreUnavailable, Transaction
from store.group import Outcome, Piece
from store.lmdb_store import LmdbBackend
from tests.contract.peers import peers_on
from tests.contract.suite import get, increment, put, scan

Open = Callable[..., Awaitable[LmdbBackend]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def opened(directory: Path) -> AsyncIterator[Open]:
    backends: list[LmdbBackend] = []

    async def opened(where: Path = directory, **options: int) -> LmdbBackend:
        backends.append(await LmdbBackend.open(where, **options))
        return backends[-1]

    yield opened
    for backend in backends:
        await backend.close()


def commits(txn: Transaction) -> int:
    return decode_int(txn.get(marker.COMMITS_KEY) or b"")


async def all_handed_in_while_busy(backend: LmdbBackend, count: int) -> int:
    """How many commits `count` callers take that come while the writer is at work for another."""
    busy, gate = threading.Event(), threading.Event()

    def slow(txn: Transaction) -> None:
        busy.set()
        gate.wait()
        txn.put(b"slow", b"")

    first = asyncio.ensure_future(backend.transact(slow))
    await asyncio.to_thread(busy.wait)
    waiting = [asyncio.ensure_future(backend.transact(increment)) for _ in range(count)]
    await asyncio.sleep(0)  # each has handed in its work
    gate.set()
    await first
    before = await backend.view(commits)
    assert await asyncio.gather(*waiting) == list(range(1, count + 1))
    return await backend.view(commits) - min(before, 1)


async def test_who_waits_together_shares_one_commit(opened: Open) -> None:
    assert await all_handed_in_while_busy(await opened(), 100) == 1


async def test_a_group_has_an_end(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no first caller waits for ever for those behind it."""
    monkeypatch.setattr(lmdb_store, "_MAX_GROUP", 10)
    assert await all_handed_in_while_busy(await opened(), 100) == 10
    assert await all_handed_in_while_busy(await opened(directory_beside(await opened())), 101) == 11


def directory_beside(backend: LmdbBackend) -> Path:
    return backend._engine.directory.with_name("beside")


async def test_a_directory_is_the_one_that_was_named_then(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process goes to later."""
    monkeypatch.chdir(tmp_path)
    one, two = await opened(Path("store")), await opened(Path("store"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert one.alive(two.owner_id)
    await two.close()
    assert not one.alive(two.owner_id)
    assert os.listdir() == []


async def test_a_copy_has_what_another_process_wrote_beyond_our_map(opened: Open, directory: Path) -> None:
    backend = await opened(map_size=65_536)
    async with peers_on("lmdb", directory, map_size=2**22) as start:
        peer = await start()
        assert await peer.call("fill", "f", 100, 10_000) is None
    target = directory.with_name("copy")
    target.mkdir(mode=0o700)
    assert await backend.copy(target, lambda: "meanwhile") == "meanwhile"
    (target / "data.mdb").chmod(0o600)
    assert len(await (await opened(target)).view(scan(b"f"))) == 100


async def test_a_copy_that_cannot_be_made_says_where(opened: Open, directory: Path) -> None:
    backend = await opened()
    target = directory.with_name("missing")
    with pytest.raises(StoreUnavailable, match=f"the store could not be copied to {target}: "):
        await backend.copy(target, lambda: None)

    def full() -> None:
        raise OSError(28, "No space left on device")

    target.mkdir()
    with pytest.raises(StoreUnavailable, match="No space left"):
        await backend.copy(target, full)
    assert await backend.transact(increment) == 1  # nothing is left open of it


async def test_a_cancelled_opening_that_fails_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow(path: Path) -> os.stat_result:
        begun.set()
        gate.wait()
        raise StoreUnavailable("not today")

    monkeypatch.setattr(lmdb_store, "private_directory", slow)
    opening = asyncio.ensure_future(LmdbBackend.open(directory))
    await asyncio.to_thread(begun.wait)
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.set()
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    await asyncio.sleep(0)
    monkeypatch.undo()
    backend = await LmdbBackend.open(directory)
    await backend.close()
    assert not lmdb_store._engines
    assert complaints == []


async def test_the_largest_map_is_the_largest(opened: Open) -> None:
    """The last doubling that is allowed is made, and no other."""
    backend = await opened(map_size=65_536, max_map_size=4 * 65_536)
    sizes: list[int] = []

    async def outgrow() -> None:
        for number in range(100):
            await backend.transact(put(b"%03d" % number, b"x" * 3_500))
            sizes.append(backend._engine._env.info()["map_size"])

    with pytest.raises(StoreUnavailable, match="largest size"):
        await outgrow()
    assert list(dict.fromkeys(sizes)) == [65_536, 2 * 65_536, 4 * 65_536]
    assert await backend.view(get(b"000")) == b"x" * 3_500


async def test_closing_lets_go_of_every_file(opened: Open, directory: Path) -> None:
    await (await opened()).close()
    before = len(os.listdir("/proc/self/fd"))
    backend = await opened()
    assert len(os.listdir("/proc/self/fd")) > before
    await backend.close()
    await backend.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with lmdb.open(str(directory)) as env, env.begin() as txn:  # refused while it is open in this process
        assert txn.get(marker.FORMAT_KEY) == b"1"


async def test_a_map_that_another_has_grown_meanwhile_is_not_grown_again(
    opened: Open, directory: Path
) -> None:
    """It was full for us, and is larger already: what they made of it is enough."""
    backend = await opened(map_size=65_536)
    await backend.transact(put(b"a", b"1"))
    async with peers_on("lmdb", directory, map_size=2**20) as start:
        peer = await start()
        assert await peer.call("put", "b", "2") is None
        backend._engine._grow(lmdb.MapFullError("full"))
        assert backend._engine._env.info()["map_size"] == 2**20
        backend._engine._grow(lmdb.MapFullError("full"))
        assert backend._engine._env.info()["map_size"] == 2**21
    assert await backend.view(get(b"b")) == b"2"


async def test_an_environment_that_fails_says_so_to_whoever_looks(opened: Open) -> None:
    backend = await opened()
    env, backend._engine._env = backend._engine._env, _Failing()  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable, match=r"is damaged\. Check the disk"):
        await backend.view(get(b"a"))
    backend._engine._env = env
    assert await backend.view(get(b"a")) is None


class _Failing:
    """What LMDB says of a page that is not what it should be."""

    def begin(self) -> None:
        raise lmdb.CorruptedError("mdb_txn_begin")


async def test_of_two_loops_one_that_is_closed_keeps_nobody_waiting() -> None:
    closed, here = asyncio.new_event_loop(), asyncio.get_running_loop()
    gone: asyncio.Future[int] = closed.create_future()
    closed.close()
    waiting: list[asyncio.Future[int]] = [here.create_future() for _ in range(2)]
    pieces = [Piece(increment, gone, closed), *(Piece(increment, one, here) for one in waiting)]
    lmdb_store._announce([Outcome(piece, number, None) for number, piece in enumerate(pieces)])
    assert await asyncio.gather(*waiting) == [1, 2]
    assert not gone.done()
