"""Unmodified clients: curl in a process of its own, and bare sockets for what no curl would say."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

GAVE_UP = 28  # curl's exit code


@dataclass(frozen=True)
class Got:
    """One answer as curl saw it. `exit` is curl's code: 0 for a whole answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    exit: int

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    @property
    def shown(self) -> str:
        return f"{self.status} (curl {self.exit}) {self.body[:60]!r} {self.headers}"


def curl(
    proxy: str, ca: Path, url: str, count: int, *options: str, seconds: float, environment: Mapping[str, str]
) -> list[Got]:
    """`count` requests of one process, one after the other, on one connection where that holds."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as directory:
        command = ["curl", "-q", "-sS", "-i", "--max-time", f"{seconds:g}", "-x", proxy, "--cacert", str(ca)]
        command += ["--suppress-connect-headers", "-w", "%{exitcode}\\n", "-o", f"{directory}/#1"]
        command += [*options, f"{url}#[1-{count}]"]
        done = subprocess.run(
            command, capture_output=True, timeout=count * (seconds + 10), env=dict(environment), check=False
        )
        codes = [int(line) for line in done.stdout.split()]
        assert len(codes) == count, (codes, done.stderr)
        return [_read(Path(directory) / str(index), code) for index, code in enumerate(codes, 1)]


def _read(path: Path, code: int) -> Got:
    data = path.read_bytes() if path.exists() else b""
    status = 0
    headers: tuple[tuple[str, str], ...] = ()
    while data.startswith(b"HTTP/"):
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        if status >= 200 and not 300 <= status < 400:
            break
    return Got(status, headers, data, code)


@dataclass
class Heard:
    """What a WebSocket client got. `status`: of the answer to a handshake that was refused."""

    messages: list[str] = field(default_factory=list)
    code: int | None = None
    status: int = 101
    silent: bool = False  # it gave up waiting


def converse(proxy: str, url: str, *, seconds: float) -> Heard:
    """Listen to a WebSocket until it ends, or says nothing for so long."""
    heard = Heard()
    try:
        with connect(url, proxy=proxy, open_timeout=seconds + 10, close_timeout=1) as line:
            while True:
                heard.messages.append(str(line.recv(seconds)))
    except ConnectionClosed as closed:
        heard.code = closed.rcvd.code if closed.rcvd is not None else 1006
    except InvalidStatus as refused:
        heard.status = refused.response.status_code
    except InvalidHandshake:
        heard.status = 0
    except TimeoutError:
        heard.silent = True
    return heard


def bare(port: int, data: bytes, *, seconds: float = 10.0, until: bytes | None = None) -> bytes:
    """Say `data` to the proxy as it is; all that it says until it closes, is silent, or has said `until`."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        line.sendall(data)
        try:
            while until is None or until not in said:
                more = line.recv(65_536)
                if not more:
                    break
                said += more
        except (TimeoutError, ConnectionError):
            pass
    return said
