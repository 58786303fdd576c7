"""Start and drive `tests.contract.peer` processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).parents[2]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; the test's own time limit ends it."""
    while not condition():  # noqa: ASYNC110 - no event crosses processes
        await asyncio.sleep(0.005)


class Peer:
    """One other process with the store open."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.owner_id = ""
        self.children: list[int] = []

    async def send(self, *command: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(orjson.dumps(command) + b"\n")
        await self.process.stdin.drain()

    async def read(self) -> Any:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        if not line:
            raise AssertionError(f"the peer ended with {await self.process.wait()}")
        return orjson.loads(line)

    async def answer(self) -> Any:
        """What the command returned; an error as ``{"error": …, "message": …}``."""
        found = await self.read()
        return found.get("ok", found)

    async def call(self, *command: object) -> Any:
        await self.send(*command)
        found = await self.answer()
        if command[0] == "child":
            self.children.append(found)
        return found

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def kill_after_acks(self, count: int) -> set[int]:
        """Kill -9 in the midst of a load; all numbers that it had acknowledged by then."""
        acknowledged = {await self.read() for _ in range(count)}
        self.process.send_signal(signal.SIGKILL)
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.endswith(b"\n"):
                acknowledged.add(orjson.loads(line))
        await self.process.wait()
        return acknowledged

    async def end(self) -> None:
        for child in self.children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def peers_on(
    spec: str, directory: Path, **options: object
) -> AsyncIterator[Callable[..., Awaitable[Peer]]]:
    """A function that starts one more process on the store; all are ended at the end."""
    peers: list[Peer] = []

    async def start(environment: Mapping[str, str] | None = None) -> Peer:
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "tests.contract.peer",
                spec,
                str(directory),
                orjson.dumps(options).decode(),
            ),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        peer = Peer(process)
        peers.append(peer)
        peer.owner_id = await peer.read()
        return peer

    try:
        yield start
    finally:
        for peer in peers:
            await peer.end()
