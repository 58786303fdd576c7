"""Several workers on one port and one store: limits to the unit, kill -9 of any of them, an orderly stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import curl
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, bursar, quiet_environment, rule, until
from tests.e2e.test_main_job import close_all
from tests.e2e.test_stopping import CLIENTS, slow, under_load
from tests.e2e.world import MakeHome
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
_READY = re.compile(r'^\{"ready": true.*\}$', re.MULTILINE)


class Team(Proxy):
    """`bursar run --workers 2`."""

    pids: list[int]

    def ready(self) -> Team:
        def found() -> re.Match[str] | None:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            return _READY.search(self.log)

        told = json.loads(until(found, "all workers are ready")[0])
        assert self.process is not None
        assert told["pid"] == self.process.pid
        self.port = int(told["url"].rpartition(":")[2])
        self.pids = told["workers"]
        return self


@contextlib.contextmanager
def team(home: Home) -> Iterator[Team]:
    one = Team(home, bursar(home, "run", "--listen", "127.0.0.1:0", "--json", "--workers", "2"))
    try:
        with one:
            yield one
    finally:
        one.kill()  # its workers notice


def swarm(proxy: Proxy, url: str, clients: int, rounds: int) -> dict[str, dict[str, int]]:
    script = Path(__file__).with_name("swarm.py")
    done = subprocess.run(
        [sys.executable, str(script), str(proxy.port), url, str(clients), str(rounds)],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
        env=quiet_environment(),
    )
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def paid_by(home: Home) -> dict[str, int]:
    """Payments in each process's part of the ledger."""
    lines = {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()]
        for file in (home.store / "ledger").glob("*.jsonl")
    }
    return {name: sum(line.get("outcome") == "paid" for line in found) for name, found in lines.items()}


def command(home: Home, *words: str) -> str:
    environment = quiet_environment(**{KEY_VARIABLE: home.account.private_key, "PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        bursar(home, *words), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def processes(home: Home) -> dict[int, str]:
    """Who has the store open, or died with it: pid -> owner."""
    return {int(file.read_text()): file.stem for file in (home.store / "owners").glob("*.lock")}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_one_limit_over_all_workers_and_one_stop(devnet: Devnet, make_home: MakeHome) -> None:
    devnet.admin("reset")
    payable = 60
    hosts = [
        rule("127.0.0.1", max_per_day="0.6"),
        rule("localhost", max_channels_per_scope=1, allow_http=True),
    ]
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts})
    books = Books(devnet, home)
    with team(home) as proxy:
        assert "policy.hosts[1] (localhost): max_channels_per_scope = 1" in proxy.log.replace("\n", " ")
        # A few clients, one after the other and a few at once: one worker has them all, with one deposit.
        assert curl(proxy, f"{devnet.http}/req").status == 200
        assert swarm(proxy, f"{devnet.http}/req?few=1", 3, 3)["answers"] == {"200": 9}
        assert stats(devnet.seller, "/req")["open"] == 1
        assert sorted(paid_by(home).values()) == [0, 10]

        # More than one worker's share: another one joins, with a channel of its own.
        found = swarm(proxy, f"{devnet.http}/req?many=1", 16, 2)
        assert (found["answers"], found["leaks"], found["odd"]) == ({"200": 32}, {}, {})
        assert stats(devnet.seller, "/req")["open"] == 2
        assert min(paid_by(home).values()) >= 8

        # What is left of the day is paid to the unit, whoever is asked for it.
        found = swarm(proxy, f"{devnet.http}/req?last=1", 16, 2)
        assert (found["answers"], found["odd"]) == ({"200": payable - 42, "402": 32 - (payable - 42)}, {})
        assert sum(books.counters("host-day/").values()) == payable * PRICE
        assert {line["reason"] for line in home.ledger_of("decision")} == {"limit-reached"}
        books.agree(payable * PRICE)

        # A host that may have one channel stays with one worker, however many come: nobody waits for the other.
        plain = devnet.http.replace("127.0.0.1", "localhost")
        assert swarm(proxy, f"{plain}/req?narrow=1", 12, 2)["answers"] == {"200": 24}
        assert stats(devnet.seller, "/req")["open"] == 3

        assert curl(proxy, f"{devnet.https}/price").status == 200  # whose first line is a CONNECT

        # A stop is one for all: it waits for what is under way.
        client = slow(proxy, devnet, plain)
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        proxy.logged("bursar: stops: waits")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
        proxy.process.send_signal(signal.SIGTERM)  # and a second one hurries them
        assert proxy.process.wait(60) == 0, proxy.log
        assert "1 answers are cut off" in proxy.log
        client.wait(30)
    assert all(gone(pid) for pid in proxy.pids)
    assert {one.owner for one in books.channels()} == {None}
    books.bounded()


def test_kill_9_of_a_worker_and_of_the_one_that_listens(devnet: Devnet, make_home: MakeHome) -> None:
    devnet.admin("reset")
    home = make_home(
        policy={"max_per_day": "50", "max_lifetime": "50", "hosts": [rule("127.0.0.1", max_per_day="50")]}
    )
    books = Books(devnet, home)
    with team(home) as proxy:
        with under_load(proxy, f"{devnet.http}/req?delay=250") as found:
            until(lambda: min(paid_by(home).values()) > 5, "both pay")
            killed = processes(home)[proxy.pids[0]]
            os.kill(proxy.pids[0], signal.SIGKILL)
            proxy.logged("bursar: worker 1 was killed by signal 9; it is started again")
            until(lambda: proxy.log.count("bursar: pays as") == 3, "a new one is up")
            # Those who were cut off are with the other one by now; who comes next is not.
            assert swarm(proxy, f"{devnet.http}/req?next=1", 4, 2)["answers"] == {"200": 8}
            assert min(paid_by(home).values()) > 5
            owners = processes(home)
            owners.pop(proxy.pids[0], None)
            assert len(owners) == 2
            proxy.kill()
            until(lambda: all(map(gone, owners)), "the workers have ended")
        served = found.pop("200")
        # Cut off by the kills, refused by the stop; never a 402 that the policy allowed us to pay.
        cut = {"broken: in its header", "broken: in its body"}
        assert set(found) <= {"closed before an answer", "503", "nobody listens", *cut}, found
        assert "Traceback" not in proxy.log
    # The workers that had lost their supervisor finished what they had, and gave their channels back.
    assert not home.ledger_of("ended", outcome="unknown")
    assert {one.owner for one in books.channels()} <= {None, killed}
    books.bounded()
    spent = sum(int(devnet.channel(one.channel_id)["spent"]) for one in books.channels())
    assert (served + 8) * PRICE <= spent <= (served + 8 + 2 * CLIENTS) * PRICE
    close_all(home)
    books.agree(spent)
    command(home, "ledger", "verify")
