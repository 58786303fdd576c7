"""Many clients at once, several proxies on one store, and kill -9 in the middle of it all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import lmdb
import pytest

from proxy_addon.core.dispatch import RESERVE_AFTER
from store.lifecycle import ChannelStatus
from tests.e2e.accounting import Books, stats
from tests.e2e.clients import curl, finish, start
from tests.e2e.proxies import Home, Proxy, rule, until
from tests.e2e.test_main_job import close_all
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
CLIENTS = 64
SPARE_COMMITS = 2  # of the watchdog and the like


def commits(home: Home) -> int:
    """How many transactions have been written to the store."""
    with lmdb.open(str(home.store), readonly=True, lock=False) as environment:
        return int(environment.info()["last_txnid"])


def statuses(proxy: Proxy, url: str, count: int) -> list[int]:
    """Of `count` client processes that run at the same time."""
    running = [start("curl", proxy, url) for _ in range(count)]
    return [finish(one)[0].status for one in running]


def test_64_cold_clients_open_one_channel(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    url = f"{devnet.http}/req"
    with make_proxy(home) as proxy:
        assert statuses(proxy, url, CLIENTS) == [200] * CLIENTS
        assert stats(devnet.seller, "/req")["open"] == 1
        books.agree(CLIENTS * PRICE)

        devnet.admin("reset")
        before = commits(home)
        assert statuses(proxy, f"{url}?warm", 30) == [200] * 30
        counted = stats(devnet.seller, "/req")
        signed = {one["cumulative"] for one in devnet.admin("stats")["vouchers"]}
        written = commits(home) - before
        books.agree((CLIENTS + 30) * PRICE)
    # Clients that come together share vouchers and commits; each may need one of its own at most.
    assert counted["open"] == 0
    assert len(signed) <= 30
    assert written <= 30
    print(f"30 warm clients: {counted['total']} upstream requests, {len(signed)} vouchers, {written} commits")


def test_one_after_another_share_commits_and_nothing_else(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    """What a warm paid request costs, counted: one request upstream, one signature, a small part of a commit."""
    devnet.admin("reset")
    hosts = [rule("127.0.0.1", max_deposit="4", reserve="1")]
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts})
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        assert curl(proxy, f"{devnet.http}/req").status == 200
        books.agree(PRICE)  # the chain has decided on the opening
        devnet.admin("reset")
        before = commits(home)
        many = subprocess.run(
            [
                *("curl", "--silent", "--no-progress-meter", "--proxy", proxy.url),
                *("--output", "/dev/null", "--write-out", "%{http_code}\n", f"{devnet.http}/req?n=[1-40]"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert many.stdout.split() == ["200"] * 40
        counted = stats(devnet.seller, "/req")
        vouchers = [one["cumulative"] for one in devnet.admin("stats")["vouchers"]]
        written = commits(home) - before
        books.agree(41 * PRICE)
    assert (counted["total"], counted["open"]) == (40, 0)
    assert [int(one) for one in vouchers] == [number * PRICE for number in range(2, 42)]
    assert written <= RESERVE_AFTER + 1 + SPARE_COMMITS


@pytest.fixture
def pair(make_home: MakeHome, make_proxy: MakeProxy) -> Iterator[tuple[Proxy, Proxy]]:
    """Two proxies on one store. A scope of 127.0.0.1 may have one channel, one of localhost two."""
    hosts = [
        rule("127.0.0.1", max_channels_per_scope=1),
        rule("localhost", max_channels_per_scope=2),
    ]
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts})
    with ExitStack() as stack:
        launched = [make_proxy(home).launch() for _ in range(2)]
        one, other = (stack.enter_context(proxy) for proxy in launched)
        yield one, other


def test_two_proxies_on_one_store(devnet: Devnet, pair: tuple[Proxy, Proxy]) -> None:
    one, other = pair
    home = one.home
    books = Books(devnet, home)
    alone, shared = f"{devnet.http}/req", f"{devnet.https}/price"

    # The only channel of its scope changes hands as soon as it has been idle for a while.
    devnet.admin("reset")
    for proxy in (one, other, one):
        assert curl(proxy, alone).status == 200
    assert stats(devnet.seller, "/req")["open"] == 1
    assert len(books.channels()) == 1

    # Where there may be two, both open one, one after the other: the slow chain makes them begin together.
    devnet.fault("eth_getBlockByNumber", "delay", n=2, seconds=1, path="/proxy")
    running = [start("curl", proxy, shared, 5) for proxy in pair]
    assert [got.status for one_of in running for got in finish(one_of)] == [200] * 10
    assert stats(devnet.seller, "/price")["open"] == 2

    # And when both are given back, one proxy uses what there is.
    until(lambda: all(channel.owner is None for channel in books.channels()), "all channels are idle")
    assert [got.status for got in finish(start("curl", other, shared, 5))] == [200] * 5
    assert stats(devnet.seller, "/price")["open"] == 2
    books.agree((3 + 15) * PRICE)


IN_FLIGHT = 6


def test_kill_9_with_requests_in_flight(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    # As much a day as the requests of this test cost, were all of them charged.
    hosts = [rule("127.0.0.1", max_per_day="0.08")]
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts})
    books = Books(devnet, home)
    url = f"{devnet.http}/req"
    with make_proxy(home) as proxy:
        assert curl(proxy, url).status == 200
        books.decided()
        running = [start("curl", proxy, f"{url}?delay=20000") for _ in range(IN_FLIGHT)]
        until(lambda: stats(devnet.seller, "/req")["withCredential"] > IN_FLIGHT, "all are in flight")
        proxy.kill()
        for client in running:
            client.process.communicate(timeout=30)
            assert client.process.returncode != 0
    books.bounded()
    left = books.channel()
    assert (left.authorised, left.held) == ((1 + IN_FLIGHT) * PRICE, 0)
    assert (left.paid, left.uncertain) == (PRICE, IN_FLIGHT * PRICE)
    spent = int(devnet.channel(left.channel_id)["spent"])
    assert left.paid <= spent <= left.paid + left.uncertain

    with make_proxy(home) as second:
        # What may have been charged stays counted: one more request fits the day's limit, and no other.
        assert [curl(second, url).status for _ in range(2)] == [200, 402]
        assert home.ledger_of("decision")[-1]["reason"] == "limit-reached"
        assert home.ledger_of("recovered")[-1]["amount"] == str(IN_FLIGHT * PRICE)
        assert stats(devnet.seller, "/req")["open"] == 1
        books.bounded()
        assert sum(books.counters("host-day/").values()) == 80_000

    # The close brings the truth.
    spent = int(devnet.channel(left.channel_id)["spent"])
    (told,) = close_all(home)
    assert told["captured"] == str(spent)
    books.agree(spent)


def test_kill_9_while_a_channel_is_opened(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    """The server has the opening, and nobody was told: the next process finds the channel, and uses it."""
    devnet.admin("reset")
    known = {book["channelId"] for book in devnet.channels()}
    home = make_home()
    books = Books(devnet, home)
    url = f"{devnet.http}/req"
    with make_proxy(home) as proxy:
        client = start("curl", proxy, f"{url}?delay=20000")
        until(lambda: {book["channelId"] for book in devnet.channels()} - known, "the server has it open")
        proxy.kill()
        client.process.communicate(timeout=30)
    books.bounded()
    left = books.channel()
    assert (left.status, left.authorised, left.uncertain) == (ChannelStatus.PROPOSED, PRICE, PRICE)

    with make_proxy(home) as second:
        assert curl(second, url).status == 200
        assert stats(devnet.seller, "/req")["open"] == 1
        books.bounded()
    (told,) = close_all(home)
    spent = int(devnet.channel(left.channel_id)["spent"])
    assert told["captured"] == str(spent)
    books.agree(spent)
