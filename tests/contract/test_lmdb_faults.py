"""What only LMDB can meet: maps that must grow, full disks, damaged files, forks, processes that die."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import pytest

from store import marker
from store.codec import decode_int
from store.contract import StoreError, StoreUnavailable, Transaction, UnknownVersion
from store.lmdb_env import explained
from store.lmdb_pages import Damaged, check_pages
from store.lmdb_store import LmdbBackend
from tests.contract.peers import ROOT, Peer, peers_on, until
from tests.contract.suite import get, increment, put, scan

SMALL = 65_536  # the smallest map: 16 pages

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


def fill(first: int, count: int, size: int) -> Callable[[Transaction], None]:
    def work(txn: Transaction) -> None:
        for index in range(first, first + count):
            txn.put(b"f/%06d" % index, b"x" * size)

    return work


def delete(numbers: Iterable[int]) -> Callable[[Transaction], None]:
    def work(txn: Transaction) -> None:
        for index in numbers:
            txn.delete(b"f/%06d" % index)

    return work


async def stored(backend: LmdbBackend, prefix: bytes) -> int:
    return len(await backend.view(scan(prefix)))


# -- the map grows


@pytest.mark.parametrize("size", [10, 700, 3000, 200_000])
async def test_the_map_grows_as_needed(opened: Open, size: int) -> None:
    backend = await opened(map_size=SMALL)
    count = 2_000_000 // size // 10
    for index in range(10):
        await backend.transact(fill(index * count, count, size))
    assert await stored(backend, b"f/") == 10 * count


async def test_each_size_of_commit_may_be_the_one_that_fills_the_map(opened: Open, tmp_path: Path) -> None:
    """One page more each time: the map is full at a put, or as late as the commit."""
    for pages in range(4, 20):
        backend = await opened(tmp_path / f"s{pages}", map_size=SMALL)
        for index in range(pages):
            await backend.transact(put(b"%02d" % index, b"x" * 3000))
        assert [key for key, _ in await backend.view(scan(b""))][:pages] == [
            b"%02d" % n for n in range(pages)
        ]
        await backend.close()


async def test_a_group_that_outgrows_the_map_is_run_again_whole(opened: Open) -> None:
    backend = await opened(map_size=SMALL)
    runs: list[int] = []

    def work(index: int) -> Callable[[Transaction], int]:
        def run(txn: Transaction) -> int:
            runs.append(index)
            txn.put(b"g/%02d" % index, b"x" * 20_000)
            if index == 5:
                raise LookupError(index)
            return increment(txn)

        return run

    results = await asyncio.gather(*(backend.transact(work(n)) for n in range(20)), return_exceptions=True)
    assert isinstance(results.pop(5), LookupError)
    assert sorted(results) == list(range(1, 20))  # type: ignore[type-var]
    assert await stored(backend, b"g/") == 19
    assert len(runs) > 20, "the map never was full, so this shows nothing"


async def test_a_map_at_its_largest_refuses_and_keeps_what_is_there(opened: Open) -> None:
    backend = await opened(map_size=SMALL, max_map_size=2 * SMALL)
    await backend.transact(put(b"a", b"1"))
    results = await asyncio.gather(
        backend.transact(put(b"small", b"1")),
        backend.transact(fill(0, 100, 5000)),
        backend.transact(get(b"a")),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, StoreUnavailable)]
    assert refused
    assert "largest size" in str(refused[0])
    assert await stored(backend, b"f/") == 0
    assert await backend.transact(increment) == 1
    assert await backend.view(get(b"a")) == b"1"


async def test_two_processes_outgrow_the_map_at_once(opened: Open, directory: Path) -> None:
    backend = await opened(map_size=SMALL)
    async with peers_on("lmdb", directory, map_size=SMALL) as start:
        one, two = await start(), await start()
        await one.send("fill", "one", 300, 5000)
        await two.send("fill", "two", 300, 5000)
        looks = []
        answers = asyncio.gather(one.answer(), two.answer())
        while not answers.done():  # only reads, so that the views meet a map that others have grown
            looks.append(await stored(backend, b"one/") + await stored(backend, b"two/"))
            await asyncio.sleep(0.001)
        assert list(await answers) == [None, None]
    assert looks == sorted(looks)
    assert await stored(backend, b"one/") == 300
    assert await stored(backend, b"two/") == 300
    assert await backend.transact(increment) == 1


async def test_a_view_follows_a_map_that_another_process_has_grown(opened: Open, directory: Path) -> None:
    backend = await opened(map_size=SMALL)
    async with peers_on("lmdb", directory, map_size=SMALL) as start:
        peer = await start()
        await peer.call("fill", "p", 200, 5000)
        assert await stored(backend, b"p/") == 200
        with pytest.raises(StoreError):
            await backend.view(put(b"a", b"1"))
        await peer.call("fill", "q", 600, 5000)
        with pytest.raises(StoreError):  # also when the view has to go the long way
            await backend.view(put(b"a", b"1"))
        assert await backend.view(get(b"a")) is None


# -- a full disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "tiny"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", str(where)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)  # the store in it is closed later


def fill_disk(where: Path) -> Path:
    ballast = where / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(where).f_bfree == 0
    return ballast


def permissions(directory: Path) -> dict[str, int]:
    """By kind of file, of all that is in the directory."""
    found = (directory, *directory.rglob("*"))
    return {path.suffix or "directory": path.stat().st_mode & 0o7777 for path in found}


def new_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


async def test_a_full_disk_refuses_and_recovers(opened: Open, tiny_disk: Path) -> None:
    backend = await opened(tiny_disk / "store")
    await backend.transact(put(b"a", b"1"))
    ballast = fill_disk(tiny_disk)
    results = await asyncio.gather(
        backend.transact(fill(0, 20, 5000)), backend.transact(put(b"a", b"2")), return_exceptions=True
    )
    assert isinstance(results[0], StoreUnavailable)
    assert "disk is full" in str(results[0])
    assert await backend.view(get(b"a")) == (b"1" if isinstance(results[1], StoreUnavailable) else b"2")
    assert await stored(backend, b"f/") == 0
    ballast.unlink()
    await backend.transact(fill(0, 20, 5000))
    assert await stored(backend, b"f/") == 20
    await backend.close()
    again = await opened(tiny_disk / "store")
    assert await stored(again, b"f/") == 20


async def test_a_store_cannot_be_made_on_a_full_disk(opened: Open, tiny_disk: Path) -> None:
    directory = new_file(tiny_disk / "store" / "x", b"").parent
    ballast = fill_disk(tiny_disk)
    with pytest.raises(StoreUnavailable, match=r"No space|full"):  # not SIGBUS
        await opened(directory)
    ballast.unlink()
    assert await (await opened(directory)).transact(increment) == 1


async def test_a_file_size_limit_refuses_and_harms_nothing(opened: Open, directory: Path) -> None:
    """The same without the right to mount: the system refuses to let the data file grow."""
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "sys.argv = sys.argv[1:]; runpy.run_module('tests.contract.peer', run_name='__main__')"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "peer", "lmdb", str(directory), "{}"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    peer = Peer(process)
    try:
        await peer.read()
        assert await peer.call("put", "a", "1") is None
        refused = await peer.call("fill", "f", 1, 300_000)
        assert refused["error"] == "StoreUnavailable"
        assert await peer.call("put", "a", "2") is None
        assert await peer.call("get", "a") == "2"
    finally:
        await peer.end()
    backend = await opened()
    assert await backend.view(get(b"a")) == b"2"
    assert await stored(backend, b"f/") == 0


# -- files that are not as they should be


async def test_everything_is_private(opened: Open, directory: Path) -> None:
    before = os.umask(0)
    try:
        await opened(directory / "deeper")
    finally:
        os.umask(before)
    assert permissions(directory) == {"directory": 0o700, ".mdb": 0o600, ".lock": 0o600}


@pytest.mark.parametrize(
    ("name", "mode", "command"),
    [
        ("", 0o750, "chmod 700"),
        ("", 0o701, "chmod 700"),
        ("owners", 0o770, "chmod 700"),
        ("data.mdb", 0o640, "chmod 600"),
        ("lock.mdb", 0o602, "chmod 600"),
    ],
)
async def test_what_others_may_touch_is_refused(
    opened: Open, directory: Path, name: str, mode: int, command: str
) -> None:
    await (await opened()).close()
    path = directory / name if name else directory
    allowed = path.stat().st_mode & 0o7777
    path.chmod(mode)
    with pytest.raises(StoreUnavailable, match=f"{command} {path}"):
        await opened()
    path.chmod(allowed)
    assert await (await opened()).transact(increment) == 1


async def test_what_is_no_directory_is_refused(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="not a directory"):
        await opened(tmp_path / "file")
    with pytest.raises(StoreUnavailable, match="cannot be made or read"):
        await opened(tmp_path / "file" / "below")


async def test_a_link_in_place_of_a_file_is_refused(opened: Open, directory: Path, tmp_path: Path) -> None:
    elsewhere = new_file(tmp_path / "elsewhere" / "file", b"")
    new_file(directory / "lock.mdb", b"")
    (directory / "data.mdb").symlink_to(elsewhere)
    with pytest.raises(StoreUnavailable, match="not a plain file"):
        await opened()


async def test_rubbish_is_refused(opened: Open, directory: Path) -> None:
    data = new_file(directory / "data.mdb", b"rubbish!" * 5000)
    with pytest.raises(StoreUnavailable, match="another kind"):
        await opened()
    assert data.read_bytes() == b"rubbish!" * 5000


@pytest.mark.parametrize("empty", [True, False])
async def test_a_store_that_was_in_use_never_begins_anew(opened: Open, directory: Path, empty: bool) -> None:
    await (await opened()).close()
    data = directory / "data.mdb"
    data.rename(directory / "kept")
    if empty:
        data.touch(mode=0o600)
    with pytest.raises(StoreUnavailable, match=r"data\.mdb is missing or empty"):
        await opened()
    (directory / "kept").rename(data)
    assert await (await opened()).transact(increment) == 1


@pytest.mark.parametrize("content", [b"", bytes(100)])
async def test_a_store_whose_making_was_cut_short_is_made(
    opened: Open, directory: Path, content: bytes
) -> None:
    """A crash within the very first opening, before anything was on record."""
    new_file(directory / "lock.mdb", content)
    (directory / "data.mdb").touch(mode=0o600)
    assert await (await opened()).transact(increment) == 1


@pytest.mark.parametrize("pages", [2, 3, 100, 200])
async def test_a_file_that_was_cut_short_is_refused(opened: Open, directory: Path, pages: int) -> None:
    backend = await opened()
    await backend.transact(fill(0, 5000, 200))
    await backend.close()
    data = directory / "data.mdb"
    assert data.stat().st_size > 250 * 4096
    os.truncate(data, pages * 4096)
    for _ in range(2):  # the first refusal must not have made it look whole
        with pytest.raises(StoreUnavailable, match="cut short"):  # not SIGBUS
            await opened()
        assert data.stat().st_size == pages * 4096


async def test_a_file_without_its_unused_end_is_taken(opened: Open, directory: Path) -> None:
    """LMDB need not have written the last pages that its index counts, if they are free."""
    backend = await opened()
    await backend.transact(fill(0, 10, 200))
    await backend.transact(fill(1000, 50, 20_000))
    await backend.transact(delete(range(1000, 1050)))
    for _ in range(8):  # until the pages that are in use have moved down
        await backend.transact(increment)
    await backend.close()
    data = directory / "data.mdb"
    os.truncate(data, data.stat().st_size - 20 * 4096)
    again = await opened()
    assert await stored(again, b"f/") == 10
    await again.transact(fill(1000, 100, 20_000))
    assert await stored(again, b"f/") == 110


async def test_wherever_a_file_is_cut_it_is_refused_or_sound(opened: Open, tmp_path: Path) -> None:
    backend = await opened(tmp_path / "0")
    for index in range(6):
        await backend.transact(fill(index * 30, 40, 1500 * index))
        await backend.transact(delete([index * 31]))
    wanted = await backend.view(scan(b"f/"))
    await backend.close()
    whole = (tmp_path / "0" / "data.mdb").read_bytes()
    refused = 0
    for pages in (*range(1, 10), *range(10, len(whole) // 4096 - 2, 17)):
        data = new_file(tmp_path / str(pages) / "data.mdb", whole[: -pages * 4096])
        try:
            backend = await opened(data.parent)
        except StoreUnavailable:
            refused += 1
            with pytest.raises(Damaged):
                check_pages(data)
            continue
        assert await backend.view(scan(b"f/")) == wanted
        await backend.transact(fill(0, 300, 6000))
        assert await stored(backend, b"f/") == 300
    assert refused > 5


async def test_damage_within_the_file_is_told(opened: Open, directory: Path) -> None:
    backend = await opened()
    await backend.transact(fill(0, 5000, 200))
    await backend.close()
    data = directory / "data.mdb"
    content = bytearray(data.read_bytes())
    content[2 * 4096 :] = bytes(len(content) - 2 * 4096)
    data.write_bytes(content)
    with pytest.raises(StoreUnavailable, match=r"damaged\. Check the disk"):
        await opened()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "owners", "data.mdb", "lock.mdb"])
async def test_what_belongs_to_another_user_is_refused(opened: Open, directory: Path, name: str) -> None:
    await (await opened()).close()
    os.chown(directory / name, 12345, -1)
    with pytest.raises(StoreUnavailable, match=r"belongs to user id 12345 and this process runs as 0"):
        await opened()


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (lmdb.DiskError("x"), "disk is full. Make room"),
        (lmdb.MapFullError("x"), "largest size"),
        (lmdb.PanicError("x"), "start bursar again"),
        (lmdb.InvalidError("x"), "another kind or version. Name another"),
        (lmdb.VersionMismatchError("x"), "another kind or version. Name another"),
        (lmdb.CorruptedError("x"), "damaged. Check the disk"),
        (lmdb.PageNotFoundError("x"), "damaged. Check the disk"),
        (lmdb.ReadersFullError("x"), "too many processes"),
        (lmdb.ReadonlyError("x"), "Check the modes and mount"),
        (lmdb.LockError("x"), "Check the modes and mount"),
        (lmdb.Error("x"), "Check its disk and modes"),
        (OSError(5, "Input/output error"), "Check its disk and modes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_names_the_store_and_the_way_out(error: Exception, way_out: str) -> None:
    text = str(explained(error, Path("/var/lib/wallet")))
    assert "/var/lib/wallet" in text
    assert way_out in text


async def test_too_many_readers_are_refused_until_some_have_gone(opened: Open) -> None:
    backend = await opened()
    await backend.transact(put(b"a", b"1"))
    readers = []
    with suppress(lmdb.ReadersFullError):
        while True:
            readers.append(backend._engine._env.begin())
    with pytest.raises(StoreUnavailable, match="too many processes"):
        await backend.view(get(b"a"))
    readers.pop().abort()
    assert await backend.view(get(b"a")) == b"1"
    for reader in readers:
        reader.abort()


async def test_the_slots_of_dead_readers_are_taken_back(opened: Open, directory: Path) -> None:
    backend = await opened()
    code = """
import asyncio, os, signal, sys
import lmdb
from pathlib import Path
from store.lmdb_store import LmdbBackend

backend = asyncio.run(LmdbBackend.open(Path(sys.argv[1])))
readers = []
try:
    while True:
        readers.append(backend._engine._env.begin())
except lmdb.ReadersFullError:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(directory)), env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert await process.wait() == -9
    taken = []
    with suppress(lmdb.ReadersFullError):  # this process has kept one slot
        while True:
            taken.append(backend._engine._env.begin())
    assert len(taken) < 3
    assert await backend.view(get(b"a")) is None
    for reader in taken:
        reader.abort()


async def test_after_a_failure_within_the_index_nothing_is_written_any_more(opened: Open) -> None:
    """LMDB itself refuses then; only a new process knows what is on the disk."""
    backend = await opened()

    class Failed:
        def begin(self, write: bool = False) -> None:
            raise lmdb.PanicError("mdb_txn_begin")

    env, backend._engine._env = backend._engine._env, Failed()  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable, match="start bursar again"):
        await backend.transact(increment)
    backend._engine._env = env
    for call in (backend.transact(increment), backend.view(get(b"n"))):
        with pytest.raises(StoreUnavailable, match="start bursar again"):
            await call


async def test_another_database_is_refused(opened: Open, directory: Path) -> None:
    with lmdb.open(str(directory), mode=0o700) as env, env.begin(write=True) as txn:
        txn.put(b"something", b"else")
    (directory / "data.mdb").chmod(0o600)
    (directory / "lock.mdb").chmod(0o600)
    with pytest.raises(StoreError, match="no store of bursar"):
        await opened()


async def test_another_format_is_refused(opened: Open, directory: Path) -> None:
    await (await opened()).close()
    with lmdb.open(str(directory)) as env, env.begin(write=True) as txn:
        txn.put(marker.FORMAT_KEY, b"2")
    with pytest.raises(UnknownVersion, match=r"format 2.*reads format 1.*newer bursar"):
        await opened()


async def test_a_refused_store_can_be_opened_once_it_is_mended(opened: Open, directory: Path) -> None:
    await (await opened()).close()
    with lmdb.open(str(directory)) as env, env.begin(write=True) as txn:
        txn.put(marker.FORMAT_KEY, b"2")
    with pytest.raises(UnknownVersion):
        await opened()
    with lmdb.open(str(directory)) as env, env.begin(write=True) as txn:
        txn.put(marker.FORMAT_KEY, b"1")
    assert await (await opened()).transact(increment) == 1


# -- its own keys


async def test_the_store_counts_its_commits_and_keeps_its_id(opened: Open, directory: Path) -> None:
    def mark(txn: Transaction) -> tuple[bytes | None, int]:
        return txn.get(marker.STORE_ID_KEY), decode_int(txn.get(marker.COMMITS_KEY) or b"")

    backend = await opened()
    store_id, commits = await backend.view(mark)
    assert store_id is not None
    assert len(store_id) == 32
    assert commits == 0
    await backend.transact(put(b"a", b"1"))
    await backend.transact(get(b"a"))  # changes nothing
    with pytest.raises(StoreError):
        await backend.transact(put(marker.COMMITS_KEY, b"1"))
    await backend.transact(put(b"a", b"2"))
    await backend.close()
    assert await (await opened()).view(mark) == (store_id, 2)
    other = await opened(directory.with_name("other"))
    assert (await other.view(mark))[0] != store_id


async def test_nothing_is_left_to_a_lazy_disk(opened: Open) -> None:
    backend = await opened()
    flags = backend._engine._env.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]


# -- one process


async def test_a_second_opening_shares_the_environment(opened: Open) -> None:
    first, second = await opened(), await opened()
    assert set(await asyncio.gather(first.transact(increment), second.transact(increment))) == {1, 2}
    await first.close()
    assert await second.transact(increment) == 3
    third = await opened()
    assert third.alive(second.owner_id)
    await second.close()
    await third.close()
    assert await (await opened()).transact(increment) == 4


async def test_the_same_directory_under_another_name_is_the_same_store(
    opened: Open, directory: Path, tmp_path: Path
) -> None:
    first = await opened()
    (tmp_path / "link").symlink_to(directory)
    second = await opened(tmp_path / "link")
    assert second.alive(first.owner_id)
    assert set(await asyncio.gather(first.transact(increment), second.transact(increment))) == {1, 2}


async def test_many_openings_at_once(opened: Open) -> None:
    backends = await asyncio.gather(*(opened() for _ in range(8)))
    assert len({backend.owner_id for backend in backends}) == 8
    results = await asyncio.gather(*(backend.transact(increment) for backend in backends))
    assert sorted(results) == list(range(1, 9))
    await asyncio.gather(*(backend.close() for backend in backends))
    assert await (await opened()).transact(increment) == 9


async def test_a_cancelled_opening_lets_go(
    opened: Open, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = await opened()
    made: list[LmdbBackend] = []
    real = LmdbBackend._open

    def record(*arguments: Any) -> LmdbBackend:
        made.append(real(*arguments))
        return made[0]

    monkeypatch.setattr(LmdbBackend, "_open", record)
    task = asyncio.ensure_future(LmdbBackend.open(directory))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: bool(made) and not probe.alive(made[0].owner_id))
    assert await probe.transact(increment) == 1


def test_works_from_one_event_loop_after_another(directory: Path) -> None:
    async def once() -> int:
        backend = await LmdbBackend.open(directory)
        try:
            return await backend.transact(increment)
        finally:
            await backend.close()

    assert [asyncio.run(once()) for _ in range(3)] == [1, 2, 3]


async def test_a_caller_whose_loop_is_gone_harms_nobody(opened: Open, tmp_path: Path) -> None:
    backend = await opened()
    inside, gate = threading.Event(), threading.Event()

    def slow(txn: Transaction) -> None:
        txn.put(b"a", b"1")
        inside.set()
        gate.wait()

    def leave() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(backend.transact(slow))
        while not inside.is_set():
            loop.run_until_complete(asyncio.sleep(0.001))
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()
        gate.set()

    await asyncio.to_thread(leave)
    assert await backend.transact(increment) == 1
    assert await backend.view(get(b"a")) == b"1"


def test_a_forked_child_is_refused_and_harms_nothing(directory: Path) -> None:
    code = """
import asyncio, os, sys, warnings
from pathlib import Path
from store.contract import StoreUnavailable
from store.lmdb_env import explained
from store.lmdb_pages import Damaged, check_pages
from store.lmdb_store import LmdbBackend
warnings.simplefilter("ignore")

async def refused(call):
    try:
        await call
    except StoreUnavailable:
        return True
    return False

async def child(backend):
    put = backend.transact(lambda txn: txn.put(b"a", b"child"))
    assert await refused(put)
    assert await refused(backend.view(lambda txn: txn.get(b"a")))
    assert not backend.alive(backend.owner_id)

async def main():
    backend = await LmdbBackend.open(Path(sys.argv[1]))
    await backend.transact(lambda txn: txn.put(b"a", b"parent"))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio._set_running_loop(None)
            asyncio.run(child(backend))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    other = await LmdbBackend.open(Path(sys.argv[1]))
    assert other.alive(backend.owner_id), "the child has let go of its parent's lock"
    assert await backend.view(lambda txn: txn.get(b"a")) == b"parent"
    await backend.transact(lambda txn: txn.put(b"a", b"parent again"))
    await backend.close()
    assert not other.alive(backend.owner_id)
    assert await other.view(lambda txn: txn.get(b"a")) == b"parent again"
    await other.close()

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_process_ends_without_closing(directory: Path) -> None:
    """The writer thread must not keep the interpreter from ending, nor lose what was acknowledged."""
    code = """
import asyncio, sys
from pathlib import Path
from store.lmdb_env import explained
from store.lmdb_pages import Damaged, check_pages
from store.lmdb_store import LmdbBackend

async def main():
    backend = await LmdbBackend.open(Path(sys.argv[1]))
    await backend.transact(lambda txn: txn.put(b"a", b"1"))
    print(await backend.view(lambda txn: txn.get(b"a")))

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "b'1'\n"), done.stderr


async def test_readers_that_died_are_forgotten(opened: Open, directory: Path) -> None:
    """At each opening, and whenever the map is full: the pages that they read cannot be used again."""
    async with peers_on("lmdb", directory, map_size=SMALL) as start:

        def readers(backend: LmdbBackend) -> set[int]:
            return {int(line.split()[0]) for line in backend._engine._env.readers().splitlines()[1:]}

        async def reader() -> Peer:
            peer = await start()
            await peer.call("get", "a")
            return peer

        keeper = await reader()  # while it lives, opening anew does not clear the table
        watcher = await opened(map_size=SMALL)
        first = await reader()
        await first.kill()
        assert {keeper.process.pid, first.process.pid} <= readers(watcher)
        await watcher.transact(fill(0, 100, 3000))
        assert readers(watcher) - {os.getpid()} == {keeper.process.pid}
        second = await reader()
        await second.kill()
        assert {keeper.process.pid, second.process.pid} <= readers(watcher)
        await watcher.close()
        again = await opened(map_size=SMALL)
        assert readers(again) - {os.getpid()} == {keeper.process.pid}
