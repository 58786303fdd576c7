from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from store.account import Ending
from tests.unit.cli.bookkeeper import Bookkeeper
from tests.unit.cli.conftest import KEY, KEY_ENV, Bursar

ONE, TWO = "0x1111" + "00" * 30, "0x1122" + "00" * 30


async def fill(store: Path) -> None:
    """Two channels; the first was given back, the second one's process died."""
    async with Bookkeeper(store) as books:
        await books.open(ONE)
        await books.open(TWO, host="other.example.com")
        books.pay(TWO, "r1", 10_000)
        await books.release(ONE)


def as_json(runner: CliRunner, config: Path, *arguments: str) -> Any:
    done = runner.invoke(bursar, ["channels", *arguments, "--config", str(config), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


async def test_what_is_in_the_journal_only_is_shown(config: Path, run_bursar: Bursar) -> None:
    """While a proxy runs, from another process: its record says nothing of the last request yet."""
    async with Bookkeeper(config.parent / "store") as books:
        await books.open(ONE)
        books.pay(ONE, "r1", 10_000)
        await books.commit(ONE)
        books.pay(ONE, "r2", 2_000)
        books.pay(ONE, "r3", 500, Ending.UNDELIVERED)
        books.pay(ONE, "r4", 70, None)
        done = run_bursar("channels", "list", "--config", str(config), "--json")
        assert done.returncode == 0, done.stderr
        (channel,) = json.loads(done.stdout)
        stored = await books.store.find(ONE)
    assert stored is not None
    assert stored.paid == 10_000
    assert channel["ownership"] == "in use"
    assert {name: channel[name] for name in ("paid", "uncertain", "held", "in_flight")} == {
        "paid": "12000",
        "uncertain": "500",
        "held": "70",
        "in_flight": 1,
    }


def test_list_and_show(config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    lines = runner.invoke(bursar, ["channels", "list", "-c", str(config)]).stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["0x11110000…0000", "api.example.com:443", "open"],
        ["0x11220000…0000", "other.example.com:443", "open"],
    ]
    assert lines[1].endswith("idle")
    assert lines[2].endswith("left")
    assert lines[2].split()[3:10] == ["1.00", "0.05", "0.01", "0.00", "0.00", "0.99", "pathUSD"]
    assert (
        lines[3] == "2.00 pathUSD locked in 2 channels, of which 1.99 pathUSD come back when they are closed"
    )
    shown = runner.invoke(bursar, ["channels", "show", "-c", str(config), "0x1122"]).stdout
    assert f"channel     {TWO}" in shown
    assert "paid        0.01 pathUSD" in shown


def test_a_channel_that_a_dead_process_left_is_shown_as_it_will_be_recovered(
    config: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die() -> None:
        async with Bookkeeper(config.parent / "store") as books:
            await books.open(ONE)
            books.pay(ONE, "r1", 10_000)
            books.pay(ONE, "r2", 3_000, None)

    def shown() -> dict[str, str]:
        (channel,) = as_json(runner, config, "list")
        assert channel["ownership"] == "left"
        return {name: channel[name] for name in ("paid", "uncertain", "held", "free")}

    asyncio.run(die())
    assert shown() == {"paid": "10000", "uncertain": "3000", "held": "0", "free": "37000"}
    monkeypatch.setattr("proxy_addon.cli.records.boot_id", lambda: "another run of the machine")
    assert shown() == {"paid": "0", "uncertain": "50000", "held": "0", "free": "0"}
    told = runner.invoke(bursar, ["ledger", "-c", str(config), "--sum"])
    assert told.exit_code == 0
    assert "the difference is counted as uncertain there" in told.stderr


@pytest.mark.parametrize(
    ("start", "code", "told"),
    [
        ("0x11", 2, "the start of 2 channels"),
        ("0x", 2, "too short"),
        ("0x33", 1, "no channel 0x33 on record"),
    ],
)
def test_an_id_must_name_one_channel(
    start: str, code: int, told: str, config: Path, runner: CliRunner
) -> None:
    asyncio.run(fill(config.parent / "store"))
    done = runner.invoke(bursar, ["channels", "show", "-c", str(config), start])
    assert done.exit_code == code
    assert told in done.stderr


def test_no_store_is_no_channels(config: Path, runner: CliRunner) -> None:
    assert as_json(runner, config, "list") == []
    assert not (config.parent / "store").exists()


@pytest.mark.parametrize("arguments", [[], ["0x1111", "--all"]])
def test_close_wants_one_channel_or_all(arguments: list[str], config: Path, runner: CliRunner) -> None:
    done = runner.invoke(bursar, ["channels", "close", "-c", str(config), *arguments])
    assert done.exit_code == 2


async def test_close_waits_for_the_owner_and_then_says_who_it_is(config: Path, run_bursar: Bursar) -> None:
    async with Bookkeeper(config.parent / "store") as books:
        await books.open(ONE)
        done = run_bursar("channels", "close", "-c", str(config), "--wait", "0.6", "0x1111")
    assert done.returncode == 1
    waiting, failed = done.stderr.splitlines()
    assert "waiting for a running proxy" in waiting
    assert f"channel {ONE} is in use by process" in failed
    assert "--wait" in failed


def test_closing_all_goes_on_after_a_failure(config: Path, runner: CliRunner) -> None:
    """Nobody answers at the chain's address here: each channel says so, and stays as it is."""
    config.write_text(config.read_text().replace("https://rpc.moderato.tempo.xyz", "http://127.0.0.1:9"))
    asyncio.run(fill(config.parent / "store"))
    done = runner.invoke(
        bursar, ["channels", "close", "-c", str(config), "--all", "--json"], env={KEY_ENV: KEY}
    )
    assert done.exit_code == 1, done.output
    told = json.loads(done.stdout)
    assert [one["channel"] for one in told] == [ONE, TWO]
    assert all("error" in one for one in told)
    listed = as_json(runner, config, "list")
    assert [(one["status"], one["ownership"]) for one in listed] == [("open", "idle")] * 2


def test_a_wallet_that_does_not_open_is_its_own_exit_code(config: Path, runner: CliRunner) -> None:
    done = runner.invoke(bursar, ["channels", "close", "-c", str(config), "--all"], env={KEY_ENV: ""})
    assert done.exit_code == 3
    assert done.stderr.startswith("bursar: the environment variable TEST_BURSAR_KEY is not set")
