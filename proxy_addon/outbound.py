"""Requests of our own to a server that we pay: probes, top-ups, closes, vouchers beside a stream.

Not through any proxy, no redirects (a credential never follows one), TLS always verified, answers capped in
time and size; only to addresses that `Egress` allows, and to the very ones that it has checked.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import h11

from proxy_addon.core.addresses import Asker
from proxy_addon.core.errors import LocalRefusal, OutcomeUnknown
from proxy_addon.egress import Egress
from proxy_addon.exchange import AnswerTooLong, Connection, Limits, Reply

ANSWER_LIMIT: Final = 64 * 1024
NEXT_ADDRESS_S: Final = 3.0
"""So long may an address keep us waiting while there is another one to try."""
MOST_IDLE: Final = 64
"""Connections to one server that are kept for the next request. There is no limit to those in use: a stream each."""

# Identity: a kilobyte of br can fill the memory before anybody has counted.
_OURS: Final = (("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "bursar"))


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `headers` holds every field, in order, names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)


class Origin(NamedTuple):
    """Where a connection leads; all requests to it may share one."""

    tls: bool
    host: str
    port: int


class Outbound:
    """All of them, with one pool of connections."""

    def __init__(
        self, egress: Egress | None = None, *, extra_ca: Path | None = None, timeout_s: float = 20.0
    ) -> None:
        self._timeout_s = timeout_s
        self._pool = Pool(egress or Egress(), extra_ca)

    async def send(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """One request without a body. Raises `OutcomeUnknown` if no whole answer came: it may have arrived.

        Who is cancelled before the request has left sends none; afterwards the exchange runs to its end, without
        anybody to hear of it.
        """
        try:
            origin, authority, target = _parts(url)
        except ValueError:  # nothing left; its message holds the URL
            raise OutcomeUnknown(f"the host of this {method} is none that can be reached") from None
        try:
            length = (("Content-Length", "0"),) if method == "POST" else ()
            fields = [("Host", authority), *_OURS, *length, *headers.items()]
            request = h11.Request(method=method, target=target, headers=fields)
            # The whole of it has an end, not only each read: a server may send a byte now and then for ever.
            ends_at = asyncio.get_running_loop().time() + self._timeout_s * 1.5
            connection = await self._pool.connection(origin, self._timeout_s)
            return _answer(await connection.send(request, Limits(ends_at, self._timeout_s, ANSWER_LIMIT)))
        except LocalRefusal as error:  # nothing left; who asked has one way to deal with no answer
            raise OutcomeUnknown(str(error)) from None
        except AnswerTooLong:
            raise OutcomeUnknown(
                f"{origin.host} answered {method} with more than {ANSWER_LIMIT} bytes"
            ) from None
        except (h11.ProtocolError, OSError, ValueError) as error:  # their messages may hold what was sent
            raise OutcomeUnknown(f"{origin.host} did not answer {method}: {type(error).__name__}") from None

    async def aclose(self) -> None:
        """Requests that are under way have no answer then."""
        await self._pool.aclose()


class Pool:
    """Connections to the servers, by where they lead."""

    def __init__(self, egress: Egress, extra_ca: Path | None) -> None:
        self._egress = egress
        self._extra_ca = extra_ca
        self._context: ssl.SSLContext | None = None
        self._idle: dict[Origin, list[Connection]] = {}
        self._all: dict[Connection, Origin] = {}

    async def connection(self, origin: Origin, timeout_s: float) -> Connection:
        """One that is idle, or a new one. Raises `LocalRefusal` if it may not go there, ``OSError``."""
        idle = self._idle.get(origin)
        while idle:
            kept = idle.pop()  # the one that was used last: the others may expire
            if kept.usable:
                return kept
        async with asyncio.timeout(timeout_s):
            connected = await self._dial(origin)
            made = Connection(self._keep, self._forget)
            self._all[made] = origin
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: made,
                    sock=connected,
                    ssl=self._tls() if origin.tls else None,
                    server_hostname=origin.host if origin.tls else None,
                )
            except BaseException:  # asyncio closes the socket, and does not tell `made` of a failed handshake
                self._forget(made)
                raise
        return made

    async def aclose(self) -> None:
        for one in list(self._all):
            one.close()
        for _ in range(4):  # turns in which they let go of their sockets; TLS takes one more
            await asyncio.sleep(0)

    async def _dial(self, origin: Origin) -> socket.socket:
        """The first of the addresses that have been checked that takes a connection; nothing is looked up again."""
        *others, last = await self._egress.resolve(origin.host, origin.port, Asker.OURSELVES)
        for info in others:
            try:
                async with asyncio.timeout(NEXT_ADDRESS_S):
                    return await _connected(info)
            except OSError:  # the last one's failure is told
                continue
        return await _connected(last)

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            import certifi

            context = ssl.create_default_context(cafile=certifi.where())
            if self._extra_ca is not None:
                context.load_verify_locations(self._extra_ca)
            context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return self._context

    def _keep(self, connection: Connection) -> None:
        idle = self._idle.setdefault(self._all[connection], [])
        if len(idle) < MOST_IDLE:
            idle.append(connection)
        else:
            connection.close()

    def _forget(self, connection: Connection) -> None:
        origin = self._all.pop(connection, None)
        if origin is None:
            return
        idle = self._idle.get(origin, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(origin, None)


async def _connected(info: Any) -> socket.socket:
    family, kind, protocol, _, address = info
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def preload() -> Any:
    """httpx takes a tenth of a second to import. Of it, only what it makes of a URL is used here."""
    import httpx

    return httpx


@lru_cache(maxsize=1024)
def _parts(url: str) -> tuple[Origin, str, bytes]:
    """Where it leads, and what the request says of it. Raises ``ValueError``."""
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ValueError("no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise ValueError("no URL of a web server")
    tls = parsed.scheme == "https"
    port = parsed.port or (443 if tls else 80)
    return Origin(tls, parsed.raw_host.decode(), port), parsed.netloc.decode(), parsed.raw_path


def _answer(reply: Reply) -> Answer:
    fields = tuple((name.decode("ascii"), _text(value)) for name, value in reply.fields)
    plain = all(value.lower() == "identity" for name, value in fields if name == "content-encoding")
    return Answer(reply.status, fields, reply.body if plain else b"")  # packed is not what we asked for


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
