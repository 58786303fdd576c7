"""What outlives the kill deals with all that had arrived, and does not talk to the dead."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.crash.wire import pack
from tests.crash.world import World
from tests.crash.zygote import Child

QUESTIONS = 40


async def test_a_process_that_is_gone_gets_no_answers(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"".join(pack(number, ("warp", 1)) for number in range(QUESTIONS)))
    theirs.close()
    child = Child(0)
    child.ended.set_result(-9)
    child.reader, child.writer = await asyncio.open_connection(sock=ours)
    world = World("gone")
    before = world.chain.head().timestamp

    async def listener(body: object) -> None:
        raise AssertionError(body)

    await world.serve(child, listener)
    assert world.chain.head().timestamp >= before + QUESTIONS
    assert not [record for record in caplog.records if record.name == "asyncio"], caplog.text
