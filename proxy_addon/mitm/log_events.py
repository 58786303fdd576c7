"""Log records as events for addons: mitmproxy makes one of each line that is logged, and asks every addon about it.

Nobody takes them as a rule (they are deprecated in favour of Python's logging). What is printed, or goes to other
handlers, is not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mitmproxy.addonmanager import AddonManager, traverse
from mitmproxy.log import AddLogHook, LegacyLogEvents

Filter = Callable[[logging.LogRecord], bool]


def filter_by(addons: AddonManager, is_taken: Filter) -> None:
    """Make events of those records only that `is_taken`, for this proxy's addons."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LegacyLogEvents) and handler.master is addons.master:
            handler.addFilter(is_taken)


def spare_ours(addons: AddonManager) -> None:
    """Under plain mitmdump: what bursar says of each payment becomes no event unless an addon takes events."""
    seen: tuple[int, bool] = (-1, True)

    def is_taken(record: logging.LogRecord) -> bool:
        nonlocal seen
        if record.name != "bursar" or record.levelno > logging.INFO:
            return True
        number = len(addons.lookup)
        if number != seen[0]:  # addons have come or gone
            takes = any(hasattr(one, AddLogHook.name) for one in traverse(addons.chain))  # type: ignore[no-untyped-call]
            seen = number, takes
        return seen[1]

    filter_by(addons, is_taken)
