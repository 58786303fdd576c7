"""Upstream servers that do exactly what a test says, on real sockets: HTTP/1.1, and HTTP/2 over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import h2.config  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.connection  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.errors  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.events  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.exceptions  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.settings  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Headers = list[tuple[str, str]]


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def server_tls(pem: Path, alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols([alpn])
    return context


@dataclass
class Request:
    """One request as the server saw it."""

    connection: int
    method: str
    path: str
    headers: Headers
    body: bytes = b""
    complete: bool = False
    stream: int = 0

    def get(self, name: str) -> str | None:
        return next((v for n, v in self.headers if n.lower() == name), None)

    @property
    def paid(self) -> bool:
        return "c4n4ry" in (self.get("authorization") or "")


@dataclass
class Upstream:
    """What a server has seen, whatever its protocol."""

    scheme: str
    handler: Handler
    port: int = 0
    connections: int = 0
    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    listener: asyncio.Server = field(init=False)

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)


class Gone(Exception):
    """The proxy has closed the connection, or reset the stream."""


class Exchange:
    """One request and its answer, on HTTP/1.1."""

    def __init__(
        self, upstream: Upstream, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.upstream, self.request, self._reader, self.writer = upstream, request, reader, writer
        self.keep = True

    async def chunk(self) -> bytes:
        """The next bytes of the request's body; empty at its end."""
        request = self.request
        if request.complete:
            return b""
        try:
            if (request.get("transfer-encoding") or "").lower() == "chunked":
                size = int(await self._reader.readuntil(b"\r\n"), 16)
                data = (await self._reader.readexactly(size + 2))[:-2]
            else:
                left = int(request.get("content-length") or 0) - len(request.body)
                data = await self._reader.read(min(left, 1 << 16)) if left else b""
                if left and not data:
                    raise Gone
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Gone from error
        request.complete = not data
        request.body += data
        self.upstream.changed.set()
        return data

    async def body(self) -> bytes:
        while await self.chunk():
            pass
        return self.request.body

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def respond(self, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
        fields = [*(headers or []), ("Content-Length", str(len(body)))]
        head = f"HTTP/1.1 {status} Whatever\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields) + "\r\n"
        self.write(head.encode() + (b"" if self.request.method == "HEAD" else body))
        await self.writer.drain()

    async def begin(self, status: int, headers: Headers | None = None) -> None:
        fields = [*(headers or []), ("Transfer-Encoding", "chunked")]
        self.write(f"HTTP/1.1 {status} OK\r\n".encode())
        self.write("".join(f"{n}: {v}\r\n" for n, v in fields).encode() + b"\r\n")
        await self.writer.drain()

    async def data(self, data: bytes) -> None:
        self.write(b"%x\r\n%s\r\n" % (len(data), data))
        try:
            await self.writer.drain()
            await asyncio.sleep(0)  # or who writes without end never hears that the connection is lost
        except ConnectionError as error:
            raise Gone from error

    async def end(self) -> None:
        self.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the proxy has closed its side."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass

    def close(self) -> None:
        self.keep = False
        self.writer.close()


Handler = Callable[["Exchange | Exchange2"], Awaitable[None]]


@contextlib.asynccontextmanager
async def h1_server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    upstream = Upstream("https" if tls else "http", handler)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        number = upstream.connections
        try:
            while True:
                try:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                except (asyncio.IncompleteReadError, ConnectionError):
                    return
                first, *lines = head[:-4].split("\r\n")
                method, path, _ = first.split(" ")
                headers = [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines)]
                request = Request(number, method, path, headers)
                upstream.requests.append(request)
                upstream.changed.set()
                exchange = Exchange(upstream, request, reader, writer)
                await upstream.handler(exchange)
                if not exchange.keep:
                    return
                await exchange.body()
        except (Gone, OSError):
            pass
        except Exception as error:
            upstream.errors.append(repr(error))
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    upstream.listener = server
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not upstream.errors, upstream.errors


class Exchange2:
    """One request and its answer, on HTTP/2."""

    def __init__(self, upstream: Upstream, request: Request, peer: Peer2) -> None:
        self.upstream, self.request, self.peer = upstream, request, peer
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.reset: int | None = None

    async def chunk(self) -> bytes:
        if self.request.complete:
            return b""
        data = await self.chunks.get()
        if data is None:
            raise Gone
        self.request.complete = not data
        self.request.body += data
        self.upstream.changed.set()
        return data

    async def body(self) -> bytes:
        while await self.chunk():
            pass
        return self.request.body

    async def begin(self, status: int, headers: Headers | None = None, *, end: bool = False) -> None:
        fields = [(":status", str(status)), *((n.lower(), v) for n, v in headers or [])]
        self.peer.h2.send_headers(self.request.stream, fields, end_stream=end)
        await self.peer.flush()

    async def data(self, data: bytes, *, end: bool = False) -> None:
        while data:
            if self.reset is not None or self.peer.closed:
                raise Gone
            room = min(
                self.peer.h2.local_flow_control_window(self.request.stream),
                self.peer.h2.max_outbound_frame_size,
            )
            if not room:
                self.peer.window.clear()
                await self.peer.window.wait()
                continue
            part, data = data[:room], data[room:]
            self.peer.h2.send_data(self.request.stream, part, end_stream=end and not data)
            await self.peer.flush()

    async def end(self, trailers: Headers | None = None) -> None:
        if self.reset is not None or self.peer.closed:
            raise Gone
        if trailers:
            self.peer.h2.send_headers(self.request.stream, trailers, end_stream=True)
        else:
            self.peer.h2.end_stream(self.request.stream)
        await self.peer.flush()

    async def respond(self, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
        if self.request.method == "HEAD":
            await self.begin(status, [*(headers or []), ("content-length", str(len(body)))], end=True)
            return
        await self.begin(status, [*(headers or []), ("content-length", str(len(body)))], end=not body)
        if body:
            await self.data(body, end=True)

    async def rst(self, code: h2.errors.ErrorCodes) -> None:
        self.peer.h2.reset_stream(self.request.stream, code)
        await self.peer.flush()

    async def goaway(self, last: int) -> None:
        self.peer.h2.close_connection(last_stream_id=last)
        await self.peer.flush()

    async def gone(self) -> None:
        while self.reset is None and not self.peer.closed:
            await self.chunks.get()

    def close(self) -> None:
        self.peer.writer.close()


class Peer2:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.window = asyncio.Event()
        self.closed = False

    async def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())
        with contextlib.suppress(OSError):
            await self.writer.drain()


@contextlib.asynccontextmanager
async def h2_server(
    handler: Handler, tls: ssl.SSLContext, *, max_streams: int | None = None
) -> AsyncIterator[Upstream]:
    upstream = Upstream("https", handler)
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def handle(exchange: Exchange2) -> None:
        try:
            await upstream.handler(exchange)
        except (Gone, h2.exceptions.ProtocolError):
            pass
        except Exception as error:
            upstream.errors.append(repr(error))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        number = upstream.connections
        peer = Peer2(reader, writer)
        open_: dict[int, Exchange2] = {}
        peer.h2.initiate_connection()
        if max_streams is not None:
            peer.h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: max_streams})
        try:
            await peer.flush()
            while data := await reader.read(1 << 16):
                for event in peer.h2.receive_data(data):
                    match event:
                        case h2.events.RequestReceived():
                            fields = [(_s(n), _s(v)) for n, v in event.headers]
                            named = dict(fields)
                            request = Request(
                                number,
                                named[":method"],
                                named[":path"],
                                [f for f in fields if not f[0].startswith(":")],
                                stream=event.stream_id,
                            )
                            upstream.requests.append(request)
                            upstream.changed.set()
                            exchange = open_[event.stream_id] = Exchange2(upstream, request, peer)
                            spawn(handle(exchange))
                        case h2.events.DataReceived():
                            peer.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                            if event.data:
                                open_[event.stream_id].chunks.put_nowait(event.data)
                        case h2.events.StreamEnded():
                            open_[event.stream_id].chunks.put_nowait(b"")
                        case h2.events.StreamReset():
                            open_[event.stream_id].reset = int(event.error_code)
                            open_[event.stream_id].chunks.put_nowait(None)
                            upstream.changed.set()
                        case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                            peer.window.set()
                await peer.flush()
        except (OSError, h2.exceptions.ProtocolError):  # TLS errors are OSErrors
            pass
        except Exception as error:
            upstream.errors.append(repr(error))
        finally:
            peer.closed = True
            peer.window.set()
            for exchange in open_.values():
                exchange.chunks.put_nowait(None)
            writer.close()

    server = await asyncio.start_server(lambda r, w: spawn(serve(r, w)), "127.0.0.1", 0, ssl=tls)
    upstream.listener = server
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not upstream.errors, upstream.errors


def _s(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
