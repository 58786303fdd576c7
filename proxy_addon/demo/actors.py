"""The programs that the demo runs: an unmodified curl, and bursar's own commands, each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proxy_addon.cli.supervise import ProxyProcess, start_proxy
from proxy_addon.demo.failure import DemoFailed

CURL_LIMIT_S: Final = 30
COMMAND_LIMIT_S: Final = 60
_BURSAR: Final = "import sys; sys.path.append(sys.argv.pop(1)); from proxy_addon.cli.main import main; main()"
_ROOT: Final = str(Path(__file__).resolve().parents[2])
_PROXY_VARIABLES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})


@dataclass(frozen=True, slots=True)
class Page:
    """What curl was answered."""

    status_line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name.lower()]


class Curl:
    """The curl of this machine, without any of the user's own curl settings."""

    def __init__(self) -> None:
        path = shutil.which("curl")
        if path is None:
            raise DemoFailed("the demo drives an unmodified curl, and there is none here: install curl")
        self._path = path

    async def get(self, url: str, proxy: str | None = None) -> Page:
        # -q is heard only where it comes first.
        arguments = ["-q", *(() if proxy is None else ("-x", proxy))]
        arguments += ["-sS", "-i", "--max-time", str(CURL_LIMIT_S), url]
        environ = {name: text for name, text in os.environ.items() if name.lower() not in _PROXY_VARIABLES}
        output = await _run([self._path, *arguments], environ, "curl")
        return _page(output)


class Bursar:
    """One home of bursar's, and what is run in it."""

    def __init__(self, config: Path, environ: Mapping[str, str]) -> None:
        self.config = config
        self.log = config.parent / "proxy.log"
        self._environ = {
            **{name: text for name, text in os.environ.items() if not name.startswith("BURSAR_")},
            **environ,
        }
        self._proxy: ProxyProcess | None = None

    @property
    def pid(self) -> int:
        assert self._proxy is not None
        return self._proxy.process.pid

    async def start(self) -> str:
        """The proxy's URL, once it listens. Raises `Failure` with the proxy's last words."""
        # In a thread: the chain that the proxy may ask first runs in this one.
        starting = asyncio.ensure_future(asyncio.to_thread(start_proxy, self.config, self._environ, self.log))
        try:
            await asyncio.shield(starting)
        finally:  # also when we are cancelled: a thread goes on, and what it starts must be known to be ended
            self._proxy = await starting
        return self._proxy.url

    async def kill(self) -> None:
        """kill -9."""
        if self._proxy is not None:
            self._proxy.process.kill()
            await self.stop()

    async def stop(self) -> None:
        """End the proxy, if it runs, and wait for it."""
        if self._proxy is not None:
            proxy, self._proxy = self._proxy, None
            await asyncio.to_thread(proxy.stop)

    async def command(self, *arguments: str) -> Any:
        """The JSON that ``bursar ARGUMENTS --json`` writes. Raises `DemoFailed` if it fails."""
        return json.loads(await self._run(arguments))

    async def lines(self, *arguments: str) -> list[Any]:
        """The same for a command that writes one JSON value a line."""
        return [json.loads(line) for line in (await self._run(arguments)).splitlines()]

    async def _run(self, arguments: tuple[str, ...]) -> bytes:
        whole = [sys.executable, "-P", "-c", _BURSAR, _ROOT, *arguments]
        whole += ["--config", str(self.config), "--json"]
        return await _run(whole, self._environ, f"bursar {' '.join(arguments)}")


async def _run(arguments: list[str], environ: Mapping[str, str], name: str) -> bytes:
    """Its standard output. Raises `DemoFailed` with what it wrote to standard error."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env=dict(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_LIMIT_S):
            output, errors = await process.communicate()
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise DemoFailed(f"{name} took more than {COMMAND_LIMIT_S} s") from None
        raise
    if process.returncode:
        said = errors.decode(errors="replace").strip() or output.decode(errors="replace").strip()
        raise DemoFailed(f"{name} ended with code {process.returncode}: {said}")
    return output


def _page(output: bytes) -> Page:
    head, _, body = output.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    pairs = (field.partition(":") for field in fields)
    return Page(first, tuple((name, value.strip()) for name, _, value in pairs), body)
