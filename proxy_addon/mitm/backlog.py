"""How much waits in the write buffer of a connection: layers are never told, so we look."""

from __future__ import annotations

from typing import Any

from mitmproxy.addonmanager import AddonManager
from mitmproxy.connection import Client, Connection


class SocketBacklog:
    """Reads asyncio's write buffers through mitmproxy's `proxyserver` addon."""

    def __init__(self, addons: AddonManager) -> None:
        self._addons = addons

    def __call__(self, client: Client, connection: Connection) -> int | None:
        """Bytes not yet taken by the kernel; 0 for a connection that is gone; None if it cannot be known."""
        proxyserver: Any = self._addons.get("proxyserver")  # type: ignore[no-untyped-call]
        handler = proxyserver.connections.get(client.id) if proxyserver else None
        if handler is None:
            return None
        io = handler.transports.get(connection)
        transport = getattr(io.writer, "transport", None) if io else None
        if transport is None:
            return 0 if io is None else None
        return int(transport.get_write_buffer_size())
