"""Opening an environment: what a failure says, and what another process may do meanwhile."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from store import lmdb_env, marker
from store.contract import StoreUnavailable, UnknownVersion
from store.lmdb_env import PAGE, Reader, open_environment, write_into_copy
from store.private_files import private_directory
from tests.unit.store.disk import largest_file, watched

ROOT = Path(__file__).parents[3]
MAP = 16 * PAGE


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    private_directory(tmp_path / "store")
    return tmp_path / "store"


def another_process(code: str, directory: Path) -> subprocess.Popen[str]:
    """Runs `code` with `environment`, the store opened as any process opens it; waits until it says something."""
    whole = f"""
import sys
from pathlib import Path
import lmdb
from store.lmdb_env import open_environment
environment = open_environment(Path(sys.argv[1]), int(sys.argv[2]))
{code}
print("done", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", whole, str(directory), str(16 * MAP)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate()
    assert process.returncode == 0


def found(env: lmdb.Environment, key: bytes) -> bytes | None:
    with env.begin() as txn:
        value = txn.get(key)
        return None if value is None else bytes(value)


def test_the_map_is_of_whole_pages_and_never_none(directory: Path) -> None:
    for size, expected in ((0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE), (2 * PAGE, 2 * PAGE)):
        env = open_environment(directory, size)
        assert env.info()["map_size"] == expected
        env.close()


def test_a_new_store_is_marked_once(directory: Path) -> None:
    env = open_environment(directory, MAP)
    store_id = found(env, marker.STORE_ID_KEY)
    assert found(env, marker.FORMAT_KEY) == b"1"
    env.close()
    env = open_environment(directory, MAP)
    assert found(env, marker.STORE_ID_KEY) == store_id
    env.close()


def test_its_names_are_durable_before_it_is_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    open_environment(directory, MAP).close()
    assert [name for _, name, _ in seen] == ["store", directory.parent.name]


def test_reading_what_is_gone_says_which_store(directory: Path) -> None:
    env = open_environment(directory, MAP)
    txn = env.begin()
    txn.abort()
    reader = Reader(txn, directory)
    with pytest.raises(StoreUnavailable, match=f"the store in {directory} cannot be used"):
        reader.get(b"a")
    with pytest.raises(StoreUnavailable, match=f"the store in {directory} cannot be used"):
        list(reader.scan(b"a"))
    env.close()


@pytest.mark.parametrize(
    ("prefix", "keys"), [(b"", [b"a", b"a/", b"a/1", b"a0", b"m/"]), (b"a/", [b"a/", b"a/1"]), (b"z", [])]
)
def test_a_scan_ends_with_its_prefix(directory: Path, prefix: bytes, keys: list[bytes]) -> None:
    with lmdb.open(str(directory / "x"), mode=0o700) as env:
        with env.begin(write=True) as txn:
            for key in (b"a/1", b"a/", b"a", b"a0", b"m/"):
                txn.put(key, key)
        with env.begin() as txn:
            assert list(Reader(txn, directory).scan(prefix)) == [(key, key) for key in keys]


def test_all_slots_taken_by_the_living_is_said(directory: Path) -> None:
    """And the environment is closed: the same process can open it once there is room."""
    process = another_process(
        """
readers = []
try:
    while True:
        readers.append(environment.begin())
except lmdb.ReadersFullError:
    pass
""",
        directory,
    )
    with pytest.raises(StoreUnavailable, match=r"too many processes at once \(over 126\)"):
        open_environment(directory, MAP)
    let_go(process)
    open_environment(directory, MAP).close()


@pytest.fixture
def at_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Path], None]]:
    """Once our environment is open and its mark was looked for, another process does this."""
    started: list[subprocess.Popen[str]] = []

    def then(code: str, directory: Path) -> None:
        class Slow(Reader):
            def get(self, key: bytes) -> bytes | None:
                value = super().get(key)
                if not started:
                    started.append(another_process(code, directory))
                return value

        monkeypatch.setattr(lmdb_env, "Reader", Slow)

    yield then
    for process in started:
        let_go(process)


def test_of_two_who_make_a_store_one_marks_it(
    directory: Path, at_the_last_moment: Callable[[str, Path], None]
) -> None:
    at_the_last_moment("", directory)
    env = open_environment(directory, MAP)
    with env.begin() as txn:
        keys = [bytes(key) for key, _ in txn.cursor()]
    assert keys == sorted(marker.KEYS)
    store_id = found(env, marker.STORE_ID_KEY)
    env.close()
    env = open_environment(directory, MAP)
    assert found(env, marker.STORE_ID_KEY) == store_id
    env.close()


def test_a_map_that_another_grows_while_we_open_is_followed(
    directory: Path, at_the_last_moment: Callable[[str, Path], None]
) -> None:
    at_the_last_moment(
        """
with environment.begin(write=True) as txn:
    for number in range(300):
        txn.put(b"%06d" % number, b"x" * 10_000)
""",
        directory,
    )
    env = open_environment(directory, MAP)
    assert found(env, marker.FORMAT_KEY) == b"1"
    assert found(env, b"%06d" % 299) == b"x" * 10_000
    env.close()


def test_one_key_is_put_into_a_copy(directory: Path) -> None:
    open_environment(directory, MAP).close()
    write_into_copy(directory, b"l/backup", b"1")
    env = open_environment(directory, MAP)
    assert found(env, b"l/backup") == b"1"
    env.close()
    with pytest.raises(StoreUnavailable, match=f"the store in {directory.parent / 'none'} "):
        write_into_copy(directory.parent / "none", b"l/backup", b"1")


def test_the_lock_file_has_its_blocks(directory: Path) -> None:
    """A map of a file with holes is a bus error where the disk is full."""
    open_environment(directory, MAP).close()
    assert (directory / "lock.mdb").stat().st_blocks * 512 >= 16_384


def test_a_system_that_cannot_reserve_blocks_opens_all_the_same(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    env = open_environment(directory, MAP)
    assert found(env, marker.FORMAT_KEY) == b"1"
    env.close()


def test_opening_and_refusing_leave_no_file_open(directory: Path) -> None:
    open_environment(directory, MAP).close()
    before = len(os.listdir("/proc/self/fd"))
    open_environment(directory, MAP).close()
    with lmdb.open(str(directory)) as env, env.begin(write=True) as txn:
        txn.put(marker.FORMAT_KEY, b"2")
    with pytest.raises(UnknownVersion):
        open_environment(directory, MAP)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_store_that_cannot_be_marked_is_closed_again(directory: Path) -> None:
    """The disk is full once its first two pages are there."""
    open_environment(directory, MAP).close()
    (directory / "data.mdb").unlink()
    before = len(os.listdir("/proc/self/fd"))
    with (
        largest_file(8192),
        pytest.raises(StoreUnavailable, match=f"the store in {directory} .*File too large") as raised,
    ):
        open_environment(directory, MAP)
    assert raised.value.__traceback__ is not None  # its frames still hold the environment
    assert len(os.listdir("/proc/self/fd")) == before
    env = open_environment(directory, MAP)
    assert found(env, marker.FORMAT_KEY) == b"1"
    env.close()


def test_a_new_store_is_for_us_alone(directory: Path) -> None:
    before = os.umask(0)
    try:
        open_environment(directory, MAP).close()
    finally:
        os.umask(before)
    for name in ("data.mdb", "lock.mdb"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600


def test_a_file_without_its_last_page_in_use_is_refused(directory: Path) -> None:
    env = open_environment(directory, MAP)
    with env.begin(write=True) as txn:
        txn.put(b"long", b"x" * 20_000)
        for number in range(200):
            txn.put(b"%03d" % number, b"x" * 100)
    page, last = env.stat()["psize"], env.info()["last_pgno"]
    env.close()
    size = (directory / "data.mdb").stat().st_size
    assert size >= (last + 1) * page
    os.truncate(directory / "data.mdb", (last + 1) * page)
    open_environment(directory, MAP).close()
    os.truncate(directory / "data.mdb", last * page)
    with pytest.raises(StoreUnavailable, match="its data file was cut short"):
        open_environment(directory, MAP)
