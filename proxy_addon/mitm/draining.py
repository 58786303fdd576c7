"""The proxy is told to stop: what is under way ends, nothing new begins, all within a deadline.

The listening sockets close at once, so that a new client goes elsewhere or waits for the next proxy. A request
on a connection that is open already is answered 503: passed on unpaid it would bring its client a 402 that
the policy allowed us to pay. A second signal ends the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import Any, Final

from mitmproxy import http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.connection import Client
from mitmproxy.proxy.mode_servers import AsyncioServerInstance

log: Final = logging.getLogger("bursar")

LOOK_S: Final = 0.02
HANG_UP_S: Final = 1.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_STOPPING: Final = b"bursar is stopping: this request was not sent. Try again.\n"


class Draining:
    """An addon. Knows which answers are under way, and waits for them."""

    def __init__(self) -> None:
        self.begun = False
        self._hurry = asyncio.Event()
        self._flows: dict[str, str] = {}  # id -> its client's id

    # -- what is under way

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if self.begun and flow.response is None:
            flow.response = _refusal(flow.request)
        self._flows[flow.id] = flow.client_conn.id

    def response(self, flow: http.HTTPFlow) -> None:
        self._flows.pop(flow.id, None)

    def error(self, flow: http.HTTPFlow) -> None:
        self._flows.pop(flow.id, None)

    def client_disconnected(self, client: Client) -> None:
        for flow_id in [key for key, owner in self._flows.items() if owner == client.id]:
            del self._flows[flow_id]

    def under_way(self, addons: AddonManager) -> int:
        """Requests without the end of their answer, and answers that their clients have not taken yet."""
        return len(self._flows) + _unsent(addons)

    # -- the end

    async def drain(self, addons: AddonManager, seconds: float) -> None:
        """Return when nothing is under way any more, after `seconds` at the latest, or at a second signal."""
        if self.begun:
            return
        self.begun = True
        await _stop_listening(addons)
        if found := self.under_way(addons):
            await self._wait(addons, found, seconds)
        await _hang_up(addons)

    async def _wait(self, addons: AddonManager, found: int, seconds: float) -> None:
        log.info(
            "bursar: stops: waits up to %g s for %d answers (a second signal ends it at once)",
            seconds,
            found,
        )
        watched = _watch(self._hurry.set)
        try:
            async with asyncio.timeout(seconds):
                await _until(lambda: not self.under_way(addons), self._hurry)
        except TimeoutError:
            pass
        finally:
            for number in watched:  # from here on, one more ends the process: the ledger is safe in any case
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
        if left := self.under_way(addons):
            log.warning("bursar: %d answers are cut off; what they cost stays counted", left)

    def hurry(self) -> None:
        """Wait no longer."""
        self._hurry.set()


def _refusal(request: http.Request) -> http.Response:
    headers = {"Content-Type": "text/plain; charset=utf-8", "Retry-After": "1"}
    if not (request.is_http2 or request.is_http3):
        headers["Connection"] = "close"
    return http.Response.make(503, _STOPPING, headers)


def _unsent(addons: AddonManager) -> int:
    """Clients whose sockets have not taken all of an answer. Looks into mitmproxy's connections."""
    proxyserver: Any = addons.get("proxyserver")  # type: ignore[no-untyped-call]
    waiting = 0
    for handler in proxyserver.connections.values() if proxyserver else ():
        io = handler.transports.get(handler.client)
        transport = getattr(io.writer, "transport", None) if io else None
        if transport is not None and transport.get_write_buffer_size():
            waiting += 1
    return waiting


async def _until(done: Callable[[], bool], hurry: asyncio.Event) -> None:
    """Look again and again: the end of a connection, or an empty buffer, has no event that we could wait for."""
    while not done():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await hurry.wait()
                return


async def _hang_up(addons: AddonManager) -> None:
    """Close the clients' connections, as if they had left: what is cut off is booked by the way it ended."""
    proxyserver: Any = addons.get("proxyserver")  # type: ignore[no-untyped-call]
    connections = proxyserver.connections if proxyserver else {}
    for handler in list(connections.values()):
        io = handler.transports.get(handler.client)
        if io is not None and io.handler is not None:
            io.handler.cancel("the proxy stops")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HANG_UP_S):
            await _until(lambda: not connections, asyncio.Event())


async def _stop_listening(addons: AddonManager) -> None:
    proxyserver: Any = addons.get("proxyserver")  # type: ignore[no-untyped-call]
    for server in proxyserver.servers if proxyserver else ():
        if isinstance(server, AsyncioServerInstance) and server.is_running:
            try:
                await server.stop()
            except Exception as error:
                log.warning("bursar: still listens while it stops: %s", error)


def _watch(then: Callable[[], None]) -> list[signal.Signals]:
    """Have a signal call `then`, where somebody handles it already: embedded in something else, it is not ours."""
    watched = []
    for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler):
            try:
                asyncio.get_running_loop().add_signal_handler(number, then)
            except (NotImplementedError, RuntimeError, ValueError):
                continue
            watched.append(number)
    return watched
