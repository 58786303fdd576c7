"""One port for the paid API and for its WebSockets: a real WebSocket server beside it, and who gets a connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.crash.jobs import FrameAsk, Said
from tests.crash.socket_seller import Line
from tests.crash.world import World

UNITS = 4  # that each connection has to sell
_PIECE = 65_536


@asynccontextmanager
async def in_front_of(world: World) -> AsyncIterator[int]:
    """The port of both. `world.api` is being served."""
    sockets = Sockets(world)
    async with (
        serve(sockets.sell, "127.0.0.1", 0, max_size=None) as seller,
        await asyncio.start_server(_Front(world.api.port, _port(seller)).accept, "127.0.0.1", 0) as front,
    ):
        yield _port(front)


def _port(server: object) -> int:
    (socket,) = server.sockets  # type: ignore[attr-defined]
    port: int = socket.getsockname()[1]
    return port


class Sockets:
    """A `Line` for each connection."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = itertools.count()
        self._lines: dict[int, Line] = {}

    async def sell(self, connection: ServerConnection) -> None:
        number = next(self._numbers)
        try:
            await self._sell(connection, number)
        except ConnectionClosed:
            pass
        finally:
            if (line := self._lines.pop(number, None)) is not None:
                line.hang_up()

    async def _sell(self, connection: ServerConnection, number: int) -> None:
        first, said = True, Said(needs=True)
        while not said.cut:
            if said.needs:
                text = await connection.recv()
                assert isinstance(text, str)
                if json.loads(text).get("mpp") != "authorization":
                    continue
                ask = FrameAsk(number, text, first)
                self._world.note_in(ask, self._lines)
                first, said = False, await self._world.take_frame(ask, self._lines)
            else:
                said = self._lines[number].next(UNITS)
            for text in said.texts:
                await connection.send(text)


class _Front:
    def __init__(self, api: int, sockets: int) -> None:
        self._api, self._sockets = api, sockets

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            port = self._sockets if b"upgrade: websocket" in head.lower() else self._api
            from_there, to_there = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        to_there.write(head)
        await asyncio.gather(_pass_on(reader, to_there), _pass_on(from_there, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()
