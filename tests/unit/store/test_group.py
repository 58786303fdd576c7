"""The pieces of work that share a commit: each learns its own outcome, whatever becomes of the others."""

from __future__ import annotations

import asyncio

import pytest

from store import marker
from store.codec import decode_int
from store.contract import StoreUnavailable, Transaction
from store.group import Outcome, Piece, failed, run_group, settle
from store.memory_store import SharedMemory
from tests.contract.suite import increment, put


def piece(work: object = None) -> Piece:
    loop = asyncio.get_running_loop()
    return Piece(work or increment, loop.create_future(), loop)  # type: ignore[arg-type]


async def test_who_gave_up_keeps_nobody_else_waiting() -> None:
    pieces = [piece() for _ in range(4)]
    pieces[1].done.cancel()
    settle([Outcome(one, number, None) for number, one in enumerate(pieces)])
    assert pieces[1].done.cancelled()
    assert [one.done.result() for one in pieces if one is not pieces[1]] == [0, 2, 3]


async def test_what_no_future_can_carry_is_carried_as_its_cause() -> None:
    one, stop = piece(), StopIteration("stop")
    settle([Outcome(one, None, stop)])
    with pytest.raises(RuntimeError, match="the work raised StopIteration") as raised:
        one.done.result()
    assert raised.value.__cause__ is stop


async def test_each_sees_those_before_it_and_a_group_is_one_commit() -> None:
    shared = SharedMemory()

    def refuse(txn: Transaction) -> None:
        txn.put(b"n", b"77")
        raise LookupError

    run = run_group(shared, [piece(), piece(refuse), piece()])
    assert [outcome.result for outcome in run.outcomes] == [1, None, 2]
    assert [type(outcome.error) for outcome in run.outcomes] == [type(None), LookupError, type(None)]
    assert run.changes[b"n"] == b"2"
    assert decode_int(run.changes[marker.COMMITS_KEY] or b"") == 1
    assert shared.get(b"n") is None  # nothing is written yet
    assert run_group(shared, [piece(lambda txn: "read")]).changes == {}


async def test_a_store_without_a_count_begins_one() -> None:
    shared = SharedMemory()
    shared.apply({marker.COMMITS_KEY: None})
    assert decode_int(run_group(shared, [piece()]).changes[marker.COMMITS_KEY] or b"") == 1


async def test_its_own_keys_are_kept_by_the_store_itself() -> None:
    run = run_group(SharedMemory(), [piece(put(marker.COMMITS_KEY, b"1")), piece(put(b"a", b"1"))])
    assert str(run.outcomes[0].error) == "b'm/commits': kept by the store itself, work may only read it"
    assert run.outcomes[1].error is None


async def test_a_commit_that_fails_is_an_error_of_each_its_own() -> None:
    cause, own = OSError("disk"), LookupError("own")
    found = failed(
        [Outcome(piece(), 1, None), Outcome(piece(), None, own), Outcome(piece(), 3, None)], "no", cause
    )
    assert [one.result for one in found] == [None, None, None]
    assert found[1].error is own
    for one in (found[0], found[2]):
        assert isinstance(one.error, StoreUnavailable)
        assert (str(one.error), one.error.__cause__) == ("no", cause)
    assert found[0].error is not found[2].error
