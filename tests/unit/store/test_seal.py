"""The seal beside the key: which stores it takes for old, and that it never forgets what it knew."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from store import seal
from store.contract import StoreUnavailable
from store.lineage import Stamp, Standing
from store.seal import Keeper, Sealed
from tests.unit.store.disk import file_descriptors_left, largest_file, watched

HERE = "/home/me/store"
SEALED = Sealed("id", "s1", 100, HERE)
STANDING = Standing("id", 100, Stamp("s1"), None)


@pytest.mark.parametrize(
    ("sealed", "standing", "directory", "says"),
    [
        ([], STANDING, HERE, None),
        ([SEALED], STANDING, HERE, None),
        ([SEALED], replace(STANDING, commits=101), HERE, None),
        (
            [SEALED],
            replace(STANDING, commits=99),
            HERE,
            "older copy: it has seen 99 commits, .* at least 100",
        ),
        ([SEALED], replace(STANDING, commits=99), "/elsewhere", "older copy"),  # wherever it is put
        ([SEALED], STANDING, "/elsewhere", None),  # a store may be moved
        ([SEALED], replace(STANDING, store_id="other"), HERE, "not the one that was there"),
        ([SEALED], replace(STANDING, store_id="other", stamp=None), HERE, "not the one that was there"),
        ([SEALED], replace(STANDING, store_id="other"), "/elsewhere", None),  # one more store of this wallet
        ([SEALED], replace(STANDING, stamp=None, commits=500), HERE, "from before"),
        ([SEALED], replace(STANDING, stamp=Stamp("s0"), commits=500), HERE, "from before"),
        # Reconciled, and a crash before the seal heard of it; then an old copy of that kind again.
        ([SEALED], replace(STANDING, stamp=Stamp("s2", "s1"), commits=40), HERE, None),
        ([replace(SEALED, stamp="s2")], replace(STANDING, commits=500), HERE, "from before"),
        ([SEALED], replace(STANDING, commits=None, store_id="x"), HERE, None),  # a store that counts none
    ],
)
def test_which_stores_are_old(
    sealed: list[Sealed], standing: Standing, directory: str, says: str | None
) -> None:
    found = seal.why_old(sealed, standing, directory)
    if says is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(says, found)


def test_it_is_written_for_us_alone_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "home" / "seal.json"
    assert seal.read(path) == []
    seal.write(path, SEALED)
    assert seal.read(path) == [SEALED]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    seal.write(path, replace(SEALED, store="other", directory="/other"))
    assert {one.store for one in seal.read(path)} == {"id", "other"}
    assert sorted(one.name for one in path.parent.iterdir()) == ["seal.json", "seal.json.lock"]


def test_the_bound_never_falls_but_with_a_new_stamp(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    seal.write(path, SEALED)
    seal.write(path, replace(SEALED, commits=50))
    assert seal.read(path) == [SEALED]
    seal.write(path, replace(SEALED, commits=50, directory="/moved"))
    assert seal.read(path) == [replace(SEALED, directory="/moved")]
    seal.write(path, replace(SEALED, stamp="s2", commits=7))
    assert seal.read(path) == [replace(SEALED, stamp="s2", commits=7)]


def test_a_store_in_the_place_of_another_ends_that_ones_entry(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    seal.write(path, SEALED)
    seal.write(path, Sealed("new", "n", 1, HERE))
    assert seal.read(path) == [Sealed("new", "n", 1, HERE)]
    assert seal.why_old(seal.read(path), STANDING, HERE) is not None  # and the old one does not come back


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "stores": []}',
        '{"version": 1}',
        '{"version": 1, "stores": [{}]}',
        '{"version": 1, "stores": [{"store": "a", "stamp": "b", "commits": -1, "directory": "c"}]}',
        '{"version": 1, "stores": [{"store": "a", "stamp": "b", "commits": true, "directory": "c"}]}',
        '{"version": 1, "stores": [{"store": 1, "stamp": "b", "commits": 1, "directory": "c"}]}',
        json.dumps(
            {"version": 1, "stores": [{"store": "a", "stamp": "b", "commits": 1, "directory": "c"}] * 2}
        ),
    ],
)
def test_one_that_makes_no_sense_is_never_taken_for_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "seal.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(StoreUnavailable, match=r"seal .*seal\.json is damaged.*remove the seal"):
        seal.read(path)
    with pytest.raises(StoreUnavailable):
        seal.write(path, SEALED)
    assert path.read_text() == text


def test_one_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    seal.write(path, SEALED)
    path.chmod(0o666)
    with pytest.raises(StoreUnavailable, match="lets others in"):
        seal.read(path)


def _raise_to(path: Path, numbers: range) -> None:
    for number in numbers:
        seal.write(path, replace(SEALED, commits=number))


def test_of_many_processes_the_highest_counts(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    context = multiprocessing.get_context("spawn")
    ranges = (range(0, 30, 3), range(1, 30, 3), range(29, 0, -3))
    processes = [context.Process(target=_raise_to, args=(path, numbers)) for numbers in ranges]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert seal.read(path) == [replace(SEALED, commits=29)]


# -- kept by a process


async def test_the_keeper_follows_and_writes_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seal.json"
    monkeypatch.setattr(seal, "EVERY_S", 3600)
    keeper = Keeper(path, SEALED)
    await keeper.write()
    for commits in (101, 150, 120):
        keeper.note(commits)
    assert seal.read(path) == [SEALED]  # no payment waits for it
    await keeper.close()
    assert seal.read(path) == [replace(SEALED, commits=150)]


async def test_the_keeper_writes_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seal.json"
    monkeypatch.setattr(seal, "EVERY_S", 0)
    keeper = Keeper(path, SEALED)
    keeper.note(140)
    while not path.exists():  # noqa: ASYNC110 - written by a thread
        await asyncio.sleep(0.001)
    assert seal.read(path) == [replace(SEALED, commits=140)]
    await keeper.close()


async def test_one_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    keeper = Keeper(tmp_path / "file" / "seal.json", SEALED)
    await keeper.write()
    await keeper.write()
    await keeper.close()
    assert caplog.text.count("cannot be written") == 1
    assert "[store].seal" in caplog.text


def test_it_is_durable_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seal.json"
    seen = watched(monkeypatch)
    seal.write(path, SEALED)
    (_, _, size), *then = seen
    assert size == path.stat().st_size  # all of it was there when it was synced
    assert then == [("rename", "seal.json", 0), ("sync", tmp_path.name, 0)]


def test_one_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    seal.write(path, SEALED)
    with largest_file(10), pytest.raises(OSError, match="File too large"):
        seal.write(path, replace(SEALED, commits=200))
    assert seal.read(path) == [SEALED]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["seal.json", "seal.json.lock"]


def test_one_that_cannot_be_read_is_never_taken_for_none(tmp_path: Path) -> None:
    path = tmp_path / "seal.json"
    seal.write(path, SEALED)
    with (
        file_descriptors_left(0),
        pytest.raises(StoreUnavailable, match="cannot be read: Too many open files"),
    ):
        seal.read(path)
