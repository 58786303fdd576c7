"""A channel's whole life at one seller, whatever protocol it sells over, accounted for after every step."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import Got, fetch
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, bursar, quiet_environment, rule
from tests.e2e.swarm_client import swarm
from tests.peers.devnet import Devnet, Seller

PRICE = 10_000  # base units, of /req
DEPOSIT = 1_000_000
WARM = 5
BURST = 24
POLICY = {
    "max_per_day": "5",
    "max_lifetime": "10",
    "hosts": [rule("127.0.0.1", max_deposit="2", authorise_ahead="0.1")],
}
"""The home's; its wallet must hold some five tokens."""


def channels(home: Home, *command: str, code: int = 0) -> Any:
    """`bursar channels …`, in a process of its own; its JSON, or what it complained of."""
    environment = quiet_environment(**{KEY_VARIABLE: home.account.private_key, "PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        [*bursar(home, "channels", *command), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def live(net: Devnet, seller: Seller, home: Home, new_proxy: Callable[[], Proxy]) -> None:
    """Open, warm, a burst, a restart, a top-up, the close. `new_proxy` makes one that is not started yet."""
    seller.admin("reset")
    books = Books(net, home, seller)
    url = f"{seller.http}/req"

    def served(answers: list[Got]) -> int:
        for got in answers:
            assert (got.status, got.payment_fields) == (200, [])
        return len(answers)

    with new_proxy() as proxy:
        requests = served(fetch("curl", proxy, url))
        books.agree(requests * PRICE)
        seller.admin("reset")
        requests += served(fetch("requests", proxy, url, WARM))
        counted = stats(seller, "/req")
        assert (counted["total"], counted["voucher"]) == (WARM, WARM)
        books.agree(requests * PRICE)
        swarm([proxy], f"{url}?burst", BURST)
        requests += BURST
        books.agree(requests * PRICE)

    with new_proxy() as proxy:
        requests += served(fetch("httpx", proxy, url))
        assert stats(seller, "/req")["open"] == 0
        books.agree(requests * PRICE)
        channel = books.channel()
        assert channel.deposit == DEPOSIT

        # The proxy gives its channel back when it is idle; then it is topped up, and used again.
        topped = channels(home, "top-up", channel.channel_id, "0.5")
        assert (topped["deposit"], topped["added"]) == (str(DEPOSIT + 500_000), "500000")
        requests += served(fetch("curl", proxy, url))
        assert stats(seller, "/req")["open"] == 0
        books.agree(requests * PRICE)
        assert books.channel().deposit == DEPOSIT + 500_000

    refused = channels(home, "top-up", channel.channel_id, "0.51", code=5)
    assert "over max_deposit 2.00" in refused
    (told,) = channels(home, "close", "--all")
    assert (told["status"], told["captured"]) == ("closed", str(requests * PRICE))
    assert int(told["refunded"]) == DEPOSIT + 500_000 - requests * PRICE
    books.agree(requests * PRICE)
    shown = channels(home, "show", channel.channel_id)
    assert shown["history"]["requests"] == {"sent": requests, "paid": requests}
    events = [event["kind"] for event in shown["history"]["events"]]
    assert [kind for kind in events if kind != "recovered"] == ["opened", "topped-up", "close-sent", "closed"]
