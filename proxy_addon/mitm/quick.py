"""What makes mitmproxy faster without changing what it does, in whatever way it was started."""

from __future__ import annotations

import gc

from mitmproxy import version
from mitmproxy.addonmanager import AddonManager

from proxy_addon.mitm import log_events, typechecks
from proxy_addon.mitm.compat import why_unsupported

_done: list[bool] = []


def quicken(addons: AddonManager) -> None:
    """Once all is loaded. Only in a version of mitmproxy that it was tested on. May be called again."""
    if why_unsupported(version.VERSION) is None:
        log_events.spare_ours(addons)
        if not _done:
            _done.append(True)
            typechecks.install()
            # Modules and their classes stay to the end: no full collection need walk through them again.
            gc.freeze()
