"""A process with a key: no core files, and closed to other processes of the same user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# As an ordinary user (root reads everything): another process of the user's looks into this one, before and after.
LOOKED_AT = """
import ctypes, os, sys
from proxy_addon.hardening import close_to_others, harden

if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as if it had been started as that user

def look(what):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = open(f"/proc/{os.getppid()}/{what}", "rb").read(100_000)
            os.write(writing, b"read" if b"c4n4ry" in found or what != "environ" else b"empty")
        except PermissionError:
            os.write(writing, b"refused")
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(reading, 10).decode()

WHAT = ("environ", "maps", "auxv")
print(*map(look, WHAT))
assert os.listdir("/proc/self/fd")
import resource
print(*resource.getrlimit(resource.RLIMIT_CORE))
{"harden": harden, "close": close_to_others}[sys.argv[1]]()
print(*map(look, WHAT))
assert os.listdir("/proc/self/fd")  # it still sees itself
print(*resource.getrlimit(resource.RLIMIT_CORE))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has a way to ask for it")
@pytest.mark.parametrize("way", ["harden", "close"])
def test_other_processes_of_the_user_cannot_look_in(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOKED_AT, way],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SECRET": "c4n4ry"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    before, cores_before, after, cores = done.stdout.splitlines() or ["", "", "", ""]
    assert before == "read read read", done.stderr
    assert after == "refused refused refused"
    assert cores == ("0 0" if way == "harden" else cores_before)


def test_what_it_starts_is_an_ordinary_process() -> None:
    """`bursar exec` closes itself, and runs somebody else's program."""
    script = (
        "import subprocess, sys; from proxy_addon.hardening import close_to_others; close_to_others();"
        "subprocess.run([sys.executable, '-c', 'import ctypes; print(ctypes.CDLL(None).prctl(3))'], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr  # PR_GET_DUMPABLE
