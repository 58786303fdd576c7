"""The proxies that are compared, each a process of its own.

`plain` is ``mitmdump -q`` with an empty addon; `ours` is ``bursar run -- -q``; `script` is
``mitmdump -q -s proxy_addon/addon.py``. All of one version of mitmproxy, with one certificate authority.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.homes import KEY_VARIABLE, Home
from bench.processes import ROOT, Failed, environment, family

MITMDUMP: Final = Path(sys.executable).with_name("mitmdump")
EMPTY: Final = Path(__file__).with_name("empty_addon.py")
ADDON: Final = ROOT / "proxy_addon" / "addon.py"
READY_S: Final = 60


class Proxy:
    """Started when made; `ready` waits for it."""

    def __init__(
        self, kind: str, command: Sequence[str], log: Path, *, port: int = 0, home: Home | None = None
    ) -> None:
        self.kind = kind
        self.home = home
        self.port = port
        self._log = log
        more = {} if home is None else {KEY_VARIABLE: home.key}
        self.began = time.monotonic()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                list(command),
                cwd=log.parent,
                env=environment(PYTHONUNBUFFERED="1", **more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> Self:
        end = time.monotonic() + READY_S
        while not (self._listens() if self.port else self._announced()):
            if self.process.poll() is not None:
                raise Failed(f"{self.kind} ended with code {self.process.returncode}:\n{self.log[-3000:]}")
            if time.monotonic() > end:
                self.kill()
                raise Failed(f"{self.kind} did not listen within {READY_S} s:\n{self.log[-3000:]}")
            time.sleep(0.005)
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _announced(self) -> bool:
        for line in self.log.splitlines():
            if line.startswith('{"ready"'):
                self.port = int(json.loads(line)["url"].rpartition(":")[2])
                return True
        return False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        return family(self.process.pid)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """SIGTERM, and an orderly end. Raises `Failed` if it is none."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(READY_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.kind} did not stop:\n{self.log[-3000:]}") from None
        if code != 0 or "Traceback" in self.log:
            raise Failed(f"{self.kind} ended with code {code}:\n{self.log[-3000:]}")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        try:
            return self.ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()


def plain(folder: Path, ca: Path) -> Proxy:
    return Proxy("plain mitmdump", _mitmdump(ca, port := _free_port(), EMPTY), _log(folder), port=port)


def script(folder: Path, home: Home) -> Proxy:
    """The addon under plain mitmdump."""
    command = _mitmdump(home.ca, port := _free_port(), ADDON, "--set", f"bursar_config={home.config}")
    return Proxy("mitmdump -s addon.py", command, _log(folder), port=port, home=home)


def ours(folder: Path, home: Home, *options: str) -> Proxy:
    """`options` are those of ``bursar run``."""
    command = [sys.executable, "-m", "proxy_addon.cli.main", "run", "--config", str(home.config), "--json"]
    command += ["--listen", "127.0.0.1:0", *options, "--", "-q"]
    return Proxy("bursar run", command, _log(folder), home=home)


def knows_workers() -> bool:
    """Does ``bursar run`` have the option?"""
    command = [sys.executable, "-m", "proxy_addon.cli.main", "run", "--help"]
    found = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    return "--workers" in found.stdout


def _mitmdump(ca: Path, port: int, addon: Path, *more: str) -> list[str]:
    command = [str(MITMDUMP), "-q", "--set", f"confdir={ca}", "-s", str(addon), *more]
    return [*command, "--listen-host", "127.0.0.1", "--listen-port", str(port)]


def _free_port() -> int:
    """Free now: mitmdump does not say which one it took when it is quiet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _log(folder: Path) -> Path:
    return folder / f"proxy-{len(list(folder.glob('proxy-*.log')))}.log"
