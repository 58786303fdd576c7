"""Whose budget it is, and who is paid at all: clients with passwords, a breaker on real connections."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import budgets
from tests.e2e.clients import curl, finish, start
from tests.e2e.proxies import Home, Proxy, rule, until
from tests.e2e.scripted import Gate, Request, Upstream, always, answer
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
CLIENTS = {"alice": 30_000, "bob": 50_000, "carol": 40_000}  # carol's is everybody's


def passwords(directory: Path) -> str:
    """The option that has mitmproxy ask for them: each client's is its name."""
    file = directory / "clients"
    sums = {name: base64.b64encode(hashlib.sha1(name.encode()).digest()).decode() for name in CLIENTS}
    file.write_text("".join(f"{name}:{{SHA}}{one}\n" for name, one in sums.items()))
    return f"proxyauth=@{file}"


def limited(make_home: MakeHome) -> Home:
    policy = {
        "max_per_day": "5",
        "max_lifetime": "10",
        "max_per_day_per_client": "0.04",
        "clients": [{"name": "alice", "max_per_day": "0.03"}, {"name": "bob", "max_per_day": "0.05"}],
        "hosts": [rule("127.0.0.1"), rule("localhost")],
    }
    return make_home(policy=policy)


def paid(home: Home) -> Counter[str]:
    """Base units by user, as the ledger has them; what may have been charged counts."""
    found: Counter[str] = Counter()
    for line in home.ledger_of("ended"):
        if line["outcome"] != "free":
            found[line["user"]] += int(line["amount"])
    return found


def test_each_client_to_the_unit_over_restarts(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    """Over http and inside a CONNECT tunnel, with a kill between; who has no password gets nothing at all."""
    home = limited(make_home)
    option = passwords(home.directory)
    statuses: Counter[tuple[str, int]] = Counter()

    def rounds(proxy: Proxy, count: int) -> None:
        for number in range(count):
            for name in CLIENTS:
                url = f"{devnet.https if number % 2 else devnet.http}/req"
                got = curl(proxy, url, "--proxy-user", f"{name}:{name}")
                statuses[name, got.status] += 1

    with make_proxy(home, "--set", option) as proxy:
        assert curl(proxy, f"{devnet.http}/req").status == 407
        rounds(proxy, 2)
        proxy.kill()
    with make_proxy(home, "--set", option) as proxy:
        rounds(proxy, 4)
        assert "policy.clients[0].max_per_day = 0.03 pathUSD are used" in proxy.log
        assert "policy.max_per_day_per_client = 0.04 pathUSD are used" in proxy.log
    assert {name: statuses[name, 200] * PRICE for name in CLIENTS} == CLIENTS
    assert paid(home) == Counter(CLIENTS)


def test_two_processes_serve_the_same_clients(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    """Many at once through both, one of which is killed: nobody is ever over a limit."""
    home = limited(make_home)
    option = passwords(home.directory)
    with make_proxy(home, "--set", option) as one, make_proxy(home, "--set", option) as other:
        running = [
            start("curl", proxy, f"{devnet.http}/req", 4, "--proxy-user", f"{name}:{name}")
            for proxy in (one, other)
            for name in CLIENTS
        ]
        answers = [got for each in running for got in finish(each)]
        assert {got.status for got in answers} == {200, 402}
        served = sum(got.status == 200 for got in answers)
        one.kill()
        for name in CLIENTS:
            curl(other, f"{devnet.http}/req", "--proxy-user", f"{name}:{name}")
    for name, amount in paid(home).items():
        assert amount <= CLIENTS[name], name
    assert served == 12
    counters = home_counters(home)
    for key, used in counters.items():
        assert 0 <= used <= CLIENTS[key.rpartition("/")[2]]


def home_counters(home: Home) -> dict[str, int]:
    from store.channels import ChannelStore
    from store.lmdb_store import LmdbBackend

    async def read() -> dict[str, int]:
        store = ChannelStore(await LmdbBackend.open(home.store))
        try:
            return await store.counters(budgets.CLIENT)
        finally:
            await store.close()

    return asyncio.run(read())


# -- the breaker


@pytest.fixture
def upstream(devnet: Devnet) -> Iterator[Upstream]:
    with Upstream(devnet) as running:
        yield running


def breaking(make_home: MakeHome) -> Home:
    return make_home(
        breaker={"failures": 3, "retry_after_s": 1},
        proxy={"reason_header": True, "release_idle_s": 1},
        policy={"max_per_day": "5", "max_lifetime": "10", "hosts": [rule("127.0.0.1", pin_payee=True)]},
    )


def reasons(proxy: Proxy, url: str, count: int) -> list[str]:
    """Of so many requests: the status, or why nothing was paid."""
    found = [curl(proxy, url) for _ in range(count)]
    return [one.header("bursar-reason") or str(one.status) for one in found]


def test_errors_for_money_and_another_payee(
    upstream: Upstream, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    url = f"{upstream.url}/paid"
    home = breaking(make_home)
    with make_proxy(home) as proxy:
        upstream.routes["/paid"] = upstream.sells(
            lambda request, paid: answer(200, b"ok", upstream.receipt(paid))
        )
        assert reasons(proxy, url, 2) == ["200", "200"]
        upstream.routes["/paid"] = upstream.sells(lambda request, paid: answer(500, b"no"))
        assert reasons(proxy, url, 5) == ["500"] * 3 + ["breaker-open"] * 2
        upstream.routes["/paid"] = upstream.sells(
            lambda request, paid: answer(200, b"ok", upstream.receipt(paid))
        )
        until(lambda: reasons(proxy, url, 1) == ["200"], "it is tried again")
        assert reasons(proxy, url, 2) == ["200", "200"]
        other = upstream.challenge(upstream.request_json(recipient="0x" + "c" * 40))
        upstream.routes["/moved"] = always(upstream.asks(other))
        seen = len(upstream.credentials)
        assert reasons(proxy, f"{upstream.url}/moved", 1) == ["payee-changed"]
        assert len(upstream.credentials) == seen
        assert f"bursar pins forget {upstream.authority}" in proxy.log
        assert reasons(proxy, url, 1) == ["200"]
    lines = home.ledger_of("breaker")
    assert [line["outcome"] for line in lines] == ["opened", "closed"]
    assert "3 payments in a row brought nothing" in lines[0]["message"]


def test_who_cuts_an_answer(upstream: Upstream, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    """A server that cuts its answers is left alone; a client that leaves says nothing about it."""
    url, gate = f"{upstream.url}/paid", Gate()
    home = breaking(make_home)

    async def half(request: Request, writer: asyncio.StreamWriter) -> None:
        payload = await upstream.take(request)
        if payload is None:
            writer.write(upstream.asks())
            return
        fields = {"Content-Length": "100", **upstream.receipt(payload)}
        writer.write(answer(200, b"half", fields))
        await writer.drain()
        if "leave" in request.target:
            await gate.passed()
        writer.close()

    upstream.routes["/paid"] = half
    with make_proxy(home) as proxy:
        for _ in range(4):  # the client leaves in the middle
            client = subprocess.run(
                ["curl", "-q", "-sS", "--max-time", "0.5", f"{url}?leave"],
                env=proxy.client_environment(),
                capture_output=True,
                check=False,
            )
            assert client.returncode == 28, client.stderr
        gate.open()
        until(lambda: len(home.ledger_of("ended")) == 4, "all are booked")
        assert home.ledger_of("breaker") == []
        for _ in range(3):  # the server cuts
            subprocess.run(
                ["curl", "-q", "-sS", url],
                env=proxy.client_environment(),
                capture_output=True,
                check=False,
            )
        assert [line["outcome"] for line in home.ledger_of("breaker")] == ["opened"]
        assert reasons(proxy, url, 1) == ["breaker-open"]
