"""What a process with a key asks of the system, so that the key stays in it.

A crash writes no memory to a disk, and other processes of the same user read neither its memory nor the
environment that it was started with (Linux: ``/proc/PID/environ``, ptrace). Root can do all of that, always.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def harden() -> None:
    """For a process that holds a key. What it starts from here on writes no core files either."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    close_to_others()


def close_to_others() -> bool:
    """For this process, not for those that it starts. False where the system has no way to ask for it."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
