"""When a part fails: nothing is signed that is not on record, and what had nothing to pay goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.accounting import Books
from tests.e2e.clients import curl
from tests.e2e.proxies import Home, Proxy, mitmdump, rule, until
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
BREAKING = Path(__file__).with_name("breaking.py")


@pytest.fixture
def cramped(make_home: MakeHome) -> Iterator[Home]:
    """A home whose store and ledger have a disk of 2 MiB."""
    home = make_home()
    home.store.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(home.store)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield home
    subprocess.run(["umount", "--lazy", str(home.store)], check=True)


def fill(where: Path) -> Path:
    ballast = where / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(where).f_bfree == 0
    return ballast


def test_a_full_disk(devnet: Devnet, cramped: Home, make_proxy: MakeProxy) -> None:
    """No signature leaves, the 402 passes with the reason, unpaid traffic goes on; with space it pays again."""
    devnet.admin("reset")
    books = Books(devnet, cramped)
    paid, free = f"{devnet.http}/req", f"{devnet.http}/free"
    with make_proxy(cramped) as proxy:
        assert [curl(proxy, paid).status for _ in range(2)] == [200, 200]
        books.decided()
        ballast = fill(cramped.store)
        answers = [
            curl(proxy, paid).status for _ in range(6)
        ]  # the last page of a file may have room for one more
        assert set(answers) <= {200, 402}
        assert answers[-3:] == [402] * 3
        signed = books.vouchers()
        assert curl(proxy, paid).status == 402
        assert curl(proxy, free).json["free"] is True
        assert books.vouchers() == signed
        assert "free some space" in proxy.logged("not paid")
        ballast.unlink()
        assert curl(proxy, paid).status == 200
        served = 3 + answers.count(200)
        books.bounded()
    channel = books.channel()
    assert (channel.paid + channel.uncertain, channel.held) == (served * PRICE, 0)
    assert int(devnet.channel(channel.channel_id)["spent"]) == served * PRICE


@dataclass(frozen=True)
class Broken:
    """A proxy, and the file that says which part of it fails."""

    proxy: Proxy
    switch: Path
    books: Books

    def at(self, place: str) -> None:
        self.switch.write_text(place)


@pytest.fixture(scope="module")
def broken(
    devnet: Devnet,
    make_home: MakeHome,
    make_proxy: MakeProxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Broken]:
    devnet.admin("reset")
    switch = tmp_path_factory.mktemp("broken") / "place"
    switch.write_text("")
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": [rule("127.0.0.1")]})
    proxy = make_proxy(home)
    proxy.command = [*mitmdump(home, devnet), "-s", str(BREAKING)]
    proxy.environment = {"BREAK_FILE": str(switch)}
    with proxy:
        yield Broken(proxy, switch, Books(devnet, home))
        proxy.kill()  # its log has the tracebacks that `stop` looks for


PLACES = (
    *("PaymentGate.consider", "PaymentGate.wants", "PaymentGate.prepare_now", "PaymentGate.prepare"),
    *("PaymentGate.received", "PaymentGate.answered", "PaymentGate.finished", "PaymentGate.pay"),
    *("PaymentGate.stranger", "PaymentGate.release_idle"),
    *("Replay.bursar_prepare", "Replay.bursar_answered", "Replay.client_disconnected", "Replay.next_layer"),
    *("Till.take", "Till.take_now", "Till.grant", "Till.commit", "Till.end"),
)


@pytest.mark.parametrize("place", PLACES)
def test_a_part_that_raises(devnet: Devnet, broken: Broken, place: str) -> None:
    """Fail closed on money, open on traffic: whatever raises, an answer of the upstream's reaches the client."""
    paid, free = f"{devnet.http}/req?{place}", f"{devnet.http}/free"
    broken.at("")
    assert curl(broken.proxy, paid).status == 200
    loud = broken.proxy.log.count("RuntimeError")
    broken.at(place)
    devnet.admin("rotate")  # what was offered before is refused: all of the way is gone
    answers = [curl(broken.proxy, paid).status for _ in range(2)]
    assert set(answers) <= {200, 402}
    assert curl(broken.proxy, free).json["free"] is True
    if place == "PaymentGate.stranger":  # it is about hosts that are in no rule
        assert curl(broken.proxy, paid.replace("127.0.0.1", "localhost")).status == 402
    until(
        lambda: broken.proxy.log.count("RuntimeError") > loud, f"{place} is told loudly\n{broken.proxy.log}"
    )
    broken.at("")
    until(lambda: curl(broken.proxy, paid).status == 200, f"it pays again after {place}")
    broken.books.bounded()
