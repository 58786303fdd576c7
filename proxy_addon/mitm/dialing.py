"""The addon half of egress: each upstream connection is checked before it is made, and made to what was checked.

mitmproxy resolves a name when it connects, and reuses connections by the name that was asked for; so the name
stays on the connection, for reuse, SNI and Host. What was checked is handed to the one look-up that asyncio
makes for this connection: that look-up is made in the task that opens it, and a context variable belongs to a
task. Whether it came to that is looked at before the first byte leaves.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from mitmproxy import http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.connection import Client, Server
from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from proxy_addon.core.addresses import Address, Asker, address_of, special
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.mitm import peers
from proxy_addon.mitm.guard import describe

logger = logging.getLogger(__name__)


class Destinations(Protocol):
    """What the config says of where connections may go."""

    def checks(self, host: str, port: int, asker: Asker) -> bool:
        """Is this destination checked at all? Cheap."""

    async def resolve(self, host: str, port: int, asker: Asker) -> list[Any]:
        """As ``getaddrinfo``, without what may not be dialled. Raises `LocalRefusal` or ``OSError``."""

    def refusal_unresolved(self, host: str, port: int, asker: Asker) -> LocalRefusal | None:
        """What can be said where somebody else resolves it."""


@dataclass(frozen=True, slots=True)
class _Pin:
    """What one connection may be made to."""

    host: str
    port: int
    found: list[Any]  # as ``getaddrinfo`` has it
    error: OSError | None = None  # the look-up failed, and fails again in the same words

    @property
    def addresses(self) -> set[Address | None]:
        return {address_of(str(info[4][0])) for info in self.found}


_pin: ContextVar[_Pin | None] = ContextVar("bursar_pin", default=None)


class Dialing:
    """Until it is opened, nothing is checked."""

    def __init__(self) -> None:
        self._destinations: Destinations | None = None
        self._addons: AddonManager | None = None

    def open(self, destinations: Destinations, addons: AddonManager) -> None:
        """In the proxy's event loop."""
        self._destinations, self._addons = destinations, addons
        loop: Any = asyncio.get_running_loop()
        if not getattr(loop.getaddrinfo, "pinned", False):
            loop.getaddrinfo = _pinning(loop.getaddrinfo)

    # -- mitmproxy's hooks

    def server_connect(self, data: ServerConnectionHookData) -> Awaitable[None] | None:
        server = data.server
        if self._destinations is None or server.error or not server.address:
            return None
        if _written_by_operator(data.client, server.address[:2]):
            return None
        try:
            host, port, asker = server.address[0], server.address[1], _asker(data.client)
            if self._destinations.checks(host, port, asker) or port in self._own_ports():
                return self._check(server, host, port, asker)
        except Exception as error:
            self._fail(server, error)
        return None

    def server_connected(self, data: ServerConnectionHookData) -> None:
        pin = _pin.get()
        _pin.set(None)  # tasks that are started from here on have look-ups of their own
        if pin is None:
            return
        peer = data.server.peername
        if peer is None or address_of(str(peer[0])) not in pin.addresses:
            logger.error(
                "bursar: a connection to %s:%d was not made to what was checked: cut", pin.host, pin.port
            )
            self._cut(data)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        _pin.set(None)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        self._behind_upstream_proxy(flow)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self._behind_upstream_proxy(flow)

    # -- for the addon

    def refusal(self, flow: http.HTTPFlow) -> LocalRefusal | None:
        """Why nothing of ours may go where this request goes, as far as that is known without a look-up."""
        if self._destinations is None:
            return None
        request = flow.request
        return self._destinations.refusal_unresolved(request.host, request.port, _asker(flow.client_conn))

    # -- checking

    async def _check(self, server: Server, host: str, port: int, asker: Asker) -> None:
        assert self._destinations is not None
        try:
            if self._destinations.checks(host, port, asker):
                found = await self._destinations.resolve(host, port, asker)
            else:
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            if port in self._own_ports() and any(_is_ours(info) for info in found):
                server.error = f"bursar: {host}:{port} is this proxy itself"
                return
            _pin.set(_Pin(host, port, found))
        except LocalRefusal as error:
            logger.warning("bursar: no connection: %s", error)
            server.error = _told(error, host, port, asker)
        except OSError as error:
            _pin.set(_Pin(host, port, [], error))
        except Exception as error:
            self._fail(server, error)

    def _fail(self, server: Server, error: Exception) -> None:
        logger.error("bursar: checking a destination failed, no connection is made: %s", describe(error))
        server.error = "bursar: the destination could not be checked"

    def _own_ports(self) -> set[int]:
        return {address[1] for address in self._proxyserver().listen_addrs()}

    def _cut(self, data: ServerConnectionHookData) -> None:
        """Before mitmproxy hears that it is connected: what is written to a closing connection goes nowhere.

        The client's goes with it. mitmproxy does not expect a connection to end before it has begun, and
        could wait for it for ever.
        """
        client = data.client
        key = client.id if client.transport_protocol == "tcp" else (client.peername, client.sockname)
        transports: Any = self._proxyserver().connections[key].transports
        for connection in (data.server, client):
            transports[connection].writer.close()

    def _proxyserver(self) -> Any:
        assert self._addons is not None
        return self._addons.get("proxyserver")  # type: ignore[no-untyped-call]

    def _behind_upstream_proxy(self, flow: http.HTTPFlow) -> None:
        if isinstance(flow.client_conn.proxy_mode, mode_specs.UpstreamMode) and not flow.response:
            refusal = self.refusal(flow)
            if refusal is not None:
                logger.warning("bursar: no connection: %s", refusal)
                told = _told(refusal, flow.request.host, flow.request.port, _asker(flow.client_conn))
                flow.response = http.Response.make(502, f"{told}\n", {"content-type": "text/plain"})


def _told(refusal: LocalRefusal, host: str, port: int, asker: Asker) -> str:
    """For the client. What a name resolves to here is not for other machines to know."""
    if asker is Asker.FAR:
        return f"bursar: {host}:{port} is no place that this proxy connects to; its log says why"
    return f"bursar: {refusal}"


def _pinning(resolve: Any) -> Any:
    """`resolve`, which answers a connection's own look-up with what was checked for it."""

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> Any:
        pin = _pin.get()
        if pin is None or (host, port) != (pin.host, pin.port):
            return await resolve(host, port, **options)
        if pin.error is not None:
            raise pin.error
        return list(pin.found)

    getaddrinfo.pinned = True  # type: ignore[attr-defined]
    return getaddrinfo


def _asker(client: Client) -> Asker:
    """A local process is seen by where it connects from, or by how its traffic was taken."""
    near = peers.is_loopback(client) or isinstance(client.proxy_mode, mode_specs.LocalMode)
    return Asker.NEAR if near else Asker.FAR


def _written_by_operator(client: Client, address: tuple[str, int]) -> bool:
    """The address in the proxy's own mode: ``reverse:…``, ``upstream:…``."""
    mode = client.proxy_mode
    return isinstance(mode, (mode_specs.ReverseMode, mode_specs.UpstreamMode)) and mode.address == address


def _is_ours(info: Any) -> bool:
    """Is this an address of this machine?"""
    family, address = info[0], address_of(str(info[4][0]))
    if address is None or special(address) in ("loopback", "unspecified"):
        return True
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(info[4][0]), 0))
        except OSError:
            return False
        return True
