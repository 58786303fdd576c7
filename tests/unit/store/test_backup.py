"""A backup is one moment of a store in use, and is known for a backup when it is put in the store's place."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from store import account
from store.account import Sent
from store.backup import take_backup
from store.codec import decode_int
from store.contract import StoreUnavailable
from store.journal import Journal, read_lines
from store.lmdb_store import LmdbBackend
from store.marker import COMMITS_KEY
from store.records import Channel
from tests.contract.peers import peers_on
from tests.unit.store.disk import watched
from tests.unit.store.test_presence import Here, Place, reconcile


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def backup(place: Place, name: str = "backup", now: int = 1_800_000_000_000) -> Path:
    backend = await LmdbBackend.open(place.directory)
    try:
        await take_backup(backend, place.directory, place.ledger, place.root / name, now)
    finally:
        await backend.close()
    return place.root / name


async def pay(here: Here, channel: Channel, number: int) -> Channel:
    """A raise, and the voucher that it is for."""
    channel = account.issue(await here.raise_by(channel, 1), 1)
    channel, hold = account.hold(
        channel, f"r{number}", 1, voucher=channel.issued, sent_at=number, expires_at=9, fingerprint="f"
    )
    here.journal.append({"kind": "sent"}, channel_id=channel.channel_id, move=Sent(hold))
    return channel


async def test_it_has_all_of_a_store_and_lets_nobody_else_in(place: Place) -> None:
    async with place.process() as here:
        channel = await pay(here, await here.open(), 1)
    found = await backup(place)
    assert sorted(path.name for path in found.iterdir()) == ["backup.json", "data.mdb", "ledger"]
    for path in (found, *found.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert [path.name for path in (found / "ledger").iterdir()] == [f"{here.journal.name}.jsonl"]
    marker = json.loads((found / "backup.json").read_text())
    assert (marker["version"], marker["in_use"], marker["ledger_files"]) == (1, False, 1)
    place.put_back(found)
    async with place.process() as here:
        assert await here.store.find("0xc1") == replace(channel, holds={}, held=0, seq=0, reserved=1)


async def test_it_is_one_moment_of_a_store_in_use(place: Place) -> None:
    """However payments and copying interleave: each voucher in the copied ledger is authorised in the copied store."""
    async with place.process() as here:
        channel = await here.open(deposit=10_000)
        stop = asyncio.Event()

        async def work() -> int:
            nonlocal channel
            number = 0
            while not stop.is_set():
                number += 1
                channel = await pay(here, channel, number)
                channel = replace(channel, holds={}, held=0, paid=channel.paid + 1)
            return number

        working = asyncio.create_task(work())
        copies = [await backup(place, f"backup{number}") for number in range(5)]
        stop.set()
        assert await working > 0
        name = here.journal.name
    seen = set()
    for copy in copies:
        there = Place(copy.parent / f"{copy.name}-restored")
        there.root.mkdir()
        copy.rename(there.directory)
        lines = list(read_lines(there.ledger / f"{name}.jsonl"))
        async with there.process() as here:
            found = await here.store.find("0xc1")
            assert found is not None
            assert here.store.sealed_against is not None
            vouchers = [line.move.hold.voucher for line in lines if isinstance(line.move, Sent)]
            assert found.authorised - 1 <= max(vouchers, default=10) <= found.authorised
            assert found.folded is None
            anchor = (await here.store.commits.anchors())[name]
            assert (anchor.line, anchor.closed) == (len(lines), True)
        seen.add(found.authorised)
    assert len(seen) > 1


async def test_another_process_writes_meanwhile(tmp_path: Path) -> None:
    """Of each of its transactions all is there, or nothing."""
    directory = tmp_path / "store"
    async with peers_on("lmdb", directory, map_size=65_536) as start:
        peer = await start()
        await peer.send("load", 0, 4)
        for _ in range(30):
            await peer.read()
        backend = await LmdbBackend.open(directory)
        for number in range(3):
            await take_backup(backend, directory, directory / "ledger", tmp_path / f"b{number}", 1)
        await backend.close()
        await peer.kill()
    counts = []
    for number in range(3):
        backend = await LmdbBackend.open(tmp_path / f"b{number}")
        left = await backend.view(lambda txn: [key[2:] for key, _ in txn.scan(b"l/0")])
        right = await backend.view(lambda txn: [key[2:] for key, _ in txn.scan(b"r/0")])
        await backend.close()
        assert left == right
        counts.append(len(left))
    assert counts[0] >= 30
    assert counts == sorted(counts)


async def test_one_that_is_put_back_is_in_doubt(place: Place) -> None:
    async with place.process() as here:
        await here.open()
    async with place.process() as here:
        claimed = await here.store.claim("0xc1", lambda one: account.doubt_everything(one, 0))
        found = await backup(place)
        await here.raise_by(claimed, 40)
    place.put_back(found)
    async with place.process() as here:
        assert "is a backup, taken at 2027-01-15T08:00:00Z" in str(here.store.sealed_against)
        await reconcile(here)
        await here.presence.lift()
        channel = await here.store.find("0xc1")
        assert channel is not None
        assert (channel.authorised, channel.uncertain) == (100, 100)
        assert sum((await here.store.counters("lifetime/")).values()) == 100
    async with place.process() as here:
        assert here.store.sealed_against is None


async def test_one_that_nobody_has_gone_on_from_is_the_store(place: Place) -> None:
    """Taken when all had stopped, and put back before anyone has started: a move to another disk."""
    async with place.process() as here:
        await here.open()
    found = await backup(place)
    place.put_back(found)
    for _ in range(2):
        async with place.process() as here:
            assert here.store.sealed_against is None
            assert (await here.store.commits.standing()).backup is None
    place.put_back(found)
    async with place.process() as here:  # somebody has
        assert "is a backup" in str(here.store.sealed_against)


async def test_one_taken_of_a_process_at_work_is_never_the_store(place: Place) -> None:
    """It may have gone on with what was authorised, and have written lines that no commit knows of."""
    async with place.process(dies=True) as here:
        await here.open()
        await here.presence._keeper.close()  # type: ignore[union-attr]
        found = await backup(place)
    place.put_back(found)
    async with place.process() as here:
        assert "is a backup" in str(here.store.sealed_against)


async def test_without_the_seal_it_is_in_doubt(place: Place) -> None:
    async with place.process() as here:
        await here.open()
    place.put_back(await backup(place))
    place.seal.unlink()
    async with place.process() as here:
        assert "is a backup" in str(here.store.sealed_against)


async def test_nothing_is_written_over(place: Place) -> None:
    async with place.process() as here:
        await here.open()
    found = await backup(place)
    with pytest.raises(StoreUnavailable, match="exists already"):
        await backup(place)
    with pytest.raises(StoreUnavailable, match="would be in the store"):
        await backup(place, "store/backup")
    (place.root / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="exists already"):
        await backup(place, "file")
    (place.root / "empty").mkdir()
    assert (await backup(place, "empty") / "data.mdb").exists()
    assert (found / "data.mdb").exists()


async def test_one_that_fails_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.process() as here:
        await here.open()
    before = sorted(path.name for path in place.root.iterdir())

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("store.backup._write", full)
    with pytest.raises(StoreUnavailable, match="cannot be written: No space left"):
        await backup(place)
    assert sorted(path.name for path in place.root.iterdir()) == before


async def test_files_of_the_ledger_that_grow_are_cut_at_the_moment(place: Place) -> None:
    async with place.process() as here:
        await here.open()
        journal: Journal = here.journal
        journal.append({"kind": "note"})
        size = journal.path.stat().st_size
        backend = await LmdbBackend.open(place.directory)
        copied = backend.copy

        async def copy(target: Path, meanwhile: object) -> object:
            found: object = await copied(target, meanwhile)  # type: ignore[arg-type]
            journal.append({"kind": "later"})
            return found

        backend.copy = copy  # type: ignore[method-assign, assignment]
        await take_backup(backend, place.directory, place.ledger, place.root / "backup", 1)
        await backend.close()
    copied_file = place.root / "backup" / "ledger" / journal.path.name
    assert copied_file.stat().st_size == size < journal.path.stat().st_size


async def test_it_is_durable_before_it_has_its_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup that is there is whole, also after a power cut: each file was synced with all that is in it."""
    async with place.process() as here:
        here.journal.append({"kind": "note"})
        await here.open()
    seen = watched(monkeypatch)
    found = await backup(place)
    renamed = seen.index(("rename", "backup", 0))
    synced = set(seen[:renamed])
    for path in (*(found / "ledger").iterdir(), found / "backup.json", found / "data.mdb"):
        assert ("sync", path.name, path.stat().st_size) in synced
    assert ("sync", "ledger", 0) in synced
    assert [event for event in seen[renamed:] if event[0] == "sync"] == [("sync", place.root.name, 0)]


async def test_it_says_how_large_it_is_and_how_many_files(place: Place) -> None:
    async with place.process() as here:
        here.journal.append({"kind": "note"})
        await here.open()
    backend = await LmdbBackend.open(place.directory)
    taken = await take_backup(backend, place.directory, place.ledger, place.root / "backup", 7)
    commits = await backend.view(lambda txn: decode_int(txn.get(COMMITS_KEY) or b""))
    await backend.close()
    files = [*(taken.directory / "ledger").iterdir(), taken.directory / "data.mdb"]
    assert taken.size == sum(path.stat().st_size for path in files)
    assert (taken.files, taken.commits, taken.taken_at, taken.in_use) == (1, commits, 7, False)
    text = (taken.directory / "backup.json").read_text()
    assert text.startswith('{\n  "version": 1')
    assert text.endswith("}\n")


@pytest.mark.parametrize("died", [(False, False), (True, False), (False, True), (True, True)])
async def test_it_is_in_use_if_any_process_was_not_closed(place: Place, died: tuple[bool, bool]) -> None:
    for dies in died:
        async with place.process(dies=dies) as here:
            here.journal.append({"kind": "note"})
    found = await backup(place)
    assert json.loads((found / "backup.json").read_text())["in_use"] is died[-1]


async def test_the_directories_above_it_are_made_and_no_file_stays_open(place: Place) -> None:
    async with place.process() as here:
        await here.open()
    await backup(place, "warm")
    before = len(os.listdir("/proc/self/fd"))
    found = await backup(place, "monthly/2027/january")
    assert (found / "data.mdb").exists()
    assert len(os.listdir("/proc/self/fd")) == before
    assert [path.name for path in found.parent.iterdir()] == ["january"]
