"""Unmodified clients, each in a process of its own, that know of the proxy by their environment only."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.proxies import Proxy

KINDS = ("curl", "requests", "httpx")
_SCRIPT = Path(__file__).with_name("client_script.py")
_SECONDS = 60


@dataclass(frozen=True)
class Got:
    """One answer, as the client saw it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    head: bytes = b""  # curl only: the header as it came

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def payment_fields(self) -> list[str]:
        """Names of fields that tell of a payment: a paid answer has none."""
        return [
            name for name, _ in self.headers if "payment" in name.lower() or name.lower().startswith("bursar")
        ]


def fetch(kind: str, proxy: Proxy, url: str, count: int = 1, *options: str) -> list[Got]:
    """`count` GETs of one client process, one after the other."""
    return finish(start(kind, proxy, url, count, *options))


@dataclass
class Running:
    """A client process at work."""

    process: subprocess.Popen[bytes]
    count: int
    folder: tempfile.TemporaryDirectory[str] | None = None  # curl's


def start(kind: str, proxy: Proxy, url: str, count: int = 1, *options: str) -> Running:
    """Several clients at a time: start all, then `finish` each."""
    if kind == "curl":
        return _start_curl(proxy, url, count, options)
    command = [sys.executable, str(_SCRIPT), kind, str(count), url, *options]
    return Running(_popen(command, proxy.client_environment()), count)


def finish(running: Running) -> list[Got]:
    out, errors = running.process.communicate(timeout=_SECONDS)
    assert running.process.returncode == 0, (running.process.returncode, errors.decode(), out[-2000:])
    if running.folder is not None:
        with running.folder:
            return [_curl_answer(Path(running.folder.name), index) for index in range(1, running.count + 1)]
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == running.count
    return [
        Got(one["status"], [(key, value) for key, value in one["headers"]], base64.b64decode(one["body"]))
        for one in answers
    ]


def curl(proxy: Proxy | None, url: str, *options: str) -> Got:
    """One request by curl; directly, without a proxy."""
    return finish(_start_curl(proxy, url, 1, options))[0]


def _start_curl(proxy: Proxy | None, url: str, count: int, options: Sequence[str]) -> Running:
    folder = tempfile.TemporaryDirectory(prefix="curl-")
    # One process, one connection; curl counts in the fragment, which it does not send.
    command = ["curl", "-q", "-sS", "--max-time", str(_SECONDS), "--suppress-connect-headers", "-i", "--raw"]
    command += ["-o", f"{folder.name}/#1", *options, f"{url}#[1-{count}]"]
    if proxy is None:
        command[2:2] = ["--noproxy", "*", "-k"]
        return Running(_popen(command, None), count, folder)
    return Running(_popen(command, proxy.client_environment()), count, folder)


def _popen(command: list[str], environment: dict[str, str] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _curl_answer(folder: Path, index: int) -> Got:
    """Split ``-i --raw`` output: the last header block (before it may be interim ones), and the body."""
    data = (folder / str(index)).read_bytes()
    while True:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status >= 200:
            break
    pairs = [line.partition(":") for line in lines[1:]]
    headers = [(name, value.strip()) for name, _, value in pairs]
    got = Got(status, headers, data, head)
    if (got.header("transfer-encoding") or "").lower() == "chunked":
        got = Got(status, headers, _dechunk(data), head)
    return got


def _dechunk(data: bytes) -> bytes:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            return body
        body, data = body + data[:length], data[length + 2 :]
