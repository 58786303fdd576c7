"""`bursar ledger verify`: what it proves, what it finds, what it calls doubtful; over many files and processes."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from store.account import Ending
from store.journal import read_lines
from store.ledger_files import journals
from tests.unit.cli.bookkeeper import START, Bookkeeper
from tests.unit.cli.test_ledger import ONE, TWO, fill, ledger

THREE = "0x3333" + "00" * 30


def verify(runner: CliRunner, config: Path, *, code: int) -> dict[str, Any]:
    done = runner.invoke(bursar, ["ledger", "--config", str(config), "verify", "--json"])
    assert done.exit_code == code, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["good"] is (code == 0)
    return told


def kinds(told: dict[str, Any]) -> list[str]:
    found = [one["kind"] for journal in told["journals"] for one in journal["findings"]]
    return found + [one["kind"] for one in told["disagreements"]]


@pytest.fixture
def store(config: Path) -> Path:
    return config.parent / "store"


def file_with(store: Path, text: str) -> Path:
    return next(path for path in (store / "ledger").iterdir() if text in path.read_text())


def test_what_two_processes_wrote_is_verified(config: Path, store: Path, runner: CliRunner) -> None:
    asyncio.run(fill(store))
    told = verify(runner, config, code=0)
    assert [(one["lines"], one["chained"], one["anchor"]["closed"]) for one in told["journals"]] == [
        (one["anchor"]["line"], True, True) for one in told["journals"]
    ]
    assert told["channels"] == 2
    done = runner.invoke(bursar, ["ledger", "verify", "--config", str(config)])
    assert "14 lines are as they were written; ledger and store agree on 2 channels." in done.stdout
    assert done.stdout.count("verified, closed") == 2


def test_nothing_yet_is_no_error(config: Path, store: Path, runner: CliRunner) -> None:
    assert verify(runner, config, code=0)["journals"] == []
    assert not store.exists()


def altered(store: Path) -> None:
    path = file_with(store, '"12345"')
    path.write_text(path.read_text().replace('"12345"', '"12346"'))


def dropped(store: Path) -> None:
    path = file_with(store, '"r2"')
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))


def swapped(store: Path) -> None:
    path = file_with(store, '"r2"')
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[4], lines[3], *lines[5:]]))


def truncated(store: Path) -> None:
    path = file_with(store, '"r2"')
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def replaced(store: Path) -> None:
    file_with(store, '"r4"').rename(file_with(store, '"r2"'))


def removed(store: Path) -> None:
    file_with(store, '"r2"').unlink()


def smuggled_in(store: Path) -> None:
    path = file_with(store, '"r2"')
    shutil.copy(path, path.with_name("0123.jsonl"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (altered, {"altered", "paid"}),
        (dropped, {"dropped"}),
        (swapped, {"dropped", "reordered"}),
        (truncated, {"cut-short"}),
        (replaced, {"altered", "cut-short", "missing", "paid"}),
        (removed, {"missing", "paid"}),
        (smuggled_in, {"altered", "unknown", "paid"}),
    ],
)
def test_each_change_is_found(
    config: Path, store: Path, runner: CliRunner, change: Callable[[Path], None], found: set[str]
) -> None:
    asyncio.run(fill(store))
    change(store)
    told = verify(runner, config, code=4)
    assert found <= set(kinds(told)) | ({"cut-short"} if change is replaced else set())
    done = runner.invoke(bursar, ["ledger", "verify", "--config", str(config)])
    assert done.exit_code == 4
    assert "not as it was written" in done.stdout or change is removed
    assert "as they were written" not in done.stdout


def test_a_process_that_died_is_no_alarm(config: Path, store: Path, runner: CliRunner) -> None:
    async def crash() -> None:
        async with Bookkeeper(store, dies=True) as books:
            await books.open(THREE)
            books.pay(THREE, "r1", 10_000)
            books.pay(THREE, "r2", 5_000, None)
        with books.journal.path.open("ab") as file:
            file.write(b'{"v":1,"n":99,"torn')

    asyncio.run(crash())
    told = verify(runner, config, code=0)
    assert told["journals"][0]["anchor"]["closed"] is False
    asyncio.run(fill(store))  # the next processes put its end on record
    told = verify(runner, config, code=0)
    assert all(one["anchor"]["closed"] for one in told["journals"])


def test_a_power_cut_is_doubtful_and_no_proof(config: Path, store: Path, runner: CliRunner) -> None:
    """The lines of the last moment are gone; the store counts what they would have said as uncertain."""

    async def power_cut() -> None:
        async with Bookkeeper(store, dies=True, boot="the run before") as books:
            await books.open(ONE)
            books.pay(ONE, "r1", 10_000)
            await books.commit(ONE)
        lines = books.journal.path.read_bytes().splitlines(keepends=True)
        books.journal.path.write_bytes(b"".join(lines[:-1]))

    asyncio.run(power_cut())
    told = verify(runner, config, code=0)
    assert [(one["kind"], one["doubtful"]) for one in told["disagreements"]] == [("paid", True)]
    (journal,) = told["journals"]
    assert [(one["kind"], one["doubtful"]) for one in journal["findings"]] == [("cut-short", True)]
    done = runner.invoke(bursar, ["ledger", "verify", "--config", str(config)])
    assert done.stderr.count("(a power cut may have done that)") == 2
    assert "as they were written" not in done.stdout


def test_ledgers_from_before_are_said_to_be_unchained(config: Path, store: Path, runner: CliRunner) -> None:
    asyncio.run(fill(store))
    for path in (store / "ledger").iterdir():
        bodies = [line.body for line in read_lines(path)]
        path.write_bytes(b"".join(body + b"\n" for body in bodies))
        path.rename(path.with_name(f"old-{path.name}"))  # and the store has no anchor of them
    told = verify(runner, config, code=4)
    old = [one for one in told["journals"] if one["journal"].startswith("old-")]
    assert [(one["chained"], one["findings"]) for one in old] == [(False, [])] * 2
    done = runner.invoke(bursar, ["ledger", "verify", "--config", str(config)])
    assert done.stdout.count("unchained: from before lines carried hashes") == 2


def test_a_store_that_is_older_than_its_ledger(config: Path, store: Path, runner: CliRunner) -> None:
    """Only data.mdb was put back."""
    asyncio.run(fill(store))
    old = (store / "data.mdb").read_bytes()

    async def more() -> None:
        async with Bookkeeper(store, start=START + 7_200_000) as books:
            await books.open(THREE, authorised=70_000)
            books.pay(THREE, "r9", 60_000)
            await books.release(THREE)

    asyncio.run(more())
    (store / "data.mdb").write_bytes(old)
    told = verify(runner, config, code=4)
    assert {"unknown", "paid"} <= set(kinds(told))


def test_budgets_that_lost_count(config: Path, store: Path, runner: CliRunner) -> None:
    asyncio.run(fill(store))

    async def tamper() -> None:
        async with Bookkeeper(store) as books:
            key = next(key for key in await books.store.counters("lifetime/"))

            def work(txn: Any) -> None:
                from store.codec import encode_int

                txn.put(b"b/" + key.encode(), encode_int(1))

            await books.store.commits.transact(work)

    asyncio.run(tamper())
    told = verify(runner, config, code=4)
    assert kinds(told) == ["counters"]
    assert (
        "100000 are authorised in all, and the lifetime budgets have counted 1"
        in told["disagreements"][0]["text"]
    )


def test_a_running_process_is_verified_as_far_as_it_went(
    config: Path, store: Path, runner: CliRunner
) -> None:
    async def run() -> None:
        async with Bookkeeper(store) as books:
            await books.open(ONE)
            books.pay(ONE, "r1", 10_000)
            told = await asyncio.to_thread(verify, runner, config, code=0)
            (journal,) = told["journals"]
            assert (journal["anchor"]["line"], journal["lines"]) == (0, 3)

    asyncio.run(run())


# -- many files


def test_filters_sums_and_exports_over_segments_and_processes(
    config: Path, store: Path, runner: CliRunner
) -> None:
    async def pay() -> None:
        for number, channel in enumerate((ONE, TWO)):
            async with Bookkeeper(store, start=START + number * 86_400_000, segment_bytes=2_000) as books:
                await books.open(channel, host=f"h{number}.example.com", authorised=900_000)
                for request in range(40):
                    ending = Ending.PAID if request % 4 else Ending.UNDELIVERED
                    books.pay(channel, f"r{number}-{request}", 1_000 + request, ending)
                await books.release(channel)

    asyncio.run(pay())
    assert all(len(files) > 5 for files in journals(store / "ledger").values())
    lines = [json.loads(line) for line in ledger(runner, config, "--json").splitlines()]
    assert len(lines) == 2 * 81
    assert [line["t"] for line in lines] == sorted(line["t"] for line in lines)
    assert len({line["journal"] for line in lines}) == 2
    one_host = [
        json.loads(line) for line in ledger(runner, config, "--json", "--host", "h1.example.com").splitlines()
    ]
    assert {line["host"] for line in one_host} == {"h1.example.com:443"}
    one_day = ledger(runner, config, "--json", "--since", "2027-01-16", "--until", "2027-01-17").splitlines()
    assert len(one_day) == 81
    told = json.loads(ledger(runner, config, "--sum", "--json"))
    assert told["differences"] == []
    assert told["tokens"][0]["paid_requests"] == 60
    assert len(ledger(runner, config, "--csv").splitlines()) == 2 * 81 + 1
    assert verify(runner, config, code=0)["channels"] == 2


def test_more_journals_than_a_process_may_have_files(config: Path, store: Path, runner: CliRunner) -> None:
    asyncio.run(fill(store))
    for number in range(300):
        (store / "ledger" / f"old{number}.jsonl").write_text(
            "".join(
                f'{{"v":1,"n":{n},"t":"2026-01-01T00:00:00.{number:03}Z","kind":"note"}}\n' for n in (1, 2)
            )
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        lines = [json.loads(line) for line in ledger(runner, config, "--json").splitlines()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(lines) == 600 + 14
    assert [line["t"] for line in lines] == sorted(line["t"] for line in lines)
