"""Many clients at once, through one proxy and through several on one store: what they get, and what it costs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import curl
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, bursar, quiet_environment, rule
from tests.e2e.swarm_client import swarm
from tests.e2e.test_main_job import close_all
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
ALONE = 20
_TALLY = re.compile(r"was used for (\d+) requests, (\d+) signatures, (\d+) commits")


def policy(**changes: object) -> dict[str, object]:
    usual = {
        "authorise_ahead": "0.64",
        "max_per_day": "40",
        "max_deposit": "10",
        "max_deposits_per_day": "40",
        "max_opens_per_day": 4,
    }
    hosts = [rule("127.0.0.1", **(usual | changes))]
    return {"max_per_day": "50", "max_lifetime": "50", "hosts": hosts}


@dataclass(frozen=True)
class Tally:
    """What some proxies said, when they gave their channels back, that these have cost."""

    requests: int
    signatures: int
    commits: int

    @classmethod
    def of(cls, *proxies: Proxy) -> Tally:
        found = [map(int, one) for proxy in proxies for one in _TALLY.findall(proxy.log)]
        return cls(*(sum(column) for column in zip(*found, strict=True)))


@contextmanager
def running(make_proxy: MakeProxy, home: Home, count: int) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        launched = [make_proxy(home).launch() for _ in range(count)]
        yield [stack.enter_context(proxy) for proxy in launched]


@pytest.mark.parametrize(
    ("clients", "processes", "rounds"),
    [
        (64, 1, 2),
        pytest.param(64, 4, 1, marks=pytest.mark.long),
        pytest.param(300, 1, 1, marks=pytest.mark.long),
        pytest.param(300, 4, 1, marks=pytest.mark.long),
    ],
)
def test_cold_and_warm(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, clients: int, processes: int, rounds: int
) -> None:
    devnet.admin("reset")
    # Of four, two may open a channel; the others wait until one is given back.
    most = min(processes, 2)
    home = make_home(funds=60_000_000, policy=policy(max_opens_per_day=most))
    books = Books(devnet, home)
    url = f"{devnet.http}/req?deposit=10"  # no top-up in between
    with running(make_proxy, home, processes) as proxies:
        cold = swarm(proxies, url, clients)
        opened = stats(devnet.seller, "/req")["open"]
        assert 1 <= opened <= most
        books.agree(clients * PRICE)

        devnet.admin("reset")
        paid = clients * rounds
        warm = swarm(proxies, url, clients, rounds)
        assert stats(devnet.seller, "/req")["open"] + opened <= most
        upstream = stats(devnet.seller, "/req")["total"] / paid
        books.agree((clients + paid) * PRICE)
    tally = Tally.of(*proxies)
    assert tally.requests >= clients + paid
    print(
        f"{clients} clients, {processes} processes: cold {cold:.2f} s; warm {warm:.2f} s for {paid},"
        f" {upstream:.3f} upstream/paid; {tally}"
    )
    # One signature and one commit are shared by many; among several processes by fewer.
    share = 0.1 if processes == 1 else 0.3
    assert tally.signatures <= share * tally.requests
    assert tally.commits <= share * tally.requests + 2 * processes  # and what openings and hand-overs take
    assert upstream <= 1.5
    told = close_all(home)
    assert sum(int(one["captured"]) for one in told) == (clients + paid) * PRICE
    books.agree((clients + paid) * PRICE)


def test_alone(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    """One after the other: an upstream request each, and a signature and a commit at most."""
    home = make_home(policy=policy())
    url = f"{devnet.http}/req?alone"
    with make_proxy(home) as proxy:
        assert curl(proxy, url).status == 200
        devnet.admin("reset")
        swarm([proxy], url, 1, ALONE)
        assert stats(devnet.seller, "/req")["total"] == ALONE
    tally = Tally.of(proxy)
    assert tally.requests == ALONE + 1
    assert tally.signatures <= tally.requests
    assert tally.commits <= tally.requests + 1  # and the opening's
    print(f"alone: {tally}")


def test_a_channel_changes_hands(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    """From an idle proxy, from one that was killed, and to a command beside a running one."""
    devnet.admin("reset")
    home = make_home(policy=policy(max_channels_per_scope=1))
    books = Books(devnet, home)
    url = f"{devnet.http}/req"
    with running(make_proxy, home, 2) as (one, other):
        assert curl(one, url).status == 200
        assert curl(other, url).status == 200  # waits until it has been idle for a while
        assert stats(devnet.seller, "/req")["open"] == 1
        books.agree(2 * PRICE)
        assert curl(one, url).status == 200
        one.kill()
        books.bounded()
        # At once: nobody has to wait for the dead.
        assert curl(other, url).status == 200
        assert stats(devnet.seller, "/req")["open"] == 1
        books.agree(4 * PRICE)

        environment = quiet_environment(**{KEY_VARIABLE: home.account.private_key, "PYTHONPATH": str(ROOT)})
        done = subprocess.run(
            [*bursar(home, "exec", "--json"), "--", "curl", "-sS", "--fail", url],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ok"] is True
        assert curl(other, url).status == 200
        assert stats(devnet.seller, "/req")["open"] == 1
        books.agree(6 * PRICE)
    assert home.ledger_of("recovered")
    (told,) = close_all(home)
    assert told["captured"] == str(6 * PRICE)
    books.agree(6 * PRICE)
