"""Bodies in both directions, methods, HTTP/2: the client gets what it would have got, and pays once."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import KINDS, curl, fetch
from tests.e2e.proxies import Home, Proxy
from tests.e2e.scripted import Gate, Request, Upstream, answer
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

PRICE = 10_000


@pytest.fixture(scope="module")
def home(make_home: MakeHome) -> Home:
    return make_home()


@pytest.fixture(scope="module")
def books(devnet: Devnet, home: Home) -> Books:
    return Books(devnet, home)


@pytest.fixture(scope="module")
def proxy(make_proxy: MakeProxy, home: Home, books: Books) -> Iterator[Proxy]:
    # Lazy: else a client gets no HTTP/2 before a server without it.
    with make_proxy(home, "--set", "connection_strategy=lazy") as running:
        yield running


@pytest.fixture
def charged(devnet: Devnet, books: Books) -> Iterator[list[int]]:
    """Put in what the test's requests cost: at the end, all books must have moved by that."""
    devnet.admin("reset")
    before = sum(channel.paid for channel in books.channels())
    costs: list[int] = []
    yield costs
    books.agree(before + sum(costs))


SIZES = {"small": 1_000, "300 KB": 300_000, "5 MB": 5_000_000}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_post(devnet: Devnet, proxy: Proxy, charged: list[int], tmp_path: Path, kind: str, size: str) -> None:
    file = tmp_path / "body"
    file.write_bytes(os.urandom(SIZES[size]))
    options = ["POST", str(file)] if kind != "curl" else ["--data-binary", f"@{file}"]

    (got,) = fetch(kind, proxy, f"{devnet.https}/req", 1, *options)

    assert got.status == 200
    assert got.json["method"] == "POST"
    assert got.json["bodyLength"] == SIZES[size]
    assert got.json["bodySha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    charged.append(PRICE)


@pytest.mark.parametrize("route", ["/echo", "/echo?again"], ids=["cold", "warm"])
def test_chunked_upload_comes_back(
    devnet: Devnet, proxy: Proxy, charged: list[int], tmp_path: Path, route: str
) -> None:
    """Of unknown length, sent twice where the first answer is a 402, and charged once."""
    file = tmp_path / "body"
    file.write_bytes(os.urandom(5_000_000))

    got = curl(proxy, devnet.http + route, "-X", "PUT", "-T", str(file), "-H", "Transfer-Encoding: chunked")

    assert got.status == 200
    assert got.body == file.read_bytes()
    assert stats(devnet.seller, "/echo")["sent402"] == (1 if route == "/echo" else 0)
    charged.append(PRICE)


def blob(length: int) -> bytes:
    """What the server sends: byte i is (31 i + floor(i / 256)) mod 256."""
    return bytes((index * 31 + (index >> 8)) & 0xFF for index in range(length))


@pytest.mark.parametrize("chunked", ["", "&chunked=1"], ids=["length", "chunked"])
def test_download(devnet: Devnet, proxy: Proxy, charged: list[int], chunked: str) -> None:
    got = curl(proxy, f"{devnet.https}/blob?n=400000{chunked}")

    assert got.status == 200
    assert got.body == blob(400_000)
    assert (got.header("content-length") == "400000") is not bool(chunked)
    charged.append(PRICE)


def test_http2_client(devnet: Devnet, proxy: Proxy, charged: list[int], tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(os.urandom(300_000))
    post = ("--http2", "--data-binary", f"@{file}")

    for options in (("--http2",), post):
        got = curl(proxy, f"{devnet.https}/price", *options)
        assert got.head.startswith(b"HTTP/2 200")
        assert got.payment_fields == []
        charged.append(PRICE)
    assert got.json["bodySha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_head_is_not_charged_by_this_server(devnet: Devnet, proxy: Proxy, charged: list[int]) -> None:
    """mppx takes a HEAD for a voucher out of band: 204, and nothing is spent; so what it held is used again."""
    fetch("curl", proxy, f"{devnet.http}/req")
    charged.append(PRICE)

    got = curl(proxy, f"{devnet.http}/req", "--head")

    assert got.status == 204
    assert got.payment_fields == []
    assert fetch("curl", proxy, f"{devnet.http}/req")[0].status == 200
    charged.append(PRICE)


def test_prices_that_depend_on_the_query(devnet: Devnet, proxy: Proxy, charged: list[int]) -> None:
    """A challenge that is used again may be for another price: then the fresh one is paid, and no more."""
    for amount, cost in (("0.01", 10_000), ("0.02", 20_000)) * 2:
        got = curl(proxy, f"{devnet.http}/price?amount={amount}")
        assert (got.status, got.json["amount"]) == (200, amount)
        charged.append(cost)


def test_an_applications_error_after_the_charge(devnet: Devnet, proxy: Proxy, charged: list[int]) -> None:
    got = curl(proxy, f"{devnet.http}/status/404paid")

    assert (got.status, got.json) == (404, {"error": "no such thing"})
    assert got.payment_fields == []
    charged.append(PRICE)


def test_first_byte_does_not_wait_for_the_last(devnet: Devnet, make_proxy: MakeProxy, proxy: Proxy) -> None:
    gate = Gate()

    with Upstream(devnet) as upstream:

        async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
            payload = await upstream.take(request)
            if payload is None:
                writer.write(upstream.asks())
                return
            whole = answer(200, b"first,last", upstream.receipt(payload))
            writer.write(whole[:-5])
            await gate.passed()
            writer.write(whole[-5:])

        upstream.routes["/slow"] = slow
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        connection.request("GET", f"{upstream.url}/slow")
        got = connection.getresponse()
        assert got.status == 200
        assert got.read(5) == b"first"  # would time out, did anybody wait for the end
        gate.open()
        assert got.read() == b",last"
        assert "payment" not in str(got.getheaders()).lower()
        connection.close()
