"""`bursar backup`, and what comes after it was put back: the doubt, and the conservative way out of it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from store import budgets
from store.lifecycle import ChannelStatus
from tests.unit.cli.bookkeeper import PATH_USD, Bookkeeper
from tests.unit.cli.test_moving import Home, MakeHome, make

__all__ = ["make"]


@pytest.fixture
def used(make: MakeHome) -> Home:
    """Two open channels and a closed one; its seal was written."""

    async def fill() -> None:
        async with Bookkeeper(home.store) as books:
            for salt in (1, 2):
                channel = (await books.open(salt=salt, authorised=50_000)).channel_id
                books.pay(channel, f"r{salt}", 10_000)
                await books.commit(channel)
                await books.release(channel)
            closed = (await books.open(salt=3, authorised=20_000)).channel_id
            books.pay(closed, "r3", 20_000)
            await books.commit(closed)
            await books.close(closed, 20_000)

    home = make("home")
    asyncio.run(fill())
    assert home.run("reconcile", "--assume-spent") == "the store is in order: nothing was assumed\n"
    return home


def put_back(home: Home, backup: Path) -> None:
    shutil.rmtree(home.store)
    shutil.copytree(backup, home.store)


def test_it_says_what_it_took(used: Home, tmp_path: Path) -> None:
    told = json.loads(used.run("backup", str(tmp_path / "one"), "--json"))
    assert told["directory"] == str(tmp_path / "one")
    assert (told["in_use"], told["ledger_files"]) == (False, 2)
    assert told["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "one").rglob("*") if path.suffix in (".mdb", ".jsonl")
    )
    assert "has the store as of" in used.run("backup", str(tmp_path / "two"))
    assert "exists already" in used.run("backup", str(tmp_path / "two"), code=4)


def test_there_must_be_something_to_copy(make: MakeHome, tmp_path: Path) -> None:
    new = make("new")
    assert "there is no store in" in new.run("backup", str(tmp_path / "b"), code=4)
    assert not new.store.exists()
    new.config.write_text(new.config.read_text().replace('backend = "lmdb"', 'backend = "memory"'))
    assert "copies stores of the kind 'lmdb'" in new.run("backup", str(tmp_path / "b"), code=4)


def test_put_back_and_assumed_to_be_spent(used: Home, tmp_path: Path) -> None:
    used.run("backup", str(tmp_path / "b"))
    before = used.channels

    async def pay() -> None:
        async with Bookkeeper(used.store, seal=used.config.parent / "seal.json") as books:
            for channel in await books.store.all():
                if channel.status is ChannelStatus.OPEN:
                    books.channels[channel.channel_id] = await books.store.claim(
                        channel.channel_id, lambda one: one
                    )
                    books.pay(channel.channel_id, "r9", 40_000)

    asyncio.run(pay())
    put_back(used, tmp_path / "b")
    found = json.loads(used.run("ledger", "verify", "--json", code=4))
    assert [one["kind"] for one in found["disagreements"]] == ["old-copy"]
    told = json.loads(used.run("reconcile", "--dry-run", "--json"))
    assert (told["in_doubt"], len(told["left"])) == (True, 2)
    assert "is a backup, taken at" in told["why"]
    told = json.loads(used.run("reconcile", "--assume-spent", "--json"))
    assert told["was_in_doubt"] is True
    assert {(one["raised"], one["authorised"], one["uncertain"]) for one in told["channels"]} == {
        ("950000", "1000000", "990000")
    }
    after = used.channels
    for channel_id, channel in after.items():
        assert channel.paid == before[channel_id].paid
        assert channel.status is before[channel_id].status
        assert channel.free == 0
    counters = used.counters
    assert counters[budgets.lifetime(PATH_USD.address)] == 2_020_000
    assert "the store is in order" in used.run("reconcile", "--assume-spent")
    assert json.loads(used.run("ledger", "verify", "--json"))["good"] is True


def test_a_crash_in_the_midst_goes_on(used: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used.run("backup", str(tmp_path / "b"))
    used.run("reconcile", "--assume-spent")  # one commit more than the backup has
    put_back(used, tmp_path / "b")

    async def crash(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("store.presence.Presence.lift", crash)
        done = CliRunner().invoke(bursar, ["reconcile", "--assume-spent", "--config", str(used.config)])
        assert done.exit_code != 0
    told = json.loads(used.run("reconcile", "--dry-run", "--json"))
    assert (told["in_doubt"], told["left"]) == (True, [])
    counters = used.counters
    assert json.loads(used.run("reconcile", "--assume-spent", "--json"))["channels"] == []
    assert used.counters == counters
    assert json.loads(used.run("reconcile", "--dry-run", "--json"))["in_doubt"] is False
