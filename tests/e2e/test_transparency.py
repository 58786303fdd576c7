"""What the client must not notice: payment fields, changed answers, changed requests. And why nothing was paid."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from tests.e2e.accounting import stats
from tests.e2e.clients import KINDS, Got, curl, fetch
from tests.e2e.proxies import Home, Proxy, rule, until
from tests.e2e.scripted import Request, Upstream, always, answer
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

OTHER_TOKEN = "0x20c0000000000000000000000000000000000001"
OTHER_ESCROW = "0x4d50500000000000000000000000000000000001"


@dataclass(frozen=True)
class World:
    """Upstreams of all kinds, and a proxy whose policy has a rule for each but the stranger."""

    net: Devnet
    shop: Upstream
    dear: Upstream  # more than its day allows
    stranger: Upstream  # in no rule
    foreign: Upstream  # not on loopback
    proxy: Proxy

    @property
    def home(self) -> Home:
        return self.proxy.home

    def refusal(self, path: str) -> dict[str, object]:
        """The ledger's line for the newest request that was not paid."""
        lines = until(lambda: self.home.ledger_of("decision", path=path), f"a decision on {path}")
        line: dict[str, object] = lines[-1]
        return line


def own_address() -> str:
    """An address of this machine that is not loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@pytest.fixture(scope="module")
def world(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> Iterator[World]:
    with (
        Upstream(devnet) as shop,
        Upstream(devnet) as dear,
        Upstream(devnet) as stranger,
        Upstream(devnet, own_address()) as foreign,
    ):
        for upstream in (shop, dear, stranger, foreign):
            upstream.routes["/paid"] = always(upstream.asks())
        home = make_home(policy=policy(shop, dear, foreign))
        with make_proxy(home) as proxy:
            yield World(devnet, shop, dear, stranger, foreign, proxy)


def policy(shop: Upstream, dear: Upstream, foreign: Upstream) -> dict[str, object]:
    hosts = [
        rule(shop.authority),
        rule(dear.authority, max_per_day="0.005"),
        rule(foreign.authority),
        rule(f"127.0.0.1:{shop.net.http.rpartition(':')[2]}"),
        rule("localhost"),  # on any port
    ]
    return {"max_per_day": "5", "max_lifetime": "10", "hosts": hosts}


def same(one: Got, other: Got) -> None:
    assert one.head == other.head
    assert one.body == other.body


def said(request: Request) -> list[tuple[str, str]]:
    """A request's fields; without the one that curl adds for a proxy, and mitmproxy hands on."""
    return [pair for pair in request.headers if pair[0] != "Proxy-Connection"]


# ---------------------------------------------------------------------- what is paid leaves no trace


@pytest.mark.parametrize("kind", KINDS)
def test_no_payment_field_reaches_the_client(world: World, kind: str) -> None:
    upstream = world.shop

    def respond(request: Request, payload: dict[str, object]) -> bytes:
        fields = {
            **upstream.receipt(payload),
            "Payment-Session": "0x12",
            "Payment-Session-Snapshot": "e30",
            "PAYMENT-RESPONSE": "e30",
            "X-Payment-Response": "e30",
            "Cache-Control": "private",
            "X-Payload": "stays",
        }
        return answer(200, b"goods", fields)

    upstream.routes[f"/leaks/{kind}"] = upstream.sells(respond)

    (got,) = fetch(kind, world.proxy, f"{upstream.url}/leaks/{kind}")

    assert (got.status, got.body) == (200, b"goods")
    assert got.payment_fields == []
    assert got.header("x-payload") == "stays"
    assert got.header("cache-control") == "private"
    assert upstream.requests[-1].credential is not None


# ---------------------------------------------------------------------- what is not paid passes unchanged


def refusals(shop: Upstream) -> dict[str, tuple[str, str]]:
    """By reason: the challenge, and what the log says."""
    say = shop.request_json
    return {
        "over-max-price": (shop.challenge(say(amount="50001")), "over max_price 0.05 pathUSD"),
        "token-not-allowed": (shop.challenge(say(currency=OTHER_TOKEN)), f"wants token {OTHER_TOKEN}"),
        "chain-not-allowed": (
            shop.challenge(say(details={"chainId": 4217})),
            "wants to be paid on eip155:4217",
        ),
        "escrow-not-allowed": (
            shop.challenge(say(details={"escrowContract": OTHER_ESCROW})),
            f"names the escrow {OTHER_ESCROW}",
        ),
        "over-max-delta": (
            shop.challenge(say(details={"minVoucherDelta": "20000"})),
            "a quarter of max_price 0.05 pathUSD",
        ),
    }


@pytest.mark.parametrize(
    "reason",
    ["over-max-price", "token-not-allowed", "chain-not-allowed", "escrow-not-allowed", "over-max-delta"],
)
def test_a_refused_402_passes_byte_for_byte(world: World, reason: str) -> None:
    upstream = world.shop
    challenge, text = refusals(upstream)[reason]
    path = f"/refused/{reason}"
    upstream.routes[path] = always(upstream.asks(challenge))

    direct, got = curl(None, upstream.url + path), curl(world.proxy, upstream.url + path)

    same(got, direct)
    line = world.refusal(path)
    assert (line["reason"], line["outcome"], line["status"]) == (reason, "refused", 402)
    assert text in str(line["message"])
    assert text in world.proxy.logged(text)
    assert [one.credential for one in upstream.requests if one.path == path] == [None, None]
    assert world.home.ledger_of("sent", path=path) == []


def test_over_the_days_limit(world: World) -> None:
    direct, got = curl(None, f"{world.dear.url}/paid"), curl(world.proxy, f"{world.dear.url}/paid")

    same(got, direct)
    line = world.home.ledger_of("decision", host=world.dear.authority)[-1]
    assert line["reason"] == "limit-reached"
    assert "policy.hosts[1].max_per_day = 0.005 pathUSD" in line["message"]
    assert world.dear.credentials == []


def test_a_host_that_is_not_allowed(world: World) -> None:
    direct, got = curl(None, f"{world.stranger.url}/paid"), curl(world.proxy, f"{world.stranger.url}/paid")

    same(got, direct)
    line = world.home.ledger_of("decision", host=world.stranger.authority)[-1]
    assert (line["reason"], line["outcome"]) == ("host-not-allowed", "refused")
    assert "add one to pay it" in line["message"]
    world.proxy.logged(f"{world.stranger.authority} is in no [[policy.hosts]] table")


def test_plain_http_beyond_loopback(world: World) -> None:
    if world.foreign.host.startswith("127."):
        pytest.skip("this machine has no address but loopback's")
    direct, got = curl(None, f"{world.foreign.url}/paid"), curl(world.proxy, f"{world.foreign.url}/paid")

    same(got, direct)
    line = world.home.ledger_of("decision", host=world.foreign.authority)[-1]
    assert line["reason"] == "insecure"
    assert "allow_http = true" in line["message"]
    assert world.foreign.credentials == []


def test_the_real_servers_402_passes(world: World) -> None:
    """Over the price limit; its challenges differ in their ids and times only."""
    url = f"{world.net.https}/price?amount=0.06"

    direct, got = curl(None, url), curl(world.proxy, url)

    def stable(one: Got) -> tuple[bytes, bytes]:
        varying = rb'id="[^"]*"|expires="[^"]*"|Date: [^\r]*|"challengeId":"[^"]*"'
        return re.sub(varying, b"*", one.head), re.sub(varying, b"*", one.body)

    assert direct.status == 402
    assert stable(got) == stable(direct)
    assert world.refusal("/price")["reason"] == "over-max-price"


def test_shadow_mode_pays_nothing(world: World, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    home = make_home(mode="shadow", wallet={})
    upstream = world.shop
    with make_proxy(home) as proxy:
        before = len(upstream.requests)
        direct, got = curl(None, f"{upstream.url}/paid"), curl(proxy, f"{upstream.url}/paid")
        same(got, direct)
        assert [one.credential for one in upstream.requests[before:]] == [None, None]
        line = until(lambda: home.ledger_of("decision"), "a decision")[0]
        assert (line["outcome"], line["amount"], line["amount_human"]) == ("shadow", "10000", "0.01 pathUSD")
        assert "would have paid 0.01 pathUSD" in proxy.logged("shadow: would have paid")
    assert home.ledger_of("sent") == []


def test_the_reason_header_when_enabled(world: World, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    upstream = world.shop
    challenge, _ = refusals(upstream)["over-max-price"]
    upstream.routes["/dear"] = always(upstream.asks(challenge))
    home = make_home(proxy={"reason_header": True}, policy=policy(world.shop, world.dear, world.foreign))
    with make_proxy(home) as proxy:
        direct, got = curl(None, f"{upstream.url}/dear"), curl(proxy, f"{upstream.url}/dear")
        assert got.header("bursar-reason") == "over-max-price"
        assert got.head == direct.head + b"\r\nBursar-Reason: over-max-price"
        assert got.body == direct.body
        assert curl(proxy, f"{world.stranger.url}/paid").header("bursar-reason") == "host-not-allowed"
        upstream.routes["/plain"] = always(answer(402, b"no challenge at all"))
        assert curl(proxy, f"{upstream.url}/plain").header("bursar-reason") is None


# ---------------------------------------------------------------------- the client's own Authorization


def test_bearer_and_payment_side_by_side(world: World) -> None:
    """The server asks for Payment-Authorization, so both fit."""
    world.net.admin("reset")
    for _ in range(2):
        got = curl(world.proxy, f"{world.net.http}/auth", "-H", "Authorization: Bearer secret")
        assert (got.status, got.json["user"]) == (200, "bearer")
        assert got.payment_fields == []
    counted = stats(world.net.seller, "/auth")
    assert (counted["total"], counted["withCredential"]) == (3, 2)
    assert {one["headers"]["authorization"] for one in world.net.admin("log")} == {"Bearer secret"}


def test_the_clients_authorization_is_never_overwritten(world: World) -> None:
    """The server wants the payment where the client has its own: the 402 passes, again and again."""
    world.net.admin("reset")
    for _ in range(2):
        got = curl(world.proxy, f"{world.net.http}/req", "-H", "Authorization: Bearer mine")
        assert got.status == 402
    assert [one["headers"]["authorization"] for one in world.net.admin("log")] == ["Bearer mine"] * 2
    line = world.refusal("/req")
    assert line["reason"] == "client-authorization"
    assert "never overwritten" in str(line["message"])
    # Without one it is paid, and then still not for a client that has one.
    assert curl(world.proxy, f"{world.net.http}/req").status == 200
    assert curl(world.proxy, f"{world.net.http}/req", "-H", "Authorization: Bearer mine").status == 402


def test_a_client_that_pays_by_itself_is_left_alone(world: World) -> None:
    upstream = world.shop
    paid = answer(200, b"goods", {"Payment-Receipt": "its own"})
    upstream.routes["/own"] = always(paid)
    own = ("-H", "Authorization: Payment abc")

    direct, got = curl(None, f"{upstream.url}/own", *own), curl(world.proxy, f"{upstream.url}/own", *own)

    same(got, direct)
    assert said(upstream.requests[-1]) == said(upstream.requests[-2])


# ---------------------------------------------------------------------- what has nothing to do with payment


def test_unpaid_traffic_of_a_host_that_is_not_allowed(world: World) -> None:
    upstream = world.stranger
    upstream.routes["/page"] = always(answer(200, b"page", {"Payment-Receipt": "not ours", "X-a": "b"}))
    for options in ((), ("-X", "POST", "--data-binary", "@" + __file__)):
        direct, got = (curl(via, f"{upstream.url}/page?q=1", *options) for via in (None, world.proxy))
        same(got, direct)
        one, other = upstream.requests[-2:]
        assert (said(one), one.body, one.method) == (said(other), other.body, other.method)


def test_unpaid_traffic_of_an_allowed_host(world: World) -> None:
    """The same requests, one for one; the server is told what could be paid, and that is all."""
    upstream = world.shop
    upstream.routes["/page"] = always(answer(200, b"page", {"X-a": "b"}))
    lines = len(world.home.ledger)
    direct, got = curl(None, f"{upstream.url}/page"), curl(world.proxy, f"{upstream.url}/page")
    same(got, direct)
    one, other = upstream.requests[-2:]
    added = [pair for pair in said(other) if pair not in said(one)]
    assert {name.lower() for name, _ in added} <= {"accept-payment", "payment-session"}
    assert [pair for pair in said(other) if pair not in added] == said(one)
    assert len(world.home.ledger) == lines

    world.net.admin("reset")
    answers = fetch("curl", world.proxy, f"{world.net.https}/free", 5)
    assert [one.json["free"] for one in answers] == [True] * 5
    assert stats(world.net.seller, "/free")["total"] == 5


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@pytest.mark.parametrize("allowed", [False, True], ids=["stranger", "allowed"])
def test_websockets_pass(world: World, allowed: bool) -> None:
    server = serve_websockets(echo, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    host, port = "localhost" if allowed else "127.0.0.1", server.socket.getsockname()[1]
    script = Path(__file__).with_name("ws_echo.py")
    try:
        done = subprocess.run(
            [sys.executable, str(script), f"ws://{host}:{port}/"],
            env=world.proxy.client_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        server.shutdown()
        thread.join(10)
    assert done.stdout == "echoed\n", done.stderr
