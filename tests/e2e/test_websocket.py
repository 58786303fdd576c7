"""A WebSocket client that knows nothing of payment, against mppx's own server: paid by frames that it never sees."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.accounting import Books
from tests.e2e.proxies import Home, Proxy, rule, until, usual_settings
from tests.e2e.test_main_job import close_all
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet, Seller

pytestmark = pytest.mark.e2e

PRICE = 10_000
CLIENT = Path(__file__).with_name("ws_client.py")


def policy(**changes: Any) -> dict[str, Any]:
    return {
        "max_per_day": "5",
        "max_lifetime": "10",
        "hosts": [rule(host, websocket_paths=["/ws"], **changes) for host in ("127.0.0.1", "localhost")],
    }


def read(proxy: Proxy, url: str, *arguments: str) -> dict[str, Any]:
    """What the client got, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(CLIENT), url, *arguments],
        env=proxy.client_environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def tokens(count: int) -> list[str]:
    return [f"tok{index}" for index in range(count)]


def socket_url(seller: Seller, query: str = "") -> str:
    return f"{seller.http.replace('http', 'ws')}/ws{query}"


@pytest.fixture(scope="module")
def modest(devnet: Devnet) -> Seller:
    """A seller who suggests a deposit for three tokens."""
    return devnet.start_server({"suggested-deposit": "0.03"}, "server-modest")


def ended(home: Home, count: int) -> None:
    until(lambda: len(home.ledger_of("ended")) >= count, "the connection's end is booked")


def test_reads_to_the_end_through_vouchers(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    devnet.admin("reset")
    home = make_home(policy=policy())
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        for _ in range(2):  # the second finds a channel
            got = read(proxy, socket_url(devnet.seller, "?n=9"))
            assert got == {"messages": tokens(9), "code": 1000, "reason": ""}
        ended(home, 2)
        books.agree(18 * PRICE)
        assert "stream ended" not in proxy.log
    assert len(books.channels()) == 1
    (closed,) = close_all(home)
    assert (closed["status"], int(closed["captured"])) == ("closed", 18 * PRICE)
    books.agree(18 * PRICE)


def test_tops_up_while_it_flows(
    devnet: Devnet, modest: Seller, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    home = make_home(policy=policy())
    books = Books(devnet, home, modest)
    with make_proxy(home) as proxy:
        got = read(proxy, socket_url(modest, "?n=8"))
        assert got == {"messages": tokens(8), "code": 1000, "reason": ""}
        ended(home, 1)
        assert home.ledger_of("topped-up")
        books.agree(8 * PRICE)
    (closed,) = close_all(home)
    assert int(closed["captured"]) == 8 * PRICE
    books.agree(8 * PRICE)


def test_over_tls(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    home = make_home(policy=policy())
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        url = f"{devnet.https.replace('https', 'wss')}/ws?n=3"
        assert read(proxy, url) == {"messages": tokens(3), "code": 1000, "reason": ""}
        ended(home, 1)
        books.agree(3 * PRICE)


def test_a_client_that_leaves_pays_for_what_it_got(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    home = make_home(policy=policy())
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        got = read(proxy, socket_url(devnet.seller, "?n=50&delay=100"), "4")
        assert got == {"messages": tokens(4)}
        ended(home, 1)
        channel = books.channel()
        spent = int(devnet.channel(channel.channel_id)["spent"])
        assert channel.held == 0
        assert 4 * PRICE <= spent <= 6 * PRICE
        assert channel.paid <= spent <= channel.paid + channel.uncertain
        books.bounded()
    (closed,) = close_all(home)
    assert int(closed["captured"]) == spent
    books.agree(spent)


def test_two_at_a_time_have_a_channel_each(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    home = make_home(policy=policy())
    books = Books(devnet, home)
    with make_proxy(home) as proxy, ThreadPoolExecutor() as pool:
        url = socket_url(devnet.seller, "?n=5&delay=300")
        assert list(pool.map(lambda _: read(proxy, url)["messages"], range(2))) == [tokens(5)] * 2
        ended(home, 2)
        books.agree(10 * PRICE)
    assert len(books.channels()) == 2


def test_a_challenge_that_expires_meanwhile_is_asked_for_anew(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    seller = devnet.start_server({"expires-seconds": "20", "suggested-deposit": "1"}, "server-hasty")
    home = make_home(policy=policy())
    books = Books(devnet, home, seller)
    with make_proxy(home) as proxy:
        assert read(proxy, socket_url(seller, "?n=4"))["messages"] == tokens(4)
        ended(home, 1)
        books.agree(4 * PRICE)
    assert seller.stats("/ws")["sent402"] == 4  # before the handshake, and before each voucher


@pytest.mark.parametrize(
    ("limits", "messages", "reason"),
    [
        ({"max_per_stream": "0.03"}, 3, "over-stream-total"),
        pytest.param({"max_per_day": "0.02"}, 2, "over-stream-total", marks=pytest.mark.long),
        ({"max_per_day": "0.02", "max_per_stream": "4"}, 2, "limit-reached"),
        pytest.param({"max_stream_step": "0.005"}, 1, "over-stream-step", marks=pytest.mark.long),
    ],
)
def test_ends_where_a_limit_is(
    devnet: Devnet,
    make_home: MakeHome,
    make_proxy: MakeProxy,
    limits: dict[str, str],
    messages: int,
    reason: str,
) -> None:
    home = make_home(policy=policy(**limits))
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        got = read(proxy, socket_url(devnet.seller, "?n=9"))
        assert got == {
            "messages": tokens(messages),
            "code": 1008,
            "reason": f"bursar stopped paying: {reason}",
        }
        ended(home, 1)
        books.agree(messages * PRICE)


def test_what_may_not_be_paid_is_a_402(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    home = make_home(policy=policy(max_price="0.009"))
    settings = {"proxy": {"upstream_ca": str(devnet.ca), "release_idle_s": 1, "reason_header": True}}
    home.write(usual_settings(home, devnet) | {"policy": policy(max_price="0.009")} | settings)
    with make_proxy(home) as proxy:
        got = read(proxy, socket_url(devnet.seller))
        assert got == {"messages": [], "status": 402, "reason": "over-max-price"}
    assert devnet.stats("/ws").get("upgrades", 0) == 0
    assert home.ledger_of("sent") == []


def test_no_path_configured_no_payment(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    home = make_home()
    with make_proxy(home) as proxy:
        assert read(proxy, socket_url(devnet.seller), "0") == {"messages": []}  # upgraded, and nothing comes
    assert devnet.stats("/ws")["upgrades"] == 1
    assert devnet.stats("/ws").get("sent402", 0) == 0
    assert home.ledger_of("sent") == []
