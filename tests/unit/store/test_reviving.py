"""Tombstones that the chain contradicts are taken up again, with the counters that their end had given back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from store import budgets
from store.account import IllegalMove
from store.channels import ChannelStore, Conflict, Fenced
from store.lifecycle import ChannelStatus
from store.memory_store import MemoryBackend
from store.records import Channel, CounterMove, PendingTransaction
from store.reviving import revived
from tests.unit.methods import samples

S = ChannelStatus
TOKEN = samples.TOKEN
DEPOSIT, AUTHORISED, CAPTURED = 1_000_000, 50_000, 20_000
RAISE = tuple(
    CounterMove(key, AUTHORISED)
    for key in (
        budgets.host_day(TOKEN, "api.example.com:443", "2027-01-15"),
        budgets.total_day(TOKEN, "2027-01-15"),
        budgets.lifetime(TOKEN),
    )
)
OPENING = (*RAISE, CounterMove(budgets.opens("api.example.com:443", "2027-01-15"), 1, 3, "max_opens_per_day"))
AGAIN = partial(revived, deposit=DEPOSIT, settled=10_000, eligible_at=99, at=77)


@pytest.fixture
def store() -> ChannelStore:
    return ChannelStore(MemoryBackend())


async def proposed(store: ChannelStore) -> Channel:
    channel = samples.channel(
        status=S.PROPOSED,
        authorised=AUTHORISED,
        deposit=0,
        pending=PendingTransaction("open", "0x76", "0x" + "11" * 32, 1, DEPOSIT, counters=OPENING),
    )
    return await store.propose(channel, OPENING, max_channels=9)


async def failed(store: ChannelStore) -> Channel:
    channel = await proposed(store)
    await store.delete(replace(channel, status=S.FAILED), budgets.reversed_moves(OPENING))
    return channel


async def closed(store: ChannelStore) -> Channel:
    channel = replace(await proposed(store), status=S.OPEN, pending=None, deposit=DEPOSIT)
    await store.set(channel)
    ended = replace(
        channel,
        status=S.CLOSED,
        paid=CAPTURED,
        captured=CAPTURED,
        refunded=DEPOSIT - CAPTURED,
        settled=CAPTURED,
    )
    await store.delete(ended, budgets.refund_moves(TOKEN, AUTHORISED - CAPTURED))
    return channel


async def sums(store: ChannelStore) -> dict[str, int]:
    counters = await store.counters()
    families = ("host-day/", "total-day/", "lifetime/", "refunded/", "escrow/", "opens/")
    return {
        family: sum(value for key, value in counters.items() if key.startswith(family)) for family in families
    }


@pytest.mark.parametrize("end", [failed, closed])
async def test_it_is_set_aside_with_all_that_may_have_been_charged(store: ChannelStore, end: object) -> None:
    assert callable(end)
    name = (await end(store)).channel_id
    assert await store.unfinished() == ()
    channel = await store.revive(name, AGAIN)
    assert channel is not None
    assert await store.find(name) == channel
    assert await store.unfinished() == (channel,)
    assert (channel.status, channel.owner, channel.deposit) == (S.ASIDE, None, DEPOSIT)
    assert (channel.authorised, channel.paid, channel.uncertain, channel.free) == (
        AUTHORISED,
        10_000,
        40_000,
        0,
    )
    assert (channel.captured, channel.refunded, channel.pending, channel.eligible_at) == (
        None,
        None,
        None,
        99,
    )
    assert "the chain has it" in channel.note
    assert await sums(store) == {
        **dict.fromkeys(("host-day/", "total-day/", "lifetime/"), AUTHORISED),
        **{"refunded/": 0, "escrow/": DEPOSIT, "opens/": 1},
    }
    # It can be owned, and closed again; the sums are right then, too.
    owned = await store.claim(name, lambda one: one)
    ended = replace(
        owned, status=S.CLOSED, paid=0, uncertain=0, captured=0, refunded=DEPOSIT, deposit=DEPOSIT
    )
    await store.delete(ended, budgets.refund_moves(TOKEN, AUTHORISED))
    assert (await sums(store))["lifetime/"] == 0


async def test_what_is_no_tombstone_stays_as_it_is(store: ChannelStore) -> None:
    channel = await proposed(store)
    assert await store.revive(channel.channel_id, AGAIN) is None
    assert await store.find(channel.channel_id) == channel
    opened = replace(channel, status=S.OPEN, pending=None, deposit=DEPOSIT)
    await store.set(opened)
    await store.set(replace(opened, status=S.MOVED))
    assert await store.revive(channel.channel_id, AGAIN) is None  # another store's


async def test_a_deposit_that_does_not_cover_what_was_authorised_is_another_channels(
    store: ChannelStore,
) -> None:
    name = (await closed(store)).channel_id
    before = await sums(store)
    with pytest.raises(IllegalMove, match="over the deposit"):
        await store.revive(name, partial(AGAIN, deposit=AUTHORISED - 1))
    assert (await store.find(name)).status is S.CLOSED  # type: ignore[union-attr]
    assert await sums(store) == before


async def test_it_is_never_paid_with_again(store: ChannelStore) -> None:
    name = (await closed(store)).channel_id
    with pytest.raises(Conflict, match="only be set aside"):
        await store.revive(name, lambda one: replace(AGAIN(one), status=S.OPEN))


async def test_it_is_a_later_epoch_than_any_that_its_owners_had(store: ChannelStore) -> None:
    """Who owned it before its end is fenced, should they wake up."""
    last = await closed(store)
    tombstone = await store.find(last.channel_id)
    channel = await store.revive(last.channel_id, AGAIN)
    assert channel is not None
    assert tombstone is not None
    assert channel.epoch == tombstone.epoch + 1
    with pytest.raises(Fenced):
        await store.set(last)


async def test_its_counters_come_back_on_their_own_dates_however_old(store: ChannelStore) -> None:
    """A later date was charged since; no clock went back."""
    name = (await failed(store)).channel_id
    await store.count([CounterMove(budgets.opens("api.example.com:443", "2027-03-01"), 1)])
    before = await store.newest_day()
    assert await store.revive(name, AGAIN) is not None
    counters = await store.counters("host-day/")
    assert counters == {budgets.host_day(TOKEN, "api.example.com:443", "2027-01-15"): AUTHORISED}
    assert await store.newest_day() == before


async def test_a_close_that_was_never_proven_gave_nothing_back(store: ChannelStore) -> None:
    """An import brings such tombstones. Nothing of theirs can be taken back either; their deposit still comes home."""
    channel = replace(await proposed(store), status=S.OPEN, pending=None, deposit=DEPOSIT)
    await store.set(channel)
    await store.delete(replace(channel, status=S.CLOSED))
    before = await sums(store)
    found = await store.revive(channel.channel_id, AGAIN)
    assert found is not None
    assert found.status is S.ASIDE
    assert (before["lifetime/"], before["refunded/"]) == (AUTHORISED, 0)
    assert await sums(store) == {**before, "escrow/": DEPOSIT}


async def test_who_captured_more_than_was_authorised_gave_nothing_back(store: ChannelStore) -> None:
    channel = replace(await proposed(store), status=S.OPEN, pending=None, deposit=DEPOSIT)
    await store.set(channel)
    await store.delete(
        replace(channel, status=S.CLOSED, captured=AUTHORISED + 1, refunded=DEPOSIT - AUTHORISED - 1)
    )
    assert await store.revive(channel.channel_id, AGAIN) is not None
    assert (await sums(store))["lifetime/"] == AUTHORISED


async def test_what_may_not_change_as_it_is_taken_up_again(store: ChannelStore) -> None:
    name = (await closed(store)).channel_id
    before = await store.all(), await sums(store)
    for change in ({"descriptor": {"other": "one"}}, {"channel_id": "0xother"}, {"status": S.DRAINING}):
        with pytest.raises(Conflict, match="only be set aside"):
            await store.revive(name, lambda one, change=change: replace(AGAIN(one), **change))  # type: ignore[misc]
    assert (await store.all(), await sums(store)) == before
