"""F6: an answer is lost on the way, and the client tries again. Promise: what was lost stays counted until it is
known, the retry is a payment of its own with the first one's Idempotency-Key, and all sums agree in the end."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from store.records import Channel
from tests.e2e.accounting import Books
from tests.e2e.clients import Got, curl
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Proxy, bursar, quiet_environment, rule, until
from tests.e2e.test_main_job import close_all
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
ORDER = ("--data-binary", "one of these")
RETRY = ("--retry", "3", "--retry-delay", "1")
_numbers = itertools.count()


@dataclass
class Buyer:
    """A client that orders through a proxy of its own."""

    net: Devnet
    proxy: Proxy
    books: Books

    def url(self, cut: str) -> str:
        """A resource of its own whose first payment is `cut`."""
        return f"{self.net.http}/req?cut={cut}&n={next(_numbers)}"

    def order(self, url: str, *options: str) -> Got:
        return curl(self.proxy, url, *ORDER, *options)

    def keys(self, url: str) -> list[str | None]:
        """Of all payments for `url`."""
        log = self.net.admin("log")
        return [one["headers"].get("idempotency-key") for one in log if one["url"] == url and one["action"]]

    def sent(self) -> list[dict[str, Any]]:
        """The ledger's lines of orders, without the first one, which opened the channel."""
        return self.proxy.home.ledger_of("sent", method="POST")

    @property
    def channel(self) -> Channel:
        return self.books.channel()

    def spent(self) -> int:
        return int(self.net.channel(self.channel.channel_id)["spent"])

    def run(self, *command: str) -> Any:
        environment = quiet_environment(
            **{KEY_VARIABLE: self.proxy.home.account.private_key, "PYTHONPATH": str(ROOT)}
        )
        done = subprocess.run(
            bursar(self.proxy.home, *command, "--json"),
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def closes(self, charged: int) -> None:
        """In the end the chain says what everything cost, and all agree."""
        (told,) = close_all(self.proxy.home)
        assert told["captured"] == str(charged)
        self.books.agree(charged)


@pytest.fixture
def buyer(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> Iterator[Buyer]:
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        assert curl(proxy, f"{devnet.http}/req").status == 200
        books.agree(PRICE)
        yield Buyer(devnet, proxy, books)
        books.bounded()


def test_the_connection_breaks(buyer: Buyer) -> None:
    """Whether it was charged, nobody can know yet: the server might still be at it."""
    for number, (cut, options) in enumerate((("before", RETRY), ("after", RETRY)), start=1):
        url = buyer.url(cut)
        got = buyer.order(url, *options)
        assert (got.status, got.json["bodyLength"]) == (200, len(ORDER[1]))
        lost, again = buyer.sent()[-2:]
        assert again["retry_of"] == lost["request"] != again["request"]
        assert buyer.keys(url) == [lost["request"], lost["request"]]
        channel = buyer.channel
        assert (channel.paid, channel.uncertain, channel.held) == ((1 + number) * PRICE, number * PRICE, 0)
    assert buyer.spent() == 4 * PRICE  # one of both was charged
    # Nothing can be found out for now, and that is said.
    (told,) = buyer.run("reconcile")["channels"]
    assert (told["before"]["uncertain"], told["after"]["uncertain"]) == (str(2 * PRICE), str(2 * PRICE))
    assert "may still be charged until" in told["why"]
    assert [(one["outcome"], one["path"], one["amount"]) for one in told["requests"]] == [
        ("unknown", "/req", str(PRICE)),
        ("unknown", "/req", str(PRICE)),
    ]
    buyer.closes(4 * PRICE)


def test_a_gateway_gives_up(buyer: Buyer) -> None:
    """It was answered: so the server can be asked, and what was not charged pays for the retry."""
    for cut, charged in (("502-before", 0), ("502-after", PRICE)):
        url, start = buyer.url(cut), buyer.channel.paid
        assert buyer.order(url).status == 502
        before = buyer.channel
        assert (before.paid, before.uncertain) == (start, PRICE)
        assert buyer.order(url).status == 200
        lost, again = buyer.sent()[-2:]
        assert again["retry_of"] == lost["request"]
        assert buyer.keys(url)[0] == buyer.keys(url)[-1] == lost["request"]
        assert buyer.proxy.home.ledger_of("probe")[-1]["uncertain_now"] == str(charged)
        channel = buyer.channel
        assert (channel.paid, channel.uncertain) == (start + PRICE, charged)
        assert channel.authorised == before.authorised + charged
        assert buyer.spent() == channel.paid + channel.uncertain
    # The server's word was enough to count it, and a person's is needed to call it paid.
    (seen,) = buyer.run("reconcile", "--dry-run")["channels"]
    assert [one["request"] for one in seen["requests"]] == [lost["request"]]
    assert seen["before"] == seen["after"]
    (told,) = buyer.run("reconcile", channel.channel_id[:10])["channels"]
    assert (told["before"]["uncertain"], told["after"]["uncertain"], told["why"]) == (str(PRICE), "0", None)
    assert int(told["after"]["paid"]) == channel.paid + PRICE == buyer.spent()
    assert buyer.run("ledger", "--sum")["differences"] == []
    assert buyer.order(url).status == 200
    buyer.closes(5 * PRICE)


def test_the_proxy_is_killed_in_between(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    """The next one knows the retry by the ledger."""
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    url = f"{devnet.http}/req?delay=3000&n={next(_numbers)}"
    with make_proxy(home) as first:
        assert curl(first, f"{devnet.http}/req").status == 200
        books.decided()
        client = subprocess.Popen(
            ["curl", "-q", "-sS", *ORDER, url], env=first.client_environment(), stderr=subprocess.DEVNULL
        )
        until(lambda: Buyer(devnet, first, books).keys(url), "the order has arrived")
        first.kill()
        assert client.wait(30) != 0
    with make_proxy(home) as second:
        buyer = Buyer(devnet, second, books)
        assert buyer.order(url).status == 200
        lost, again = buyer.sent()
        assert again["retry_of"] == lost["request"]
        assert buyer.keys(url) == [lost["request"], lost["request"]]
        channel = buyer.channel
        assert (channel.paid, channel.uncertain) == (2 * PRICE, PRICE)
        assert PRICE * 2 <= buyer.spent() <= PRICE * 3
        # An order with other bytes is another order.
        assert curl(second, url, "--data-binary", "two of these").status == 200
        assert len(set(buyer.keys(url))) == 2
    books.bounded()


def test_strict_retries(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    settings = {
        "upstream_ca": str(devnet.ca),
        "release_idle_s": 1,
        "strict_retries": True,
        "reason_header": True,
    }
    home = make_home(
        proxy=settings, policy={"max_per_day": "5", "max_lifetime": "10", "hosts": [rule("127.0.0.1")]}
    )
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        buyer = Buyer(devnet, proxy, books)
        assert curl(proxy, f"{devnet.http}/req").status == 200
        url = buyer.url("after")
        assert buyer.order(url).status == 502
        got = buyer.order(url)
        assert (got.status, got.header("bursar-reason")) == (402, "strict-retries")
        assert "with strict_retries it is paid for when that is known" in proxy.log
        assert "bursar reconcile 0x" in proxy.log
        assert len(buyer.keys(url)) == 1
        assert buyer.spent() == 2 * PRICE
        # What is no retry is served, and so is what can be asked about.
        assert buyer.order(url, "-H", "Idempotency-Key: another").status == 200
        other = buyer.url("502-before")
        assert buyer.order(other).status == 502
        assert buyer.order(other).header("bursar-reason") == "strict-retries"  # the first one is in the way
        close_all(home)
        assert buyer.order(url).status == 200
        assert len(set(buyer.keys(url))) == 2
    books.bounded()
