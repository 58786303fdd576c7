"""Channels that have ended: whether the chain still says so a little later.

An end that was read too early (a fork that was given up, an endpoint that lied) would leave a deposit in the escrow
that nobody looks for. Each end that this process has seen is looked up again at its next looks.
"""

from __future__ import annotations

import logging
from typing import Final

from proxy_addon.core.errors import BursarError
from proxy_addon.payer.adopting import revive
from proxy_addon.payer.parts import Parts
from store.account import IllegalMove
from store.contract import StoreError

log: Final = logging.getLogger("bursar")

LOOKS: Final = 2


class Ends:
    """`check` is given the channels that have not ended, at each look."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._before: frozenset[str] = frozenset()
        self._left: dict[str, int] = {}  # looks that are left, for each channel that has ended

    async def check(self, unfinished: set[str]) -> None:
        """Raises nothing: what cannot be looked up now is looked up at the next look."""
        for name in self._before - unfinished:
            self._left[name] = LOOKS
        self._before = frozenset(unfinished)
        for name in [*self._left]:
            if name in unfinished:
                del self._left[name]
                continue
            try:
                await revive(self._parts, name)
            except (BursarError, StoreError, IllegalMove) as error:
                log.info("bursar: the end of %s is looked up again later: %s", name, error)
                continue
            self._left[name] -= 1
            if not self._left[name]:
                del self._left[name]
