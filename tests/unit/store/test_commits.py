"""What each commit carries beside its work."""

from __future__ import annotations

from pathlib import Path

from store import marker
from store.anchors import Anchor
from store.commits import Commits
from store.contract import Backend, Transaction
from store.journal import Journal
from store.lineage import Stamp, put_in_doubt
from store.lmdb_store import LmdbBackend
from store.memory_store import MemoryBackend


def nothing(txn: Transaction) -> None:
    txn.put(b"x", b"")


async def test_the_seal_hears_of_each_commit(tmp_path: Path) -> None:
    backend = await LmdbBackend.open(tmp_path / "store")
    try:
        commits, told = Commits(backend), list[int]()
        await commits.transact(nothing)  # nobody listens yet
        commits.told = told.append
        for _ in range(3):
            await commits.transact(nothing)
        before = (await commits.standing()).commits
        assert before is not None
        assert told == [before - 2, before - 1, before]
    finally:
        await backend.close()


async def test_where_nobody_counts_the_seal_hears_nothing() -> None:
    """A third party's store need not count its commits."""
    backend = MemoryBackend()
    backend.shared.apply({marker.COMMITS_KEY: None})
    commits, told = Commits(backend), list[int]()
    commits.told = told.append
    assert await commits.transact(lambda txn: "done") == "done"
    assert told == []


async def test_what_a_process_writes_first_and_last(tmp_path: Path) -> None:
    backend: Backend = MemoryBackend()
    commits = Commits(backend)
    await commits.leave()  # it never entered: nothing to say
    assert await commits.anchors() == {}
    journal = Journal(tmp_path, "me", "boot")
    found = await commits.enter(journal, (), stamp="s1", doubt=None)
    assert (found.stamp, found.doubt, commits.sealed_against) == (Stamp("s1"), None, None)
    assert await commits.anchors() == {"me": Anchor("me", 0, journal.anchor.digest, "boot")}
    journal.append({})
    journal.close()
    await commits.leave()
    assert await commits.anchors() == {"me": journal.anchor}
    assert journal.anchor.closed


async def test_a_doubt_that_another_process_found_is_seen(tmp_path: Path) -> None:
    backend = MemoryBackend()
    commits, other = Commits(backend), Commits(backend)
    assert await commits.look_at_doubt() is None
    await other.transact(lambda txn: put_in_doubt(txn, "an older copy"))
    assert commits.sealed_against is None
    assert await commits.look_at_doubt() == commits.sealed_against == "an older copy"
    assert await commits.lift("s2") == Stamp("s2")
    assert commits.sealed_against is None
    assert await other.look_at_doubt() is None
