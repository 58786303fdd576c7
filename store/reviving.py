"""Tombstones that the chain contradicts: an endpoint lied, or a fork was given up, and the deposit is still there.

Nothing may be forgotten that holds a deposit. So a channel that was taken for closed, or for never opened, is taken
up again when the chain shows it: set aside, never paid with, to be brought home.
"""

from __future__ import annotations

from dataclasses import replace

from store import account, budgets, charging, rows
from store.contract import Transaction
from store.lifecycle import ChannelStatus
from store.records import Channel, CounterMove

REVIVED_NOTE = "it was on record as {status}, and the chain has it all the same"


def revived(tombstone: Channel, *, deposit: int, settled: int, eligible_at: int, at: int) -> Channel:
    """The record of a channel that the chain has after all. Base units, and ms.

    What was authorised stays; all of it but what is settled may have been charged. Raises `IllegalMove` if the
    deposit does not cover it: then it is not the channel that we know.
    """
    paid = min(settled, tombstone.authorised)
    channel = replace(
        tombstone,
        status=ChannelStatus.ASIDE,
        note=REVIVED_NOTE.format(status=tombstone.status),
        owner=None,
        epoch=tombstone.epoch + 1,
        paid=paid,
        uncertain=tombstone.authorised - paid,
        reserved=0,
        eligible_at=eligible_at,
        holds={},
        held=0,
        deposit=deposit,
        settled=min(settled, deposit),
        pending=None,
        close_amount=None,
        captured=None,
        refunded=None,
        updated_at=at,
    )
    account.check(channel)
    return channel


def revive(txn: Transaction, tombstone: Channel, channel: Channel) -> None:
    """Write `channel` in its tombstone's place; the counters have again what the end had given back, on its dates.

    No limit is asked: it is a fact, not a decision.
    """
    if tombstone.status is ChannelStatus.FAILED:
        pending = tombstone.pending
        moves = tuple(replace(move, limit=None) for move in (pending.counters if pending else ()))
        charging.charge(
            txn,
            moves,
            raised=channel.authorised,
            returnable={},
            before=tombstone,
            after=channel,
            of_any_date=True,
        )
    else:
        token, captured = tombstone.scope.token, tombstone.captured
        # What was never proven gave nothing back.
        back = 0 if captured is None else max(0, tombstone.authorised - captured)
        charging.take_back(
            txn, (CounterMove(budgets.lifetime(token), back), CounterMove(budgets.refunded(token), -back))
        )
        charging.charge(txn, (), returnable={}, before=tombstone, after=channel)
    rows.store(txn, channel)
