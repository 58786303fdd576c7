"""The one that listens: looks at first bytes and hands connections on, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy_addon.cli import accepting
from proxy_addon.cli.accepting import Acceptor, bind
from proxy_addon.cli.failure import Failure
from proxy_addon.cli.spreading import Spreader
from proxy_addon.mitm import handing

ASK = b"GET http://api.example.com/ HTTP/1.1\r\n\r\n"


class Worker:
    """The other end of a lane."""

    def __init__(self, acceptor: Acceptor, number: int) -> None:
        ours, self.channel = socket.socketpair()
        self.channel.setblocking(False)
        acceptor.join(number, ours)

    async def next(self) -> tuple[int, socket.socket]:
        async with asyncio.timeout(10):
            while True:
                try:
                    found = handing.take_over(self.channel)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                    continue
                assert found is not None
                return found

    def ended(self, number: int) -> None:
        self.channel.send(handing.pack(number))


class Front:
    def __init__(self) -> None:
        self.sockets = bind("127.0.0.1", 0)
        self.spreader = Spreader(1000)
        self.acceptor = Acceptor(self.sockets, self.spreader, lambda to: 2)
        self.address = self.sockets[0].getsockname()
        self.workers = [Worker(self.acceptor, number) for number in range(2)]
        self.acceptor.listen()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    made = Front()
    yield made
    made.acceptor.close()
    for number, worker in enumerate(made.workers):
        made.acceptor.leave(number)
        worker.channel.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the other side is the kernel)
            await asyncio.sleep(0.001)


async def test_the_worker_reads_every_byte(front: Front) -> None:
    reader, writer = await front.connect()
    writer.write(ASK)
    number, connection = await front.workers[0].next()
    assert number > 0
    assert connection.getpeername() == writer.get_extra_info("sockname")
    assert not connection.get_inheritable()
    connection.setblocking(True)
    assert connection.recv(65536) == ASK
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    connection.close()  # the only copy: the client sees the end
    async with asyncio.timeout(10):
        assert await reader.read() == b"HTTP/1.1 200 OK\r\n\r\n"
    writer.close()


async def test_piece_by_piece(front: Front) -> None:
    _, writer = await front.connect()
    for piece in (b"\r\n", b"GET http://api.exa", b"mple.com", b"/ HTTP/1.1\r\n"):
        with pytest.raises(BlockingIOError):
            handing.take_over(front.workers[0].channel)
        writer.write(piece)
        await writer.drain()
        await until(lambda: front.acceptor._waiting or front.spreader._shares)
    _, connection = await front.workers[0].next()
    connection.close()
    assert list(front.spreader._shares) == ["api.example.com:80"]
    writer.close()


async def test_one_that_says_nothing_goes_to_any_worker_in_the_end(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PATIENCE_S", 0.05)
    _, writer = await front.connect()
    number, connection = await front.workers[0].next()
    assert front.spreader._open == {0: 1, 1: 0}
    assert not front.spreader._shares
    front.workers[0].ended(number)
    await until(lambda: front.spreader._open == {0: 0, 1: 0})
    connection.close()
    writer.close()


async def test_one_that_leaves_before_it_asks(front: Front) -> None:
    _, writer = await front.connect()
    await until(lambda: front.acceptor._waiting)
    writer.close()
    await until(lambda: not front.acceptor._waiting)
    assert front.spreader._open == {0: 0, 1: 0}


async def test_a_dead_worker_gets_none(front: Front) -> None:
    front.workers[0].channel.close()
    _, writer = await front.connect()
    writer.write(ASK)
    _, connection = await front.workers[1].next()
    connection.close()
    writer.close()
    await until(lambda: front.spreader._open.keys() == {1})


async def test_one_that_leaves_keeps_what_it_has(front: Front) -> None:
    front.workers[0].ended(handing.LEAVING)
    await until(lambda: front.spreader._open.keys() == {1})
    _, writer = await front.connect()
    writer.write(ASK)
    _, connection = await front.workers[1].next()
    connection.close()
    writer.close()


async def test_while_there_is_none_clients_wait(front: Front) -> None:
    for number in range(2):
        front.acceptor.leave(number)
    _, writer = await front.connect()
    writer.write(ASK)
    await until(lambda: front.acceptor._looking)
    again = Worker(front.acceptor, 0)
    _, connection = await again.next()
    connection.close()
    again.channel.close()
    writer.close()


async def test_a_worker_that_takes_none_is_waited_for(front: Front) -> None:
    """Its socket is full; nothing is lost, and nobody else gets its host."""
    lane = front.acceptor._lanes[0].channel
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += lane.send(handing.pack(7) * 512)
    _, writer = await front.connect()
    writer.write(ASK)
    await until(lambda: front.acceptor._looking)
    while filled:
        filled -= len(front.workers[0].channel.recv(65536))
    _, connection = await front.workers[0].next()
    connection.setblocking(True)
    assert connection.recv(65536) == ASK
    connection.close()
    writer.close()


async def test_after_the_end_nobody_is_let_in(front: Front) -> None:
    _, waiting = await front.connect()
    await until(lambda: front.acceptor._waiting)
    front.acceptor.close()
    with pytest.raises(ConnectionRefusedError):
        await front.connect()
    waiting.close()


def test_addresses_that_are_not_to_be_had() -> None:
    sockets = bind("127.0.0.1", 0)
    host, port = sockets[0].getsockname()
    sockets[0].listen()
    with pytest.raises(Failure, match=f"127.0.0.1:{port} is in use, maybe by another bursar"):
        bind(host, port)
    for one in sockets:
        one.close()
    with pytest.raises(Failure, match=r"cannot listen on 192\.0\.2\.1:8402"):
        bind("192.0.2.1", 8402)
    with pytest.raises(Failure, match="cannot listen on no such host:8402"):
        bind("no such host", 8402)


def test_all_of_a_names_addresses_share_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: both)
    try:
        sockets = bind("localhost", 0)
    except Failure:
        pytest.skip("no IPv6 here")
    ports = {one.getsockname()[1] for one in sockets}
    for one in sockets:
        one.close()
    assert (len(sockets), len(ports)) == (2, 1)
