"""The rules of the channel store, over both backends: each call, each of its refusals, and races between processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from store import account, budgets, lineage
from store.account import IllegalMove, Sent
from store.channels import ChannelBusy, ChannelStore, Conflict, Fenced, LimitExceeded, ScopeFull
from store.contract import Backend
from store.journal import Journal, moves_after
from store.lifecycle import FINAL, PENDING_OPEN, TRANSITIONS, ChannelStatus, IllegalTransition, advance
from store.lineage import OldCopy
from store.lmdb_store import LmdbBackend
from store.memory_store import MemoryBackend, SharedMemory
from store.pins import Pin
from store.records import Channel, CounterMove, Hold, JournalMark
from tests.properties.bank import CAPS, TOKEN, proposed, scope_of

DAY = "2026-01-31"
SCOPE = scope_of()
OPEN, SENT = ChannelStatus.OPEN, ChannelStatus.SENT
Processes = Callable[[], Any]


@pytest_asyncio.fixture(params=["memory", "lmdb"])
async def process(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Processes]:
    """`await process()` is one more process on the same store."""
    shared, backends = SharedMemory(), list[Backend]()

    async def one_more() -> ChannelStore:
        memory = request.param == "memory"
        backend: Backend = MemoryBackend(shared) if memory else await LmdbBackend.open(tmp_path / "store")
        backends.append(backend)
        return ChannelStore(backend)

    yield one_more
    for backend in backends:
        await backend.close()


def raising(amount: int, **fields: Any) -> tuple[CounterMove, ...]:
    return replace(CAPS, **fields).raise_moves(amount, DAY)


async def raised_counters(store: ChannelStore) -> set[int]:
    return {value for key, value in (await store.counters()).items() if budgets.is_raise(key)}


async def opened(store: ChannelStore, channel_id: str = "0xc1", first: int = 10, **fields: Any) -> Channel:
    """A channel that is open, with `first` authorised of 100."""
    channel = proposed(channel_id, SCOPE, authorised=first)
    channel = await store.propose(channel, raising(first), max_channels=9)
    await store.set(replace(channel, status=SENT))
    channel = replace(channel, **{"status": OPEN, "deposit": 100, "pending": None, **fields})
    await store.set(channel)
    return channel


def same(channel: Channel) -> Channel:
    return channel


def never(channel: Channel) -> Channel:
    raise AssertionError("nothing was to be recovered")


async def refused(store: ChannelStore, work: Any, error: type[Exception], says: str) -> None:
    """`work` raises, and the store is as before."""
    before = await store.all(), await store.counters()
    with pytest.raises(error, match=says):
        await work
    assert (await store.all(), await store.counters()) == before


# -- propose


async def test_a_proposal_is_on_record_and_ours(process: Processes) -> None:
    store = await process()
    counters = CAPS.open_moves(100, 10, DAY)
    channel = await store.propose(proposed("0xc1", SCOPE, authorised=10), counters, max_channels=1)
    assert (channel.owner, channel.epoch) == (store.owner_id, 1)
    assert await store.find("0xc1") == channel
    assert await store.get(SCOPE) == channel
    assert await store.of_scope(SCOPE) == (channel,)
    host = "api.example.com:443"
    assert await store.counters() == {
        budgets.host_day(TOKEN.address, host, DAY): 10,
        budgets.total_day(TOKEN.address, DAY): 10,
        budgets.lifetime(TOKEN.address): 10,
        budgets.opens(host, DAY): 1,
        budgets.deposits(TOKEN.address, host, DAY): 100,
        budgets.escrow(TOKEN.address): 100,
    }
    assert await store.counters("opens/") == {budgets.opens(host, DAY): 1}


async def test_what_a_proposal_refuses(process: Processes) -> None:
    store = await process()
    fresh = proposed("0xc2", SCOPE, authorised=10)

    def propose(channel: Channel = fresh, moves: Any = None, limit: int = 9) -> Any:
        return store.propose(channel, raising(10) if moves is None else moves, max_channels=limit)

    await refused(store, propose(replace(fresh, authorised=101)), IllegalMove, "over the deposit of 100")
    await refused(store, propose(moves=()), Conflict, "raise of 10 was charged as 0 to the host-day budget")
    await refused(store, propose(moves=raising(11)), Conflict, "charged as 11 to the host-day")
    await refused(store, propose(moves=raising(10)[:2]), Conflict, "charged as 0 to the lifetime")
    await refused(
        store, propose(moves=raising(10, lifetime=9)), LimitExceeded, "policy.max_lifetime: 0 used of 9"
    )
    await refused(store, propose(limit=0), ScopeFull, "max_channels_per_scope = 0")
    channel = await opened(store)
    await refused(store, propose(replace(fresh, channel_id="0xc1")), Conflict, "0xc1 is on record already")
    await refused(store, propose(limit=1), ScopeFull, "max_channels_per_scope = 1 channels, all in use")
    await store.set(replace(channel, status=ChannelStatus.DRAINING))
    await propose(limit=1)  # one that is closing does not count
    other = proposed("0xc3", SCOPE, authorised=10)
    await refused(store, propose(other), ScopeFull, "an opening of this scope is on its way")
    elsewhere = proposed("0xc3", scope_of(payer="c"), authorised=10)
    await propose(elsewhere)  # another wallet on the same store does not collide


async def test_two_processes_race_to_open_and_one_does(process: Processes) -> None:
    stores = [await process(), await process()]
    outcomes = await asyncio.gather(
        *(
            stores[number % 2].propose(
                proposed(f"0xc{number}", SCOPE, authorised=10), CAPS.open_moves(100, 10, DAY), max_channels=4
            )
            for number in range(16)
        ),
        return_exceptions=True,
    )
    won = [one for one in outcomes if isinstance(one, Channel)]
    assert len(won) == 1
    assert sum(isinstance(one, ScopeFull) for one in outcomes) == 15
    assert await stores[0].all() == tuple(won)
    assert (await stores[1].counters("opens/")).popitem()[1] == 1


# -- look-ups


async def test_get_prefers_what_is_open_and_what_is_old(process: Processes) -> None:
    store = await process()
    assert await store.get(SCOPE) is None
    young = await opened(store, "0xa", opened_at=20)
    old = await opened(store, "0xb", opened_at=10)
    pending = proposed("0xc", SCOPE, opened_at=5)
    pending = await store.propose(pending, (), max_channels=9)
    assert await store.get(SCOPE) == old
    assert [one.channel_id for one in await store.of_scope(SCOPE)] == ["0xc", "0xb", "0xa"]
    await store.set(replace(old, status=ChannelStatus.ASIDE))
    assert await store.get(SCOPE) == young
    await store.set(replace(young, status=ChannelStatus.DRAINING))
    assert await store.get(SCOPE) == pending
    assert len(await store.of_scope(SCOPE)) == 3
    assert await store.get(scope_of("https://api.example.com:444")) is None
    assert await store.find("0xnone") is None


async def test_a_closed_channel_is_not_found_again_and_stays_on_record(process: Processes) -> None:
    store = await process()
    channel = await opened(store, "0xa")
    await store.delete(replace(channel, status=ChannelStatus.CLOSED, captured=0, refunded=channel.deposit))
    assert await store.get(SCOPE) is None
    assert await store.of_scope(SCOPE) == ()
    tombstone = await store.find("0xa")
    assert tombstone is not None
    assert (tombstone.status, tombstone.captured) == (ChannelStatus.CLOSED, 0)
    assert [one.channel_id for one in await store.all()] == ["0xa"]


async def test_a_short_key_finds_all_wallets_and_tombstones(process: Processes) -> None:
    store = await process()
    await opened(store, "0xa")
    other = await store.propose(proposed("0xb", scope_of(payer="c")), (), max_channels=1)
    await store.delete(replace(other, status=ChannelStatus.FAILED))
    key = SCOPE.short_key
    assert key == f"{SCOPE.payee}:{SCOPE.token}:{SCOPE.escrow}:4217"
    assert [one.channel_id for one in await store.of_short_key(key)] == ["0xa", "0xb"]
    assert await store.of_short_key(key[:-1]) == ()
    assert await store.of_short_key(key.replace("4217", "42170")) == ()


async def test_a_long_scope_is_no_trouble(process: Processes) -> None:
    """Its readable key is longer than a store's keys may be."""
    store = await process()
    scope = scope_of("https://" + "a" * 600 + ".example:443")
    channel = await store.propose(proposed("0xa", scope), (), max_channels=1)
    assert await store.get(scope) == channel
    assert await store.get(scope_of("https://" + "a" * 601 + ".example:443")) is None


# -- set


async def test_set_writes_the_record_and_its_counters(process: Processes) -> None:
    store = await process()
    channel = replace(await opened(store), authorised=30, paid=10, folded=JournalMark("j", 3, "b"))
    await store.set(channel, raising(20))
    assert await store.find("0xc1") == channel
    assert await raised_counters(store) == {30}
    await store.set(replace(channel, uncertain=5))
    assert await raised_counters(store) == {30}


async def test_what_set_refuses(process: Processes) -> None:
    store, other = await process(), await process()
    channel = await opened(store)

    async def no(
        changed: Channel, error: type[Exception], says: str, moves: Any = (), by: Any = store
    ) -> None:
        await refused(store, by.set(changed, moves), error, says)

    up = replace(channel, authorised=20)
    await no(channel, Fenced, "0xc1 has another owner now", by=other)
    await no(replace(channel, epoch=2), Fenced, r"another owner now \(epoch 1\)")
    await no(replace(channel, owner=None), Conflict, "given back by release")
    await no(replace(channel, owner=other.owner_id), Conflict, "given to nobody")
    await no(replace(channel, channel_id="0xnone"), Conflict, "no channel 0xnone on record")
    await no(replace(channel, scope=scope_of(payer="c")), Conflict, "cannot change its scope")
    await no(replace(channel, descriptor={}), Conflict, "cannot change its scope or descriptor")
    await no(replace(channel, authorised=9), Conflict, "would fall below 10")
    await no(replace(channel, reserved=1), Conflict, "a voucher of 10 may have left")
    await no(replace(channel, paid=11), IllegalMove, "free is -1")
    await no(replace(channel, authorised=101), IllegalMove, "over the deposit", raising(91))
    await no(replace(channel, status=SENT), IllegalTransition, "open cannot become sent")
    await no(up, Conflict, "raise of 10 was charged as 0")
    await no(up, Conflict, "charged as 9 to the host-day", raising(9))
    await no(up, Conflict, "charged as 11", raising(11))
    await no(up, Conflict, "charged as 20", raising(10) + raising(10))
    await no(up, Conflict, "charged as 0 to the total-day", raising(10)[:1] + raising(10)[2:])
    await no(channel, Conflict, "raise of 0 was charged as 10", raising(10))
    await no(channel, Conflict, "raise of 0 was charged as -10", raising(-10))
    await no(up, LimitExceeded, r"policy.hosts\[0\].max_per_day: 10 used of 19", raising(10, host_day=19))
    await no(
        replace(up, status=ChannelStatus.DRAINING), Conflict, "draining: nothing is authorised", raising(10)
    )
    await no(channel, Conflict, "7 refunded, but 0 given back", [CounterMove(budgets.refunded("t"), 7)])
    await no(channel, Conflict, "opens/x has 0, 1 cannot be given back", [CounterMove("opens/x", -1)])
    await store.set(up, raising(10, host_day=20))  # to the unit
    assert (await store.find("0xc1")) == up


async def test_a_raise_may_be_charged_to_two_dates(process: Processes) -> None:
    """As long as each family has all of it."""
    store = await process()
    channel = await opened(store)
    moves = CAPS.raise_moves(4, DAY) + CAPS.raise_moves(6, "2026-02-01")
    await store.set(replace(channel, authorised=20), moves)
    assert sorted((await store.counters("total-day/")).values()) == [6, 14]
    assert await store.counters("lifetime/") == {budgets.lifetime(TOKEN.address): 20}


async def test_other_counters_move_in_the_same_commit(process: Processes) -> None:
    """Per-client blocks: taken and given back, never below zero, and not where the commit is refused."""
    store = await process()
    channel = await opened(store)
    await store.set(channel, [CounterMove("client/x", 5, 5)])
    await refused(
        store, store.set(channel, [CounterMove("client/x", 1, 5, "r")]), LimitExceeded, "r: 5 used of 5"
    )
    await store.set(channel, [CounterMove("client/x", -2), CounterMove("client/x", 1, 4)])
    assert await store.counters("client/") == {"client/x": 4}
    await refused(store, store.set(channel, [CounterMove("client/x", -5)]), Conflict, "client/x has 4")


@pytest.mark.parametrize("current", ChannelStatus)
@pytest.mark.parametrize("following", ChannelStatus)
def test_a_status_follows_only_by_the_table(current: ChannelStatus, following: ChannelStatus) -> None:
    if following is current or following in TRANSITIONS[current]:
        assert advance(current, following) is following
    else:
        with pytest.raises(IllegalTransition, match=f"that is {current} cannot become {following}"):
            advance(current, following)


def test_the_table_says_what_the_rules_say() -> None:
    assert TRANSITIONS.keys() == set(ChannelStatus)
    assert all(not TRANSITIONS[one] for one in FINAL - {ChannelStatus.MOVED})
    for one, following in TRANSITIONS.items():
        assert not (ChannelStatus.FAILED in following and one not in PENDING_OPEN)
        assert not (following & PENDING_OPEN and one not in PENDING_OPEN)
    assert OPEN not in TRANSITIONS[ChannelStatus.ASIDE]


# -- delete


async def test_a_failed_opening_gives_its_counters_back_once(process: Processes) -> None:
    store = await process()
    moves = CAPS.open_moves(100, 10, DAY)
    channel = await store.propose(proposed("0xc1", SCOPE, authorised=10), moves, max_channels=1)
    failed = replace(channel, status=ChannelStatus.FAILED)
    await refused(store, store.delete(channel, ()), Conflict, "is proposed: it may still hold a deposit")
    much = budgets.reversed_moves(CAPS.open_moves(100, 11, DAY))
    await refused(store, store.delete(failed, much), Conflict, "raise of 0 was charged as -11")
    back = budgets.reversed_moves(moves)
    await store.delete(failed, back)
    assert set((await store.counters()).values()) == {0}
    await refused(store, store.delete(failed, back), Conflict, "charged as -10")
    await refused(store, store.delete(failed, back[3:]), Conflict, "has 0, 1 cannot be given back")
    assert await store.find("0xc1") == failed
    assert await store.of_scope(SCOPE) == ()
    assert await store.get(SCOPE) is None
    assert await store.of_short_key(SCOPE.short_key) == (failed,)
    await refused(
        store, store.set(replace(failed, status=OPEN)), IllegalTransition, "failed cannot become open"
    )
    await store.delete(replace(failed, note="again"))  # a tombstone may be written on
    assert await store.of_short_key(SCOPE.short_key) == (replace(failed, note="again"),)


async def test_a_proven_close_gives_back_what_was_not_captured(process: Processes) -> None:
    store = await process()
    hold = Hold("r", 5, 10, 1, 2, 1, "f")
    channel = replace(await opened(store), holds={"r": hold}, held=5)
    token = TOKEN.address
    closed = replace(channel, status=ChannelStatus.CLOSED, captured=4, refunded=96)
    one_day = [CounterMove(budgets.total_day(token, DAY), -6)]
    await refused(store, store.delete(closed, one_day), Conflict, "-6 to the total-day")
    await refused(store, store.delete(closed, budgets.refund_moves(token, 7)), Conflict, "-7 to the lifetime")
    unproven = replace(closed, captured=None)
    await refused(
        store, store.delete(unproven, budgets.refund_moves(token, 6)), Conflict, "-6 to the lifetime"
    )
    silent = budgets.refund_moves(token, 6)[1:]
    await refused(store, store.delete(closed, silent), Conflict, "6 refunded, but 0 given back")
    await store.delete(closed, budgets.refund_moves(token, 6))
    counters = await store.counters()
    assert counters[budgets.lifetime(token)] == 4
    assert counters[budgets.refunded(token)] == 6
    assert counters[budgets.total_day(token, DAY)] == 10
    found = await store.find("0xc1")
    assert found == replace(closed, holds={}, held=0)
    await refused(store, store.delete(closed, budgets.refund_moves(token, 1)), Conflict, "-1 to the lifetime")


async def test_more_captured_than_authorised_gives_nothing_back(process: Processes) -> None:
    store = await process()
    closed = replace(await opened(store), status=ChannelStatus.CLOSED, captured=11)
    await refused(
        store, store.delete(closed, budgets.refund_moves(TOKEN.address, 1)), Conflict, "-1 to the lif"
    )
    await store.delete(closed)


# -- claim and release


async def test_a_channel_given_back_is_claimed_as_it_is(process: Processes) -> None:
    one, two = await process(), await process()
    channel = replace(await opened(one), folded=JournalMark("of-one", 9, "boot"))
    with pytest.raises(ChannelBusy, match="0xc1 is in use by process") as busy:
        await two.claim("0xc1", never)
    assert busy.value.owner == one.owner_id
    assert two.is_busy(channel)
    assert not one.is_busy(channel)
    await one.release(channel)
    found = await two.find("0xc1")
    assert found == replace(channel, owner=None)
    assert not two.is_busy(found)
    mark = JournalMark("of-two", 4, "boot")
    claimed = await two.claim("0xc1", never, mark=mark)
    assert claimed == replace(channel, owner=two.owner_id, epoch=2, folded=mark)
    await refused(one, one.set(channel), Fenced, r"another owner now \(epoch 2\)")
    await refused(one, one.release(channel), Fenced, "another owner now")
    await refused(two, two.set(replace(claimed, epoch=1)), Fenced, "epoch 2")
    await refused(two, two.claim("0xnone", same), Conflict, "no channel 0xnone")


async def test_a_dead_owner_is_folded_once(process: Processes, tmp_path: Path) -> None:
    """Also when the one who folded dies before it has committed anything."""
    stores = [await process() for _ in range(3)]
    journals = [Journal(tmp_path / "ledger", store.owner_id, "boot") for store in stores]
    first = await opened(stores[0], folded=journals[0].mark)

    def recover(channel: Channel) -> Channel:
        assert channel.folded is not None
        return account.fold(channel, moves_after(tmp_path / "ledger", channel.folded, channel.channel_id))

    def send(number: int, amount: int) -> None:
        hold = Hold(f"r{number}", amount, 10, 1, 2, 1, "f")
        journals[number].append({}, channel_id="0xc1", move=Sent(hold))

    send(1, 7)  # of a time when it had the channel before: folded long ago
    send(0, 3)
    await stores[0].close()
    claimed = await stores[1].claim("0xc1", recover, mark=journals[1].mark)
    assert claimed.uncertain == 3
    assert claimed.authorised == first.authorised
    send(1, 2)  # out of what is free, so without a commit
    await stores[1].close()
    claimed = await stores[2].claim("0xc1", recover, mark=journals[2].mark)
    assert claimed.uncertain == 5
    assert claimed.epoch == 3


async def test_what_a_new_owner_sends_before_its_first_commit_is_not_forgotten(
    process: Processes, tmp_path: Path
) -> None:
    """The mark of a channel that was given back is in the journal of whoever gave it back."""
    one, two, three = [await process() for _ in range(3)]
    ledger = tmp_path / "ledger"
    journals = [Journal(ledger, store.owner_id, "boot") for store in (one, two)]
    await one.release(await opened(one, folded=journals[0].mark))
    await two.claim("0xc1", never, mark=journals[1].mark)
    journals[1].append({}, channel_id="0xc1", move=Sent(Hold("r", 4, 10, 1, 2, 1, "f")))
    await two.close()
    claimed = await three.claim(
        "0xc1",
        lambda one: account.fold(one, moves_after(ledger, one.folded or pytest.fail("no mark"), "0xc1")),
    )
    assert (claimed.uncertain, claimed.free) == (4, 6)


async def test_without_a_mark_the_next_owner_has_to_doubt(process: Processes) -> None:
    one, two = await process(), await process()
    await one.release(await opened(one, folded=JournalMark("one", 1, "boot")))
    assert (await two.claim("0xc1", never)).folded is None


async def test_what_this_process_let_go_of_is_recovered_too(process: Processes) -> None:
    store = await process()
    channel = await opened(store)
    claimed = await store.claim("0xc1", lambda one: account.doubt_everything(one, 5))
    assert claimed == replace(channel, epoch=2, uncertain=10, eligible_at=5)
    await refused(store, store.set(channel), Fenced, "epoch 2")


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"authorised": 11}, Conflict, "recovery must not change authorised"),
        ({"authorised": 9}, Conflict, "recovery must not change authorised"),
        ({"paid": 11}, IllegalMove, "free is -1"),
        ({"channel_id": "0xother"}, Conflict, "recovery must not change what"),
        ({"scope": scope_of(payer="c")}, Conflict, "recovery must not change what"),
        ({"descriptor": {}}, Conflict, "recovery must not change what"),
        ({"status": SENT}, IllegalTransition, "cannot become sent"),
    ],
)
async def test_a_recovery_that_changes_more_than_the_account_is_refused(
    process: Processes, changed: dict[str, Any], error: type[Exception], says: str
) -> None:
    one, two = await process(), await process()
    await opened(one)
    await one.close()
    await refused(two, two.claim("0xc1", lambda record: replace(record, **changed)), error, says)


async def test_a_recovery_that_raises_leaves_the_channel_to_the_next(process: Processes) -> None:
    one, two = await process(), await process()
    channel = await opened(one)
    await one.close()
    await refused(two, two.claim("0xc1", never), AssertionError, "nothing was to be recovered")
    assert (await two.claim("0xc1", same)).epoch == channel.epoch + 1


async def test_what_release_refuses(process: Processes) -> None:
    store = await process()
    channel = await opened(store)
    hold = Hold("r", 5, 10, 1, 2, 1, "f")
    for changed, error, says in (
        (replace(channel, holds={"r": hold}, held=5), Conflict, "has requests in flight"),
        (replace(channel, paid=11), IllegalMove, "free is -1"),
        (replace(channel, authorised=20), Conflict, "changes that were not written"),
        (replace(channel, status=ChannelStatus.DRAINING), Conflict, "changes that were not written"),
        (replace(channel, descriptor={}), Conflict, "changes that were not written"),
        (replace(channel, channel_id="0xnone"), Conflict, "no channel 0xnone"),
    ):
        await refused(store, store.release(changed), error, says)
    await store.release(replace(channel, paid=4, note="what moved lazily is written"))
    found = await store.find("0xc1")
    assert found is not None
    assert (found.owner, found.paid) == (None, 4)


# -- limits


@pytest.mark.parametrize("limited", ["host_day", "total_day", "lifetime"])
async def test_many_at_once_reach_a_limit_and_never_pass_it(process: Processes, limited: str) -> None:
    """Two processes, each with a channel, raise 3 at a time: 2 × 5 + 30 × 3 = 100 fits exactly, the next does not."""
    stores = [await process(), await process()]
    channels = [await opened(store, f"0xc{n}", first=5, deposit=1_000) for n, store in enumerate(stores)]
    limit = 100
    done = 0

    async def raise_one(number: int) -> None:
        nonlocal done
        store, channel = stores[number], channels[number]
        while True:
            raised = account.raise_authorised(channel, 3)
            try:
                await store.set(raised, raising(3, **{limited: limit}))
            except LimitExceeded as error:
                assert error.used + 3 > limit  # noqa: PT017
                return
            channel = raised
            done += 1

    await asyncio.gather(raise_one(0), raise_one(1))
    assert done == 30
    assert await raised_counters(stores[0]) == {limit}
    assert sum(one.authorised for one in await stores[0].all()) == limit


async def test_many_coroutines_count_exactly(process: Processes) -> None:
    store = await process()
    channel = await opened(store)
    await asyncio.gather(*(store.set(channel, [CounterMove("client/x", 3)]) for _ in range(200)))
    outcomes = await asyncio.gather(
        *(store.set(channel, [CounterMove("client/x", 1, 625)]) for _ in range(50)), return_exceptions=True
    )
    assert sum(isinstance(one, LimitExceeded) for one in outcomes) == 25
    assert await store.counters("client/") == {"client/x": 625}


# -- what is known from elsewhere


async def test_what_absorbing_refuses(process: Processes) -> None:
    store, other = await process(), await process()
    channel = await opened(store)
    await refused(store, other.absorb(channel), Fenced, "0xc1 has another owner now")
    await refused(store, store.absorb(replace(channel, epoch=2)), Fenced, "0xc1 has another owner now")
    await refused(store, store.absorb(replace(channel, owner=None)), Conflict, "descriptor or owner")
    await refused(store, store.absorb(replace(channel, descriptor={})), Conflict, "descriptor or owner")
    lowered = replace(channel, authorised=9, paid=9)
    await refused(store, store.absorb(lowered), Conflict, "lowers or frees")
    paid = replace(channel, paid=4)
    await store.absorb(paid)
    freed = replace(channel, paid=3)  # nothing is raised, and one unit more would be free
    await refused(store, store.absorb(freed), Conflict, "lowers or frees")
    raised = replace(channel, authorised=30, paid=30)
    await refused(store, store.absorb(raised), Conflict, "a raise of 20 was charged as 0")
    await store.absorb(raised, raising(20))
    assert await store.find("0xc1") == raised


async def test_a_store_in_doubt_authorises_nothing_more(process: Processes) -> None:
    store = await process()
    channel = await opened(store)
    await store.commits.transact(lambda txn: lineage.put_in_doubt(txn, "an older copy"))
    more = account.raise_authorised(channel, 1)
    await refused(store, store.set(more, raising(1)), OldCopy, "an older copy")
    fresh = proposed("0xc2", SCOPE, authorised=1)
    await refused(store, store.propose(fresh, raising(1), max_channels=9), OldCopy, "an older copy")
    await store.set(replace(channel, paid=4))  # what is known may be written down
    assert await store.commits.left_in_doubt() == ("0xc1",)
    await store.absorb(replace(channel, paid=4), reconciles=False)
    assert await store.commits.left_in_doubt() == ("0xc1",)
    await store.absorb(replace(channel, paid=4), reconciles=True)
    assert await store.commits.left_in_doubt() == ()


@pytest.mark.parametrize(("captured", "back"), [(0, 10), (4, 6), (9, 1), (10, 0), (11, 0), (100, 0)])
async def test_a_proven_close_gives_back_what_nobody_can_take_any_more(
    process: Processes, captured: int, back: int
) -> None:
    store = await process()
    channel = await opened(store)
    closed = replace(channel, status=ChannelStatus.CLOSED, captured=captured, refunded=100 - captured)
    too_much = budgets.refund_moves(TOKEN.address, back + 1)
    await refused(store, store.delete(closed, too_much), Conflict, f"charged as -{back + 1} to the lifetime")
    await store.delete(closed, budgets.refund_moves(TOKEN.address, back))
    assert (await store.counters())[budgets.lifetime(TOKEN.address)] == 10 - back


async def test_what_is_absorbed_may_be_of_any_date(process: Processes) -> None:
    """It was paid then; no clock of ours went back."""
    store = await process()
    channel = await opened(store)
    assert await store.newest_day() == budgets.day_number(DAY)
    raised = replace(channel, authorised=30, paid=30)
    await store.absorb(raised, CAPS.raise_moves(20, "2020-01-01"))
    assert await store.newest_day() == budgets.day_number(DAY)
    assert (await store.counters())[budgets.total_day(TOKEN.address, "2020-01-01")] == 20


async def test_what_a_store_knows_beside_its_channels(process: Processes) -> None:
    store = await process()
    assert (await store.newest_day(), await store.pins(), store.sealed_against) == (None, (), None)
    fresh = replace(proposed("0xc1", SCOPE, authorised=10), updated_at=5)
    await store.propose(fresh, raising(10), max_channels=1, pin=True)
    assert await store.pins() == (Pin(SCOPE.origin, SCOPE.payee, 5),)
    assert await store.pin_of(SCOPE.origin) == Pin(SCOPE.origin, SCOPE.payee, 5)
    assert await store.newest_day() == budgets.day_number(DAY)
    records, counters = await store.books()
    assert (records, counters) == (await store.all(), await store.counters())
    assert await store.of_short_key(SCOPE.short_key) == records
    await store.commits.transact(lambda txn: lineage.put_in_doubt(txn, "an older copy"))
    await store.commits.look_at_doubt()
    assert store.sealed_against == "an older copy"


async def test_what_another_store_had_is_taken_in_once_with_its_counters(process: Processes) -> None:
    store = await process()
    theirs = replace(proposed("0xf1", SCOPE, authorised=10), status=ChannelStatus.CLOSED, owner="them")
    closed = replace(theirs, pending=None, deposit=100, paid=4, captured=4, refunded=96)
    await refused(store, store.adopt(closed, ()), Conflict, "a raise of 10 was charged as 0")
    await refused(store, store.adopt(closed, raising(10), refund=7), Conflict, "-7 to the lifetime")
    await store.adopt(closed, CAPS.raise_moves(10, "2020-01-01"), refund=6)
    assert await store.find("0xf1") == replace(closed, owner=None)
    assert (await store.counters())[budgets.lifetime(TOKEN.address)] == 4
    assert (await store.counters())[budgets.refunded(TOKEN.address)] == 6
    await refused(store, store.adopt(closed, raising(10)), Conflict, "0xf1 is on record already")
    failed = replace(proposed("0xf2", SCOPE, authorised=10), status=ChannelStatus.FAILED)
    await store.adopt(failed, ())  # nothing of it was ever taken
    assert (await store.counters())[budgets.lifetime(TOKEN.address)] == 4
    plain = replace(closed, channel_id="0xf3", captured=None, refunded=None)
    await store.adopt(plain, raising(10))
    assert (await store.counters())[budgets.lifetime(TOKEN.address)] == 14
