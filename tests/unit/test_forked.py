"""A forked program finds what a new process finds, and ends as one."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forked

pytestmark = pytest.mark.skipif(not forked.POSSIBLE, reason="programs are not forked here")

PROBE = """
import gc, json, os, resource, signal, sys, tempfile, threading, time

def stream(one):
    raw = getattr(one.buffer, "raw", one.buffer)
    return [one.encoding, one.errors, one.line_buffering, one.write_through, raw is one.buffer, one.fileno()]

def umask():
    now = os.umask(0)
    os.umask(now)
    return now

print(json.dumps({
    "argv": sys.argv,
    "environ": dict(os.environ),
    "path": sys.path,
    "cwd": os.getcwd(),
    "umask": umask(),
    "parent": os.getppid(),
    "leads": [os.getpid() == os.getsid(0), os.getpid() == os.getpgrp()],
    "limits": [resource.getrlimit(one) for one in range(16)],
    "signals": {int(one): str(signal.getsignal(one)).split(" at ")[0] for one in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "inherited": [os.get_inheritable(one) for one in range(3)],
    "threads": threading.active_count(),
    "streams": [stream(one) for one in (sys.stdin, sys.stdout, sys.stderr)],
    "recursion": sys.getrecursionlimit(),
    "collector": [gc.isenabled(), gc.get_threshold()],
    "bytecode": sys.dont_write_bytecode,
    "name": [__name__, sys.modules["__main__"].__dict__ is globals()],
    "temporary": tempfile.gettempdir(),
    "zone": time.tzname,
    "excepthook": sys.excepthook is sys.__excepthook__,
}))
"""


@pytest.fixture(autouse=True)
def _switched() -> Iterator[None]:
    forked.switch(True)
    yield
    forked.switch(False)


def both(*arguments: str, **options: Any) -> tuple[subprocess.CompletedProcess[str], ...]:
    """The same in a forked process, and in a new one."""
    command = [sys.executable, *arguments]
    usual = {"capture_output": True, "text": True, "timeout": 60, "check": False, "stdin": subprocess.DEVNULL}
    done = subprocess.run(command, **(usual | options))
    with forked.fresh():
        new = subprocess.run(command, **(usual | options))
    assert (done.returncode, new.returncode) == (new.returncode, new.returncode), done.stderr
    return done, new


def environment(**more: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return kept | more


@pytest.mark.parametrize(
    ("how", "options"),
    [
        (("-c", PROBE, "one", "--two"), {"env": environment()}),
        (("-u", "-c", PROBE), {"start_new_session": True, "env": environment()}),
        (("-P", "-c", PROBE), {"env": environment(PYTHONUNBUFFERED="1", MORE="x")}),
        (("probe.py", "-c"), {"env": environment(PYTHONPATH="/nowhere:here", PYTHONDONTWRITEBYTECODE="1")}),
        (("-m", "probe", "-u"), {"env": environment(TMPDIR=".")}),
    ],
    ids=["code", "unbuffered", "safe-path", "script", "module"],
)
def test_it_finds_what_a_new_process_finds(
    how: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    before = os.umask(0o027)
    cores = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, cores[1]))
    interrupted = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found, wanted = (json.loads(one.stdout) for one in both(*how, cwd=tmp_path, **options))
    finally:
        os.umask(before)
        resource.setrlimit(resource.RLIMIT_CORE, cores)
        signal.signal(signal.SIGHUP, interrupted)
    assert found == wanted
    assert found["parent"] == os.getpid()
    assert found["umask"] == 0o027


@pytest.mark.parametrize(
    ("code", "returned"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('said')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
        ("import os; os.kill(os.getpid(), 2)", -signal.SIGINT),
        (
            "import atexit, threading; atexit.register(print, 'last'); threading.Thread(target=print).start()",
            0,
        ),
        ("import sys; sys.stdout.write('no end of line'); sys.stderr.write('neither')", 0),
    ],
)
def test_it_ends_as_a_new_process(code: str, returned: int) -> None:
    found, wanted = both("-c", code)
    assert found.returncode == returned
    assert found.stdout == wanted.stdout
    assert found.stderr.splitlines()[-1:] == wanted.stderr.splitlines()[-1:]


def test_a_reader_that_has_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    options = {"stdout": write, "stderr": subprocess.PIPE, "capture_output": False, "env": environment()}
    found, wanted = both("-c", "print('x')", **options)
    os.close(write)
    assert found.returncode == 120
    assert found.stderr.splitlines()[-1] == wanted.stderr.splitlines()[-1]


def test_descriptors_keep_their_numbers() -> None:
    read, write = os.pipe()
    try:
        both("-c", f"import os; os.write({write}, b'x'); os.close({write})", pass_fds=(write,))
        assert os.read(read, 10) == b"xx"
    finally:
        os.close(read)
        os.close(write)


def test_what_it_starts_is_forked_as_well_and_is_its_own(tmp_path: Path) -> None:
    """`bursar exec` and workers have children that they wait for."""
    code = (
        "import json, os, subprocess, sys\n"
        "inner = 'import os, sys; print(os.getppid(), len(sys.modules)); sys.exit(3)'\n"
        "done = subprocess.run([sys.executable, '-c', inner], capture_output=True, text=True)\n"
        "print(json.dumps([os.getpid(), done.returncode, *map(int, done.stdout.split())]))"
    )
    found, wanted = both("-c", code, "exec", env=environment(PYTHONPATH=str(forked.ROOT)))
    pid, returned, parent, modules = json.loads(found.stdout)
    assert (parent, returned) == (pid, 3)
    assert modules > 10 * json.loads(wanted.stdout)[3]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ([sys.executable, "-m", "x", "-c"], "-m"),
        ([sys.executable, "-u", "-P", "x.py"], "script"),
        ([str(forked.MITMDUMP), "-s", "x"], "script"),
        ([sys.executable, "-X", "dev", "-c", "pass"], None),
        ([sys.executable, "-"], None),
        ([sys.executable], None),
        (["curl", "-m", "1"], None),
    ],
)
def test_which_command_lines_are_forked(command: list[str], kind: str | None) -> None:
    program = forked.program_of(command)
    assert (program and program.kind) == kind


def test_what_acts_early_is_a_new_process() -> None:
    seen = "import sys; print(len(sys.modules) > 500, hash('x'))"
    assert both("-c", seen)[0].stdout.startswith("True")
    assert both("-c", seen, env=environment(HOME="/"))[0].stdout.startswith("False")
    found, wanted = both("-c", seen, env=environment(PYTHONHASHSEED="1"))
    assert found.stdout.split()[1] == wanted.stdout.split()[1]
    assert tempfile.tempdir is None or Path(tempfile.tempdir).is_dir()
