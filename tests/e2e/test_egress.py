"""The front door and where it leads: addresses in every form, names that change their minds, redirects, foreigners."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.accounting import stats
from tests.e2e.clients import curl
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Proxy, bursar, quiet_environment, rule, until
from tests.e2e.scripted import Request, Upstream, answer
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet
from tests.unit.places import foreign_address

pytestmark = pytest.mark.e2e

RESOLVER = Path(__file__).with_name("resolver.py")


# ---------------------------------------------------------------------- a place that nobody may reach


@dataclass
class Vault:
    """One port on all of this machine's loopback addresses. It writes down what it gets, and answers 200."""

    port: int = 0
    got: list[bytes] = field(default_factory=list)

    @contextlib.contextmanager
    def open(self, *addresses: str) -> Iterator[Vault]:
        sockets = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, self.port))
            listener.listen()
            self.port = listener.getsockname()[1]
            sockets.append(listener)
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        yield self
        for listener in sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(5)
                self.got.append(b"")  # a connection alone is too much
                with contextlib.suppress(OSError):
                    self.got[-1] = peer.recv(65536)
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nvault")


@pytest.fixture(scope="module")
def vault() -> Iterator[Vault]:
    both = ("127.0.0.1", "::1") if socket.has_ipv6 and loopback6() else ("127.0.0.1",)
    with Vault().open(*both) as running:
        yield running


def loopback6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def say(port: int, head: str, host: str = "127.0.0.1") -> bytes:
    """What the proxy answers to these bytes: one whole answer, or what there is when it hangs up."""
    with socket.create_connection((host, port), timeout=30) as connection:
        connection.sendall(head.encode())
        answered = b""
        with contextlib.suppress(ConnectionError):
            while not whole(answered) and (data := connection.recv(65536)):
                answered += data
        return answered


def whole(answered: bytes) -> bool:
    fields, end, body = answered.partition(b"\r\n\r\n")
    length = re.search(rb"\ncontent-length: (\d+)", fields, re.IGNORECASE)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def ways(authority: str, more: str = "") -> dict[str, str]:
    """Through HTTP and CONNECT alike: with the address in the target, and in Host alone."""
    end = f"{more}Connection: close\r\n\r\n"
    return {
        "target": f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n{end}",
        "other Host": f"GET http://{authority}/ HTTP/1.1\r\nHost: example.com\r\n{end}",
        "Host": f"GET / HTTP/1.1\r\nHost: {authority}\r\n{end}",
        "CONNECT": f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{end}",
        "upgrade": f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n",
    }


LOOPBACK = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7F.0.0.1",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "0177.0.0x1",
    "127.000.000.001",
    "0",
    "0.0.0.0",
    "0x0",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000::0001]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]",
    "[0:0:0:0:0:ffff:7f00:0001]",
    "[::127.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
    "[::1%lo]",
    "[::1%25lo]",
    "localhost",
    "LocalHost",
    "localhost.",
    "127.0.0.1.",
    "0x7f.1.",
    "x.localhost",
    "ip6-localhost",
    "127。0。0。1",
    "127．0．0．1",
    "１２７.0.0.1",
    "①②⑦.⓪.⓪.①",
    "loca1host@127.0.0.1",
    "example.com@127.0.0.1",
    "example.com:80@127.0.0.1",
    "example.com%40127.0.0.1",
    "127.0.0.1%00.example.com",
    "127.0.0.1%2f.example.com",
]
"""Ways to say this machine; some are none, and mean nothing."""

ELSEWHERE = [
    "169.254.169.254",
    "169.254.43518",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[ff02::1]",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "metadata.test",
    "flipped.test",
]
"""Where clouds keep credentials, and networks their own."""


@pytest.fixture(scope="module")
def guarded(make_home: MakeHome, make_proxy: MakeProxy, vault: Vault, devnet: Devnet) -> Iterator[Proxy]:
    """A proxy that holds all clients to the public internet, and that other machines reach, without a password."""
    policy = {"max_per_day": "5", "max_lifetime": "10", "hosts": []}
    home = make_home(policy=policy, egress={"ports": [80, 443, vault.port], "check_local_clients": True})
    proxy = make_proxy(home, *everywhere(), "-s", str(RESOLVER))
    names = {"metadata.test": [["169.254.169.254"]], "flipped.test": [["127.0.0.1"]]}
    proxy.environment = {"NAMES": json.dumps(names)}
    with proxy:
        yield proxy


def everywhere() -> tuple[str, ...]:
    """On loopback, where its port is read, and beside that on every address."""
    return ("--mode", "regular@127.0.0.1:0", "--mode", "regular@0.0.0.0:0")


def wide_port(proxy: Proxy) -> int:
    found = proxy.log.partition("listening at *:")[2].partition(".")[0]
    return int(found)


@pytest.fixture(scope="module")
def open_proxy(make_home: MakeHome, make_proxy: MakeProxy, shop: Upstream) -> Iterator[Proxy]:
    """A proxy with the usual config: clients on this machine may go anywhere, what is paid may not."""
    hosts = [
        rule(f"127.0.0.1:{shop.port}"),
        rule(f"flip.test:{shop.port}", allow_http=True),
        rule("plain.test"),
    ]
    home = make_home(
        policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts}, egress={"allow": ["127.0.0.2"]}
    )
    proxy = make_proxy(home, "-s", str(RESOLVER))
    names = {
        "flip.test": [["127.0.0.2"], ["127.0.0.1"]],
        "stranger.test": [["127.0.0.1"]],
        "plain.test": [["127.0.0.2"]],
    }
    proxy.environment = {"NAMES": json.dumps(names)}
    with proxy:
        yield proxy


@pytest.fixture(scope="module")
def shop(devnet: Devnet) -> Iterator[Upstream]:
    """A seller on all addresses."""
    with Upstream(devnet, "0.0.0.0") as running:
        running.host = "127.0.0.1"
        running.routes["/goods"] = running.sells(
            lambda request, payload: answer(200, b"goods", running.receipt(payload))
        )
        yield running


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize("host", [*LOOPBACK, *ELSEWHERE])
def test_no_form_of_an_address_leads_inside(guarded: Proxy, vault: Vault, host: str) -> None:
    before = len(vault.got)
    for way, head in ways(f"{host}:{vault.port}").items():
        status = say(guarded.port, head).partition(b"\r\n")[0]
        assert not status or status.split(b" ")[1][:1] in (b"4", b"5"), (way, status)
    assert vault.got[before:] == []


def grown(vault: Vault, before: int) -> bool:
    return len(vault.got) > before


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7F.0.0.1", "0177.0.0.1", "0", "LocalHost"]
)
def test_the_battery_is_a_real_one(open_proxy: Proxy, vault: Vault, host: str) -> None:
    """Where nothing holds a client back, these forms do lead to this machine, each way."""
    for way, head in ways(f"{host}:{vault.port}").items():
        before = len(vault.got)
        say(open_proxy.port, head)
        until(partial(grown, vault, before), f"reached by {way}")


def test_a_port_that_is_not_on_the_list(guarded: Proxy) -> None:
    for port in (22, 25, 6379):
        for head in ways(f"192.0.2.1:{port}").values():
            assert say(guarded.port, head).startswith(b"HTTP/1.1 502")
        assert f"192.0.2.1:{port} is on a port that a client on this machine may not use" in guarded.log


# ---------------------------------------------------------------------- names that change their minds


def test_money_goes_where_the_name_led_when_it_was_checked(open_proxy: Proxy, shop: Upstream) -> None:
    """The name leads to an allowed place, then to one that is not: there goes nothing, be it paid or not."""
    shop.requests.clear()
    url = f"http://flip.test:{shop.port}/goods"
    got = curl(open_proxy, url)
    assert (got.status, got.body) == (200, b"goods")
    assert {one.header("host") for one in shop.requests} == {f"flip.test:{shop.port}"}
    assert len(shop.credentials) == 1
    seen = len(shop.requests)
    for _ in range(2):
        got = curl(open_proxy, url)
        assert got.status == 502
        assert b"flip.test" in got.body
    assert len(shop.requests) == seen
    message = f"flip.test:{shop.port} is at 127.0.0.1 (loopback), where a client on this machine may not go"
    assert message in open_proxy.log
    assert open_proxy.home.ledger_of("sent", host=f"flip.test:{shop.port}")[1:] == []


def test_a_name_that_nobody_pays_is_the_clients_own_affair(open_proxy: Proxy, shop: Upstream) -> None:
    shop.routes["/page"] = lambda request, writer: page(writer)
    assert curl(open_proxy, f"http://stranger.test:{shop.port}/page").body == b"page"


async def page(writer: Any) -> None:
    writer.write(answer(200, b"page"))


# ---------------------------------------------------------------------- redirects

REDIRECTS = {
    "another port": "http://127.0.0.1:{other}/there",
    "another address": "http://127.0.0.2:{other}/there",
    "another name": "http://localhost:{other}/there",
    "another form": "http://2130706433:{other}/there",
    "without a scheme": "//127.0.0.2:{other}/there",
    "a name over http": "http://plain.test:{other}/there",
    "a stranger": "http://stranger.test:{other}/there",
    "with a user": "http://127.0.0.1:{paid}@127.0.0.2:{other}/there",
}


def followed(proxy: Proxy, url: str) -> int:
    """The status that a client ends with that goes wherever it is sent."""
    command = [
        "curl",
        "-qsSL",
        "-X",
        "POST",
        "--data-binary",
        "x",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        url,
    ]
    done = subprocess.run(
        command, env=proxy.client_environment(), capture_output=True, timeout=60, check=False
    )
    return int(done.stdout)


def redirect(shop: Upstream, status: int, target: str, request: Request, payload: dict[str, Any]) -> bytes:
    return answer(status, b"", {"Location": target} | shop.receipt(payload))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_credential_follows_a_redirect(
    open_proxy: Proxy, shop: Upstream, devnet: Devnet, status: int
) -> None:
    """The client follows, not we; and what it gets there is not paid with what was meant for somebody else."""
    with Upstream(devnet, "0.0.0.0") as other:
        other.routes["/there"] = other.sells(lambda request, payload: answer(200, b"robbed"))
        targets = {
            f"/r{status}/{number}": target.format(other=other.port, paid=shop.port)
            for number, target in enumerate(REDIRECTS.values())
        }
        for path, target in targets.items():
            shop.routes[path] = shop.sells(partial(redirect, shop, status, target))
        urls = [f"http://127.0.0.1:{shop.port}{path}" for path in targets]
        before = len(shop.credentials)
        for url in urls:
            assert followed(open_proxy, url) in (402, 502)
        assert len(shop.credentials) - before == len(urls)
        assert len(other.requests) >= len(urls) - 1
        assert [
            one
            for one in other.requests
            if "payment" in str(one.headers).lower().replace("accept-payment", "")
        ] == []
        assert other.credentials == []


# ---------------------------------------------------------------------- clients on other machines


def test_a_foreigner_is_not_paid_for_and_reaches_nothing_inside(
    guarded: Proxy, vault: Vault, devnet: Devnet
) -> None:
    host, port = foreign_address(), wide_port(guarded)
    assert (
        f"bursar: other machines reach this proxy at 0.0.0.0:{port}, and it asks them for no password"
        in guarded.log
    )
    assert guarded.log.count("other machines reach this proxy") == 1
    before = len(vault.got)
    for inside in ("127.0.0.1", "2130706433", "[::1]", "[::ffff:7f00:1]", "localhost", host, "flipped.test"):
        for head in ways(f"{inside}:{vault.port}").values():
            told = say(port, head, host)
            assert told.startswith(b"HTTP/1.1 502"), told
            assert b"is no place that this proxy connects to" in told
    assert vault.got[before:] == []


def test_a_foreigner_with_a_password_is_paid_for(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, vault: Vault, tmp_path: Path
) -> None:
    host, seller = foreign_address(), devnet.http.rpartition(":")[2]
    clients = tmp_path / "clients"
    digest = base64.b64encode(hashlib.sha1(b"c4n4ry-password").digest()).decode()
    clients.write_text(f"agent:{{SHA}}{digest}\n")
    clients.chmod(0o600)
    home = make_home(egress={"allow": [f"127.0.0.1:{seller}"]})
    text = home.config.read_text().replace(
        '["proxy"]', f'["proxy"]\n"auth_file" = {json.dumps(str(clients))}'
    )
    home.config.write_text(text)
    dump = tmp_path / "flows.mitm"
    command = [*bursar(home, "run", "--listen", "127.0.0.1:0"), "--", *everywhere(), "-w", str(dump)]
    proxy = Proxy(home, [*command, "--set", "flow_detail=4", "-v"])
    with proxy:
        devnet.admin("reset")
        basic = base64.b64encode(b"agent:c4n4ry-password").decode()
        known = f"Proxy-Authorization: Basic {basic}\r\n"
        port = wide_port(proxy)
        target = f"127.0.0.1:{seller}"
        for way in ("target", "upgrade"):
            assert say(port, ways(target)[way], host).startswith(b"HTTP/1.1 407"), way
        wrong = known.replace(basic, base64.b64encode(b"agent:wrong").decode())
        assert say(port, ways(target, wrong)["target"], host).startswith(b"HTTP/1.1 407")
        assert devnet.admin("log") == []
        assert proxy.home.ledger == []
        paid = ways(target, known)["target"].replace(f"{target}/ HTTP", f"{target}/req HTTP")
        assert say(port, paid, host).startswith(b"HTTP/1.1 200")
        assert stats(devnet.seller, "/req")["open"] == 1
        # A password is no key to what is inside.
        for inside in (f"127.0.0.1:{vault.port}", f"localhost:{vault.port}"):
            assert say(port, ways(inside, known)["target"], host).startswith(b"HTTP/1.1 502"), inside
    for place in (proxy.log.encode(), dump.read_bytes()):
        assert b"c4n4ry-password" not in place
        assert basic.encode() not in place


def test_bursar_run_does_not_stand_open(make_home: MakeHome, tmp_path: Path) -> None:
    home = make_home()

    def run(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [*bursar(home, "run"), *options],
            env=quiet_environment(PYTHONPATH=str(ROOT), **{KEY_VARIABLE: home.account.private_key}),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode, done.stderr

    for options in (("--listen", "[::]:0"), ("--listen", "127.0.0.1:0", "--", "--mode", "regular@:0")):
        code, said = run(*options)
        assert code == 3, said
        assert "other machines could spend from this wallet: nobody is asked for a password" in said
        assert "[proxy].auth_file" in said
    assert not (home.store / "ledger").exists()  # it ended before it opened anything
