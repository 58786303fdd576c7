"""Two clocks: this machine's, which may be wrong or be set, and each server's, as its `Date` tells.

A challenge's end is a moment of the server's clock. So it is over as soon as either clock says so, and a payment
that was lost cannot become a charge any more only when both say so. How long something took, or has to wait, is
never asked of a clock that can be set.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from proxy_addon.core.headers import parse_http_date
from proxy_addon.core.policy import Origin

MOST_SERVERS: Final = 10_000
MOST_BEHIND_MS: Final = 3_600_000
"""A server that claims to live further in the past than any challenge may last gains nothing by it."""


def ticks_ms() -> int:
    """Milliseconds since some moment: never set, never back."""
    return time.monotonic_ns() // 1_000_000


class ServerClocks:
    """By how much each server's clock differs from ours, measured at its last answer."""

    def __init__(self) -> None:
        self._heard: OrderedDict[Origin, tuple[str, int, int]] = (
            OrderedDict()
        )  # Date, its time, and it less ours

    def heard(self, origin: Origin, date: str | None, now: int) -> int | None:
        """An answer's `Date`, and our time (ms) when it came; → the server's time, None if it does not tell."""
        if date is None:
            return None
        known = self._heard.get(origin)
        if known is not None and known[0] == date:
            return known[1]  # of one second, the moment in which it was first seen says most
        moment = parse_http_date(date, now)
        if moment is None:
            return None
        self._heard[origin] = (date, moment, moment - now)
        self._heard.move_to_end(origin)
        if len(self._heard) > MOST_SERVERS:
            self._heard.popitem(last=False)
        return moment

    def ahead(self, origin: Origin) -> int:
        """So many ms later than ours it is there, at least."""
        return max(0, self._difference(origin))

    def behind(self, origin: Origin) -> int:
        """So many ms earlier than ours it is there, at most."""
        return min(max(0, -self._difference(origin)), MOST_BEHIND_MS)

    def _difference(self, origin: Origin) -> int:
        known = self._heard.get(origin)
        return 0 if known is None else known[2]
