"""HTTP/1.1 of our own requests, on real sockets: what servers answer, break off, and never say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy_addon import exchange, outbound
from proxy_addon.core.errors import OutcomeUnknown
from proxy_addon.outbound import ANSWER_LIMIT, Outbound
from tests.unit.mitm.servers import make_certificate, server_tls

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SECRET = {"Authorization": "Payment c4n4ry"}


@dataclass
class Shop:
    """A server that answers each request with the next of `answers`, the last one again and again.

    An answer that ends with `HANG_UP` ends the connection, too; `None` is no answer.
    """

    answers: list[bytes | None]
    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)
    go: asyncio.Event = field(default_factory=asyncio.Event)  # nothing is answered before

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                async with self.asked:
                    self.heads.append(head)
                    self.asked.notify_all()
                await self.go.wait()
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    continue
                writer.write(answer.removesuffix(HANG_UP))
                await writer.drain()
                if answer.endswith(HANG_UP):
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.open.discard(writer)
            async with self.asked:
                self.asked.notify_all()

    async def until(self, true: Callable[[], object]) -> None:
        async with self.asked, asyncio.timeout(20):
            await self.asked.wait_for(true)


HANG_UP = b"\0hang up"


@contextlib.asynccontextmanager
async def shop(*answers: bytes | None, tls: Path | None = None) -> AsyncIterator[Shop]:
    """In the end nothing of ours may be connected, and the loop has had nothing to complain about."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    found = Shop(list(answers))
    found.go.set()
    context = None if tls is None else server_tls(tls, "http/1.1")
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    found.url = f"https://localhost:{port}/" if tls else f"http://127.0.0.1:{port}/"
    try:
        yield found
        await found.until(lambda: not found.open)
    finally:
        server.close()
    assert complaints == []


@contextlib.asynccontextmanager
async def ours(**options: Any) -> AsyncIterator[Outbound]:
    made = Outbound(**options)
    try:
        yield made
    finally:
        await made.aclose()
    assert made._pool._all == {}
    assert made._pool._idle == {}


@pytest.mark.parametrize(
    ("method", "answer", "status", "body"),
    [
        (
            "GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
            200,
            b"abc",
        ),
        ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nX: y\r\n\r\n" + OK, 200, b"ok"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 70000000\r\n\r\n", 200, b""),
        ("HEAD", b"HTTP/1.1 402 \r\nTransfer-Encoding: chunked\r\n\r\n", 402, b""),
        ("POST", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", 503, b""),
    ],
)
async def test_answers_after_which_the_connection_is_used_again(
    method: str, answer: bytes, status: int, body: bytes
) -> None:
    async with shop(answer) as up, ours() as out:
        for _ in range(3):
            found = await out.send(method, up.url, SECRET)
            assert (found.status, found.body) == (status, body)
        assert up.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"more than it said",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok" + HANG_UP,
        OK + HANG_UP,
    ],
)
async def test_answers_after_which_it_is_not(answer: bytes) -> None:
    async with shop(answer) as up, ours() as out:
        for _ in range(2):
            found = await out.send("GET", up.url, SECRET)
            assert (found.status, found.body) == (200, b"ok")
            async with asyncio.timeout(20):
                while out._pool._all:  # noqa: ASYNC110 (nothing tells of it)
                    await asyncio.sleep(0)
        assert up.connections == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (HANG_UP, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Le" + HANG_UP, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok" + HANG_UP, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx" + HANG_UP, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nBad Name: 1\r\n\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * exchange.HEAD_LIMIT + b"\r\n", "RemoteProtocolError"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "RemoteProtocolError"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
            f"with more than {ANSWER_LIMIT} bytes",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 70_000, f"with more than {ANSWER_LIMIT} bytes"),
    ],
)
async def test_answers_that_are_none(answer: bytes, says: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with shop(answer) as up, ours() as out:
        with pytest.raises(OutcomeUnknown, match=f"127.0.0.1 (did not answer|answered) GET.*{says}") as told:
            await out.send("GET", up.url + "?key=c4n4ry", SECRET)
        await up.until(lambda: not up.open)
        assert up.connections == 1  # it is not asked again
        assert told.value.__cause__ is None
        assert "c4n4ry" not in caplog.text + str(told.value)


async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop(None) as up, ours(timeout_s=0.05) as out:
        with pytest.raises(OutcomeUnknown, match="did not answer POST: TimeoutError"):
            await out.send("POST", up.url, SECRET)
        await up.until(lambda: not up.open)


async def test_what_a_request_holds() -> None:
    async with shop(OK) as up, ours() as out:
        for method in ("POST", "GET"):
            await out.send(method, up.url + "a%20b/ü?q=1&r#part", SECRET)
    host = up.url.split("/")[2]
    for method, head in zip(("POST", "GET"), up.heads, strict=True):
        line, *fields = head.decode().strip().split("\r\n")
        assert line == f"{method} /a%20b/%C3%BC?q=1&r HTTP/1.1"
        assert sorted(fields) == sorted(
            [
                f"Host: {host}",
                "Accept: */*",
                "Accept-Encoding: identity",
                "User-Agent: bursar",
                "Authorization: Payment c4n4ry",
                *(["Content-Length: 0"] if method == "POST" else []),
            ]
        )


@pytest.mark.parametrize("value", ["a\r\nX-More: b", "a\nb", "a\0b", "ü", " a", "\ud800"])
async def test_a_field_that_is_none_is_not_sent(value: str) -> None:
    async with shop(OK) as up, ours() as out:
        with pytest.raises(OutcomeUnknown, match=r"127\.0\.0\.1 did not answer GET: \w+$"):
            await out.send("GET", up.url, {"X-Field": value})
        assert up.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/path",
        "https://",
        "ftp://a.test/",
        "http://[::1/",
        "http://a.test:x/",
        "http://a.test:99999/",
        "http://\ud800.test/",
        "http://a.test/\ud800",
        "http://a.test/\n",
        f"http://{'a' * 70}.test/",
        "http://.a.test/",
    ],
)
async def test_a_url_that_leads_nowhere(url: str) -> None:
    async with ours() as out:
        with pytest.raises(OutcomeUnknown) as told:
            await out.send("GET", url, SECRET)
        assert told.value.__cause__ is None


async def test_who_is_cancelled_leaves_an_exchange_that_ends() -> None:
    async with shop(OK) as up, ours() as out:
        up.go.clear()
        waiting = asyncio.ensure_future(out.send("POST", up.url, SECRET))
        await up.until(lambda: up.heads)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (connection,) = out._pool._all
        assert not connection.usable
        idle = asyncio.Event()

        def kept(one: exchange.Connection) -> None:
            out._pool._keep(one)
            idle.set()

        connection._on_idle = kept
        up.go.set()
        await idle.wait()
        assert (await out.send("GET", up.url, SECRET)).status == 200
        assert (up.connections, len(up.heads)) == (1, 2)


async def test_who_is_cancelled_before_anything_left_sends_nothing(pem: Path) -> None:
    """At every step of connecting."""
    async with shop(OK, tls=pem) as up, ours(extra_ca=pem) as out:
        steps = 0
        up.go.clear()
        while True:
            waiting = asyncio.ensure_future(out.send("POST", up.url, SECRET))
            for _ in range(steps):
                await asyncio.sleep(0)
            if any(one._reply is not None for one in out._pool._all):
                break
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert out._pool._all == {}
            steps += 1 if steps < 20 else 50
        up.go.set()
        await waiting
        assert steps > 3
        assert len(up.heads) == 1


async def test_an_exchange_that_fails_after_its_caller_left_is_no_error_of_the_loop() -> None:
    async with shop(HANG_UP) as up, ours() as out:
        up.go.clear()
        waiting = asyncio.ensure_future(out.send("POST", up.url, SECRET))
        await up.until(lambda: up.heads)
        waiting.cancel()
        up.go.set()
        await up.until(lambda: not up.open)
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_what_comes_unasked_ends_the_connection() -> None:
    async with shop(OK) as up, ours() as out:
        await out.send("GET", up.url, SECRET)
        (writer,) = up.open
        writer.write(OK)
        await up.until(lambda: not up.open)
        assert (await out.send("GET", up.url, SECRET)).body == b"ok"
        assert up.connections == 2


async def test_a_connection_that_waits_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "KEEP_S", 0.01)
    async with shop(OK) as up, ours() as out:
        await out.send("GET", up.url, SECRET)
        await up.until(lambda: not up.open)
        assert (await out.send("GET", up.url, SECRET)).status == 200
        assert up.connections == 2


async def test_so_many_are_kept(monkeypatch: pytest.MonkeyPatch, pem: Path) -> None:
    monkeypatch.setattr(outbound, "MOST_IDLE", 2)
    async with shop(OK, tls=pem) as up, ours(extra_ca=pem) as out:
        up.go.clear()
        sending = [asyncio.ensure_future(out.send("GET", up.url, SECRET)) for _ in range(5)]
        await up.until(lambda: len(up.heads) == 5)
        up.go.set()
        assert [answer.status for answer in await asyncio.gather(*sending)] == [200] * 5
        await up.until(lambda: len(up.open) == 2)
        assert sum(map(len, out._pool._idle.values())) == 2
        assert (await out.send("GET", up.url, SECRET)).status == 200
        assert up.connections == 5


async def test_closing_ends_what_is_under_way() -> None:
    async with shop(None) as up:
        out = Outbound()
        waiting = asyncio.ensure_future(out.send("POST", up.url, SECRET))
        await up.until(lambda: up.heads)
        await out.aclose()
        with pytest.raises(OutcomeUnknown, match="ConnectionAbortedError"):
            await waiting


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For localhost and 127.0.0.1."""
    return make_certificate(tmp_path_factory.mktemp("tls"))
