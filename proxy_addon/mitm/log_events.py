"""Log records as events for addons: mitmproxy makes one of each line that is logged, and asks every addon about it.

Nobody takes them as a rule (they are deprecated in favour of Python's logging). What is printed, or goes to other
handlers, is not touched.
"""

from __future__ import annotations

import logging
from typing import Final

from mitmproxy.addonmanager import AddonManager
from mitmproxy.log import LegacyLogEvents

_NEVER: Final = logging.CRITICAL + 1_000


class Switch:
    """Whether records become events for this proxy's addons. They do, until it is known that nobody takes them."""

    def __init__(self, addons: AddonManager) -> None:
        self._handlers = [
            one
            for one in logging.getLogger().handlers
            if isinstance(one, LegacyLogEvents) and one.master is addons.master
        ]

    def turn(self, *, on: bool) -> None:
        for one in self._handlers:
            one.setLevel(logging.NOTSET if on else _NEVER)
