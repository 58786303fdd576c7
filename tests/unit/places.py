"""A resolver that changes its mind, and servers that count, at addresses of this machine.

127.0.0.2 stands for a place that may be reached, 127.0.0.1 for one that may not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.unit.mitm.servers import server_tls

GOOD, BAD = "127.0.0.2", "127.0.0.1"


@dataclass
class Place:
    """A server at one address. It says which it is."""

    connections: int = 0
    received: bytes = b""
    sni: list[str | None] = field(default_factory=list)


@dataclass
class Places:
    """One port at several addresses."""

    port: int
    at: dict[str, Place]
    tls: bool

    def url(self, host: str, path: str = "/") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"


@contextlib.asynccontextmanager
async def places(pem: Path | None = None, *addresses: str) -> AsyncIterator[Places]:
    """HTTP/1.1 servers at BAD, GOOD and `addresses`."""
    at = {address: Place() for address in (BAD, GOOD, *addresses)}

    async def serve(
        place: Place, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        place.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                place.received += head
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name.encode()))
        writer.close()

    def context(place: Place) -> ssl.SSLContext | None:
        if pem is None:
            return None
        tls = server_tls(pem, "http/1.1")
        tls.sni_callback = lambda _socket, name, _context: place.sni.append(name)
        return tls

    async with contextlib.AsyncExitStack() as stack:
        port = 0
        for address, place in at.items():
            server = await asyncio.start_server(
                functools.partial(serve, place, address),
                address,
                port,
                ssl=context(place),
            )
            port = port or server.sockets[0].getsockname()[1]
            stack.callback(server.close)
        yield Places(port, at, pem is not None)


class Names:
    """A resolver: the answers to each name, one after the other; the last one stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def __setitem__(self, name: str, answers: list[list[str]]) -> None:
        self.answers[name] = answers

    def _getaddrinfo(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if not str(host).endswith(".test") or options.get("flags") == socket.AI_NUMERICHOST:
            return list(self._real(host, port, *args, **options))
        self.asked.append(host)
        answers = self.answers.get(host)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        return [info for one in now for info in self._real(one, port, *args, **options)]


def foreign_address() -> str:
    """One of this machine's that is not loopback: who connects to it comes from it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    pytest.skip("this machine has no address but loopback")
