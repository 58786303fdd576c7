"""`bursar inspect` against the real paid server: it says what would happen, and then that is what happens."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import curl
from tests.e2e.proxies import ROOT, Home, bursar, quiet_environment, rule, until
from tests.e2e.scripted import Upstream, always
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e


def inspect(home: Home, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        bursar(home, "inspect", *arguments),
        env=quiet_environment(PYTHONPATH=str(ROOT)),  # no key: nothing could be paid
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def payment(home: Home, *arguments: str, code: int = 0) -> dict[str, Any]:
    (one,) = json.loads(inspect(home, "--json", *arguments, code=code))["payments"]
    found: dict[str, Any] = one
    return found


def test_what_it_says_is_what_happens(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    home = make_home(
        policy={
            "max_per_day": "5",
            "max_lifetime": "10",
            "hosts": [rule("localhost", max_per_day="0.03", max_deposit="0.02")],
        }
    )
    books = Books(devnet, home)
    url = f"{devnet.https}/req"

    cold = payment(home, url)
    assert (cold["step"], cold["price"], cold["price_human"]) == ("open", "10000", "0.01 pathUSD")
    assert "open a channel with a deposit of 0.02 pathUSD" in cold["how"]
    assert not home.store.exists()
    with make_proxy(home) as proxy:
        assert curl(proxy, url).status == 200
        books.decided()
        assert books.channel().deposit == 20_000

        warm = payment(home, url)
        assert warm["step"] == "raise"
        assert "0.01 pathUSD left of 0.02 pathUSD" in warm["how"]
        (today,) = [one for one in warm["limits"] if one["rule"] == "policy.hosts[0].max_per_day"]
        assert today == {
            "rule": "policy.hosts[0].max_per_day",
            "limit": "0.03 pathUSD",
            "used": "0.01 pathUSD",
            "adds": "0.01 pathUSD",
        }
        assert curl(proxy, url).status == 200
        until(lambda: books.channel().held == 0, "its answer is booked")

        # The deposit is used up, max_deposit leaves no room in it: a second channel, for what is left of the day.
        assert payment(home, url)["step"] == "open"
        assert curl(proxy, url).status == 200
        books.decided()
        full = payment(home, url, code=5)
        assert (full["would_pay"], full["reason"]) == (False, "limit-reached")
        assert "policy.hosts[0].max_per_day = 0.03 pathUSD has 0.03 pathUSD used already" in full["because"]
        assert curl(proxy, url).status == 402
    assert stats(devnet.seller, "/req")["open"] == 2
    books.bounded()


def test_what_asks_for_nothing(devnet: Devnet, make_home: MakeHome) -> None:
    assert "answers 200: it asks for no money" in inspect(make_home(), f"{devnet.http}/free")


def test_for_people(devnet: Devnet, make_home: MakeHome) -> None:
    home = make_home()
    text = inspect(home, f"{devnet.https}/multi")
    assert "answers 402, with 1 payment(s)" in text
    assert "1. tempo/session: 0.01 pathUSD a request" in text
    assert "would pay    open a channel" in text
    assert "would not pay (not-understood)" in inspect(home, f"{devnet.https}/charge", code=5)


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"max_price": "0.001"}, "over-max-price", "policy.hosts[0]"),
        ({"host": "elsewhere.example.com"}, "host-not-allowed", "[[policy.hosts]]"),
        ({"payees": ["0x" + "11" * 20]}, "payee-not-allowed", "policy.hosts[0].payees"),
        ({"max_opens_per_day": 0}, "limit-reached", "policy.hosts[0].max_opens_per_day = 0"),
        ({"max_per_day": "0.001"}, "limit-reached", "max_per_day = 0.001 pathUSD"),
    ],
)
def test_why_not(
    devnet: Devnet, make_home: MakeHome, changes: dict[str, Any], reason: str, says: str
) -> None:
    hosts = [rule("localhost", **changes) if "host" not in changes else rule(**changes)]
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts})
    found = payment(home, f"{devnet.https}/req", code=5)
    assert (found["would_pay"], found["reason"]) == (False, reason)
    assert says in found["because"]


def test_what_a_server_says_does_not_drive_the_terminal(devnet: Devnet, make_home: MakeHome) -> None:
    home = make_home()
    with Upstream(devnet) as upstream:
        asks = upstream.asks().replace(b'method="tempo"', b'method="te\x1b[2Jmpo"')
        upstream.routes["/odd"] = always(asks)
        text = inspect(home, f"{upstream.url}/odd")
    assert "\x1b" not in text


def test_what_is_no_address(make_home: MakeHome) -> None:
    assert "is no http(s) address" in inspect(make_home(), "ftp://example.com/x", code=2)
