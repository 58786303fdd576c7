"""A worker's side: connections that another process has accepted are served as if mitmproxy had."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mitmproxy import options, version

from proxy_addon.mitm import handing
from proxy_addon.mitm.handing import Numbers, Welcome
from proxy_addon.mitm.intake import Intake, _Listener

ADDRESSES = [("127.0.0.1", 8402), ("::1", 8402, 0, 0)]


class Pair:
    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        Welcome(ADDRESSES).send(self.ours)
        self.intake = Intake.open(theirs.detach())
        self.gone = 0
        self.intake.gone = self.count
        self.seen: list[bytes] = []
        self.listener: Any = _Listener(self.intake, self.handle)

    def count(self) -> None:
        self.gone += 1
        self.listener.close()  # as a stop does, before it returns

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.append(await reader.readline())
        writer.write(b"served\n")
        await writer.drain()
        writer.close()

    def connect(self, number: int) -> socket.socket:
        """A client that has said something already, and its connection handed over."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
        client.sendall(b"hello %d\n" % number)
        handing.hand_over(self.ours, number, accepted)
        accepted.close()
        return client

    async def told(self, count: int) -> list[int]:
        self.ours.setblocking(False)
        numbers, found = Numbers(), list[int]()
        async with asyncio.timeout(10):
            while len(found) < count:
                found += numbers.feed(await asyncio.get_running_loop().sock_recv(self.ours, 100))
        return found


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    asyncio.get_running_loop().remove_reader(made.intake._channel)
    made.intake._channel.close()
    made.ours.close()


async def answer(client: socket.socket) -> bytes:
    client.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=client)
    async with asyncio.timeout(10):
        found = await reader.read()
    writer.close()
    return found


async def test_served_and_told_when_it_has_ended(pair: Pair) -> None:
    clients = [pair.connect(number) for number in (1, 2, 3)]
    assert [await answer(client) for client in clients] == [b"served\n"] * 3
    assert sorted(pair.seen) == [b"hello 1\n", b"hello 2\n", b"hello 3\n"]
    assert sorted(await pair.told(3)) == [1, 2, 3]
    assert pair.gone == 0


async def test_what_is_on_its_way_at_the_end_is_served(pair: Pair) -> None:
    client = pair.connect(1)
    pair.listener.close()
    late = pair.connect(2)
    assert [await answer(client), await answer(late)] == [b"served\n"] * 2
    assert sorted(await pair.told(3)) == [handing.LEAVING, 1, 2]


async def test_the_end_of_the_other_side_is_noticed_once(pair: Pair) -> None:
    client = pair.connect(1)
    pair.ours.close()
    assert await answer(client) == b"served\n"
    async with asyncio.timeout(10):
        while not pair.gone:  # noqa: ASYNC110 (the other side is the kernel)
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pair.gone == 1


def test_it_knows_where_the_other_process_listens() -> None:
    async def listening() -> list[tuple[Any, ...]]:
        pair = Pair()
        try:
            return [one.getsockname() for one in pair.listener.sockets]
        finally:
            pair.ours.close()
            asyncio.get_running_loop().remove_reader(pair.intake._channel)
            pair.intake._channel.close()

    assert asyncio.run(listening()) == ADDRESSES


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"mode": ["socks5"]}, "--workers serves mitmproxy's regular mode only, not socks5"),
        (
            {"mode": ["regular", "regular@9000"]},
            "--workers serves mitmproxy's regular mode only, not regular, regular@9000",
        ),
        (
            {"rfile": "traffic.flows"},
            "mitmproxy's option rfile is for one process: leave it, or run without --workers",
        ),
    ],
)
def test_what_workers_cannot_do(changes: dict[str, Any], why: str | None) -> None:
    chosen = options.Options()
    chosen.add_option("rfile", str, "", "")  # an addon's
    chosen.update(**changes)  # type: ignore[no-untyped-call]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Intake(theirs, Welcome(ADDRESSES)).why_not(chosen) == why


def test_an_untested_mitmproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "VERSION", "13.0.0")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        why = Intake(theirs, Welcome(ADDRESSES)).why_not(options.Options())
    assert why == "--workers was not tested with mitmproxy 13.0.0: install a tested one, or run without"
