"""A server that loses its memory, its secret or its patience, and terms that change: the client has its answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from store.lifecycle import ChannelStatus
from store.records import Channel
from tests.e2e.accounting import Books, stats
from tests.e2e.clients import Got, curl, finish, start
from tests.e2e.proxies import Home, Proxy, rule, until
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
TERMS = {"amount": "0.01", "suggestedDeposit": "1", "minVoucherDelta": ""}


@dataclass
class Client:
    """curl behind a proxy, and what it should have cost so far."""

    net: Devnet
    proxy: Proxy
    books: Books
    charged: int = 0

    @property
    def home(self) -> Home:
        return self.proxy.home

    def get(self, target: str, *options: str, price: int = PRICE, over: str = "http") -> Got:
        """A paid request that must succeed."""
        got = curl(self.proxy, getattr(self.net, over) + target, *options)
        assert got.status == 200, (got, self.proxy.log)
        assert got.payment_fields == []
        self.charged += price
        return got

    def refused(self, reason: str) -> int:
        """So many payments the server has refused for `reason`."""
        return len(self.home.ledger_of("ended", outcome="free", reason=reason))

    def log_of(self, path: str) -> list[dict[str, Any]]:
        """The server's own log since the last reset."""
        log = self.net.admin("log")
        return [one for one in log if one["route"] == path]

    def open_channel(self) -> Channel:
        (found,) = [one for one in self.books.decided() if one.status is ChannelStatus.OPEN]
        return found

    def agree(self) -> None:
        self.books.agree(self.charged)


@pytest.fixture(scope="module")
def shared(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> Iterator[Client]:
    """All on one channel, whose opening the server sponsored."""
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        client = Client(devnet, proxy, books)
        client.get("/reqfp")
        yield client


@pytest.fixture
def client(shared: Client) -> Iterator[Client]:
    shared.net.admin("reset")
    try:
        yield shared
    finally:
        shared.net.admin("terms", **TERMS)
    shared.agree()


@pytest.fixture
def alone(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> Iterator[Client]:
    """With a wallet, a store and a proxy of its own; it may authorise ahead."""
    hosts = [rule("127.0.0.1", max_opens_per_day=3, authorise_ahead="0.5")]
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts})
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        client = Client(devnet, proxy, books)
        client.get("/req")
        devnet.admin("reset")
        yield client
        books.bounded()


def test_a_sponsored_opening_costs_the_payer_nothing(client: Client) -> None:
    channel = client.open_channel()
    assert channel.fees == 0
    assert client.net.balance(client.home.account.address) == 5_000_000 - channel.deposit
    client.get("/reqfp")
    assert stats(client.net.seller, "/reqfp")["total"] == 1


def test_a_new_secret_is_noticed_by_nobody(client: Client) -> None:
    client.get("/req")
    client.net.admin("reset")
    client.net.admin("rotate")
    for _ in range(3):
        client.get("/req")
    counted = stats(client.net.seller, "/req")
    # One was refused; it, and those after it, went with the new challenge.
    assert (counted["total"], counted["voucher"], counted["sent402"], counted["open"]) == (4, 4, 1, 0)


def test_a_price_that_changes(client: Client) -> None:
    client.get("/req")
    client.net.admin("terms", amount="0.03")
    client.get("/req", price=30_000)
    client.get("/req", price=30_000)
    client.net.admin("terms", amount="0.005")
    client.get("/req", price=5_000)
    assert stats(client.net.seller, "/req")["open"] == 0


def test_a_price_that_rises_over_the_limit(client: Client) -> None:
    client.get("/req")
    client.net.admin("terms", amount="0.050001")
    got = curl(client.proxy, f"{client.net.http}/req")
    assert got.status == 402
    assert "0.050001" in client.proxy.logged("over max_price")
    client.net.admin("terms", amount="0.05")
    client.get("/req", price=50_000)


def test_prices_of_one_route_by_its_query(client: Client) -> None:
    for amount, price in (("0.01", 10_000), ("0.02", 20_000), ("0.01", 10_000), ("0.000001", 1)):
        assert client.get(f"/price?amount={amount}", price=price).json["amount"] == amount
    assert stats(client.net.seller, "/price")["open"] == 0


def test_a_smallest_step_that_comes_later(client: Client) -> None:
    """The price is below it: what a step leaves over is used by the next ones."""
    client.net.admin("terms", amount="0.002", minVoucherDelta="0.005")
    for _ in range(5):
        client.get("/req", price=2_000)
    channel = client.open_channel()
    assert channel.min_delta == 5_000
    assert channel.spare < 5_000


def test_the_clients_own_authorization_stays(client: Client) -> None:
    bearer = ("-H", "Authorization: Bearer secret")
    assert client.get("/auth", *bearer).json["user"] == "bearer"
    assert client.get("/auth", *bearer).json["user"] == "bearer"
    cold, paid, warm = client.log_of("/auth")
    assert {one["headers"]["authorization"] for one in (cold, paid, warm)} == {"Bearer secret"}
    assert "payment-authorization" not in cold["headers"]
    assert all(one["headers"]["payment-authorization"].startswith("Payment ") for one in (paid, warm))


@pytest.mark.parametrize("own", [None, "the-clients-own-key"])
def test_unsafe_requests_can_be_recognised(client: Client, tmp_path: Path, own: str | None) -> None:
    (tmp_path / "body").write_bytes(b"order one")
    options = ["--data-binary", f"@{tmp_path / 'body'}"]
    if own is not None:
        options += ["-H", f"Idempotency-Key: {own}"]
    for _ in range(2):
        assert client.get("/req", *options).json["bodyLength"] == 9
    keys = [one["headers"].get("idempotency-key") for one in client.log_of("/req") if one["action"]]
    if own is None:
        assert len(keys) == len(set(keys)) == 2  # one for each of the client's requests
        assert all(key is not None and len(key) == 32 for key in keys)
    else:
        assert set(keys) == {own}
    # A GET needs none.
    client.net.admin("reset")
    client.get("/req")
    assert {one["headers"].get("idempotency-key") for one in client.log_of("/req")} == {None}


def test_a_forgotten_channel_is_replaced_within_the_request(alone: Client) -> None:
    lost = alone.open_channel()
    alone.net.admin("forget", channelId=lost.channel_id)
    alone.get("/req")
    gone, paid = alone.log_of("/req")
    assert (gone["status"], gone["action"], paid["action"]) == (410, "voucher", "open")
    until(lambda: len(alone.books.channels()) == 2, "both are on record")
    fresh = alone.open_channel()
    (old,) = [one for one in alone.books.channels() if one.channel_id == lost.channel_id]
    assert (old.status, old.deposit) == (ChannelStatus.ASIDE, lost.deposit)
    assert (fresh.paid, fresh.uncertain) == (PRICE, 0)
    assert "channels close" in alone.proxy.log
    # Many at once lose it together, and share the next one.
    alone.net.admin("forget", channelId=fresh.channel_id)
    running = [start("curl", alone.proxy, f"{alone.net.http}/req?delay=100") for _ in range(8)]
    assert {finish(one)[0].status for one in running} == {200}
    assert alone.open_channel().paid == 8 * PRICE
    assert len(alone.books.channels()) == 3


def test_a_voucher_that_was_settled_is_raised(alone: Client) -> None:
    """Of two that overlap, the second authorises ahead; the server cashes that, and takes the voucher no more."""
    slow = start("curl", alone.proxy, f"{alone.net.http}/req?delay=800")
    until(lambda: len(alone.log_of("/req")) == 1, "the first is under way")
    alone.get("/req")
    assert finish(slow)[0].status == 200
    before = alone.open_channel()
    assert before.free == 2 * PRICE
    alone.net.admin("settle", channelId=before.channel_id)
    for _ in range(3):
        alone.get("/req")
    after = alone.open_channel()
    assert alone.refused("verification-failed") == 1
    # One base unit over what was settled; then the rest of the price of the third.
    assert after.authorised == before.authorised + 1 + (PRICE - 1)
    assert (after.paid, after.uncertain) == (before.paid + 3 * PRICE, 0)
    assert alone.net.seller.channel(after.channel_id)["spent"] == str(after.paid)


def test_a_deposit_that_runs_out_is_topped_up_before(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        client = Client(devnet, proxy, books)
        devnet.admin("terms", suggestedDeposit="0.05")
        try:
            for _ in range(12):
                client.get("/req")
            running = [start("curl", proxy, f"{devnet.http}/req?n={number}") for number in range(12)]
            assert {finish(one)[0].status for one in running} == {200}
        finally:
            devnet.admin("terms", **TERMS)
        client.charged += 12 * PRICE
        until(lambda: all(one.pending is None for one in books.channels()), "all top-ups are decided")
        channel = client.open_channel()
        counted = stats(devnet.seller, "/req")
        assert (counted["open"], len(books.channels())) == (1, 1)
        assert channel.deposit == 50_000 * (1 + counted["topUp"])
        assert channel.paid == client.charged
        assert int(devnet.seller.channel(channel.channel_id)["spent"]) == client.charged
        assert sum(books.counters("deposits/").values()) == channel.deposit
        assert len(home.ledger_of("topped-up")) == counted["topUp"]
        fees = devnet.fees(home.account.address, books.before.block + 1)
        assert channel.fees == fees
        assert devnet.balance(home.account.address) == books.before.payer - channel.deposit - fees
