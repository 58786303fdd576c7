"""A mitmdump of its own, as a user starts it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
ADDON = Path(__file__).with_name("pay_addon.py")


@dataclass
class Mitmdump:
    process: asyncio.subprocess.Process
    port: int
    output: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self) -> int:
        """The most it has ever had in memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


@contextlib.asynccontextmanager
async def mitmdump(confdir: Path, *arguments: str, addon: bool = True, **env: str) -> AsyncIterator[Mitmdump]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", "from mitmproxy.tools.main import mitmdump; mitmdump()"),
        *("--listen-host", "127.0.0.1", "--listen-port", "0", "--ssl-insecure"),
        *("--set", f"confdir={confdir}", *(["-s", str(ADDON)] if addon else []), *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    stdout = process.stdout
    output: list[bytes] = []

    async def collect() -> None:
        while data := await stdout.read(1 << 16):
            output.append(data)

    try:
        port = 0
        while not port:
            line = await asyncio.wait_for(stdout.readline(), 30)
            assert line, b"".join(output).decode()
            output.append(line)
            if found := re.search(rb"listening at \D*127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
        collecting = asyncio.ensure_future(collect())
        yield Mitmdump(process, port, output)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
    await collecting
