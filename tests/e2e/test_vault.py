"""Moving, backing up and proving: on what real proxies wrote, with kill -9 between them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from store.lifecycle import ChannelStatus
from tests.e2e.accounting import Books, stats
from tests.e2e.clients import finish, start
from tests.e2e.proxies import KEY_VARIABLE, Home, Proxy, until
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers import devnet as testbed
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000


def run(home: Home, *command: str, code: int = 0) -> str:
    """A command of ours, in this process."""
    arguments = [*command, "--config", str(home.config)]
    done = CliRunner().invoke(bursar, arguments, env={KEY_VARIABLE: home.account.private_key})
    assert done.exit_code == code, done.output
    return done.stdout


def tell(home: Home, *command: str, code: int = 0) -> Any:
    return json.loads(run(home, *command, "--json", code=code))


def pay(proxy: Proxy, net: Devnet, count: int, status: int = 200) -> None:
    answers = finish(start("curl", proxy, f"{net.http}/req", count))
    assert [got.status for got in answers] == [status] * count


def copy_of(home: Home, name: str) -> Home:
    """The same home once more, with the store as it is."""
    there = Home(home.directory.with_name(f"{home.directory.name}-{name}"), home.account)
    shutil.copytree(home.directory, there.directory)
    there.directory.chmod(0o700)
    there.config.write_text(home.config.read_text().replace(f"{home.directory}/", f"{there.directory}/"))
    return there


# -- the ledger


def altered(files: list[Path]) -> None:
    text = files[0].read_text()
    assert '"amount":"10000"' in text
    files[0].write_text(text.replace('"amount":"10000"', '"amount":"9000"', 1))


def dropped(files: list[Path]) -> None:
    lines = files[0].read_text().splitlines(keepends=True)
    files[0].write_text("".join(lines[:2] + lines[3:]))


def swapped(files: list[Path]) -> None:
    lines = files[0].read_text().splitlines(keepends=True)
    files[0].write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))


def truncated(files: list[Path]) -> None:
    files[0].write_text("".join(files[0].read_text().splitlines(keepends=True)[:-1]))


def replaced(files: list[Path]) -> None:
    shutil.copy(files[1], files[0])


def removed(files: list[Path]) -> None:
    files[0].unlink()


TAMPERINGS: list[tuple[Callable[[list[Path]], None], str]] = [
    (altered, "is not what was written"),
    (dropped, "line 3 is missing"),
    (swapped, "line 2 is missing"),
    (truncated, "and the store has seen line"),
    (replaced, "is not what was written"),
    (removed, "is gone, with at least"),
]


def test_what_was_done_to_a_real_ledger_is_found(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    """Two processes, one killed while it pays, one that went on and was stopped."""
    devnet.admin("reset")
    home = make_home()
    with make_proxy(home) as proxy:
        pay(proxy, devnet, 3)
        client = start("curl", proxy, f"{devnet.http}/req", 400)
        until(lambda: len(home.ledger) > 20, "it pays")
        proxy.kill()
        client.process.kill()
        client.process.wait()
    told = tell(home, "ledger", "verify")
    assert (told["good"], told["journals"][0]["anchor"]["closed"]) == (True, False)
    with make_proxy(home) as proxy:
        pay(proxy, devnet, 2)
    told = tell(home, "ledger", "verify", "--chain")
    assert [one["anchor"]["closed"] for one in told["journals"]] == [True, True]
    assert told["disagreements"] == []
    for number, (tamper, says) in enumerate(TAMPERINGS):
        there = copy_of(home, str(number))
        files = sorted(
            (there.store / "ledger").glob("*.jsonl"), key=lambda path: path.stat().st_size, reverse=True
        )
        tamper(files)
        found = tell(there, "ledger", "verify", code=4)
        texts = [one["text"] for journal in found["journals"] for one in journal["findings"]]
        assert any(says in text for text in texts), (tamper.__name__, texts)
        shutil.rmtree(there.directory)


# -- an older copy


def sealed_commits(home: Home) -> int:
    (one,) = json.loads((home.directory / "seal.json").read_text())["stores"]
    return int(one["commits"])


def put_back(home: Home, old: Path) -> None:
    shutil.rmtree(home.store)
    shutil.copytree(old, home.store)


def test_nothing_is_signed_until_it_is_reconciled(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    """F4: an older copy of the store is put back after a kill -9."""
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        pay(proxy, devnet, 2)
        books.decided()
        old = home.directory / "old"
        shutil.copytree(home.store, old)
        before = sealed_commits(home)
        pay(proxy, devnet, 3)
        until(lambda: sealed_commits(home) > before, "the seal follows")
        proxy.kill()
    put_back(home, old)
    spent = books.vouchers()
    with make_proxy(home) as proxy:
        pay(proxy, devnet, 2, status=402)
        assert "older copy" in proxy.log
        assert books.vouchers() == spent
        assert home.ledger_of("decision", reason="store-is-old")
        (refused,) = tell(home, "channels", "close", "--all", code=1)
        assert "older copy" in refused["error"]
        told = tell(home, "reconcile")
        assert (told["in_doubt"], len(told["left"])) == (True, 1)
        (assumed,) = tell(home, "reconcile", "--assume-spent")["channels"]
        proxy.logged("the store is reconciled")
        pay(proxy, devnet, 2)
        books.bounded()
        first, second = books.decided()
        assert first.authorised == first.deposit == int(assumed["authorised"])
        assert first.paid + first.uncertain == first.deposit
        assert first.paid <= 5 * PRICE <= first.paid + first.uncertain
        assert second.paid == 2 * PRICE
    closed = tell(home, "channels", "close", "--all")
    assert sum(int(one["captured"]) for one in closed) == 7 * PRICE
    books.bounded()
    run(home, "ledger", "verify", "--chain")
    # The copy is as old as ever, and so is one from before the reconciliation.
    put_back(home, old)
    assert tell(home, "reconcile")["in_doubt"] is True


# -- a backup


def test_a_backup_of_a_proxy_at_work_is_put_back(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        pay(proxy, devnet, 2)
        books.decided()
        clients = [start("curl", proxy, f"{devnet.http}/req", 20) for _ in range(3)]
        target = home.directory / "backup"
        run(home, "backup", str(target))
        for client in clients:
            assert {got.status for got in finish(client)} == {200}
        proxy.kill()
    spent = 62 * PRICE
    shutil.rmtree(home.store)
    target.rename(home.store)
    with make_proxy(home) as proxy:
        assert "is a backup, taken at" in proxy.log
        pay(proxy, devnet, 1, status=402)
        told = tell(home, "ledger", "verify", code=4)  # every line is right, and it says what is the matter
        assert [one["kind"] for one in told["disagreements"]] == ["old-copy"]
        assert all(journal["findings"] == [] for journal in told["journals"])
        run(home, "reconcile", "--assume-spent")
        proxy.logged("the store is reconciled")
        pay(proxy, devnet, 2)
        books.bounded()
    assert run(home, "ledger", "verify").endswith(f"agree on {len(books.channels())} channels.\n")
    closed = tell(home, "channels", "close", "--all")
    assert sum(int(one["captured"]) for one in closed) == spent + 2 * PRICE
    books.bounded()


# -- moving


def test_a_channel_moves_to_another_home(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    """One wallet, two stores, one after the other; and the same channel."""
    devnet.admin("reset")
    old = make_home()
    books = Books(devnet, old)
    with make_proxy(old) as proxy:
        pay(proxy, devnet, 3)
        books.decided()
        run(
            old, "channels", "export", "--move", str(old.directory / "channels.json")
        )  # when it is given back
        new = copy_of(old, "new")
        shutil.rmtree(new.store)
        (new.directory / "seal.json").unlink()
        run(new, "channels", "import", str(old.directory / "channels.json"))
        devnet.admin("reset")
        with make_proxy(new) as other:
            pay(other, devnet, 2)
        assert stats(devnet.seller, "/req")["open"] == 0
        assert [one.status for one in books.channels()] == [ChannelStatus.MOVED]
        pay(proxy, devnet, 1)  # the old one opens one of its own
        assert stats(devnet.seller, "/req")["open"] == 1
    (channel,) = Books(devnet, new).channels()
    assert (channel.paid, channel.uncertain) == (5 * PRICE, 0)
    for home in (old, new):
        assert tell(home, "ledger", "verify", "--chain")["good"] is True
    (closed,) = tell(new, "channels", "close", "--all")
    assert int(closed["captured"]) == 5 * PRICE


def test_a_channel_of_mppx_is_taken_over(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, tmp_path: Path
) -> None:
    """mppx's own client opens it and keeps it in its SQLite file; bursar goes on with it."""
    devnet.admin("reset")
    home, wallet = make_home(), tmp_path / "channels.db"
    done = subprocess.run(
        [
            *(testbed.find_node(), str(testbed.PEERS / "smoke_client.mjs"), "--wallet", str(wallet)),
            *("--rpc", devnet.rpc_url, "--http", devnet.http, "--private-key", home.account.private_key),
            *("--chain-id", str(devnet.chain_id), "--requests", "2", "--tokens", "0"),
        ],
        env={"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["statuses"] == [200, 200]
    (taken,) = json.loads(
        run(home, "channels", "import", "--from", "mppx", "--take-over", str(wallet), "--json")
    )
    assert (taken["action"], taken["channel"]) == ("added", told["channelId"])
    assert re.fullmatch("[12]0000", taken["authorised"])
    devnet.admin("reset")
    with make_proxy(home) as proxy:
        pay(proxy, devnet, 3)
        assert stats(devnet.seller, "/req")["open"] == 0
        Books(devnet, home).bounded()
    (closed,) = tell(home, "channels", "close", "--all")
    assert int(closed["captured"]) == 5 * PRICE
    assert tell(home, "ledger", "verify", "--chain")["good"] is True
