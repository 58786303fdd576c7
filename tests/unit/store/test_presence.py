"""What a process leaves in a store beside its money: where its journal stands, and whether it is the last store."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest

from store import account, marker, presence, seal
from store.anchors import Anchor, decode, encode
from store.channels import ChannelStore, Conflict, Fenced
from store.contract import StoreError, Transaction, UnknownVersion
from store.journal import Journal
from store.lifecycle import ChannelStatus
from store.lineage import NotReconciled, OldCopy
from store.lmdb_store import LmdbBackend
from store.memory_store import MemoryBackend, SharedMemory
from store.presence import Presence
from store.records import Channel, JournalMark
from tests.properties.bank import CAPS, proposed, scope_of

T = TypeVar("T")

DAY = "2026-01-31"
SCOPE = scope_of()


@dataclass
class Here:
    """One process in a store."""

    store: ChannelStore
    journal: Journal
    presence: Presence

    async def open(self, channel_id: str = "0xc1", first: int = 10, deposit: int = 100) -> Channel:
        channel = proposed(channel_id, SCOPE, authorised=first)
        channel = await self.store.propose(channel, CAPS.raise_moves(first, DAY), max_channels=9)
        channel = replace(channel, status=ChannelStatus.OPEN, deposit=deposit, pending=None)
        await self.store.set(channel)
        return channel

    async def raise_by(self, channel: Channel, amount: int) -> Channel:
        raised = account.raise_authorised(channel, amount)
        await self.store.set(raised, CAPS.raise_moves(amount, DAY))
        return raised


@dataclass
class Place:
    """A directory with a store, a ledger in it, and a seal beside it."""

    root: Path

    @property
    def directory(self) -> Path:
        return self.root / "store"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger"

    @property
    def seal(self) -> Path:
        return self.root / "seal.json"

    @asynccontextmanager
    async def process(self, *, dies: bool = False, boot: str = "boot") -> AsyncIterator[Here]:
        backend = await LmdbBackend.open(self.directory)
        store = ChannelStore(backend)
        journal = Journal(self.ledger, store.owner_id, boot)
        try:
            here = await Presence.enter(
                store, journal, ledger=self.ledger, seal_path=self.seal, directory=self.directory
            )
            yield Here(store, journal, here)
            if not dies:
                await here.leave()
            elif here._waiting is not None:
                here._waiting.cancel()
        finally:
            await store.close()
            journal.close()

    def copy(self, name: str = "copy") -> Path:
        shutil.copytree(self.directory, self.root / name)
        return self.root / name

    def put_back(self, old: Path) -> None:
        shutil.rmtree(self.directory)
        shutil.copytree(old, self.directory)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# -- anchors


def test_an_anchor_is_read_back() -> None:
    anchor = Anchor("me", 2**40, b"\x00" * 16, "boot", closed=True)
    assert decode("me", encode(anchor)) == anchor
    with pytest.raises(UnknownVersion):
        decode("me", encode(anchor)[:-1])


@pytest.mark.parametrize(
    "row",
    [
        b"[]",
        b"{}",
        b'[1,"zz","b",true]',
        b'["1","00","b",true]',
        b'[true,"00","b",true]',
        b'[-1,"00","b",true]',
    ],
)
def test_what_is_no_anchor_is_refused(row: bytes) -> None:
    from store.codec import seal as sealed

    with pytest.raises(UnknownVersion):
        decode("me", sealed(row))


async def test_each_commit_says_where_the_journal_stands(place: Place) -> None:
    async with place.process() as here:
        assert await here.store.commits.anchors() == {here.journal.name: here.journal.anchor}
        assert here.journal.anchor.line == 0
        here.journal.append({"kind": "note"})
        channel = await here.open()
        assert (await here.store.commits.anchors())[here.journal.name].line == 1
        here.journal.append({"kind": "note"})
        here.journal.append({"kind": "note"})
        assert (await here.store.commits.anchors())[here.journal.name].line == 1
        await here.store.release(channel)
        assert await here.store.commits.anchors() == {here.journal.name: here.journal.anchor}
        name = here.journal.name
    async with place.process() as here:
        found = (await here.store.commits.anchors())[name]
        assert (found.line, found.closed) == (3, True)


async def test_refused_work_moves_no_anchor(place: Place) -> None:
    async with place.process() as here:
        here.journal.append({"kind": "note"})
        with pytest.raises(Conflict):
            await here.store.set(proposed("0xnone", SCOPE))
        assert (await here.store.commits.anchors())[here.journal.name].line == 0


async def test_the_end_of_a_process_that_died_is_put_on_record_by_the_next(place: Place) -> None:
    async with place.process(dies=True) as first:
        first.journal.append({"kind": "note"})
        await first.open()
        for _ in range(3):
            first.journal.append({"kind": "note"})  # with no commit after them
    with first.journal.path.open("ab") as file:
        file.write(b'{"n":5,"torn')
    async with place.process() as here:
        found = (await here.store.commits.anchors())[first.journal.name]
        assert (found.line, found.closed, found.digest) == (4, True, first.journal.anchor.digest)


async def test_an_end_that_is_missing_is_never_put_on_record(place: Place) -> None:
    async with place.process(dies=True) as first:
        first.journal.append({"kind": "note"})
        first.journal.append({"kind": "note"})
        await first.open()
    first.journal.path.write_bytes(first.journal.path.read_bytes().splitlines(keepends=True)[0])
    async with place.process() as here:
        found = (await here.store.commits.anchors())[first.journal.name]
        assert (found.line, found.closed) == (2, False)


async def test_the_journal_of_a_process_that_lives_is_left_alone(place: Place) -> None:
    async with place.process() as one, place.process() as two:
        one.journal.append({"kind": "note"})
        anchors = await two.store.commits.anchors()
        assert [anchor.closed for anchor in anchors.values()] == [False, False]
        assert anchors[one.journal.name].line == 0


# -- an old copy


async def test_a_new_store_is_sealed_and_stays_good(place: Place) -> None:
    for _ in range(3):
        async with place.process() as here:
            assert here.store.sealed_against is None
    (sealed,) = seal.read(place.seal)
    async with place.process() as here:
        standing = await here.store.commits.standing()
        assert standing.stamp is not None
        assert (sealed.store, sealed.stamp) == (standing.store_id, standing.stamp.current)
        assert standing.commits is not None
        assert sealed.commits <= standing.commits


async def test_the_seal_holds_all_commits_of_an_orderly_process(place: Place) -> None:
    async with place.process() as here:
        channel = await here.open()
        for _ in range(3):
            channel = await here.raise_by(channel, 1)
    async with place.process() as here:
        standing = await here.store.commits.standing()
    assert standing.commits is not None
    assert seal.read(place.seal)[0].commits == standing.commits + 1  # and this process's last commit


async def put_an_old_copy_back(place: Place, *, dies: bool = False) -> tuple[Channel, Channel]:
    """What the copy has of the channel, and what it had come to."""
    async with place.process() as here:
        old = await here.open()
    copy = place.copy()
    async with place.process(dies=dies) as here:
        claimed = await here.store.claim("0xc1", lambda one: account.doubt_everything(one, 0))
        new = await here.raise_by(claimed, 40)
    place.put_back(copy)
    return old, new


@pytest.mark.parametrize("dies", [False, True])
async def test_nothing_is_authorised_in_an_old_copy(place: Place, dies: bool) -> None:
    await put_an_old_copy_back(place, dies=dies)
    async with place.process() as here:
        assert "older copy" in str(here.store.sealed_against)
        claimed = await here.store.claim("0xc1", lambda one: one)
        with pytest.raises(OldCopy, match="older copy"):
            await here.raise_by(claimed, 1)
        with pytest.raises(OldCopy, match="older copy"):
            await here.open("0xc2")
        await here.store.set(replace(claimed, note="but what is known may be written down"))
        assert await here.store.commits.left_in_doubt() == ("0xc1",)


async def test_no_number_of_starts_wears_the_doubt_off(place: Place) -> None:
    await put_an_old_copy_back(place)
    before = seal.read(place.seal)
    for _ in range(20):
        async with place.process() as here:
            assert here.store.sealed_against is not None
    assert seal.read(place.seal) == before


async def test_the_doubt_is_the_stores_own(place: Place) -> None:
    """It is there for a process that knows no seal, and when the seal is lost."""
    await put_an_old_copy_back(place)
    async with place.process():
        pass
    place.seal.unlink()
    async with place.process() as here:
        assert here.store.sealed_against is not None


async def reconcile(here: Here, channel_id: str = "0xc1") -> Channel:
    claimed = await here.store.claim(channel_id, lambda one: one)
    channel = account.assume_authorised(claimed, claimed.ceiling, 7)
    moves = CAPS.raise_moves(channel.authorised - claimed.authorised, DAY)
    await here.store.absorb(channel, moves, reconciles=True)
    await here.store.release(channel)
    return channel


async def test_it_is_lifted_when_each_channel_is_reconciled(place: Place) -> None:
    async with place.process() as here:
        await here.open("0xc2", 20)
    await put_an_old_copy_back(place)
    async with place.process() as here:
        with pytest.raises(NotReconciled, match="2 channels are not reconciled yet: 0xc1, 0xc2"):
            await here.presence.lift()
        await reconcile(here)
        with pytest.raises(NotReconciled, match="1 channels"):
            await here.presence.lift()
        assert here.store.sealed_against is not None
    async with place.process() as here:  # after a crash it goes on where it was
        assert await here.store.commits.left_in_doubt() == ("0xc2",)
        channel = await reconcile(here, "0xc2")
        assert (channel.authorised, channel.uncertain, channel.free) == (100, 100, 0)
        await here.presence.lift()
        assert here.store.sealed_against is None
        await here.open("0xc3", 10)
        total = sum(one.authorised for one in await here.store.all())
        for family in ("host-day/", "total-day/", "lifetime/"):
            assert sum((await here.store.counters(family)).values()) == total == 210
    async with place.process() as here:
        assert here.store.sealed_against is None


async def test_copies_from_before_a_reconciliation_stay_old(place: Place) -> None:
    """Also one with more commits than the reconciled store has by then."""
    async with place.process() as here:
        channel = await here.open()
    oldest = place.copy("oldest")
    async with place.process() as here:
        claimed = await here.store.claim("0xc1", lambda one: account.doubt_everything(one, 0))
        for _ in range(30):
            claimed = await here.raise_by(claimed, 1)
        await here.store.release(claimed)
    newest = place.copy("newest")
    place.put_back(oldest)
    async with place.process() as here:
        await reconcile(here)
        await here.presence.lift()
    place.put_back(newest)
    async with place.process() as here:
        assert "from before" in str(here.store.sealed_against)
    assert channel.authorised == 10


async def test_a_crash_between_the_new_stamp_and_the_seal(place: Place) -> None:
    await put_an_old_copy_back(place)
    before = place.seal.read_bytes()
    async with place.process() as here:
        await reconcile(here)
        await here.presence.lift()
    place.seal.write_bytes(before)
    async with place.process() as here:
        assert here.store.sealed_against is None
    assert place.seal.read_bytes() != before


async def test_another_process_hears_that_it_was_reconciled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LOOK_AGAIN_S", 0)
    await put_an_old_copy_back(place)
    async with place.process() as waiting, place.process() as here:
        assert waiting.presence._waiting is not None
        await reconcile(here)
        await here.presence.lift()
        await waiting.presence._waiting
        assert waiting.store.sealed_against is None
        await waiting.open("0xc2")
    async with place.process() as here:
        assert here.store.sealed_against is None


async def test_another_store_in_its_place(place: Place) -> None:
    async with place.process() as here:
        await here.open()
    place.directory.rename(place.root / "away")
    async with place.process() as here:
        assert "not the one that was there" in str(here.store.sealed_against)
        assert await here.store.commits.left_in_doubt() == ()
        await here.presence.lift()  # its user knows
        await here.open("0xc9")
    shutil.rmtree(place.directory)
    (place.root / "away").rename(place.directory)
    async with place.process() as here:
        assert "not the one that was there" in str(here.store.sealed_against)


async def test_a_store_that_was_moved_is_the_same(place: Place) -> None:
    async with place.process() as here:
        await here.open()
    moved = Place(place.root / "new")
    moved.root.mkdir()
    place.directory.rename(moved.directory)
    place.seal.rename(moved.seal)
    async with moved.process() as here:
        assert here.store.sealed_against is None
    assert seal.read(moved.seal)[0].directory == str(moved.directory)


async def test_a_damaged_seal_opens_nothing(place: Place) -> None:
    async with place.process():
        pass
    place.seal.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        async with place.process():
            pass


async def test_without_a_seal_nobody_can_tell(tmp_path: Path) -> None:
    shared = SharedMemory()
    store = ChannelStore(MemoryBackend(shared))
    journal = Journal(tmp_path, store.owner_id, "boot")
    here = await Presence.enter(store, journal, ledger=tmp_path, seal_path=None, directory=tmp_path)
    assert store.sealed_against is None
    await here.leave()
    await store.close()


# -- what comes from elsewhere


async def test_nothing_from_elsewhere_becomes_free_or_falls(place: Place) -> None:
    async with place.process() as here:
        channel = await here.open()
        for wrong in (
            account.raise_authorised(channel, 5),  # free
            replace(channel, authorised=9),
        ):
            with pytest.raises(Conflict, match="lowers or frees"):
                await here.store.absorb(wrong, CAPS.raise_moves(5, DAY))
        more = account.assume_authorised(channel, 30, 7)
        with pytest.raises(Conflict, match="a raise of 20 was charged as 19"):
            await here.store.absorb(more, CAPS.raise_moves(19, DAY))
        with pytest.raises(Conflict, match="cannot change its scope"):
            await here.store.absorb(replace(more, descriptor={"other": "one"}), CAPS.raise_moves(20, DAY))
        with pytest.raises(Fenced):
            await here.store.absorb(replace(more, epoch=9), CAPS.raise_moves(20, DAY))
        assert await here.store.find("0xc1") == channel
        await here.store.absorb(more, CAPS.raise_moves(20, DAY))
        assert await here.store.find("0xc1") == more
        await here.store.absorb(more)  # once more: nothing new


async def test_a_channel_of_another_store_is_taken_in_once(place: Place) -> None:
    old_day = CAPS.raise_moves(10, "2020-01-01")
    foreign = replace(
        proposed("0xf1", SCOPE, authorised=10),
        status=ChannelStatus.ASIDE,
        pending=None,
        deposit=100,
        uncertain=10,
        owner="somebody",
        folded=JournalMark("theirs", 1, "boot"),
    )
    async with place.process() as here:
        await here.open()  # today's date is charged: an older one is refused to everybody else
        with pytest.raises(Conflict, match="a raise of 10 was charged as 0"):
            await here.store.adopt(foreign, ())
        await here.store.adopt(foreign, old_day)
        found = await here.store.find("0xf1")
        assert found == replace(foreign, owner=None)
        with pytest.raises(Conflict, match="on record already"):
            await here.store.adopt(foreign, old_day)
        assert sum((await here.store.counters("total-day/")).values()) == 20


async def test_a_closed_channel_of_another_store_brings_its_refund(place: Place) -> None:
    closed = replace(
        proposed("0xf1", SCOPE, authorised=10),
        status=ChannelStatus.CLOSED,
        pending=None,
        deposit=100,
        paid=4,
        captured=4,
        refunded=96,
    )
    async with place.process() as here:
        with pytest.raises(Conflict, match="-7 to the lifetime"):
            await here.store.adopt(closed, CAPS.raise_moves(10, DAY), refund=7)
        await here.store.adopt(closed, CAPS.raise_moves(10, DAY), refund=6)
        counters = await here.store.counters()
        token = SCOPE.token
        assert (counters[f"lifetime/{token}"], counters[f"refunded/{token}"]) == (4, 6)


class Uncounted(MemoryBackend):
    """A third party's store: it keeps no id, and counts no commits."""

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        try:
            return await super().transact(work)
        finally:
            self.shared.apply(dict.fromkeys(marker.KEYS))


async def test_a_store_that_counts_no_commits_has_no_seal(tmp_path: Path) -> None:
    """Nothing could be told by it; it is entered and left all the same."""
    backend = Uncounted()
    backend.shared.apply(dict.fromkeys(marker.KEYS))
    store, journal = ChannelStore(backend), Journal(tmp_path / "ledger", "me", "boot")
    here = await Presence.enter(
        store, journal, ledger=tmp_path / "ledger", seal_path=tmp_path / "seal.json", directory=tmp_path
    )
    assert store.sealed_against is None
    await here.leave()
    assert not (tmp_path / "seal.json").exists()
    assert (await store.commits.anchors())["me"].closed
    await store.close()


async def test_once_lifted_nobody_waits_for_it_any_more(place: Place) -> None:
    await put_an_old_copy_back(place)
    async with place.process() as here:
        waiting = here.presence._waiting
        assert waiting is not None
        assert not waiting.done()
        await reconcile(here)
        await here.presence.lift()
        assert waiting.cancelled()
