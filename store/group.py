"""Group commit: the pieces of work that share one commit, and how each of them learns its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from store import marker
from store.codec import encode_int
from store.contract import StoreUnavailable, Transaction
from store.overlay import Base, Overlay


class Piece(NamedTuple):
    """One call of `transact` that waits for its commit."""

    work: Callable[[Transaction], Any]
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Outcome(NamedTuple):
    piece: Piece
    result: Any
    error: BaseException | None  # what the work raised


class GroupRun(NamedTuple):
    outcomes: list[Outcome]
    changes: dict[bytes, bytes | None]  # of all that succeeded, the last one last; empty: nothing to commit


def run_group(base: Base, group: Iterable[Piece]) -> GroupRun:
    """Run each piece on what is stored and what the ones before it put. Nothing is written here."""
    shared = Overlay(base)
    outcomes: list[Outcome] = []
    for piece in group:
        overlay = Overlay(shared)
        try:
            result = piece.work(overlay)
            marker.refuse_own_keys(overlay.changes)
        except BaseException as error:  # of one piece: it must reach its caller, and only that one
            outcomes.append(Outcome(piece, None, error))
        else:
            shared.changes.update(overlay.changes)
            outcomes.append(Outcome(piece, result, None))
        finally:
            overlay.close()
    changes = shared.changes
    if changes:
        changes[marker.COMMITS_KEY] = encode_int(marker.commits(base) + 1)
    return GroupRun(outcomes, changes)


def failed(outcomes: Iterable[Outcome], message: str, cause: BaseException) -> list[Outcome]:
    """The outcomes when the commit has failed: what the work itself had raised stays as it was."""
    found = []
    for outcome in outcomes:
        if outcome.error is None:
            error = StoreUnavailable(message)  # one each: a traceback belongs to one caller
            error.__cause__ = cause
            outcome = Outcome(outcome.piece, None, error)
        found.append(outcome)
    return found


def settle(outcomes: Sequence[Outcome]) -> None:
    """Wake the callers. Runs on their loop; who was cancelled meanwhile is left alone."""
    for piece, result, error in outcomes:
        if piece.done.done():
            continue
        if error is None:
            piece.done.set_result(result)
        elif isinstance(error, StopIteration):  # which no future can carry
            stopped = RuntimeError("the work raised StopIteration")
            stopped.__cause__ = error
            piece.done.set_exception(stopped)
        else:
            piece.done.set_exception(error)
