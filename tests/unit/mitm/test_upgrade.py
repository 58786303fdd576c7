"""A connection that becomes something else, behind a 402."""

from __future__ import annotations

import asyncio

import pytest

from proxy_addon.mitm.gate import Outcome
from proxy_addon.mitm.paying import Limits
from tests.unit.mitm.fake_gate import FakeGate
from tests.unit.mitm.servers import Exchange, Exchange2
from tests.unit.mitm.wires import Wiring

TEXT = b"\x81\x85\x00\x00\x00\x00hello"  # a masked WebSocket text frame, the mask all zero
ECHO = b"\x81\x05hello"
CLOSE = b"\x88\x82\x00\x00\x00\x00\x03\xe8"


@pytest.mark.parametrize("protocol", ["websocket", "echo"])
async def test_upgrade_after_a_payment(plain_wiring: Wiring, gate: FakeGate, protocol: str) -> None:
    async def upgrading(x: Exchange | Exchange2) -> None:
        assert isinstance(x, Exchange)
        if not x.request.paid:
            # slow, so that a timer of ours is still running when the connection is no HTTP any more
            await x.begin(402)
            await asyncio.sleep(0.2)
            await x.data(b"pay")
            await x.end()
            return
        assert x.request.get("upgrade") == protocol
        x.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: %s\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n" % protocol.encode()
        )
        got = await x._reader.readexactly(len(TEXT))
        mask = got[2:6]  # mitmproxy masks anew
        assert bytes(b ^ mask[i % 4] for i, b in enumerate(got[6:])) == b"hello"
        x.write(ECHO if protocol == "websocket" else b"hello")
        await x.gone()
        x.close()

    async with plain_wiring.line(upgrading, gate, Limits(answer_seconds=0.4)) as line:
        reader, writer = await asyncio.open_connection("127.0.0.1", line.proxy.port)
        writer.write(
            f"GET {line.upstream.url('/')} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            f"Upgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert head.startswith(b"HTTP/1.1 101")
        assert gate.tickets[0].outcome is Outcome.COMPLETE
        await asyncio.sleep(0.5)  # all timers have fired
        writer.write(TEXT)
        answer = ECHO if protocol == "websocket" else b"hello"
        assert await asyncio.wait_for(reader.readexactly(len(answer)), 30) == answer
        writer.write(CLOSE)
        writer.close()
    assert [r.paid for r in line.upstream.requests] == [False, True]
