"""Many clients at once, through one proxy and through several on one store: what they get, and what it costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import curl
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, bursar, quiet_environment, rule, until
from tests.e2e.test_main_job import close_all
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
AHEAD = 640_000  # base units, of the homes here: one price for each of 64
_TALLY = re.compile(r"was used for (\d+) requests, (\d+) signatures, (\d+) commits")


def policy(**changes: object) -> dict[str, object]:
    usual = {"authorise_ahead": "0.64", "max_per_day": "40", "max_deposit": "10", "max_deposits_per_day": "40", "max_opens_per_day": 4}
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


def swarm(proxies: Sequence[Proxy], url: str, clients: int, rounds: int = 1) -> float:
    """Every client gets its 200 each time, and nothing that tells of a payment. Returns how long it took."""
    script = Path(__file__).with_name("swarm.py")
    ports = ",".join(str(proxy.port) for proxy in proxies)
    command = [sys.executable, str(script), ports, url, str(clients), str(rounds)]
    import signal, os, time
    try: subprocess.run(['true'])
    finally: pass
    try:
      done = subprocess.run(
        command, capture_output=True, text=True, timeout=25, check=False, env=quiet_environment()
    )
    except subprocess.TimeoutExpired:
      for p in proxies: os.kill(p.process.pid, signal.SIGUSR1)
      time.sleep(2)
      raise
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["answers"] == {"200": clients * rounds}, told
    assert (told["leaks"], told["odd"]) == ({}, {})
    return float(told["seconds"])


@contextmanager
def running(make_proxy: MakeProxy, home: Home, count: int) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        launched = [make_proxy(home, "-s", "/tmp/w/mc/dbg.py").launch() for _ in range(count)]
        yield [stack.enter_context(proxy) for proxy in launched]


def upstream(net: Devnet, paid: int) -> float:
    """Upstream requests per paid call since the last reset."""
    return float(stats(net.seller, "/req")["total"] / paid)


@pytest.mark.parametrize(
    ("clients", "processes", "rounds"),
    [(64, 1, 4), (64, 4, 4), pytest.param(300, 1, 2, marks=pytest.mark.slow)],
)
def test_cold_and_warm(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, clients: int, processes: int, rounds: int
) -> None:
    devnet.admin("reset")
    home = make_home(funds=60_000_000, policy=policy())
    books = Books(devnet, home)
    url = f"{devnet.http}/req?deposit=10"  # no top-up in between
    with running(make_proxy, home, processes) as proxies:
        cold = swarm(proxies, url, clients)
        opened = stats(devnet.seller, "/req")["open"]
        assert 1 <= opened <= processes
        cold_upstream = upstream(devnet, clients)
        books.agree(clients * PRICE)

        devnet.admin("reset")
        paid = clients * rounds
        warm = swarm(proxies, url, clients, rounds)
        assert stats(devnet.seller, "/req")["open"] + opened <= processes
        warm_upstream = upstream(devnet, paid)
        books.agree((clients + paid) * PRICE)
    tally = Tally.of(*proxies)
    assert tally.requests >= clients + paid
    print(
        f"{clients} clients, {processes} processes: cold {cold:.2f} s, {cold_upstream:.3f} upstream/paid;"
        f" warm {warm:.2f} s for {paid}, {warm_upstream:.3f} upstream/paid; {tally}"
    )
    told = close_all(home)
    assert sum(int(one["captured"]) for one in told) == (clients + paid) * PRICE
    books.agree((clients + paid) * PRICE)
