"""An addon for mitmdump, after ours: kills the proxy after so many steps of its watchdog (``CRASH_AFTER``; 0: never).

A step is a commit of the store, or a transaction that the chain was given.
"""

from __future__ import annotations

import os
import signal
from contextvars import ContextVar
from typing import Any

from proxy_addon.chain import ChainClient
from proxy_addon.watchdog.watch import Watchdog
from store.lmdb_store import LmdbBackend

watching: ContextVar[bool] = ContextVar("watching", default=False)
left = int(os.environ.get("CRASH_AFTER", "0"))


def step_after(owner: type, name: str) -> None:
    original = getattr(owner, name)

    async def counted(*args: Any, **kwargs: Any) -> Any:
        global left
        result = await original(*args, **kwargs)
        if watching.get():
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


run = Watchdog.run


async def watched(self: Watchdog) -> None:
    watching.set(True)  # and in all that is started from here
    await run(self)


Watchdog.run = watched  # type: ignore[method-assign]
step_after(LmdbBackend, "transact")
step_after(ChainClient, "send_raw")
