"""`bursar channels export` and `import`: between two stores, twice, in parts, with budgets that follow."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from proxy_addon.cli.records import open_store
from proxy_addon.config import load
from store import account, budgets
from store.account import Ending
from store.lifecycle import ChannelStatus
from store.records import Channel
from tests.unit.cli.bookkeeper import PATH_USD, START, Bookkeeper
from tests.unit.cli.conftest import KEY_ENV
from tests.unit.methods import samples

S = ChannelStatus
DAY = 86_400_000


class Home:
    """A config with a store of its own, and the wallet whose channels the samples are."""

    def __init__(self, runner: CliRunner, config: Path) -> None:
        self.runner = runner
        self.config = config
        self.store = config.parent / "store"

    def run(self, *arguments: str, code: int = 0) -> str:
        done = self.runner.invoke(
            bursar, [*arguments, "--config", str(self.config)], env={KEY_ENV: samples.KEY}
        )
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    def take(self, file: Path, *options: str, code: int = 0) -> list[dict[str, Any]]:
        done = self.runner.invoke(
            bursar,
            ["channels", "import", str(file), "--json", *options, "--config", str(self.config)],
            env={KEY_ENV: samples.KEY},
        )
        assert done.exit_code == code, done.output
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    @property
    def channels(self) -> dict[str, Channel]:
        channels, counters = asyncio.run(self._books())
        for channel in channels:
            account.check(channel)
        for family in ("host-day/", "total-day/"):
            total = sum(amount for key, amount in counters.items() if key.startswith(family))
            assert total == sum(one.authorised for one in channels)
        return {channel.channel_id: channel for channel in channels}

    @property
    def counters(self) -> dict[str, int]:
        return asyncio.run(self._books())[1]

    async def _books(self) -> tuple[tuple[Channel, ...], dict[str, int]]:
        store = await open_store(load(self.config))
        try:
            return await store.books()
        finally:
            await store.close()


MakeHome = Callable[[str], Home]


@pytest.fixture
def make(home: Path, tmp_path: Path, runner: CliRunner) -> MakeHome:
    def make(name: str) -> Home:
        directory = tmp_path / name
        directory.mkdir(mode=0o700)
        text = (home / "config.toml").read_text()
        (directory / "config.toml").write_text(text.replace(str(home / "store"), str(directory / "store")))
        return Home(runner, directory / "config.toml")

    return make


@pytest.fixture
def old(make: MakeHome) -> Home:
    """Three channels, of two hosts, charged on two days; one is closed. The last process left nothing in flight."""

    async def fill() -> None:
        async with Bookkeeper(there.store) as books:
            one = (await books.open(salt=1, authorised=50_000)).channel_id
            books.pay(one, "r1", 10_000)
            books.pay(one, "r2", 5_000, Ending.UNDELIVERED)
            await books.commit(one)
            await books.release(one)
            closed = (await books.open(salt=2, authorised=20_000)).channel_id
            books.pay(closed, "r3", 20_000)
            await books.commit(closed)
            await books.close(closed, 20_000)
        async with Bookkeeper(there.store, start=START + DAY) as books:
            two = (await books.open(salt=3, host="other.example.com", authorised=30_000)).channel_id
            books.pay(two, "r4", 30_000)
            await books.commit(two)
            await books.release(two)

    there = make("old")
    asyncio.run(fill())
    return there


def amounts(channel: Channel) -> tuple[int, int, int, int]:
    return channel.authorised, channel.paid, channel.uncertain, channel.free


def test_the_file_is_new_and_ours_alone(old: Home, tmp_path: Path) -> None:
    file = tmp_path / "channels.json"
    old.run("channels", "export", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert "is not overwritten" in old.run("channels", "export", str(file), code=1)
    assert file.read_bytes() == before
    assert json.loads(old.run("channels", "export"))["channels"] == json.loads(before)["channels"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["channels.json"]


def test_a_whole_store_moves_with_its_budgets(old: Home, make: MakeHome, tmp_path: Path) -> None:
    before, counters = old.channels, old.counters
    file = tmp_path / "channels.json"
    old.run("channels", "export", "--move", str(file))
    given = old.channels
    assert sorted(one.status for one in given.values()) == [S.CLOSED, S.MOVED, S.MOVED]
    assert {key: amount for key, amount in old.counters.items() if not key.startswith("escrow/")} == {
        key: amount for key, amount in counters.items() if not key.startswith("escrow/")
    }
    assert old.counters[budgets.escrow(PATH_USD.address)] == 0
    new = make("new")
    told = new.take(file)
    assert {one["action"] for one in told} == {"added"}
    after = new.channels
    assert after.keys() == before.keys()
    for channel_id, channel in after.items():
        assert amounts(channel) == amounts(before[channel_id])
        assert channel.status is before[channel_id].status
        assert channel.owner is None
    moved = new.counters
    for family in ("host-day/", "total-day/", "lifetime/", "refunded/", "escrow/"):
        assert {key: amount for key, amount in moved.items() if key.startswith(family)} == {
            key: amount for key, amount in counters.items() if key.startswith(family)
        }
    assert moved[budgets.opens("api.example.com:443", "2027-01-15")] == 2
    # Nothing is paid with them here any more, and there is nothing to close.
    assert old.run("channels", "list", "--json") == "[]\n"
    assert len(json.loads(new.run("channels", "list", "--json"))) == 2
    for one in (old, new):
        assert json.loads(one.run("ledger", "verify", "--json"))["good"] is True


def test_twice_is_once(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", "--move", str(file))
    new.take(file)
    once, counters = new.channels, new.counters
    told = new.take(file)
    assert {one["action"] for one in told} == {"unchanged"}
    assert {key: replace(one, epoch=0, folded=None) for key, one in new.channels.items()} == {
        key: replace(one, epoch=0, folded=None) for key, one in once.items()
    }
    assert new.counters == counters


def test_a_copy_is_for_closing_and_not_for_paying(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", str(file))
    assert sorted(one.status for one in old.channels.values()) == [S.CLOSED, S.OPEN, S.OPEN]
    new.take(file)
    found = [one for one in new.channels.values() if one.status is not S.CLOSED]
    assert {one.status for one in found} == {S.ASIDE}
    assert {one.free for one in found} == {0}
    assert {one.note for one in found} == {"imported from a copy: another store may pay with it"}


def test_the_user_may_say_that_nobody_else_uses_them(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", str(file))
    new.take(file, "--take-over")
    found = [one for one in new.channels.values() if one.status is not S.CLOSED]
    assert {one.status for one in found} == {S.OPEN}
    assert {one.free for one in found} == {0}


def test_a_part_moves(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", "--move", "--scope", "other.example.com", str(file))
    assert sorted(one.status for one in old.channels.values()) == [S.CLOSED, S.MOVED, S.OPEN]
    new.take(file)
    (channel,) = new.channels.values()
    assert amounts(channel) == (30_000, 30_000, 0, 0)
    assert new.counters[budgets.total_day(PATH_USD.address, "2027-01-16")] == 30_000
    document = json.loads(file.read_text())
    assert list(document["counters"]) == [
        budgets.host_day(PATH_USD.address, "other.example.com:443", "2027-01-16")
    ]
    short = f"{samples.PAYEE}:{samples.TOKEN}:{samples.RESERVE}:42431"
    assert len(json.loads(old.run("channels", "export", "--scope", short))["channels"]) == 3


def test_moved_away_and_back(old: Home, make: MakeHome, tmp_path: Path) -> None:
    there, new = tmp_path / "there.json", make("new")
    old.run("channels", "export", "--move", str(there))
    new.take(there)

    async def pay() -> None:
        async with Bookkeeper(new.store, start=START + 2 * DAY) as books:
            for channel in await books.store.all():
                if channel.status is S.OPEN and channel.free:
                    claimed = await books.store.claim(channel.channel_id, lambda one: one)
                    books.channels[channel.channel_id] = claimed
                    books.pay(channel.channel_id, "r9", 30_000)
                    await books.commit(channel.channel_id)
                    await books.release(channel.channel_id)

    asyncio.run(pay())
    back = tmp_path / "back.json"
    new.run("channels", "export", "--move", str(back))
    told = old.take(back)
    assert sorted(one["action"] for one in told) == ["taken back", "taken back", "unchanged"]
    found = {one.authorised: one for one in old.channels.values()}
    assert amounts(found[50_000]) == (50_000, 40_000, 5_000, 5_000)
    assert found[50_000].status is S.OPEN
    assert json.loads(old.run("ledger", "verify", "--json"))["good"] is True
    assert json.loads(new.run("ledger", "verify", "--json"))["good"] is True


def test_what_was_moved_is_in_a_later_file_only_on_demand(old: Home, tmp_path: Path) -> None:
    """Else two stores could come to use one channel."""
    old.run("channels", "export", "--move", str(tmp_path / "lost.json"))
    old.run("channels", "export", "--move", str(tmp_path / "next.json"))
    assert {one["moved"] for one in json.loads((tmp_path / "next.json").read_text())["channels"]} == {False}
    old.run("channels", "export", "--move", "--again", str(tmp_path / "again.json"))
    moved = [
        one["status"] for one in json.loads((tmp_path / "again.json").read_text())["channels"] if one["moved"]
    ]
    assert moved == ["open", "open"]


def test_watermarks_rise_and_never_fall(old: Home, tmp_path: Path) -> None:
    """An old export does nothing to a newer record; a newer one raises an older record, with its budgets."""
    early, late = tmp_path / "early.json", tmp_path / "late.json"
    old.run("channels", "export", str(early))
    before = old.channels
    assert {one["action"] for one in old.take(early)} == {"unchanged"}
    document = json.loads(early.read_text())
    for row in document["channels"]:
        if row["status"] == "open":
            row["authorised"] = str(int(row["authorised"]) + 7_000)
            row["updated_at"] += DAY
    document["counters"][budgets.host_day(PATH_USD.address, "api.example.com:443", "2027-01-17")] = "7000"
    late.write_text(json.dumps(document))
    told = {one["channel"]: one for one in old.take(late)}
    for channel_id, channel in old.channels.items():
        was = before[channel_id]
        if was.status is S.CLOSED:
            assert told[channel_id]["action"] == "unchanged"
            continue
        assert told[channel_id] == told[channel_id] | {"action": "raised", "raised": "7000"}
        assert amounts(channel) == (was.authorised + 7_000, was.paid, was.authorised + 7_000 - was.paid, 0)
        assert channel.status is S.OPEN
    assert old.counters[budgets.total_day(PATH_USD.address, "2027-01-17")] == 7_000
    assert old.counters[budgets.total_day(PATH_USD.address, "2027-01-16")] == 37_000
    assert {one["action"] for one in old.take(early)} == {"unchanged"}
    assert json.loads(old.run("ledger", "verify", "--json"))["good"] is True


def test_a_dry_run_writes_nothing(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", str(file))
    before = sorted((path, path.stat().st_mtime_ns) for path in old.store.rglob("*.jsonl"))
    channels = old.channels
    told = new.take(file, "--dry-run")
    assert {one["action"] for one in told} == {"added"}
    assert {one["status"] for one in told} == {"aside", "closed"}
    assert not new.store.exists()
    assert {one["action"] for one in old.take(file, "--dry-run")} == {"unchanged"}
    assert sorted((path, path.stat().st_mtime_ns) for path in old.store.rglob("*.jsonl")) == before
    assert old.channels == channels


def test_of_other_payers_they_are_kept_and_said_to_be(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", str(file))
    done = new.runner.invoke(
        bursar,
        ["channels", "import", str(file), "--config", str(new.config)],
        env={KEY_ENV: samples.OTHER_KEY},
    )
    assert done.exit_code == 0, done.output
    assert f"3 channels are of the payer {samples.ADDRESS}" in done.stderr
    assert len(new.channels) == 3
    assert "payer" not in new.run("channels", "import", str(file))


def test_a_channel_that_is_not_what_it_says_is_skipped(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", str(file))
    document = json.loads(file.read_text())
    document["channels"][0]["descriptor"]["salt"] = "0x" + "99" * 32
    document["channels"][1]["scope"]["payee"] = samples.OTHER_ADDRESS
    document["channels"][2]["scope"]["family"] = "other"
    file.write_text(json.dumps(document))
    told = new.take(file, code=1)
    assert {one["action"] for one in told} == {"skipped"}
    whys = " ".join(str(one["why"]) for one in told)
    assert "its id is not that of its descriptor" in whys
    assert "descriptor.payee" in whys
    assert "other/v2 are not known here" in whys
    assert new.channels == {}


def test_a_file_of_another_version_is_refused(old: Home, make: MakeHome, tmp_path: Path) -> None:
    file, new = tmp_path / "channels.json", make("new")
    old.run("channels", "export", str(file))
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    assert "of version 2; this bursar reads version 1" in new.run("channels", "import", str(file), code=1)
    assert not new.store.exists()


def test_an_opening_on_its_way_waits_for_the_chain(make: MakeHome, tmp_path: Path) -> None:
    there, new, file = make("old"), make("new"), tmp_path / "channels.json"

    async def propose() -> None:
        async with Bookkeeper(there.store) as books:
            await books.open(salt=1, status=S.PROPOSED, deposit=0, pending=samples.pending())

    asyncio.run(propose())
    there.run("channels", "export", "--move", str(file))
    assert [one.status for one in there.channels.values()] == [S.PROPOSED]  # nothing to give up yet
    (told,) = new.take(file, code=1)
    assert "its opening was on its way" in told["why"]
    new.take(file, "--take-over")
    (channel,) = new.channels.values()
    assert (channel.status, channel.uncertain, channel.ceiling) == (S.UNKNOWN, 50_000, 50_000)
    assert channel.pending is not None
    assert channel.pending.raw == ""


def test_a_channel_in_use_is_waited_for(old: Home, make: MakeHome, tmp_path: Path) -> None:
    async def use() -> None:
        async with Bookkeeper(old.store) as books:
            channel = next(one for one in await books.store.all() if one.status is S.OPEN)
            await books.store.claim(channel.channel_id, lambda one: one)
            await asyncio.to_thread(move)

    def move() -> None:
        out = old.run("channels", "export", "--move", "--wait", "0", str(tmp_path / "c.json"), code=1)
        assert "is in use by process" in out
        skipped = [one for one in old.take(plain, code=1) if one["action"] == "skipped"]
        assert ["is in use by process" in one["why"] for one in skipped] == [True]

    plain = tmp_path / "plain.json"
    old.run("channels", "export", str(plain))
    asyncio.run(use())


def test_nothing_moves_out_of_a_store_in_doubt(old: Home, tmp_path: Path) -> None:
    old.run("channels", "export", str(tmp_path / "plain.json"))
    old.take(tmp_path / "plain.json")  # the first that writes under this config: the seal is there now
    seal = old.config.parent / "seal.json"
    document = json.loads(seal.read_text())
    document["stores"][0]["commits"] += 100
    seal.write_text(json.dumps(document))
    out = old.run("channels", "export", "--move", str(tmp_path / "c.json"), code=4)
    assert "reconcile it before anything is moved" in out
    old.run("channels", "export", str(tmp_path / "watermarks.json"))
