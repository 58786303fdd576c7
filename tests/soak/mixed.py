"""Everything at once, for as long as one likes: ``python -m tests.soak.mixed --minutes 30``.

Two `bursar run` on one store; clients of all kinds (`load`); honest and hostile sellers; and faults, one after the
other: a proxy killed with -9 and started again, the chain's RPC down or slow, a seller that forgets its challenges or
cashes in between. In the end every channel is closed (those of hostile sellers by force), and the chain, the sellers,
the store, the ledger and the clients agree to the base unit; the proxy that was never killed has no more tasks and
files than at the beginning, and no more memory than in the first third.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from eth_utils.crypto import keccak
from mitmproxy.certs import CertStore

from store.lifecycle import ChannelStatus
from tests.e2e.accounting import Books
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, bursar, quiet_environment, rule, until
from tests.peers.devnet import Devnet
from tests.soak import sums
from tests.soak.hostile import Hostile, sellers

PRICE: Final = 10_000
WORKERS: Final = 28
CHANNELS: Final = 24
SPARE: Final = {"tasks": 4, "files": 50}  # pools to sellers and chain keep twenty connections each
SPARE_MIB: Final = 48
GRACE_S: Final = 16 * 60  # of a forced close, in the chain's time
HOSTILE_DAY: Final = 300_000
FUNDS: Final = 5_000_000_000_000
HERE: Final = Path(__file__).parent


def policy(hostile: Sequence[Hostile]) -> dict[str, Any]:
    """Wide for the honest seller, narrow for the others."""
    wide = {
        "max_channels_per_scope": CHANNELS,
        "max_opens_per_day": 100_000,
        "max_per_day": "1000000",
        "max_deposit": "100",
        "deposit": "1",
        "max_deposits_per_day": "1000000",
        "authorise_ahead": "0.2",
        "websocket_paths": ["/ws"],
    }
    narrow = {
        "max_price": "0.05",
        "max_per_day": "0.3",
        "max_deposit": "0.2",
        "max_opens_per_day": 3,
        "max_channels_per_scope": 2,
    }
    hosts = [rule(one.authority, **narrow) for one in hostile]
    hosts += [rule("127.0.0.1", **wide), rule("localhost", **wide)]
    return {"max_per_day": "2000000", "max_lifetime": "2000000", "hosts": hosts}


@dataclass
class Watched:
    """A proxy on a port that it keeps, whoever runs there."""

    home: Home
    port: int
    number: int
    proxy: Proxy | None = None
    logs: list[Callable[[], str]] = field(default_factory=list)

    @property
    def counts(self) -> Path:
        return self.home.directory / f"tasks-{self.number}"

    def start(self) -> None:
        command = bursar(self.home, "run", "--listen", f"127.0.0.1:{self.port}")
        command += ["--", "-s", str(HERE / "watch.py"), "--set", "flow_detail=0"]
        proxy = Proxy(self.home, command, environment={"WATCH_FILE": str(self.counts)})
        self.counts.unlink(missing_ok=True)
        self.proxy = proxy.launch().ready()
        self.logs.append(lambda: proxy.log)

    @property
    def running(self) -> Proxy:
        assert self.proxy is not None
        return self.proxy

    @property
    def pid(self) -> int:
        assert self.running.process is not None
        return self.running.process.pid

    def left_over(self) -> dict[str, int]:
        """What grows in a process that forgets to clean up."""
        return {"tasks": int(self.counts.read_text()), "files": len(os.listdir(f"/proc/{self.pid}/fd"))}

    def memory(self) -> float:
        """MiB of its own: pages of the store's file come and go as the kernel likes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) / 1024


class Trouble(threading.Thread):
    """One fault after the other, until it is told to stop."""

    def __init__(self, net: Devnet, victim: Watched, seed: int) -> None:
        super().__init__(name="trouble")
        self.net = net
        self.victim = victim
        self.random = random.Random(seed)
        self.stopped = threading.Event()
        self.told: dict[str, int] = {}
        self.cashed: dict[str, int] = {}  # on chain by `settle`, by channel
        self.error: BaseException | None = None

    def run(self) -> None:
        kinds = (self.kill, self.kill, self.rpc_down, self.rpc_slow, self.rotate, self.settle)
        try:
            while not self.stopped.wait(self.random.uniform(5, 12)):
                kind = self.random.choice(kinds)
                kind()
                self.told[kind.__name__] = self.told.get(kind.__name__, 0) + 1
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.stopped.set()
        self.join()
        self.net.clear_faults()
        if self.error is not None:
            raise self.error

    def kill(self) -> None:
        self.victim.running.kill()
        self.stopped.wait(self.random.uniform(0, 2))
        self.victim.start()

    def rpc_down(self) -> None:
        mode = self.random.choice(("http", "drop", "error"))
        self.net.fault("*", mode, n=-1, path="/proxy")
        self.stopped.wait(self.random.uniform(2, 6))
        self.net.clear_faults()

    def rpc_slow(self) -> None:
        self.net.fault("*", "delay", n=-1, seconds=1, path="/proxy")
        self.stopped.wait(self.random.uniform(2, 6))
        self.net.clear_faults()

    def rotate(self) -> None:
        self.net.admin("rotate")

    def settle(self) -> None:
        """The seller cashes what it has of one channel, also what was signed ahead and is not spent yet."""
        open_ones = [
            one
            for one in self.net.channels()
            if not one["finalized"] and int(one["accepted"]) > int(one["settled"])
        ]
        if open_ones:
            channel = self.random.choice(open_ones)["channelId"]
            self.net.receipt(self.net.admin("settle", channelId=channel)["transaction"])
            self.cashed[channel] = settled_on_chain(self.net, channel)


def settled_on_chain(net: Devnet, channel_id: str) -> int:
    """Base units that the escrow has paid out of an open channel."""
    data = "0x" + keccak(text="getChannelState(bytes32)")[:4].hex() + channel_id[2:]
    state: str = net.rpc("eth_call", {"to": net.escrow, "data": data}, "latest")
    return int(state[2:66], 16)


def soak(net: Devnet, folder: Path, ca: Path, *, minutes: float, seed: int) -> dict[str, Any]:
    """Returns what it took, with the figures. Raises `AssertionError` for what did not stay flat or does not agree."""
    with ExitStack() as stack:
        hostile = sellers(net)
        for seller in hostile:
            stack.enter_context(seller)
        home = Home.make(folder / "home", net, ca, funds=FUNDS, policy=policy(hostile))
        books = Books(net, home)
        steady, victim = (Watched(home, port, number) for number, port in enumerate(free_ports(2)))
        try:
            for one in (steady, victim):
                one.start()
            # What is loaded once is there afterwards.
            warm = run_load(net, hostile, (steady, victim), seconds=5, seed=seed + 1)
            before = settled(steady)
            trouble = Trouble(net, victim, seed)
            trouble.start()
            try:
                with sampling(steady) as samples:
                    told = run_load(net, hostile, (steady, victim), seconds=int(minutes * 60), seed=seed)
            finally:
                trouble.end()
            after = settled(steady, before)
            for one in (steady, victim):
                one.running.stop()
        except BaseException:
            for one in (steady, victim):
                if one.proxy is not None:
                    one.proxy.kill()
                    print(f"--- the log of proxy {one.number} ---\n{one.running.log[-8000:]}")
            raise
        for log in (*steady.logs, *victim.logs):
            assert "Traceback" not in log(), log()[-8000:]
        show_load(told)
        told |= {name: told[name] + warm[name] for name in ("sure", "doubtful")}
        close_all(net, home)
        figures = figures_of(net, home, books, hostile, told, trouble.cashed)
    told |= {
        "steady": steady.port,
        "faults": trouble.told,
        "before": before,
        "after": after,
        "memory_mib": memory(samples),
        "figures": figures,
    }
    return told


def settled(proxy: Watched, before: dict[str, int] | None = None) -> dict[str, int]:
    """What is left over once all is quiet; with `before`, no more than that."""
    until(proxy.counts.is_file, "the tasks are counted")
    if before is None:
        time.sleep(5)
        return proxy.left_over()

    def flat() -> bool:
        now = proxy.left_over()
        return all(now[name] <= before[name] + SPARE[name] for name in now)

    try:
        until(flat, "no more tasks and files than at the beginning", 90)
    except AssertionError as error:
        raise AssertionError(f"{error}: {before} before, {proxy.left_over()} after") from None
    return proxy.left_over()


@contextmanager
def sampling(proxy: Watched) -> Iterator[list[float]]:
    """The memory of a process, once a second."""
    samples: list[float] = []
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(1):
            samples.append(proxy.memory())

    thread = threading.Thread(target=sample, name="memory")
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


def memory(samples: Sequence[float]) -> dict[str, float]:
    """Medians of the three thirds."""
    third = max(1, len(samples) // 3)
    parts = {"first": samples[:third], "second": samples[third : 2 * third], "last": samples[-third:]}
    return {name: round(median(part), 1) for name, part in parts.items()} | {"peak": round(max(samples), 1)}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def run_load(
    net: Devnet, hostile: Sequence[Hostile], proxies: Sequence[Watched], *, seconds: int, seed: int
) -> dict[str, Any]:
    """See `load`. Everything that a client got was right."""
    told = {
        "ports": [one.port for one in proxies],
        "http": net.http,
        "https": net.https,
        "ca": str(proxies[0].home.ca / "mitmproxy-ca-cert.pem"),
        "hostile": [one.target for one in hostile],
        "seconds": seconds,
        "workers": WORKERS,
        "seed": seed,
        "price": PRICE,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "load.py")],
        input=json.dumps(told) + "\n",
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    if result["odd"]:
        show_load(result)
    assert result["odd"] == {}, result["odd"]
    return result


def close_all(net: Devnet, home: Home) -> None:
    """With the sellers' help where there is any, else by force: one step, and after the chain's grace another."""
    close = ("channels", "close", "--all", "--json")
    told = [command(home, *close), command(home, *close, "--force")]
    while told[-1].returncode != 0 or '"ready_at"' in told[-1].stdout:
        if len(told) > 5:
            raise AssertionError(
                "not all channels could be closed:\n" + "\n".join(one.stdout for one in told)
            )
        net.warp(GRACE_S)
        told.append(command(home, *close, "--force"))


def command(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    environment = quiet_environment(**{KEY_VARIABLE: home.account.private_key, "PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        bursar(home, *words), env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    return done


def figures_of(
    net: Devnet,
    home: Home,
    books: Books,
    hostile: Sequence[Hostile],
    told: dict[str, Any],
    cashed: dict[str, int],
) -> sums.Figures:
    book = {one["channelId"]: one for one in net.channels()}
    vouchers = books.vouchers() | {channel: most for one in hostile for channel, most in one.highest.items()}
    ledger_paid: dict[str, int] = {}
    ledger_captured: dict[str, int] = {}
    for line in home.ledger:
        channel = str(line.get("channel"))
        if line["kind"] == "ended" and line.get("outcome") == "paid":
            ledger_paid[channel] = ledger_paid.get(channel, 0) + int(line["amount"])
        elif line["kind"] == "closed":
            ledger_paid[channel] = ledger_paid.get(channel, 0) + int(line["adjustment"])
            ledger_captured[channel] = ledger_captured.get(channel, 0) + int(line["captured"])
    authorities = {one.authority: HOSTILE_DAY for one in hostile}
    channels = books.channels()
    now = books.balances()
    host_day: dict[str, int] = {}
    for key, amount in books.counters("host-day/").items():
        host = key.rpartition("/")[2]
        host_day[host] = host_day.get(host, 0) + amount
    return sums.Figures(
        channels=tuple(
            sums.ChannelFigures(
                channel_id=one.channel_id,
                host=one.scope.host,
                status=one.status,
                deposit=0 if one.status is ChannelStatus.FAILED else one.deposit,
                authorised=one.authorised,
                paid=one.paid,
                open_amounts=one.held + one.uncertain,
                captured=one.captured,
                refunded=one.refunded,
                fees=one.fees,
                ledger_paid=ledger_paid.get(one.channel_id, 0),
                ledger_captured=ledger_captured.get(one.channel_id, 0),
                voucher=vouchers.get(one.channel_id, 0),
                spent=None
                if one.scope.host in authorities
                else int(book.get(one.channel_id, {"spent": 0})["spent"]),
                cashed=cashed.get(one.channel_id, 0),
                forced=one.status is ChannelStatus.CLOSED and one.close_amount is None,
            )
            for one in channels
        ),
        payee_gain=now.payee - books.before.payee,
        payer_loss=books.before.payer - now.payer,
        escrow_gain=now.escrow - books.before.escrow,
        chain_fees=net.fees(home.account.address, books.before.block + 1),
        ledger_fees=books.ledger_fees(),
        lifetime=sum(books.counters("lifetime/").values()),
        returned=sum(books.counters("refunded/").values()),
        host_day=host_day,
        host_limits=authorities,
        sure=told["sure"],
        doubtful=told["doubtful"],
    )


def show_load(told: dict[str, Any]) -> None:
    print("requests, by kind and outcome:")
    for name, count in told["count"].items():
        print(f"  {name:<24}{count:>8,}")
    print("requests, by proxy and outcome:")
    for name, count in told["by_port"].items():
        print(f"  {name:<24}{count:>8,}")
    print("why not:", *(f"{count:>8,}  {reason}" for reason, count in told["reasons"].items()), sep="\n  ")
    print(f"slowest (s): {told['slowest']}", flush=True)


def report(told: dict[str, Any]) -> list[str]:
    """Prints the sums; returns what is wrong."""
    figures: sums.Figures = told["figures"]
    print(f"faults: {told['faults']}; never killed: {told['steady']}")
    print(
        f"tasks and files: {told['before']} before, {told['after']} after; memory (MiB): {told['memory_mib']}"
    )
    print(sums.table(figures))
    wrong = sums.differences(figures)
    if cut := told["by_port"].get(f"{told['steady']} cut", 0):
        wrong.append(f"{cut} connections were cut by the proxy that was never killed")
    grown = told["memory_mib"]["last"] - told["memory_mib"]["first"]
    if grown > SPARE_MIB:
        wrong.append(f"the memory has grown by {grown:.1f} MiB")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="a folder that is to get the logs of the proxies")
    options = parser.parse_args()
    with Devnet({"suggested-deposit": "1"}) as net, tempfile.TemporaryDirectory(prefix="soak-") as folder:
        ca = Path(folder) / "ca"
        ca.mkdir()
        CertStore.from_store(ca, "mitmproxy", 2048)
        try:
            wrong = report(soak(net, Path(folder), ca, minutes=options.minutes, seed=options.seed))
        finally:
            if options.logs is not None:
                options.logs.mkdir(parents=True, exist_ok=True)
                for log in Path(folder).glob("home/proxy-*.log"):
                    shutil.copy(log, options.logs)
    if wrong:
        sys.exit("these do not agree:\n" + "\n".join(wrong))
    print("all sums agree to the base unit")


if __name__ == "__main__":
    main()
