"""Deposits come home with nothing but the key; and by themselves, while a proxy runs.

``BURSAR_RECOVERY=all`` (`make recovery`) adds the kills at each step, and the faults of the chain's RPC.
"""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from store.account import check
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel
from tests.e2e.accounting import Books
from tests.e2e.clients import fetch
from tests.e2e.proxies import Home, Proxy, Table, mitmdump, until
from tests.e2e.test_forced_close import GRACE_S, PRICE, run, told
from tests.peers.devnet import Devnet, Seller

pytestmark = pytest.mark.e2e

ALL = os.environ.get("BURSAR_RECOVERY") == "all"
at_length = pytest.mark.skipif(not ALL, reason="make recovery")
S = ChannelStatus
WATCHDOG: Table = {"close_idle_s": 1, "force_close_after_s": 1, "every_s": 1}


def by_host(channels: list[Channel]) -> dict[str, Channel]:
    return {channel.scope.host: channel for channel in channels}


def paid_once(net: Devnet, home: Home, *sellers: Seller, requests: int = 3) -> None:
    with Proxy(home, mitmdump(home, net)) as proxy:
        for seller in sellers:
            assert [got.status for got in fetch("curl", proxy, f"{seller.http}/req", requests)] == [
                200
            ] * requests


def test_from_the_key_alone(net: Devnet, ca: Path, tmp_path: Path) -> None:
    """The store is deleted and the servers are gone: all comes back but what a payee has proven."""
    options = {"suggested-deposit": "1"}
    sellers = [net.start_server(options, "gone-2"), net.start_server({"protocol": "v1", **options}, "gone-1")]
    home = Home.make(tmp_path / "home", net, ca)
    books = Books(net, home, sellers[0])
    paid_once(net, home, *sellers)
    lost = by_host(books.channels())
    newer = lost[sellers[0].http.partition("://")[2]]
    sellers[0].admin("settle", channelId=newer.channel_id)
    for seller in sellers:
        net.stop_server(seller)
    shutil.rmtree(home.store)

    seen = told(home, "recover", "--dry-run")
    assert not home.store.exists()  # looking makes none
    assert {one["channel"]: (one["deposit"], one["settled"]) for one in seen} == {
        one.channel_id: ("1000000", str(3 * PRICE) if one is newer else "0") for one in lost.values()
    }
    assert all(0 < int(one["fee_usual"]) < int(one["fee_most"]) < 100_000 for one in seen)
    without = run(home, "recover", "--all", "--yes")  # their help is asked for, and not to be had
    assert without.returncode == 1
    assert "close --force" in without.stdout

    # Killed after the first is on record; then it goes on with what there is.
    run(home, "recover", "--all", "--force", "--yes", steps=4)
    began = told(home, "recover", "--all", "--force", "--yes")
    assert {one["status"] for one in began} == {"closing"}
    assert {one["channel"] for one in began} == {one.channel_id for one in lost.values()}
    shown = told(home, "list")
    assert all("withdraw possible at 20" in one["next"] for one in shown)
    assert [one["locked"] for one in shown] == ["1000000"] * 2

    # A running proxy that may spend fees does the rest, and closes by itself what is idle.
    net.warp(GRACE_S)
    alive = net.start_server(options, "alive")
    home.write({**_settings(home), "watchdog": WATCHDOG})
    with Proxy(home, mitmdump(home, net)) as proxy:
        assert fetch("curl", proxy, f"{alive.http}/req", 2)[-1].status == 200
        until(lambda: all(one.status in FINAL for one in books.channels()), "all deposits are home")
        assert "closing channel" in proxy.log
    closed = {one.channel_id: one for one in books.channels()}
    for one in lost.values():
        captured = 3 * PRICE if one is newer else 0
        now = closed[one.channel_id]
        assert (now.status, now.captured, now.refunded) == (S.CLOSED, captured, 1_000_000 - captured)
    old = {one.channel_id for one in lost.values()}
    (idle,) = [one for one in closed.values() if one.channel_id not in old]
    assert (idle.status, idle.captured, idle.refunded) == (S.CLOSED, 2 * PRICE, 1_000_000 - 2 * PRICE)

    # To the base unit: what the payees got, and the network's fees; nothing is left in an escrow.
    end = books.balances()
    fees = net.fees(home.account.address, books.before.block + 1)
    assert books.before.payer - end.payer == 5 * PRICE + fees
    assert end.escrow == books.before.escrow
    counters = books.counters("")
    assert sum(value for key, value in counters.items() if key.startswith("lifetime/")) == 5 * PRICE
    assert sum(value for key, value in counters.items() if key.startswith("escrow/")) == 0


def _settings(home: Home) -> dict[str, Any]:
    return tomllib.loads(home.config.read_text())


# -- at length


def killed_at_each_step(net: Devnet, home: Home, books: Books, most: int) -> int:
    """Proxies one after the other, each killed a step later than the one before, until nothing is left to do."""
    crash = str(Path(__file__).with_name("crash_watchdog.py"))
    for steps in range(1, most):
        proxy = Proxy(home, mitmdump(home, net, "-s", crash), {"CRASH_AFTER": str(steps)})
        proxy.launch()
        process = proxy.process
        assert process is not None

        def is_over(process: Any = process) -> bool:
            return process.poll() is not None or not _to_do(books)

        until(is_over, f"a proxy that is killed after {steps} steps\n{proxy.log}", 60)
        proxy.kill()
        for channel in books.channels():
            check(channel)
        if not _to_do(books):
            return steps
    raise AssertionError(f"not home after {most} kills: {books.channels()}")


def _to_do(books: Books) -> list[Channel]:
    """Channels that a watchdog has something to do for now."""
    return [
        one
        for one in books.channels()
        if one.status not in FINAL
        and not (one.status is S.CLOSING and one.close_amount is None and _waits(books, one))
    ]


def _waits(books: Books, channel: Channel) -> bool:
    requested = books.home.ledger_of("close-requested", channel=channel.channel_id)
    return bool(requested) and books.net.now() < requested[-1]["ready_at"]


@at_length
@pytest.mark.parametrize("protocol", ["v2", "v1"])
def test_a_proxy_that_is_killed_while_it_closes(net: Devnet, ca: Path, tmp_path: Path, protocol: str) -> None:
    seller = net.start_server({"protocol": protocol, "suggested-deposit": "1"}, f"killed-{protocol}")
    home = Home.make(tmp_path / "home", net, ca)
    books = Books(net, home, seller)
    paid_once(net, home, seller)
    home.write({**_settings(home), "watchdog": WATCHDOG})
    assert killed_at_each_step(net, home, books, 15) >= 4
    ended = books.channel()
    assert (ended.status, ended.captured) == (S.CLOSED, 3 * PRICE)
    until(lambda: seller.channel(ended.channel_id)["finalized"], "the server has written it down")
    books.agree(3 * PRICE)


@at_length
@pytest.mark.parametrize("protocol", ["v2", "v1"])
def test_a_proxy_that_is_killed_while_it_does_without_the_server(
    net: Devnet, ca: Path, tmp_path: Path, protocol: str
) -> None:
    seller = net.start_server({"protocol": protocol, "suggested-deposit": "1"}, f"forced-{protocol}")
    home = Home.make(tmp_path / "home", net, ca)
    books = Books(net, home, seller)
    paid_once(net, home, seller)
    net.stop_server(seller)
    run(home, "close", "--force", books.channel().channel_id, steps=4)  # begun by hand, and killed
    home.write({**_settings(home), "watchdog": WATCHDOG})
    killed_at_each_step(net, home, books, 15)
    assert books.home.ledger_of("close-requested")
    net.warp(GRACE_S)
    assert killed_at_each_step(net, home, books, 15) >= 3
    ended = books.channel()
    assert (ended.status, ended.captured, ended.refunded) == (S.CLOSED, 0, 1_000_000)
    fees = net.fees(home.account.address, books.before.block + 1)
    assert books.before.payer - books.balances().payer == fees == ended.fees


def statuses(proxy: Proxy, url: str, count: int) -> list[int]:
    return [got.status for got in fetch("curl", proxy, url, count)]


@at_length
@pytest.mark.parametrize("mode", ["http", "error", "drop", "hang"])
def test_while_the_rpc_is_away_warm_requests_go_on(net: Devnet, ca: Path, tmp_path: Path, mode: str) -> None:
    """F9, down and slow: what is open pays; what would open is refused with the reason, and served afterwards."""
    home = Home.make(tmp_path / "home", net, ca)
    settings = _settings(home)
    settings["chains"][f"eip155:{net.chain_id}"]["timeout_s"] = 1
    home.write(
        {**settings, "watchdog": {"every_s": 1}, "proxy": {**settings["proxy"], "reason_header": True}}
    )
    seller = net.start_server({"suggested-deposit": "1"}, f"warm-{mode}")
    cold = seller.http.replace("127.0.0.1", "localhost")  # another origin: another channel
    with Proxy(home, mitmdump(home, net)) as proxy:
        assert statuses(proxy, f"{seller.http}/req", 2) == [200, 200]
        proxy.logged("opened channel")
        net.fault("*", mode, n=-1, path="/proxy")
        try:
            assert statuses(proxy, f"{seller.http}/req", 5) == [200] * 5
            (refused,) = fetch("curl", proxy, f"{cold}/req")
            assert (refused.status, refused.header("Bursar-Reason")) == (402, "chain-unavailable")
            proxy.logged("the watchdog waits for the chain")
        finally:
            net.clear_faults()
        assert statuses(proxy, f"{cold}/req", 2) == [200, 200]
    Books(net, home, seller).bounded()


@at_length
def test_an_endpoint_that_lies_about_a_deposit(net: Devnet, ca: Path, tmp_path: Path) -> None:
    """F9, lying: what it says raises nothing, and what it hides is not forgotten."""
    home = Home.make(tmp_path / "home", net, ca)
    settings = _settings(home)
    chain = settings["chains"][f"eip155:{net.chain_id}"]
    chain["rpc"] = [f"{net.rpc_url}/liar", f"{net.rpc_url}/proxy"]
    chain["rpc_quorum"] = 2
    home.write({**settings, "watchdog": {"every_s": 1, "close_idle_s": 0}})
    seller = net.start_server({"suggested-deposit": "1"}, "believed")
    books = Books(net, home, seller)
    with Proxy(home, mitmdump(home, net)) as proxy:
        assert statuses(proxy, f"{seller.http}/req", 2) == [200, 200]
        channel = books.decided()[0]
        state = "0x" + "00" * 32 + f"{10 * channel.deposit:064x}" + "00" * 32
        for lie in (state, "0x" + "00" * 96):  # ten times the deposit; none at all
            net.fault("eth_call", "result", n=-1, path="/liar", result=lie)
            proxy.logged("contradict each other")
            assert statuses(proxy, f"{seller.http}/req", 3) == [200] * 3
            assert books.channel().deposit == channel.deposit
            assert books.channel().status is S.OPEN
            net.clear_faults()
    books.bounded()


@at_length
def test_an_opening_that_a_fork_takes_back(ca: Path, tmp_path: Path) -> None:
    """F9, reorg: with confirmations it has never counted, and its budgets are given back."""
    with Devnet({"suggested-deposit": "1"}) as net:
        home = Home.make(tmp_path / "home", net, ca)
        settings = _settings(home)
        settings["chains"][f"eip155:{net.chain_id}"]["confirmations"] = 20
        home.write({**settings, "watchdog": {"every_s": 1, "close_idle_s": 0}})
        books = Books(net, home)
        snapshot = net.rpc("evm_snapshot")
        with Proxy(home, mitmdump(home, net)) as proxy:
            assert statuses(proxy, f"{net.http}/req", 1) == [200]
            (channel,) = books.channels()
            assert channel.status not in (S.OPEN, S.FAILED)
            assert net.rpc("evm_revert", snapshot)
            net.rpc("anvil_dropAllTransactions")
            net.rpc("evm_increaseTime", 60)
            net.rpc("anvil_mine", hex(30))
            until(lambda: books.channel().status is S.FAILED, "the opening has failed", 60)
        assert sum(books.counters("lifetime/").values()) == 0
        assert books.balances().payer == books.before.payer
