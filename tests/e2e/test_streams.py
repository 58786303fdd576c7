"""Metered event streams: clients that know nothing of payment read them to the end, and every unit is accounted for."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import curl
from tests.e2e.proxies import ROOT, Proxy, quiet_environment, rule, until
from tests.e2e.scripted import PRICE as ASKED
from tests.e2e.scripted import Request, Upstream
from tests.e2e.test_main_job import close_all
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet, find_node

pytestmark = pytest.mark.e2e

PRICE = 10_000  # base units, of a token
TOKENS = 12
HERE = Path(__file__).parent


def sse(count: int) -> bytes:
    """What mppx sends for so many tokens, without its payment events."""
    return b"".join(b"event: message\ndata: tok%d\n\n" % number for number in range(count))


def run(proxy: Proxy, *command: str) -> bytes:
    """What a client process writes."""
    done = subprocess.run(
        command, env=proxy.client_environment(), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, (done.stderr.decode(), done.stdout[-2000:])
    return done.stdout


def by_curl(proxy: Proxy, net: Devnet, query: str) -> None:
    assert run(proxy, "curl", "-qsSN", f"{net.http}/sse?{query}") == sse(TOKENS)


def by_curl_over_http2(proxy: Proxy, net: Devnet, query: str) -> None:
    url = f"{net.https}/sse?{query}"
    body, _, version = run(proxy, "curl", "-qsSN", "--http2", "-w", "\nHTTP/%{http_version}", url).rpartition(
        b"\n"
    )
    assert (body, version) == (sse(TOKENS), b"HTTP/2")


def by_httpx(proxy: Proxy, net: Devnet, query: str) -> None:
    script = str(HERE / "stream_client.py")
    assert run(proxy, sys.executable, script, "httpx", f"{net.https}/sse?{query}") == sse(TOKENS)


def by_httpx_sse(proxy: Proxy, net: Devnet, query: str) -> None:
    script = str(HERE / "stream_client.py")
    lines = run(proxy, sys.executable, script, "httpx-sse", f"{net.http}/sse?{query}").splitlines()
    assert [json.loads(line) for line in lines] == [["message", f"tok{index}"] for index in range(TOKENS)]


def by_openai(proxy: Proxy, net: Devnet, query: str) -> None:
    script = str(HERE / "stream_client.py")
    lines = run(proxy, sys.executable, script, "openai", f"{net.http}/v1?{query}", str(TOKENS)).splitlines()
    assert [json.loads(line) for line in lines] == [f"tok{index}" for index in range(TOKENS)]


def by_axios(proxy: Proxy, net: Devnet, query: str) -> None:
    script = str(ROOT / "tests" / "peers" / "axios_client.mjs")
    assert run(proxy, find_node(), script, f"{net.http}/sse?{query}") == sse(TOKENS)


Client = Callable[[Proxy, Devnet, str], None]
CLIENTS = [
    *(by_curl, by_openai),
    *(
        pytest.param(one, marks=pytest.mark.long)
        for one in (by_curl_over_http2, by_httpx, by_httpx_sse, by_axios)
    ),
]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_read_to_its_end(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, client: Client) -> None:
    """Through a voucher for each token and top-ups; the second time on the channel that is there."""
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    route = "/v1/chat/completions" if client is by_openai else "/sse"
    # mitmproxy speaks HTTP/2 to clients of an HTTP/1 server only if it does not ask that server first.
    lazy = ("--set", "connection_strategy=lazy") if client is by_curl_over_http2 else ()
    with make_proxy(home, *lazy) as proxy:
        client(proxy, devnet, f"n={TOKENS}&deposit=0.05")
        counted = stats(devnet.seller, route)
        assert counted["open"] == 1
        # A HEAD has no body that says "stream": there this seller offers other terms, and takes the voucher with them.
        assert counted["sent402"] == (2 if client is by_openai else 1)
        assert counted["topUp"] >= 1
        vouchers = [int(one["cumulative"]) for one in devnet.admin("stats")["vouchers"]]
        assert sorted(set(vouchers)) == [number * PRICE for number in range(1, TOKENS + 1)]
        books.agree(TOKENS * PRICE)
        if client is not by_curl:
            return

        client(proxy, devnet, f"n={TOKENS}&deposit=0.05")
        assert stats(devnet.seller, route)["open"] == 1
        books.agree(2 * TOKENS * PRICE)
    close_all(home)
    books.agree(2 * TOKENS * PRICE)


def test_a_limit_ends_the_stream_with_a_reason(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    devnet.admin("reset")
    home = make_home(
        policy={"max_per_day": "5", "max_lifetime": "10", "hosts": [rule("127.0.0.1", max_per_stream="0.04")]}
    )
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        body = run(proxy, "curl", "-qsSN", f"{devnet.http}/sse?n=9")
        assert body.startswith(sse(4))
        name, data, *rest = body.removeprefix(sse(4)).split(b"\n")
        assert (name, rest) == (b"event: error", [b"", b""])
        error = json.loads(data.removeprefix(b"data: "))["error"]
        assert error["code"] == "over-stream-total"
        assert "max_per_stream" in error["message"]
        proxy.logged("stream ended: ")
        (decision,) = home.ledger_of("decision", outcome="stream-ended")
        assert decision["reason"] == "over-stream-total"
        # And the next stream is served, as far as it may go.
        assert run(proxy, "curl", "-qsSN", f"{devnet.http}/sse?n=3") == sse(3)
        books.agree(7 * PRICE)


def swarm(proxy: Proxy, url: str, readers: int, **options: int) -> dict[str, Any]:
    """See `stream_swarm`. Every answer is right and whole, for those who stay."""
    command = [sys.executable, str(HERE / "stream_swarm.py"), str(proxy.port), url, str(readers)]
    command += [f"{name}={value}" for name, value in options.items()]
    environment = quiet_environment()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["odd"] == {}, told
    return told


def wide_policy(channels: int) -> dict[str, Any]:
    """So many channels on one scope."""
    host = rule(
        "127.0.0.1",
        max_channels_per_scope=channels,
        max_opens_per_day=1000,
        max_per_day="100",
        max_deposit="5",
        max_deposits_per_day="200",
    )
    return {"max_per_day": "100", "max_lifetime": "100", "hosts": [host]}


def peak_memory(proxy: Proxy) -> int:
    """Of the proxy's process, in MiB."""
    assert proxy.process is not None
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


# `make soak` says 50, of a minute each.
STREAMS = int(os.environ.get("BURSAR_STREAMS", "20"))
SECONDS = int(os.environ.get("BURSAR_STREAM_SECONDS", "6"))  # how long each lasts


@pytest.mark.slow
@pytest.mark.fresh  # it looks at the memory
def test_many_streams_at_once(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    """Each needs a voucher a second, and plain requests go on beside them."""
    devnet.admin("reset")
    home = make_home(funds=60_000_000, policy=wide_policy(STREAMS + 1))
    books = Books(devnet, home)
    # One is opened after the other: who comes first reads on until the last is there.
    url = f"{devnet.http}/sse?n={SECONDS}&delay=1000&deposit=0.5"
    with make_proxy(home) as proxy:
        told = swarm(proxy, url, STREAMS, more=20, beside=200)
        print(f"{STREAMS} streams: {told}; the proxy's peak memory: {peak_memory(proxy)} MiB")
        assert told["done"] == {"stream": STREAMS, "beside": 200}
        assert told["most_open"] > STREAMS * 0.8  # all, on a machine that opens three channels a second
        assert len(books.decided()) <= STREAMS + 1
        books.agree(told["units"] * PRICE)


# -- a scripted seller: what an honest one never does, or mppx never says


class Streamer:
    """Sells a stream by hand: `step` after `step`; it knows when its client has gone."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.goes_on = threading.Event()
        self.started = threading.Event()
        self.gone = threading.Event()
        self.vouchers: list[int] = []
        self.head_waits: threading.Event | None = None
        self.channel = ""

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        payload = await self.upstream.take(request)
        if payload is None:
            writer.write(
                self.upstream.asks(self.upstream.challenge(self.upstream.request_json(unitType="token")))
            )
            return
        self.vouchers.append(int(payload["cumulativeAmount"]))
        if request.method == "HEAD":
            if self.head_waits is not None:
                self.started.set()
                await asyncio.to_thread(self.head_waits.wait, 30)
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        self.channel = payload["channelId"]
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await self.write(writer, b"data: one\n\n")
        await self.write(writer, self.need(2 * ASKED))
        await self.until_paid(writer, 2 * ASKED)
        if self.gone.is_set():
            return
        await self.write(writer, b"data: two\n\n")
        self.started.set()
        await self.until_paid(writer, 1 << 60)  # for ever

    def need(self, required: int) -> bytes:
        event = {
            "channelId": self.channel,
            "requiredCumulative": str(required),
            "acceptedCumulative": str(max(self.vouchers)),
            "deposit": "500000",
        }
        return b"event: payment-need-voucher\ndata: " + json.dumps(event).encode() + b"\n\n"

    async def until_paid(self, writer: asyncio.StreamWriter, amount: int) -> None:
        while max(self.vouchers) < amount or self.head_waits is not None:
            if writer.transport.is_closing():
                self.gone.set()
                return
            await asyncio.sleep(0.02)
            try:
                await self.write(writer, b": still here\n\n")
            except ConnectionError:
                self.gone.set()
                return

    @staticmethod
    async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()


@pytest.fixture
def upstream(devnet: Devnet) -> Iterator[Upstream]:
    with Upstream(devnet) as running:
        yield running


def test_gzip(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, upstream: Upstream) -> None:
    """A compressed stream comes through as what it says, flushed where the server flushed."""
    streamer = Streamer(upstream)

    async def sell(request: Request, writer: asyncio.StreamWriter) -> None:
        payload = await upstream.take(request)
        if payload is None or request.method == "HEAD":
            await streamer(request, writer)
            return
        streamer.channel = payload["channelId"]
        streamer.vouchers.append(int(payload["cumulativeAmount"]))
        deflate = zlib.compressobj(wbits=31)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

        async def send(data: bytes) -> None:
            packed = deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)
            await streamer.write(writer, packed)

        for number in range(1, 5):
            await send(b"data: %d\n\n" % number)
            if number == 4:
                break
            await send(streamer.need((number + 1) * ASKED))
            while max(streamer.vouchers) < (number + 1) * ASKED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        last = deflate.flush()
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last))

    upstream.routes["/zip"] = sell
    with make_proxy(make_home()) as proxy:
        got = curl(proxy, f"{upstream.url}/zip", "-H", "Accept-Encoding: gzip")
        assert got.status == 200
        encoded = got.header("content-encoding") == "gzip"
        body = gzip.decompress(got.body) if encoded else got.body
        assert body == b"data: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n"
    assert streamer.vouchers == [number * ASKED for number in range(1, 5)]


def start_curl(proxy: Proxy, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["curl", "-qsSN", url],
        env=proxy.client_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def leave(client: subprocess.Popen[bytes]) -> None:
    client.kill()
    client.communicate()


def test_a_client_leaves_mid_stream(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, upstream: Upstream
) -> None:
    """The server sees it go; what it asked for before is booked as paid, the rest as uncertain."""
    streamer = upstream.routes["/stream"] = Streamer(upstream)
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        client = start_curl(proxy, f"{upstream.url}/stream")
        assert streamer.started.wait(30)
        leave(client)
        assert streamer.gone.wait(30)
        (line,) = until(lambda: home.ledger_of("ended"), "the end is booked")
        channel = books.decided()[0]
        assert (line["amount"], line["uncertain"], line["reason"]) == (str(ASKED), str(ASKED), "cut")
        assert streamer.vouchers == [ASKED, 2 * ASKED]
    channel = books.channel()
    assert (channel.paid, channel.uncertain, channel.held, channel.free) == (ASKED, ASKED, 0, 0)
    books.bounded()


def test_a_client_leaves_while_a_voucher_is_on_its_way(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, upstream: Upstream
) -> None:
    streamer = upstream.routes["/stream"] = Streamer(upstream)
    streamer.head_waits = threading.Event()
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        client = start_curl(proxy, f"{upstream.url}/stream")
        assert streamer.started.wait(30)  # the voucher has arrived, its answer has not left
        leave(client)
        assert streamer.gone.wait(30)
        until(lambda: home.ledger_of("ended"), "the end is booked")
        books.decided()
        streamer.head_waits.set()
        assert streamer.vouchers == [ASKED, 2 * ASKED]
    channel = books.channel()
    assert (channel.paid, channel.uncertain, channel.authorised) == (ASKED, ASKED, 2 * ASKED)
    books.bounded()


def test_a_client_leaves_before_its_channel_is_open(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> None:
    """While the opening is prepared: it never leaves, and nothing is spent."""
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)
    with make_proxy(home) as proxy:
        devnet.fault("eth_getBlockByNumber", "delay", n=1, seconds=2, path="/proxy")
        client = start_curl(proxy, f"{devnet.http}/sse?n=3")
        until(lambda: stats(devnet.seller, "/sse")["sent402"] == 1, "it is asked for money")
        leave(client)
        assert run(proxy, "curl", "-qsSN", f"{devnet.http}/sse?n=2") == sse(2)
        assert stats(devnet.seller, "/sse")["open"] == 1
        books.agree(2 * PRICE)
