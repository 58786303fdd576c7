"""The `bursar` command, killed after so many steps: ``crash_at.py STEPS ARGUMENT…``; 0: never.

A step is a commit of the store, or a transaction that the chain was given.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from proxy_addon.chain import ChainClient
from proxy_addon.cli.main import main
from store.lmdb_store import LmdbBackend

left = int(sys.argv.pop(1))


def step_after(owner: type, name: str) -> None:
    original = getattr(owner, name)

    async def counted(*args: Any, **kwargs: Any) -> Any:
        global left
        result = await original(*args, **kwargs)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


step_after(LmdbBackend, "transact")
step_after(ChainClient, "send_raw")
main()
