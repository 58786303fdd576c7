"""`bursar run --workers`: how it starts, what ends it, and that secrets reach the workers and nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy_addon.cli.workers import TOO_OFTEN, WINDOW_S, Restarts
from tests.unit.cli.conftest import KEY, KEY_ENV, ROOT, Bursar, clean_environ, command_line

DEADLINE_S = 60


def test_when_a_worker_is_started_again() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(1000.0 + second) for second in range(TOO_OFTEN)]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert restarts.pause(1000.0 + WINDOW_S - 0.1) is None


def test_one_that_dies_now_and_then_is_always_started_again() -> None:
    restarts = Restarts()
    assert {restarts.pause(number * WINDOW_S) for number in range(100)} == {0.25}


class Team:
    """A running `bursar run --workers 2`."""

    def __init__(self, config: Path, *arguments: str, more: dict[str, Any] | None = None) -> None:
        self.process = subprocess.Popen(
            command_line(
                *("run", "-c", str(config), "--json", "--listen", "127.0.0.1:0", "--workers", "2"), *arguments
            ),
            **{
                "env": clean_environ(PYTHONPATH=str(ROOT), **{KEY_ENV: KEY}),
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **(more or {}),
            },
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError(self.process.communicate()[1])


@contextlib.contextmanager
def team(config: Path, *arguments: str, **more: Any) -> Iterator[Team]:
    one = Team(config, *arguments, more=more)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.fresh  # it looks at command lines
def test_a_secret_in_a_descriptor_is_for_each_of_them(config: Path) -> None:
    read, write = os.pipe()
    os.write(write, KEY.encode() + b"\n")
    os.close(write)
    text = config.read_text()
    assert f'private_key_env = "{KEY_ENV}"' in text
    config.write_text(text.replace(f'private_key_env = "{KEY_ENV}"', f'private_key_from = "fd:{read}"'))
    environ = clean_environ(PYTHONPATH=str(ROOT))
    life, line = os.pipe()
    inherited = {"pass_fds": (read, life), "env": environ, "stderr": subprocess.STDOUT}
    with team(config, "--lifeline-fd", str(life), **inherited) as one:
        os.close(read)
        os.close(life)
        ready = one.ready()
        workers = ready["workers"]
        assert (ready["pid"], len(set(workers))) == (one.process.pid, 2)
        assert len(list(Path(ready["ledger"]).glob("*.jsonl"))) == 2
        for pid in (ready["pid"], *workers):
            assert KEY not in Path(f"/proc/{pid}/cmdline").read_text()
        # And for one that comes later, when the pipe has long been read.
        os.kill(workers[0], signal.SIGKILL)
        assert one.process.stdout is not None
        for text in one.process.stdout:
            assert "is empty" not in text
            if "bursar: pays as" in text:
                break
        os.close(line)  # who started it has died
        assert one.process.wait(DEADLINE_S) == 0
        assert all(gone(pid) for pid in workers)


def test_what_is_wrong_is_said_once(config: Path, run_bursar: Bursar) -> None:
    listen = ("--listen", "127.0.0.1:0", "--workers", "2")
    done = run_bursar("run", "-c", str(config), *listen, "--", "-w", str(config.with_name("traffic.flows")))
    assert done.returncode == 2
    why = "bursar: mitmproxy's option save_stream_file is for one process: leave it, or run without --workers"
    assert done.stderr.splitlines() == [why]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_bursar("run", "-c", str(config), "--listen", f"127.0.0.1:{port}", "--workers", "2")
    assert (done.returncode, done.stderr) == (
        1,
        f"bursar: 127.0.0.1:{port} is in use, maybe by another bursar: stop that, or choose with --listen\n",
    )


def test_a_crash_loop_ends_all_with_the_reason(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    """In this process, so that its patience can be shorter. The config was spoilt while they ran."""
    from proxy_addon.cli import workers
    from proxy_addon.cli.failure import Failure
    from proxy_addon.config import load

    monkeypatch.setattr(workers, "TOO_OFTEN", 1)
    monkeypatch.setattr(workers, "harden", lambda: None)
    monkeypatch.setenv(KEY_ENV, KEY)
    told: list[workers.Workers] = []

    def tell(ready: workers.Workers) -> None:
        told.append(ready)
        config.write_text("this is no TOML")
        os.kill(ready.workers[0], signal.SIGKILL)

    with pytest.raises(
        Failure, match="worker 1 ended with code 3, and has died 2 times within 60 s: all"
    ) as end:
        workers.supervise_workers(
            config, load(config), number=2, host="127.0.0.1", port=0, extra=(), tell=tell, lifeline=None
        )
    assert end.value.exit_code == 3
    assert all(gone(pid) for pid in told[0].workers)
