"""`bursar reconcile`: what is uncertain, which requests are behind it, and what can be done about it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.audit import amount_fields
from proxy_addon.cli.doubts import Doubt, doubts
from proxy_addon.cli.lines import read_ledger
from proxy_addon.cli.main import bursar
from proxy_addon.cli.sums import add_up
from store.account import Ending
from tests.unit.cli.bookkeeper import PATH_USD, Bookkeeper

ONE, OTHER = "0x1111" + "00" * 30, "0x2222" + "00" * 30
Write = Callable[[Bookkeeper], Awaitable[None] | None]


def book(directory: Path, write: Write, *, dies: bool = False) -> None:
    async def run() -> None:
        async with Bookkeeper(directory, dies=dies) as books:
            await books.open(ONE)
            if (waits := write(books)) is not None:
                await waits
            if not dies:
                await books.commit(ONE)
                await books.release(ONE)

    directory.mkdir(mode=0o700, exist_ok=True)
    asyncio.run(run())


def note(books: Bookkeeper, kind: str, amount: int = 0, **fields: Any) -> None:
    books.audit.move(
        kind, {"host": "api.example.com:443", **amount_fields(PATH_USD, amount), **fields}, channel_id=ONE
    )


def found(directory: Path) -> list[tuple[str, str, int]]:
    """Request, outcome and amount of what is in doubt on `ONE`."""
    some = doubts(read_ledger(directory / "ledger")).get(ONE, [])
    return [(one.request, one.outcome, one.amount) for one in some]


class TestBehind:
    """Which requests are behind what is uncertain."""

    def test_those_that_may_have_been_charged(self, tmp_path: Path) -> None:
        def write(books: Bookkeeper) -> None:
            books.pay(ONE, "paid", 100)
            books.pay(ONE, "free", 200, Ending.FREE)
            books.pay(ONE, "lost", 300, Ending.UNKNOWN, path="/a")
            books.pay(ONE, "cut", 400, Ending.UNDELIVERED)

        book(tmp_path, write)
        assert found(tmp_path) == [("lost", "unknown", 300), ("cut", "undelivered", 400)]
        (one, _) = doubts(read_ledger(tmp_path / "ledger"))[ONE]
        assert (one.method, one.path, one.host) == ("GET", "/a", "api.example.com:443")
        assert one.as_json()["amount"] == "300"
        assert one.as_json()["reason"] is None

    def test_those_whose_process_died(self, tmp_path: Path) -> None:
        book(tmp_path, lambda books: books.pay(ONE, "gone", 300, None), dies=True)
        assert found(tmp_path) == [("gone", "unfinished", 300)]

    def test_the_rest_of_a_stream(self, tmp_path: Path) -> None:
        def write(books: Bookkeeper) -> None:
            books.pay(ONE, "stream", 300, None)
            note(books, "voucher", 200, request="stream")
            note(books, "ended", 350, request="stream", outcome="paid", uncertain="150")
            books.pay(ONE, "running", 100, None)
            note(books, "voucher", 50, request="running")

        book(tmp_path, write, dies=True)
        assert found(tmp_path) == [("stream", "undelivered", 150), ("running", "unfinished", 150)]

    def test_what_was_written_off_or_assumed(self, tmp_path: Path) -> None:
        def write(books: Bookkeeper) -> None:
            note(books, "written-off", 70, request="r")
            note(books, "assumed-spent", 0, uncertain="900")

        book(tmp_path, write, dies=True)
        assert found(tmp_path) == [("r", "written-off", 70), ("", "assumed", 900)]

    @pytest.mark.parametrize("kind", ["ended", "probe", "reconciled", "closed"])
    def test_none_of_before_the_last_time_that_nothing_was(self, tmp_path: Path, kind: str) -> None:
        def write(books: Bookkeeper) -> None:
            books.pay(ONE, "before", 300, Ending.UNKNOWN)
            note(books, kind, request="r", outcome="paid", uncertain_now="0")
            books.pay(ONE, "after", 400, Ending.UNKNOWN)

        book(tmp_path, write, dies=True)
        assert found(tmp_path) == [("after", "unknown", 400)]

    def test_where_a_part_is_known_all_stay(self, tmp_path: Path) -> None:
        def write(books: Bookkeeper) -> None:
            books.pay(ONE, "one", 300, Ending.UNKNOWN)
            books.pay(ONE, "two", 300, Ending.UNKNOWN)
            note(books, "probe", uncertain_now="300")

        book(tmp_path, write, dies=True)
        assert [one[0] for one in found(tmp_path)] == ["one", "two"]


class TestSums:
    def of(self, directory: Path) -> Any:
        (token,) = add_up(read_ledger(directory / "ledger")).tokens.values()
        return token

    @pytest.mark.parametrize(
        ("left", "uncertain", "requests"), [("0", 0, 0), ("250", 250, 2), ("600", 600, 2), ("900", 600, 2)]
    )
    def test_what_a_probe_has_cleared_is_not_uncertain_any_more(
        self, tmp_path: Path, left: str, uncertain: int, requests: int
    ) -> None:
        def write(books: Bookkeeper) -> None:
            books.pay(ONE, "one", 300, Ending.UNKNOWN)
            books.pay(ONE, "two", 300, Ending.UNDELIVERED)
            note(books, "probe", uncertain_now=left)

        book(tmp_path, write, dies=True)
        token = self.of(tmp_path)
        assert (token.uncertain, token.uncertain_requests) == (uncertain, requests)

    def test_what_was_reconciled_is_paid(self, tmp_path: Path) -> None:
        def write(books: Bookkeeper) -> None:
            books.pay(ONE, "one", 300, Ending.UNKNOWN)
            note(books, "reconciled", 200, adjustment="200", released="100", uncertain_now="0")
            books.pay(ONE, "two", 50, Ending.UNKNOWN)

        book(tmp_path, write, dies=True)
        token = self.of(tmp_path)
        assert (token.paid, token.adjusted, token.uncertain, token.uncertain_requests) == (0, 200, 50, 1)


class TestCommand:
    def run(self, runner: CliRunner, config: Path, *arguments: str) -> Any:
        return runner.invoke(
            bursar,
            ["reconcile", "--config", str(config), *arguments],
            env={"TEST_BURSAR_KEY": "0x" + "11" * 32},
        )

    def test_nothing_is_uncertain(self, runner: CliRunner, config: Path) -> None:
        done = self.run(runner, config)
        assert (done.exit_code, done.output) == (0, "nothing is uncertain\n")
        told = json.loads(self.run(runner, config, "--json").output)
        assert told == {"in_doubt": False, "why": None, "left": [], "channels": []}

    def test_dry_run_shows_and_does_nothing(self, runner: CliRunner, config: Path, tmp_path: Path) -> None:
        def write(books: Bookkeeper) -> None:
            books.pay(ONE, "kept", 300)
            books.pay(ONE, "lost", 400, Ending.UNDELIVERED, path="/a\x1b[2Jb")

        book(tmp_path / "store", write)
        done = self.run(runner, config, "--dry-run")
        assert done.exit_code == 0
        assert ONE in done.output
        assert "uncertain 0.0004 pathUSD of 0.05 pathUSD authorised" in done.output
        assert "0.0004 pathUSD  undelivered  GET /a" in done.output
        assert "\x1b" not in done.output
        assert "may still be charged until" in done.output or "would be asked" in done.output
        (told,) = json.loads(self.run(runner, config, "--dry-run", "--json").output)["channels"]
        assert told["before"] == told["after"]
        assert told["before"]["uncertain"] == "400"
        assert [one["request"] for one in told["requests"]] == ["lost"]

    def test_one_that_cannot_be_asked_about_fails_the_command(
        self, runner: CliRunner, config: Path, tmp_path: Path
    ) -> None:
        config.write_text(re.sub(r"(?m)^rpc = .*$", 'rpc = ["http://127.0.0.1:9/"]', config.read_text()))
        book(tmp_path / "store", lambda books: books.pay(ONE, "lost", 400, Ending.UNDELIVERED))
        done = self.run(runner, config, "--json")
        assert done.exit_code == 1
        (told,) = json.loads(done.output)["channels"]
        assert told["error"]

    @pytest.mark.parametrize("arguments", [("--all", "0x1111"), ("0x1111", "0x2222")])
    def test_wrong_usage(self, runner: CliRunner, config: Path, arguments: tuple[str, ...]) -> None:
        assert self.run(runner, config, *arguments).exit_code == 2

    def test_no_such_channel(self, runner: CliRunner, config: Path) -> None:
        done = self.run(runner, config, "0x9999")
        assert done.exit_code == 1
        assert "no channel 0x9999 on record" in done.output


def test_a_doubt_is_a_value() -> None:
    one = Doubt("t", 1, "unknown", "", "", "h", "", "", "")
    assert one.as_json() == {
        "t": "t",
        "request": None,
        "method": None,
        "host": "h",
        "path": None,
        "amount": "1",
        "outcome": "unknown",
        "reason": None,
        "retry_of": None,
    }
