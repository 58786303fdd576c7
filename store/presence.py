"""A process's stay in a store, from the first thing that it writes to the last.

On the way in it reads the seal, looks whether the store is the last one, registers its journal, and puts on record
where the journals of processes that died have ended. While it stays, each commit carries its journal's anchor, and
the seal follows. On the way out the journal is closed, in the store as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from pathlib import Path
from typing import Final

from store import seal
from store.anchors import Anchor
from store.channels import ChannelStore
from store.contract import StoreError
from store.journal import Journal, end_of

log: Final = logging.getLogger("bursar")

LOOK_AGAIN_S: Final = 1.0


class Presence:
    """Made by `enter`; `leave` it once. After a crash the next process does what is left of that."""

    def __init__(
        self, store: ChannelStore, journal: Journal, seal_path: Path | None, directory: Path
    ) -> None:
        self._store = store
        self._journal = journal
        self._seal_path = seal_path
        self._directory = str(directory.absolute())
        self._keeper: seal.Keeper | None = None
        self._waiting: asyncio.Task[None] | None = None

    @classmethod
    async def enter(
        cls, store: ChannelStore, journal: Journal, *, ledger: Path, seal_path: Path | None, directory: Path
    ) -> Presence:
        """Raises `StoreUnavailable`, also if the seal makes no sense; then nothing was written.

        A store that is not the last one is in doubt from here on: see ``store.sealed_against``. Without a seal
        nobody can tell.
        """
        self = cls(store, journal, seal_path, directory)
        # First the seal: what it says was true of the store before it was written.
        sealed = [] if seal_path is None else seal.read(seal_path)
        standing = await store.commits.standing()
        doubt = seal.why_old(sealed, standing, self._directory)
        known = await store.commits.anchors()
        ended = await asyncio.to_thread(
            self._ends, [one for one in known.values() if self._has_died(one)], ledger
        )
        await store.commits.enter(journal, ended, stamp=secrets.token_hex(16), doubt=doubt)
        if store.sealed_against is None:
            await self._keep_seal()
        else:
            log.warning(
                "bursar: %s. Nothing is signed until it is reconciled: see bursar reconcile",
                store.sealed_against,
            )
            self._waiting = asyncio.create_task(self._until_reconciled(), name="bursar-doubt")
        return self

    async def lift(self) -> None:
        """End the doubt of a store whose channels are all reconciled. Raises `NotReconciled`.

        The store gets a new stamp, durably, before the seal hears of it: after a crash between the two the seal
        still has the former one, and the store says so.
        """
        await self._store.commits.lift(secrets.token_hex(16))
        await self._stop_waiting()
        await self._keep_seal()

    async def leave(self) -> None:
        """After the last line and the last commit but this one. The store stays open."""
        await self._stop_waiting()
        self._journal.close()
        with contextlib.suppress(StoreError):  # the next process finds the journal's end
            await self._store.commits.leave()
        if self._keeper is not None:
            await self._keeper.close()

    async def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)

    def _has_died(self, anchor: Anchor) -> bool:
        mine = anchor.journal == self._journal.name
        return not (anchor.closed or mine or self._store.commits.alive(anchor.journal))

    @staticmethod
    def _ends(died: list[Anchor], ledger: Path) -> list[Anchor]:
        ends = (end_of(ledger, anchor) for anchor in died)
        return [end for end in ends if end is not None]

    async def _keep_seal(self) -> None:
        """From here on the seal knows of this store, and of at least as many commits as it has now."""
        if self._seal_path is None:
            return
        standing = await self._store.commits.standing()
        if standing.commits is None or standing.stamp is None:
            return
        sealed = seal.Sealed(standing.store_id, standing.stamp.current, standing.commits, self._directory)
        self._keeper = seal.Keeper(self._seal_path, sealed)
        await self._keeper.write()
        self._store.commits.told = self._keeper.note

    async def _until_reconciled(self) -> None:
        """Another process does that."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            with contextlib.suppress(StoreError):
                if await self._store.commits.look_at_doubt() is None:
                    break
        # What this process has in memory is nothing: it signed nothing while there was a doubt.
        log.warning("bursar: the store is reconciled; payments go on")
        await self._keep_seal()
