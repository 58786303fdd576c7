"""Unmodified clients."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.connection  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.errors  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import h2.events  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2


@dataclass
class Got:
    code: int  # curl's exit code
    head: bytes
    body: bytes
    stderr: bytes

    @property
    def status(self) -> int:
        """Of the last header block: before it may be CONNECT's and 100-continue's."""
        blocks = [b for b in self.head.split(b"\r\n\r\n") if b.strip()]
        return int(blocks[-1].split(b" ")[1])

    @property
    def last_head(self) -> bytes:
        return [b for b in self.head.split(b"\r\n\r\n") if b.strip()][-1]


async def curl(proxy: str, *arguments: str, stdin: bytes | None = None) -> Got:
    process = await asyncio.create_subprocess_exec(
        *("curl", "-q", "-sS", "-k", "--raw", "--noproxy", "", "--proxy", proxy, "--max-time", "60"),
        *("-o", "-", "-D", "/dev/stderr", *arguments),
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate(stdin)
    except asyncio.CancelledError:  # it leaves
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Got(process.returncode, err if process.returncode == 0 else b"", out, err)


async def raw(port: int, sent: bytes) -> bytes:
    """Everything that comes back on one plain connection, until the proxy closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(-1), 30)
    finally:
        writer.close()


class Tunnel:
    """A TLS connection to a server through the proxy's CONNECT; speaks HTTP/2."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.answers: dict[int, Answer2] = {}
        self.changed = asyncio.Event()
        self._pump = asyncio.ensure_future(self._read())

    @classmethod
    async def open(cls, proxy_port: int, host: str, port: int) -> Tunnel:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy_port)
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        await writer.start_tls(context, server_hostname=host)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        tunnel = cls(reader, writer)
        tunnel.authority = f"{host}:{port}"
        return tunnel

    authority: str

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(1 << 16):
                for event in self.h2.receive_data(data):
                    match event:
                        case h2.events.ResponseReceived():
                            answer = self.answers[event.stream_id]
                            answer.headers = [(_s(n), _s(v)) for n, v in event.headers]
                        case h2.events.DataReceived():
                            self.answers[event.stream_id].body += event.data
                            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        case h2.events.TrailersReceived():
                            self.answers[event.stream_id].trailers = [
                                (_s(n), _s(v)) for n, v in event.headers
                            ]
                        case h2.events.StreamEnded():
                            self.answers[event.stream_id].ended = True
                        case h2.events.StreamReset():
                            self.answers[event.stream_id].reset = int(event.error_code)
                self.flush()
                self.changed.set()
        for answer in self.answers.values():
            if not answer.ended:
                answer.reset = -1
        self.changed.set()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def request(
        self, method: str, path: str, headers: list[tuple[str, str]] | None = None, *, end: bool = True
    ) -> Answer2:
        stream = self.h2.get_next_available_stream_id()
        answer = self.answers[stream] = Answer2(stream)
        pseudo = [
            (":method", method),
            (":scheme", "https"),
            (":path", path),
            (":authority", self.authority),
        ]
        self.h2.send_headers(stream, pseudo + (headers or []), end_stream=end)
        self.flush()
        return answer

    async def send(self, answer: Answer2, data: bytes, *, end: bool = False) -> None:
        while data:
            room = min(self.h2.local_flow_control_window(answer.stream), self.h2.max_outbound_frame_size)
            if not room:
                self.changed.clear()
                await asyncio.wait_for(self.changed.wait(), 30)
                continue
            part, data = data[:room], data[room:]
            self.h2.send_data(answer.stream, part, end_stream=end and not data)
            self.flush()
            await self.writer.drain()

    def end(self, answer: Answer2, trailers: list[tuple[str, str]] | None = None) -> None:
        if trailers:
            self.h2.send_headers(answer.stream, trailers, end_stream=True)
        else:
            self.h2.end_stream(answer.stream)
        self.flush()

    def reset(self, answer: Answer2) -> None:
        self.h2.reset_stream(answer.stream, h2.errors.ErrorCodes.CANCEL)
        self.flush()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 30)

    async def done(self, answer: Answer2) -> Answer2:
        await self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    async def close(self) -> None:
        self._pump.cancel()
        self.writer.close()
        await asyncio.gather(self._pump, return_exceptions=True)


@dataclass
class Answer2:
    stream: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    trailers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        return int(dict(self.headers)[":status"]) if self.headers else None


def _s(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()
