"""Processes that the benchmarks start and look into: each ends with whoever started it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bench.load import cpu_seconds

ROOT: Final = Path(__file__).resolve().parents[1]
STOP_S: Final = 30
ANSWER_S: Final = 400  # longest task of a client
_PROXY_VARIABLE: Final = re.compile(r"(https?|all|no)_proxy\Z", re.IGNORECASE)


class Failed(Exception):
    """A measurement could not be made; the message says why."""


def environment(**more: str) -> dict[str, str]:
    """Ours, without what sends clients to a proxy, and without settings of bursar's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (_PROXY_VARIABLE.match(name) or name.startswith("BURSAR"))
    }
    return {**kept, "PYTHONPATH": str(ROOT), **more}


class Process:
    """A child with a line protocol: it says JSON when it is ready, and ends when its standard input does."""

    def __init__(
        self, command: list[str], *, log: Path, cwd: Path = ROOT, env: dict[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment() if env is None else env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.ready: dict[str, Any] = self.read()

    @classmethod
    def module(cls, name: str, *arguments: str, log: Path) -> Self:
        return cls([sys.executable, "-m", name, *arguments], log=log)

    def read(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(ANSWER_S, self.process.kill)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            code = self.process.wait()
            name = " ".join(self.process.args[:3]) if isinstance(self.process.args, list) else "a process"
            late = f" after {ANSWER_S} s" if code == -signal.SIGKILL else ""
            raise Failed(f"{name} ended with code {code}{late}:\n{self.log[-3000:]}")
        value: dict[str, Any] = json.loads(line)
        return value

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task).encode() + b"\n")
        self.process.stdin.flush()
        return self.read()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in path.read_text().split()]
    return found


def memory_kib(pid: int, name: str = "VmRSS") -> int:
    """`VmHWM`: the most that it ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise Failed(f"/proc/{pid}/status has no {name}")


def forget_peak(pid: int) -> None:
    """`VmHWM` begins again at what is used now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


__all__ = ["ROOT", "Failed", "Process", "cpu_seconds", "environment", "family", "forget_peak", "memory_kib"]
