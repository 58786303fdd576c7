"""A voucher that reaches its server after a higher one is refused, and its request has to go once more.

So before a higher voucher leaves, those that carry a lower one get time to arrive: until each has its answer, or has
been on its way for as long as this server needs to look at so many payments, one after the other. How long that is
shows: of the requests that had no answer yet when a higher voucher left, were some refused for it, or none? It costs
no money and moves none: a raise is durable before the wait, and signed after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from proxy_addon.audit import Clock

FIRST_MS: Final = 10.0
LEAST_MS: Final = 0.1
MOST_MS: Final = 80.0
"""For each payment that a server has to look at."""
LONGEST_MS: Final = 2_000.0
"""And for all of them."""
_LONGER: Final = 2.0
_SHORTER: Final = 0.75  # with care: a wait costs a little, a refusal a whole answer


class Unanswered:
    """The requests of one channel that have left and have no answer yet."""

    def __init__(self, ticks: Clock) -> None:
        self.each_ms = FIRST_MS
        self._ticks = ticks
        self._sent: dict[str, tuple[int, int]] = {}  # request id -> its voucher, and when it left (ticks)
        self._passed: dict[str, set[str]] = {}  # request id -> all that the same higher voucher passed
        self._waits_for: tuple[int, asyncio.Event] | None = None

    def left(self, request_id: str, voucher: int) -> None:
        self._sent[request_id] = voucher, self._ticks()

    def answered(self, request_id: str) -> None:
        """Its answer begins, and it is no refusal; or it will get none."""
        if self._sent.pop(request_id, None) is None:
            return
        passed = self._passed.pop(request_id, None)
        if passed:
            passed.discard(request_id)
            if not passed:  # nothing was overtaken
                self.each_ms = max(LEAST_MS, self.each_ms * _SHORTER)
        self._look()

    def overtaken(self, request_id: str) -> None:
        """It was refused, for a higher voucher had been there before."""
        passed = self._passed.pop(request_id, None)
        if passed:  # the first of them that is
            passed.clear()
            self.each_ms = min(MOST_MS, self.each_ms * _LONGER)

    def passes_any(self, voucher: int) -> bool:
        """Would a voucher of so much leave while a lower one is on its way?"""
        return any(carried < voucher for carried, _ in self._sent.values())

    async def give_way(self, voucher: int) -> None:
        """Return when a voucher of so much may leave. One at a time."""
        left_at = self._lower(voucher)
        if not left_at:
            return
        wait_ms = max(left_at.values()) - self._ticks() + min(self.each_ms * len(left_at), LONGEST_MS)
        if wait_ms > 0:
            all_in = asyncio.Event()
            self._waits_for = voucher, all_in
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_ms / 1000):
                        await all_in.wait()
            finally:
                self._waits_for = None
        passed = {name for name in self._lower(voucher) if name not in self._passed}
        self._passed |= dict.fromkeys(passed, passed)

    def _lower(self, voucher: int) -> dict[str, int]:
        return {name: at for name, (carried, at) in self._sent.items() if carried < voucher}

    def _look(self) -> None:
        if self._waits_for is not None and not self._lower(self._waits_for[0]):
            self._waits_for[1].set()
