"""Counters in the transaction: the escrow follows the records, no clock opens a window, pins hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from store import account, budgets
from store.channels import ChannelStore, Conflict, LimitExceeded
from store.charging import COUNTER, ClockWentBack
from store.codec import seal
from store.contract import UnknownVersion
from store.lifecycle import ChannelStatus
from store.memory_store import MemoryBackend, SharedMemory
from store.pins import PayeeChanged, Pin
from store.records import Channel, CounterMove, PendingTransaction
from tests.properties.bank import CAPS, TOKEN, proposed, scope_of

OPEN, CLOSED, FAILED = ChannelStatus.OPEN, ChannelStatus.CLOSED, ChannelStatus.FAILED
ESCROW = budgets.escrow(TOKEN.address)
DAY = "2026-03-01"
ORIGIN = "https://api.example.com:443"


@pytest.fixture
def shared() -> SharedMemory:
    return SharedMemory()


@pytest_asyncio.fixture
async def store(shared: SharedMemory) -> AsyncIterator[ChannelStore]:
    store = ChannelStore(MemoryBackend(shared))
    yield store
    await store.close()


async def escrow(store: ChannelStore) -> int:
    return (await store.counters(ESCROW)).get(ESCROW, 0)


async def propose(
    store: ChannelStore,
    number: int = 1,
    deposit: int = 100,
    *,
    date: str = DAY,
    pin: bool = False,
    **fields: Any,
) -> Channel:
    scope = replace(scope_of(payer=f"{number:x}"), **fields)
    channel = proposed(f"0x{number}", scope, authorised=5)
    assert channel.pending is not None
    moves = replace(CAPS, escrow_total=1_000).open_moves(deposit, 5, date)
    pending = replace(channel.pending, deposit=deposit, counters=moves)
    return await store.propose(replace(channel, pending=pending), moves, max_channels=9, pin=pin)


async def opened(store: ChannelStore, number: int = 1, deposit: int = 100) -> Channel:
    channel = await propose(store, number, deposit)
    channel = replace(channel, status=OPEN, deposit=deposit, pending=None)
    await store.set(channel)
    return channel


# -- the escrow


async def test_the_escrow_follows_a_channel_through_its_life(store: ChannelStore) -> None:
    channel = await propose(store)
    assert await escrow(store) == 100  # from before its transaction leaves
    channel = replace(channel, status=OPEN, deposit=100, pending=None)
    await store.set(channel)
    assert await escrow(store) == 100
    moves = replace(CAPS, escrow_total=150).deposit_moves(50, DAY)
    topping = PendingTransaction("top_up", "0x76", "0x1", 9, 50, counters=moves)
    channel = replace(channel, pending=topping)
    await store.set(channel, moves)
    assert await escrow(store) == 150
    channel = replace(channel, pending=None, deposit=150)
    await store.set(channel)
    assert await escrow(store) == 150
    channel = replace(channel, status=CLOSED, captured=3, paid=3)
    await store.delete(channel, budgets.refund_moves(TOKEN.address, 2))
    assert await escrow(store) == 0


async def test_a_deposit_that_never_left_is_not_locked(store: ChannelStore) -> None:
    channel = await propose(store)
    assert channel.pending is not None
    back = budgets.reversed_moves(channel.pending.counters)
    await store.delete(replace(channel, status=FAILED), back)
    assert await escrow(store) == 0


async def test_a_top_up_that_failed_while_somebody_else_added_to_the_deposit(store: ChannelStore) -> None:
    """The chain's word on the deposit counts, whatever the reversal says."""
    channel = await opened(store)
    moves = CAPS.deposit_moves(50, DAY)
    pending = PendingTransaction("top_up", "0x76", "0x1", 9, 50, counters=moves)
    await store.set(replace(channel, pending=pending), moves)
    await store.set(replace(channel, pending=None, deposit=130), budgets.reversed_moves(moves))
    assert await escrow(store) == 130


@pytest.mark.parametrize(("deposit", "fits"), [(900, True), (901, False)])
async def test_the_limit_is_exact(store: ChannelStore, deposit: int, fits: bool) -> None:
    await opened(store, 1, 100)
    if fits:
        await propose(store, 2, deposit)
        assert await escrow(store) == 1_000
        return
    with pytest.raises(
        LimitExceeded, match=r"^policy\.max_deposits_total: 100 used of 1000, 901 more"
    ) as caught:
        await propose(store, 2, deposit)
    assert caught.value.used == 100
    assert await escrow(store) == 100


async def test_no_limit_is_no_limit_and_the_chain_may_pass_any(store: ChannelStore) -> None:
    channel = await opened(store)
    await store.set(replace(channel, deposit=5_000))  # somebody topped it up: it is locked, whoever it was
    assert await escrow(store) == 5_000
    with pytest.raises(LimitExceeded):
        await propose(store, 2, 5)


async def test_a_store_of_before_counts_what_it_has(store: ChannelStore, shared: SharedMemory) -> None:
    first, _ = await opened(store, 1, 100), await opened(store, 2, 300)
    shared.apply({COUNTER + ESCROW.encode(): None})
    await store.set(replace(first, seq=1))
    assert await store.counters(ESCROW) == {}  # nothing was locked or set free
    await propose(store, 3, 20)
    assert await escrow(store) == 420
    shared.apply({COUNTER + ESCROW.encode(): None})
    await store.delete(replace(first, status=CLOSED, captured=5, paid=5))
    assert await escrow(store) == 320


async def test_processes_that_open_at_once_share_the_limit(shared: SharedMemory) -> None:
    stores = [ChannelStore(MemoryBackend(shared)) for _ in range(8)]
    results = await asyncio.gather(
        *(propose(store, number + 1, 300) for number, store in enumerate(stores)), return_exceptions=True
    )
    assert [isinstance(one, LimitExceeded) for one in results] == [False] * 3 + [True] * 5
    assert await escrow(stores[0]) == 900


# -- dates


@pytest.mark.parametrize(
    ("newest", "date", "taken"),
    [
        ("2026-03-01", "2026-03-01", True),
        (
            "2026-03-01",
            "2026-02-28",
            True,
        ),  # dated before midnight, written after what another dated behind it
        ("2026-03-01", "2026-02-27", False),
        ("2026-03-01", "2025-03-01", False),
        ("2028-03-01", "2028-02-29", True),
        ("2028-03-01", "2028-02-28", False),
        ("2026-01-01", "2025-12-31", True),
        ("2026-01-01", "2025-12-30", False),
        ("2026-03-01", "2026-03-02", True),
        ("2026-03-01", "2031-01-01", True),  # whether it has come is for the payer to find out
    ],
)
async def test_which_dates_may_be_charged(store: ChannelStore, newest: str, date: str, taken: bool) -> None:
    await propose(store, 1, date=newest)
    before = await store.counters()
    if taken:
        await propose(store, 2, date=date)
        assert await store.newest_day() == budgets.day_number(max(newest, date))
        return
    says = f"^the clock went back: it says {date}, but {newest} was charged already; set this machine's clock right"
    with pytest.raises(ClockWentBack, match=says):
        await propose(store, 2, date=date)
    assert await store.counters() == before
    assert await store.newest_day() == budgets.day_number(newest)


async def test_a_new_store_has_no_date(store: ChannelStore) -> None:
    assert await store.newest_day() is None


async def test_every_dated_limit_is_held_to_it(store: ChannelStore) -> None:
    channel = await opened(store)
    token, old = TOKEN.address, "2026-02-01"
    for key in (
        budgets.client_day(token, "alice", old),
        budgets.opens("a:443", old),
        budgets.deposits(token, "a:443", old),
        budgets.host_day(token, "a:443", old),
        budgets.total_day(token, old),
    ):
        with pytest.raises((ClockWentBack, Conflict)) as caught:
            await store.set(channel, [CounterMove(key, 1)])
        raises_family = key.startswith(budgets.RAISED)
        assert raises_family or isinstance(caught.value, ClockWentBack)


async def test_what_is_given_back_goes_to_any_date(store: ChannelStore) -> None:
    key = budgets.client_day(TOKEN.address, "alice", "2026-02-01")
    await store.count([CounterMove(key, 9)])
    await propose(store)
    await store.count([CounterMove(key, -4), CounterMove("undelivered/x/2026-01-01/a", 3)])
    assert (await store.counters("client-day/"))[key] == 5
    with pytest.raises(Conflict, match="has 5, 6 cannot be given back"):
        await store.count([CounterMove(key, -6)])


async def test_a_count_moves_no_raise(store: ChannelStore) -> None:
    with pytest.raises(Conflict, match="a raise of 0 was charged as 1 to the total-day budget"):
        await store.count([CounterMove(budgets.total_day(TOKEN.address, DAY), 1)])


@pytest.mark.parametrize("day", [-1, 0, 20_454, 20_512, 100_000])
def test_days_and_dates(day: int) -> None:
    assert budgets.day_number(budgets.iso_date(day)) == day


def test_long_and_odd_names_of_clients() -> None:
    token = TOKEN.address
    assert budgets.client_day(token, "alice", DAY) == f"client-day/{token}/{DAY}/alice"
    long = budgets.client_day(token, "x" * 10_000, DAY)
    assert len(long) < 200
    assert long != budgets.client_day(token, "x" * 9_999, DAY)
    for name in ("a/b", "ü", "\udcff", "", "x" * 65):
        key = budgets.client_day(token, name, DAY)
        assert len(key.encode()) < 400
        assert budgets.charged_days([CounterMove(key, 1)]) == (budgets.day_number(DAY),) * 2


# -- pins


async def test_the_first_payee_is_the_one(store: ChannelStore) -> None:
    other = "0x" + "c" * 40
    first = await propose(store, 1, pin=True)
    assert await store.pins() == (Pin(ORIGIN, first.scope.payee, first.updated_at),)
    assert await store.pin_of(ORIGIN) == (await store.pins())[0]
    assert await store.pin_of("https://other:443") is None
    await propose(store, 2, pin=True)
    with pytest.raises(
        PayeeChanged, match=rf"^{ORIGIN} is held to the payee {first.scope.payee}, not {other}$"
    ):
        await propose(store, 3, pin=True, payee=other)
    assert len(await store.all()) == 2
    await propose(store, 4, pin=True, payee=other, origin="https://other:443")
    await propose(store, 5, payee=other)  # a rule without pins
    assert await store.forget_pin(ORIGIN) is True
    assert await store.forget_pin(ORIGIN) is False
    await propose(store, 6, pin=True, payee=other)


async def test_a_raise_on_a_channel_of_before_pins_its_payee(store: ChannelStore) -> None:
    channel = await opened(store)
    raised = account.raise_authorised(channel, 3)
    await store.set(raised, CAPS.raise_moves(3, DAY), True)
    assert [pin.payee for pin in await store.pins()] == [channel.scope.payee]
    with pytest.raises(PayeeChanged):
        await propose(store, 3, pin=True, payee="0x" + "c" * 40)


async def test_of_processes_that_race_for_the_first_pin_one_wins(shared: SharedMemory) -> None:
    stores = [ChannelStore(MemoryBackend(shared)) for _ in range(6)]
    results = await asyncio.gather(
        *(propose(one, n + 1, pin=True, payee=f"0x{n:040x}") for n, one in enumerate(stores)),
        return_exceptions=True,
    )
    won = [one for one in results if isinstance(one, Channel)]
    assert len(won) == 1
    assert sum(isinstance(one, PayeeChanged) for one in results) == 5
    assert [pin.payee for pin in await stores[0].pins()] == [won[0].scope.payee]
    assert len(await stores[0].all()) == 1


async def test_a_pin_that_cannot_be_read_is_left_alone(store: ChannelStore, shared: SharedMemory) -> None:
    shared.apply({b"p/" + ORIGIN.encode(): seal(b"[1]")})
    with pytest.raises(UnknownVersion, match=f"the pin of {ORIGIN} is not one that this bursar reads"):
        await propose(store, pin=True)
    with pytest.raises(UnknownVersion):
        await store.pins()


async def test_a_limit_that_was_lowered_below_what_is_used_stops_only_what_adds(store: ChannelStore) -> None:
    used = CounterMove("client/x", 10)
    await store.count([used])
    await store.count([CounterMove("client/x", 0, limit=5)])
    await store.count([CounterMove("client/x", -1, limit=5)])
    with pytest.raises(LimitExceeded):
        await store.count([CounterMove("client/x", 1, limit=5)])
    with pytest.raises(LimitExceeded):
        await store.count([CounterMove("client/x", 1, limit=9)])
    await store.count([CounterMove("client/x", 1, limit=10)])
    assert await store.counters("client/") == {"client/x": 10}
    with pytest.raises(Conflict, match="client/x has 10, 11 cannot be given back to it"):
        await store.count([CounterMove("client/x", -11)])
    await store.count([CounterMove("client/x", -10)])
    assert await store.counters("client/") == {"client/x": 0}


async def test_what_the_chain_says_is_a_fact_whatever_limit_is_named(store: ChannelStore) -> None:
    """A limit holds what we add ourselves; a deposit that is simply there is counted."""
    channel = await propose(store, deposit=100)
    opened = replace(channel, status=OPEN, deposit=100, pending=None)
    await store.set(opened)
    for amount in (0, -1):
        opened = replace(opened, deposit=opened.deposit + 50)
        await store.set(opened, [CounterMove(ESCROW, amount, limit=1)])
    assert await escrow(store) == 200
    with pytest.raises(LimitExceeded):
        await store.set(replace(opened, deposit=250), [CounterMove(ESCROW, 1, limit=249)])
    await store.set(replace(opened, deposit=250), [CounterMove(ESCROW, 1, limit=250)])
    assert await escrow(store) == 250
