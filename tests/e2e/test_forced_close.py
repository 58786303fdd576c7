"""The deposit comes home without the server: requested on the chain, withdrawn after its grace, killed in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from store.lifecycle import ChannelStatus
from tests.e2e.accounting import Books
from tests.e2e.clients import fetch
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, mitmdump, quiet_environment
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
GRACE_S = 961  # over what we wait for: the contract's fifteen minutes and one more


def run(home: Home, *command: str, steps: int = 0) -> subprocess.CompletedProcess[str]:
    """`bursar channels …` with JSON, killed after so many steps."""
    script = [sys.executable, str(Path(__file__).with_name("crash_at.py")), str(steps), "channels", *command]
    environment = quiet_environment(**{KEY_VARIABLE: home.account.private_key, "PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        [*script, "--json", "--config", str(home.config)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if steps else 0) or not steps, done.stderr
    return done


def told(home: Home, *command: str) -> Any:
    done = run(home, *command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["v2", "v1"])
def test_the_deposit_comes_home_without_the_server(
    net: Devnet, ca: Path, tmp_path: Path, protocol: str
) -> None:
    seller = net.start_server({"protocol": protocol, "suggested-deposit": "1"}, f"gone-{protocol}")
    home = Home.make(tmp_path / "home", net, ca)
    books = Books(net, home, seller)
    with Proxy(home, mitmdump(home, net)) as proxy:
        assert [got.status for got in fetch("curl", proxy, f"{seller.http}/req", 3)] == [200] * 3
    channel = books.channel()
    assert (channel.deposit, channel.paid) == (1_000_000, 3 * PRICE)
    net.stop_server(seller)
    name = channel.channel_id

    # It says what to do, and nothing is lost by having tried.
    failed = run(home, "close", name)
    assert failed.returncode == 1
    assert f"bursar channels close --force {name}" in failed.stderr

    # Killed after the claim, each change of status, the hash, the broadcast, the fee.
    for steps in (1, 2, 2, 3, 2):
        run(home, "close", "--force", name, steps=steps)
        left = books.channel()
        assert (left.paid, left.uncertain, left.authorised) == (3 * PRICE, 0, 3 * PRICE)
    begun = told(home, "close", "--force", name)
    assert begun["status"] == "closing"
    assert begun == told(home, "close", "--force", name)  # no second request, no other date
    fees = net.fees(home.account.address, books.before.block + 1)
    assert books.channel().fees == fees
    shown = told(home, "show", name)
    assert "closing by force: " in shown["next"]
    assert f"bursar channels close --force {name[:10]}" in shown["next"]
    # Without --force, too, it goes on as it began.
    assert told(home, "close", "--all") == [begun]

    net.warp(GRACE_S)
    # After the claim, the hash, the broadcast, the fee.
    for steps in (1, 2, 3, 2):
        run(home, "close", "--force", name, steps=steps)
    (closed,) = told(home, "close", "--all")
    assert closed["status"] == "closed"
    assert (closed["captured"], closed["refunded"]) == ("0", "1000000")

    # Everything is back, but for the network's fees, and each of these is known.
    fees = net.fees(home.account.address, books.before.block + 1)
    now = books.balances()
    assert books.before.payer - now.payer == fees
    assert (now.payee, now.escrow) == (books.before.payee, books.before.escrow)
    ended = books.channel()
    assert (ended.status, ended.captured, ended.refunded, ended.fees) == (
        *(ChannelStatus.CLOSED, 0, 1_000_000),
        fees,
    )
    assert books.ledger_fees() == fees
    (line,) = home.ledger_of("closed")
    assert (line["captured"], line["refunded"], line["adjustment"]) == ("0", "1000000", str(-3 * PRICE))
    assert sum(books.counters("lifetime/").values()) == 0
    assert sum(books.counters("host-day/").values()) == 3 * PRICE
    assert told(home, "show", name)["history"]["requests"] == {"sent": 3, "paid": 3}
