"""A WebSocket through the payer: the real `payer.sockets`, with what `mitm.websocket` does around it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mitmproxy import connection, http

from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.sockets import Socket
from tests.crash.jobs import SOCKET_PATH, FrameAsk, Said

if TYPE_CHECKING:
    from tests.crash.life import Life

PATIENCE_S = 15.0
UPGRADE = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13"))

_numbers = itertools.count()


async def converse(
    life: Life, *, origin: str | None = None, units: int = 3, fates: Iterable[str] = (), ends: str = ""
) -> int:
    """One connection, from its handshake to its end; 200 if a unit came, else what its client got, 0 for nothing.

    `fates` are those of its frames, one after the other. `ends` is how it ends before all `units` are there:
    "dropped" (no upgrade came of it), "left" (the client, while a voucher is made), "shut" (the proxy stops).
    """
    client = connection.Client(peername=("127.0.0.1", 9), sockname=("127.0.0.1", 8), timestamp_start=0)
    client.state = connection.ConnectionState.OPEN
    flow = http.HTTPFlow(client, connection.Server(address=None))
    flow.request = http.Request.make("GET", f"{origin or life.origin}{SOCKET_PATH}", b"", UPGRADE)
    sockets = life.gate.sockets
    assert sockets.pays_for(flow)
    await sockets.prepare(flow)
    if flow.response is not None:
        life.reason = flow.response.headers.get("Bursar-Reason")
        return flow.response.status_code
    money = sockets.of(flow)
    if money is None:
        return 0
    if ends == "dropped":
        sockets.dropped(flow)
        return 0
    return await _Connection(life, money, iter(fates), ends).run(units)


class _Connection:
    """The layer's part: frames out as soon as there are any, what comes in is heard, and one end."""

    def __init__(self, life: Life, money: Socket, fates: Iterator[str], ends: str) -> None:
        self._life, self._money, self._fates, self._ends = life, money, fates, ends
        self._number = next(_numbers)
        self._needs = False  # has the server said that it waits for a voucher?
        self._said = False
        self._units = 0

    async def run(self, units: int) -> int:
        self._money.begin(lambda: None)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await self._settled():
                    said = await self._life.wire.ask(("listen", self._number, units))
                    self._needs = said.needs
                    if not self._hear(said):
                        break
        finally:
            self._money.finished(Outcome.CUT)
            self._life.wire.put(("hang-up-socket", self._number))
        return 200 if self._units else 402

    async def _settled(self) -> bool:
        """All is said that is to be said, and the server need not wait; or False: it is over."""
        while True:
            if self._money.stopped is not None or self._money._ended:  # another one's end was the proxy's
                return False
            if self._money.outgoing:
                if not self._hear(await self._say(self._money.outgoing.popleft())):
                    return False
            elif not self._needs:
                return True
            elif self._ends == "left":
                for _ in range(self._life.random.randrange(6)):
                    await asyncio.sleep(0)
                return False
            elif self._ends == "shut":
                self._life.gate.sockets.shut()
                return False
            else:
                await asyncio.sleep(0.001)

    async def _say(self, text: str) -> Said:
        first, self._said = not self._said, True
        said = await self._life.wire.ask(FrameAsk(self._number, text, first, next(self._fates, None)))
        assert isinstance(said, Said)
        self._needs = said.needs
        return said

    def _hear(self, said: Said) -> bool:
        for text in said.texts:
            self._units += isinstance(self._money.heard(text), str)
        return not said.cut
