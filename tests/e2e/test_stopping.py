"""F10: a graceful stop under load. Promise: what is under way ends, nothing new begins, the state is whole."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.accounting import Books
from tests.e2e.clients import curl
from tests.e2e.proxies import Home, Proxy, bursar, quiet_environment, rule, until
from tests.e2e.test_main_job import close_all
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000
CLIENTS = 16
ANSWERS = 48
POLICY = {"max_per_day": "50", "max_lifetime": "50", "hosts": [rule("127.0.0.1", max_per_day="50")]}


@pytest.fixture(params=["bursar run", "mitmdump"])
def proxy(request: pytest.FixtureRequest, make_home: MakeHome, make_proxy: MakeProxy) -> Iterator[Proxy]:
    home = make_home(policy=POLICY)
    with start(request.param, home, make_proxy) as proxy:
        yield proxy


def start(how: str, home: Home, make_proxy: MakeProxy) -> Proxy:
    if how == "mitmdump":
        return make_proxy(home)
    return Proxy(home, bursar(home, "run", "--listen", "127.0.0.1:0"))


def draining(home: Home, net: Devnet, seconds: int) -> None:
    """The config says how long a stop may take."""
    settings = {"upstream_ca": str(net.ca), "release_idle_s": 1, "drain_s": seconds}
    text = home.config.read_text()
    assert "release_idle_s" in text
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in settings.items()]
    head, _, rest = text.partition('["proxy"]')
    tail = rest.partition("\n[")
    home.config.write_text(f'{head}["proxy"]\n' + "\n".join(lines) + f"\n[{tail[2]}")


@contextmanager
def under_load(proxy: Proxy, url: str) -> Iterator[dict[str, int]]:
    """Many clients at work; what they got is there at the end."""
    script = Path(__file__).with_name("load.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(proxy.port), url, str(CLIENTS)],
        stdout=subprocess.PIPE,
        env=quiet_environment(),
        text=True,
    )
    assert process.stdout is not None
    found: dict[str, int] = {}
    try:
        for _ in range(ANSWERS):
            assert process.stdout.readline() == "200\n"
        yield found
        rest, _ = process.communicate(timeout=90)
        found.update(json.loads(rest.splitlines()[-1]))
    finally:
        process.kill()
        process.wait()


def ended(proxy: Proxy) -> int:
    assert proxy.process is not None
    return proxy.process.wait(60)


def slow(proxy: Proxy, devnet: Devnet, base: str = "") -> subprocess.Popen[bytes]:
    """A client whose answer takes half a minute, and is paid for already."""
    devnet.admin("reset")
    process = subprocess.Popen(
        ["curl", "-q", "-sS", "-o", "/dev/null", f"{base or devnet.http}/req?delay=30000"],
        env=proxy.client_environment(),
        stderr=subprocess.PIPE,
    )
    until(lambda: devnet.stats("/req").get("withCredential"), "its payment has arrived")
    return process


def test_under_load(devnet: Devnet, proxy: Proxy) -> None:
    books = Books(devnet, proxy.home)
    with under_load(proxy, f"{devnet.http}/req?delay=150") as found:
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        assert ended(proxy) == 0, proxy.log
    served = found.pop("200")
    assert served >= ANSWERS
    # All others were refused, each once: no answer began that did not end, none was a 402.
    assert found.pop("closed before an answer", 0) <= CLIENTS
    assert set(found) <= {"503", "nobody listens"}, found
    assert sum(found.values()) == CLIENTS
    assert "cut off" not in proxy.log
    assert "Traceback" not in proxy.log
    books.agree(served * PRICE)
    assert {(one.owner, one.held) for one in books.channels()} == {(None, 0)}
    close_all(proxy.home)
    books.agree(served * PRICE)


@pytest.mark.parametrize("proxy", ["bursar run"], indirect=True)
def test_what_begins_meanwhile_is_refused(devnet: Devnet, proxy: Proxy) -> None:
    books = Books(devnet, proxy.home)
    assert curl(proxy, f"{devnet.http}/req").status == 200
    devnet.admin("reset")
    kept = socket.create_connection(("127.0.0.1", proxy.port))
    ask = f"GET {devnet.http}/free HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    kept.sendall(ask)
    answer = b""
    while not answer.endswith(b"0\r\n\r\n"):
        answer += kept.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    running = subprocess.Popen(
        ["curl", "-q", "-sS", "--fail", f"{devnet.http}/req?delay=2000"],
        env=proxy.client_environment(),
        stdout=subprocess.PIPE,
    )
    until(lambda: devnet.stats("/req").get("withCredential"), "its payment has arrived")
    assert proxy.process is not None
    proxy.process.send_signal(signal.SIGTERM)
    proxy.logged("bursar: stops: waits")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))
    kept.sendall(ask.replace(b"/free", b"/req"))
    answer = b""
    while part := kept.recv(65536):
        answer += part
    kept.close()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in answer.lower()
    out, _ = running.communicate(timeout=30)
    assert json.loads(out)["ok"] is True
    assert ended(proxy) == 0, proxy.log
    assert devnet.stats("/req")["total"] == 1  # the refused one was not sent
    books.agree(2 * PRICE)


@pytest.mark.parametrize("how", ["deadline", "second signal"])
def test_it_does_not_wait_for_ever(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, how: str
) -> None:
    home = make_home(policy=POLICY)
    draining(home, devnet, 1 if how == "deadline" else 600)
    books = Books(devnet, home)
    with start("bursar run", home, make_proxy) as proxy:
        assert curl(proxy, f"{devnet.http}/req").status == 200
        client = slow(proxy, devnet)
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        proxy.logged("bursar: stops: waits")
        if how == "second signal":
            proxy.process.send_signal(signal.SIGTERM)
        assert ended(proxy) == 0, proxy.log
        assert "1 answers are cut off" in proxy.log
    assert client.wait(30) != 0
    channel = books.channel()
    assert (channel.owner, channel.paid, channel.uncertain, channel.held) == (None, PRICE, PRICE, 0)
    (lost,) = home.ledger_of("ended", outcome="unknown")
    assert lost["unanswered"]
    books.bounded()
