"""What makes mitmproxy faster without changing what it does, in whatever way it was started."""

from __future__ import annotations

import gc
from typing import Final

from mitmproxy.addonmanager import AddonManager

from proxy_addon.mitm import dispatch, lookups, typechecks

_OBJECTS: Final = 10_000
_done: list[bool] = []


def quicken(addons: AddonManager) -> None:
    """Once all is loaded. Only in a version of mitmproxy that it was tested on. May be called again."""
    if dispatch.install(addons) is None and not _done:
        _done.append(True)
        typechecks.install()
        lookups.install()
        look_less_often()


def look_less_often() -> None:
    """What is there now stays to the end: the garbage collector need not walk through it for every few requests.

    Nor after every 700 or 2,000 new objects, of which one or two requests make as many. But it looks at all that is
    newer than the start as often as before: each connection that has ended is a cycle, with a hundred KiB of TLS that
    the collector does not count. Who has turned it off, or has it look less often still, is left alone.
    """
    gc.freeze()
    gc.collect()  # of nothing; else all that is frozen counts for the quarter that must be new before it looks again
    if 0 < gc.get_threshold()[0] < _OBJECTS:
        gc.set_threshold(_OBJECTS, 10, 1)
