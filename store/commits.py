"""What each commit of a process carries beside its work, and what a process writes first and last.

Each commit notes where the process's journal stands (`anchors`) and tells the seal how far the store is. On the
way in a process registers its journal and looks whether the store is the one that it was (`lineage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from store import anchors, lineage
from store.anchors import Anchor
from store.contract import Backend, Transaction
from store.lineage import Stamp, Standing

if TYPE_CHECKING:
    from store.journal import Journal

T = TypeVar("T")


class Commits:
    """The way to the backend for everything that writes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._journal: Journal | None = None
        self.sealed_against: str | None = None
        """Why nothing is authorised or signed, if the store is in doubt: as it was at the last look."""
        self.told: Callable[[int], None] = lambda commits: None
        """Called after each commit with how many the store has seen, at least."""

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """As `Backend.transact`; the journal's anchor goes along, as it is now."""
        anchor = self._journal.anchor if self._journal is not None else None

        def noted(txn: Transaction) -> tuple[T, int | None]:
            result = work(txn)
            if anchor is not None:
                anchors.put(txn, anchor)
            return result, lineage.commits(txn)

        result, before = await self._backend.transact(noted)
        if before is not None:
            self.told(before + 1)
        return result

    def alive(self, owner_id: str) -> bool:
        return self._backend.alive(owner_id)

    async def standing(self) -> Standing:
        """What the store says of itself."""
        return await self._backend.view(lineage.standing)

    async def anchors(self) -> dict[str, Anchor]:
        """How far the store has seen each journal, by its name."""
        return await self._backend.view(anchors.read_all)

    async def enter(
        self, journal: Journal, ended: Iterable[Anchor], *, stamp: str, doubt: str | None
    ) -> Standing:
        """What a process writes first: its journal, where those of dead processes `ended`, what it thinks of the store.

        `stamp` is for a store that has none. With a `doubt` nothing is authorised from this commit on, by any
        process. From here on each commit notes where `journal` stands.
        """
        ended, anchor = tuple(ended), journal.anchor

        def work(txn: Transaction) -> Standing:
            anchors.put_all(txn, (*ended, anchor))
            if lineage.stamp(txn) is None:
                lineage.set_stamp(txn, Stamp(stamp))
            if doubt is not None and lineage.doubt(txn) is None:
                lineage.put_in_doubt(txn, doubt)
            lineage.judged(txn)
            return lineage.standing(txn)

        found = await self.transact(work)
        self._journal, self.sealed_against = journal, found.doubt
        return found

    async def leave(self) -> None:
        """Note that our journal is closed: nothing comes after its last line."""
        if self._journal is not None:
            await self.transact(lambda txn: None)

    async def look_at_doubt(self) -> str | None:
        """`sealed_against`, as it is now: another process may have reconciled the store."""
        self.sealed_against = await self._backend.view(lineage.doubt)
        return self.sealed_against

    async def left_in_doubt(self) -> tuple[str, ...]:
        """The channels that are to be reconciled before the doubt can be lifted."""
        return await self._backend.view(lineage.left)

    async def lift(self, stamp: str) -> Stamp:
        """End the doubt, once each channel is reconciled. Raises `NotReconciled`; then nothing was written."""
        found = await self.transact(lambda txn: lineage.lift(txn, stamp))
        self.sealed_against = None
        return found
