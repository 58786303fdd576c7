"""The ways a request can take: client protocol, server protocol, with and without TLS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy_addon.mitm.paying import Limits
from tests.unit.mitm.clients import Got, curl
from tests.unit.mitm.fake_gate import FakeGate
from tests.unit.mitm.proxy import Proxy, running_proxy
from tests.unit.mitm.servers import Handler, Upstream, h1_server, h2_server, server_tls


@dataclass(frozen=True)
class Wire:
    name: str
    client: str  # curl's option
    server: str
    tls: bool


WIRES = [
    Wire("plain", "--http1.1", "h1", tls=False),
    Wire("h1-h1", "--http1.1", "h1", tls=True),
    Wire("h2-h2", "--http2", "h2", tls=True),
    Wire("h2-h1", "--http2", "h1", tls=True),
]


@dataclass
class Line:
    wire: Wire
    upstream: Upstream
    proxy: Proxy

    async def curl(self, path: str, *arguments: str, stdin: bytes | None = None) -> Got:
        got = await curl(self.proxy.url, self.wire.client, *arguments, self.upstream.url(path), stdin=stdin)
        if got.code == 0 and not self.wire.client.endswith("1.1"):
            assert got.last_head.startswith(b"HTTP/2 ")
        return got


class Wiring:
    def __init__(self, wire: Wire, confdir: Path, pem: Path) -> None:
        self.wire, self._confdir, self._pem = wire, confdir, pem

    @contextlib.asynccontextmanager
    async def server(self, handler: Handler) -> AsyncIterator[Upstream]:
        wire = self.wire
        alpn = "h2" if wire.server == "h2" else "http/1.1"
        tls = server_tls(self._pem, alpn) if wire.tls else None
        if wire.server == "h2":
            assert tls is not None
            async with h2_server(handler, tls) as upstream:
                yield upstream
        else:
            async with h1_server(handler, tls) as upstream:
                yield upstream

    @contextlib.asynccontextmanager
    async def line(
        self,
        handler: Handler,
        gate: FakeGate | None,
        limits: Limits | None = None,
        **settings: Any,
    ) -> AsyncIterator[Line]:
        # With an eager connection, mitmproxy offers the client only what the server speaks.
        settings.setdefault("connection_strategy", "lazy" if self.wire.name == "h2-h1" else "eager")
        async with (
            self.server(handler) as upstream,
            running_proxy(self._confdir, gate, limits, **settings) as proxy,
        ):
            yield Line(self.wire, upstream, proxy)
