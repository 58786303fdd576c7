from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy_addon.cli.lines import parse_time
from proxy_addon.cli.main import bursar
from store.account import Ending
from tests.unit.cli.bookkeeper import START, Bookkeeper

ONE, TWO = "0x1111" + "00" * 30, "0x2222" + "00" * 30


async def fill(store: Path) -> None:
    """Two processes, one after the other; the first gave its channel back, the second died."""
    async with Bookkeeper(store) as books:
        await books.open(ONE)
        books.pay(ONE, "r1", 10_000)
        books.pay(ONE, "r2", 12_345)
        books.pay(ONE, "r3", 7_000, Ending.FREE)
        books.refuse("dear.example.com:443", "dear.example.com asks 9.00 pathUSD, over max_price 0.10")
        await books.release(ONE)
    async with Bookkeeper(store, start=START + 3_600_000) as books:
        await books.open(TWO, host="other.example.com:8443")
        books.pay(TWO, "r4", 20_000, path="/=HYPERLINK")
        books.pay(TWO, "r5", 5_000, Ending.UNKNOWN)
        books.pay(TWO, "r6", 6_000, None)


def ledger(runner: CliRunner, config: Path, *arguments: str) -> str:
    done = runner.invoke(bursar, ["ledger", "--config", str(config), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_table_leaves_out_what_is_of_no_consequence(config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    lines = ledger(runner, config).splitlines()
    whats = [line[20:].split()[1] for line in lines[1:]]
    assert lines[0].split()[:4] == ["TIME", "WHAT", "AMOUNT", "HOST"]
    assert sorted(line.split()[2] for line in lines[1:]) == sorted(
        ["opened", "opened", "paid", "paid", "paid", "refused", "unknown"]
    ), whats
    assert "0.012345 pathUSD" in ledger(runner, config)
    assert len(ledger(runner, config, "--all").splitlines()) > len(lines)


def test_json_has_every_line_by_time(config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    lines = [json.loads(line) for line in ledger(runner, config, "--json").splitlines()]
    assert len(lines) == 2 + 6 + 1 + 5
    assert [line["t"] for line in lines] == sorted(line["t"] for line in lines)
    assert len({line["journal"] for line in lines}) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--host", "api.example.com"], {"r1", "r2", "r3"}),
        (["--host", "OTHER.example.com:8443"], {"r4", "r5", "r6"}),
        (["--host", "other.example.com:443"], set()),
        (["--channel", ONE[:6]], {"r1", "r2", "r3"}),
        (["--since", "2027-01-16"], set()),
        (["--until", "2027-01-15T08:00:00+00:00"], set()),
        (["--since", "2027-01-15T09:00+01:00"], {"r1", "r2", "r3", "r4", "r5", "r6"}),
    ],
)
def test_filters(arguments: list[str], expected: set[str], config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    lines = [json.loads(line) for line in ledger(runner, config, "--json", *arguments).splitlines()]
    assert {line["request"] for line in lines if line["kind"] == "sent"} == expected


def test_csv_holds_no_formulas(config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    store = config.parent / "store" / "ledger"
    path = next(store.glob("*.jsonl"))
    path.write_text(path.read_text().replace('"/data"', '"=cmd|x"'))
    rows = list(csv.DictReader(io.StringIO(ledger(runner, config, "--csv"))))
    assert {row["path"] for row in rows if row["kind"] == "sent"} <= {"'=cmd|x", "/data", "/=HYPERLINK"}
    assert any(row["path"] == "'=cmd|x" for row in rows)


def test_sums_agree_with_the_store(config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    assert "agrees, to the base unit" in ledger(runner, config, "--sum")
    value = json.loads(ledger(runner, config, "--sum", "--json"))
    (token,) = value["tokens"]
    assert value["compared"] is True
    assert value["differences"] == []
    assert token["paid"] == str(10_000 + 12_345 + 20_000)
    assert token["paid_human"] == "0.042345 pathUSD"
    assert (token["uncertain"], token["unfinished"]) == ("5000", "6000")
    assert (token["deposited"], token["fees"]) == ("2000000", "2400")
    assert value["opened"] == [ONE, TWO]
    assert value["refused"] == [
        {"message": "dear.example.com asks 9.00 pathUSD, over max_price 0.10", "times": 1}
    ]


def test_what_a_close_proved_counts(config: Path, runner: CliRunner) -> None:
    """5000 were uncertain; the chain says that 2000 of them were charged. Nothing is uncertain any more."""

    async def close() -> None:
        async with Bookkeeper(config.parent / "store") as books:
            await books.open(ONE)
            books.pay(ONE, "r1", 10_000)
            books.pay(ONE, "r2", 5_000, Ending.UNDELIVERED)
            await books.close(ONE, 12_000)

    asyncio.run(close())
    value = json.loads(ledger(runner, config, "--sum", "--json"))
    (token,) = value["tokens"]
    assert (token["paid"], token["adjusted"], token["uncertain"]) == ("10000", "2000", "0")
    assert token["refunded"] == "988000"
    assert value["differences"] == []
    assert value["closed"] == [ONE]
    assert "0.012 pathUSD" in ledger(runner, config, "--sum")


def test_a_difference_to_the_store_is_said(config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    for path in (config.parent / "store" / "ledger").glob("*.jsonl"):
        if "12345" in path.read_text():
            path.write_text(path.read_text().replace("12345", "12346").replace("0.012345", "0.012346"))
    done = runner.invoke(bursar, ["ledger", "--config", str(config), "--sum"])
    assert done.exit_code == 4
    assert f"channel {ONE}: the ledger has 22346 paid, the store 22345" in done.stderr
    assert "agrees" not in done.stdout
    one_channel = runner.invoke(bursar, ["ledger", "--config", str(config), "--sum", "--channel", TWO])
    assert one_channel.exit_code == 0, one_channel.output


def test_sums_of_a_part_are_not_compared(config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    value = json.loads(ledger(runner, config, "--sum", "--json", "--host", "api.example.com"))
    assert value["compared"] is False
    assert value["tokens"][0]["paid"] == "22345"


def test_an_empty_ledger_is_no_error(config: Path, runner: CliRunner) -> None:
    done = runner.invoke(bursar, ["ledger", "--config", str(config)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert runner.invoke(bursar, ["ledger", "--config", str(config), "--sum"]).exit_code == 0
    assert not (config.parent / "store").exists()


@pytest.mark.parametrize("text", ["yesterday", "2027-13-01", "7y", "0d", ""])
def test_a_time_that_is_none_is_wrong_usage(text: str, config: Path, runner: CliRunner) -> None:
    done = runner.invoke(bursar, ["ledger", "--config", str(config), "--since", text])
    assert done.exit_code == 2
    assert "is no time such as" in done.stderr


def test_ages_count_back_from_now() -> None:
    now = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
    assert parse_time("36h", now) == "2027-01-13T20:00:00.000Z"
    assert parse_time("2w", now) == "2027-01-01T08:00:00.000Z"
    assert parse_time("2027-01-15T10:00+02:00", now) == "2027-01-15T08:00:00.000Z"
