"""Our own errands to a hostile server: whatever it sends, they end, and cost no memory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

import brotli  # type: ignore[import-untyped, unused-ignore]
import pytest

from proxy_addon.core.errors import OutcomeUnknown
from proxy_addon.outbound import Outbound

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ZEROS = b"\0" * (32 * 1024 * 1024)


@contextlib.asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


@pytest.mark.parametrize(("encoding", "compress"), [("br", brotli.compress), ("gzip", gzip.compress)])
async def test_a_decompression_bomb_is_not_unpacked(
    encoding: str, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = compress(ZEROS)
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        head = f"HTTP/1.1 402 Pay\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(bomb)}\r\n\r\n"
        writer.write(head.encode() + bomb)

    def refuse(*_: object) -> bytes:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr("brotli.Decompressor", refuse)
    monkeypatch.setattr("zlib.decompressobj", refuse)
    outbound = Outbound()
    async with serving(serve) as url:
        answer = await outbound.send("POST", url, {})
    await outbound.aclose()
    assert (answer.status, answer.body) == (402, b"")
    assert b"accept-encoding: identity" in asked[0].lower()


async def test_an_answer_that_drips_for_ever_ends() -> None:
    """Each read is in time; the whole is not."""
    alive = 0
    dripped, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal alive
        alive += 1
        gone.clear()
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while not writer.transport.is_closing():
                writer.write(b"X")
                await writer.drain()
                dripped.set()
                await asyncio.sleep(0.02)
        alive -= 1
        if not alive:
            gone.set()

    outbound = Outbound(timeout_s=0.2)
    async with serving(serve) as url, asyncio.timeout(60):
        while not dripped.is_set():  # a busy machine may need longer than that to connect: then it asks again
            with pytest.raises(OutcomeUnknown, match="did not answer POST"):
                await outbound.send("POST", url, {})
        await gone.wait()  # nothing of it is left in the pool
    await outbound.aclose()
