"""A small HTTP/1.1 server on loopback for the demo's chain and API: h11 for the protocol, asyncio for the sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Self
from urllib.parse import parse_qsl, urlsplit

import h11

_BODY_LIMIT: Final = 64 * 1024 * 1024
_HEAD_LIMIT: Final = 128 * 1024  # a credential echoes a challenge and can hold a transaction
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # lower-case names; repeated fields joined by commas
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """A body of bytes goes out with its length, one of chunks as they come."""

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | AsyncIterator[bytes] = b""


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True)
class HttpServer:
    """Serves `handler` on 127.0.0.1 from entering to leaving; port 0 takes a free one."""

    handler: Handler
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await _Connection(reader, writer, self.handler).run()
        except (ConnectionError, h11.RemoteProtocolError):
            pass  # the client is gone, or never spoke HTTP
        except asyncio.CancelledError:
            # Ours: the server is closing. On 3.11 asyncio would report a cancelled connection as an error.
            if self._server is None or self._server.is_serving():
                raise
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_LIMIT)

    async def run(self) -> None:
        while True:
            request = await self._request()
            if request is None:
                return
            try:
                response = await self._handler(request)
            except Exception:
                _LOG.exception("%s %s failed", request.method, request.path)
                response = Response(500, (), b"the handler failed\n")
            await self._respond(request, response)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> Request | None:
        """None when the client closes. Raises `h11.RemoteProtocolError`."""
        head = await self._event()
        if not isinstance(head, h11.Request):
            return None
        body = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            if len(body) > _BODY_LIMIT:
                raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
        if not isinstance(event, h11.EndOfMessage):
            return None
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        target = urlsplit(head.target.decode("ascii"))
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        return Request(head.method.decode("ascii"), target.path or "/", query, headers, bytes(body))

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                going_on = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._bytes(going_on))
            self._http.receive_data(await self._reader.read(65_536))
        return event

    async def _respond(self, request: Request, response: Response) -> None:
        bodiless = request.method == "HEAD" or response.status in (204, 304)
        headers = list(response.headers)
        if isinstance(response.body, bytes) and response.status not in (204, 304):
            headers.append(("Content-Length", str(len(response.body))))
        head = h11.Response(
            status_code=response.status, headers=headers, reason=HTTPStatus(response.status).phrase
        )
        if isinstance(response.body, bytes):
            data = self._bytes(head)
            if response.body and not bodiless:
                data += self._bytes(h11.Data(data=response.body))
            self._writer.write(data + self._bytes(h11.EndOfMessage()))
        else:
            self._writer.write(self._bytes(head))
            async for chunk in response.body:
                if not bodiless:
                    self._writer.write(self._bytes(h11.Data(data=chunk)))
                    await self._writer.drain()
            self._writer.write(self._bytes(h11.EndOfMessage()))
        await self._writer.drain()

    def _bytes(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""
