"""No budget is ever passed: clients, host, total, lifetime and escrow, with several processes, crashes and midnights.

The store, the channels' account and `ClientDays` are the real ones; a process does with them what the payer does, in
its order, one step at a time, so that commits overlap and a crash fits between any two. The truth is kept beside
it: what each client's requests held on each date, less what came back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy_addon.audit import RequestFacts
from proxy_addon.core.policy import ClientCap
from proxy_addon.core.repair import Tries
from proxy_addon.payer.clients import ClientDays, Cover
from proxy_addon.payer.wants import Want
from store import account, budgets
from store.account import Ended, Ending
from store.channels import ChannelStore, LimitExceeded
from store.charging import ClockWentBack
from store.contract import StoreUnavailable
from store.lifecycle import ChannelStatus
from store.memory_store import MemoryBackend, SharedMemory
from store.records import Channel, CounterMove
from tests.properties import steps
from tests.properties.bank import CAPS, TOKEN, peek, proposed, scope_of

START = 20_000
LIMITS = {"alice": 100, "bob": 640, "carol": 3_200}
CAPS_HERE = replace(
    CAPS,
    per_request=10**6,
    host_day=900,
    total_day=950,
    lifetime=2_500,
    deposits_per_day=10**6,
    escrow_total=9_000,
)


def want_of(client: str, price: int, number: int) -> Want:
    cap = ClientCap(client, TOKEN.address, LIMITS[client], "policy.clients") if client in LIMITS else None
    facts = RequestFacts(f"r{number}", "127.0.0.1:1", "api.example.com", "GET", "/", client)
    return Want(facts, price, CAPS_HERE, Tries(), "c", 10**15, "f", client_cap=cap)


@dataclass(eq=False)
class Process:
    """One run of the proxy, with a channel of its own. What it has in memory dies with it."""

    backend: MemoryBackend
    store: ChannelStore
    channel: Channel
    days: ClientDays = field(default_factory=ClientDays)
    commits: list[Commit] = field(default_factory=list)
    holds: list[tuple[Want, str]] = field(default_factory=list)  # with their dates
    busy: bool = False  # a commit of the record is on its way: the till has one at a time


@dataclass(eq=False)
class Commit:
    """Started, and not heard of yet."""

    process: Process
    wants: list[Want]
    cover: Cover
    date: str
    raised: int
    open: asyncio.Event
    task: asyncio.Task[None] | None = None
    fails: bool = False


class Budgets(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.shared = SharedMemory()
        self.numbers = itertools.count(1)
        self.processes: list[Process] = []
        self.day, self.ticks = START, 0
        self.held: Counter[tuple[str, str]] = Counter()  # by client and date
        self.newest = 0
        self.reader = ChannelStore(MemoryBackend(self.shared))
        self._start()

    # -- what the machine does

    def run(self, work: Callable[[], Any]) -> Any:
        async def outer() -> Any:
            found = work()
            result = await found if asyncio.iscoroutine(found) else found
            for _ in range(6):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(outer())

    @property
    def date(self) -> str:
        return budgets.iso_date(self.day)

    def _start(self) -> None:
        """A process opens a channel: an opening is charged like a raise, and locks a deposit."""
        backend = MemoryBackend(self.shared)
        store = ChannelStore(backend)
        number = next(self.numbers)
        scope = scope_of(payer=f"{number % 16:x}")
        base = proposed(f"0x{number:064x}", scope)
        assert base.pending is not None
        moves = CAPS_HERE.open_moves(3_000, 1, self.date)
        pending = replace(base.pending, deposit=3_000, counters=moves)
        channel = replace(base, authorised=1, pending=pending)
        try:
            channel = self.run(lambda: store.propose(channel, moves, max_channels=99))
        except (LimitExceeded, ClockWentBack):
            return
        channel = replace(channel, status=ChannelStatus.OPEN, deposit=3_000, pending=None)
        self.run(lambda: store.set(channel))
        self.processes.append(Process(backend, store, channel))

    def _hold(self, process: Process, want: Want, date: str) -> None:
        channel = account.issue(process.channel, max(0, want.price - process.channel.spare))
        process.channel, _ = account.hold(
            channel,
            want.facts.request_id,
            want.price,
            voucher=channel.issued,
            sent_at=1,
            expires_at=2,
            fingerprint="f",
        )
        process.holds.append((want, date))
        self.held[want.facts.user or "", date] += want.price

    @rule(number=st.integers(1, 9))
    def start(self, number: int) -> None:
        if len(self.processes) < 3:
            self._start()

    @precondition(lambda self: self.processes)
    @rule(
        data=st.data(),
        clients=st.lists(st.sampled_from([*LIMITS, "dave"]), min_size=1, max_size=4),
        price=st.integers(1, 40),
        extra=st.integers(0, 60),
        forced=st.booleans(),
        at_once=st.integers(0, 3),
    )
    def requests(
        self, data: st.DataObject, clients: list[str], price: int, extra: int, forced: bool, at_once: int
    ) -> None:
        """Some requests come at once. Those that the account and their clients' days cover hold at once."""
        process = data.draw(st.sampled_from(self.processes))
        wants = [want_of(client, price, next(self.numbers)) for client in clients]
        waiting = []
        for want in wants:
            free = process.channel.free >= price and not process.busy and not forced
            if free and process.days.take_now(want, self.date, self.ticks):
                self._hold(process, want, self.date)
            else:
                waiting.append(want)
        if waiting and not process.busy:
            self._commit(process, waiting, extra, forced)
            if at_once and process.commits:
                self._finish(process)

    def _commit(self, process: Process, wants: list[Want], extra: int, forced: bool) -> None:
        raised = max(0, sum(want.price for want in wants) - process.channel.free) + extra * forced
        if process.channel.authorised + raised > process.channel.ceiling:
            return
        cover = process.days.cover(self.date, self.ticks)
        for want in wants:
            cover.add(want, beyond=extra if forced else 0)
        commit = Commit(process, wants, cover, self.date, raised, asyncio.Event())
        process.commits.append(commit)
        process.busy = True

        async def write(reserving: tuple[CounterMove, ...]) -> None:
            await commit.open.wait()
            if commit.fails:
                raise StoreUnavailable("the disk is full")
            counters = (*CAPS_HERE.raise_moves(raised, commit.date), *reserving) if raised else reserving
            if not counters:
                return
            target = account.raise_authorised(process.channel, raised)
            await process.store.set(target, counters)

        async def whole() -> None:
            try:
                await cover.reserve(write, anyway=raised > 0)
            except BaseException as error:
                cover.undo()
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            process.channel = account.raise_authorised(process.channel, raised)
            for want in wants:
                if forced:  # what a refusal made us authorise stays counted
                    self.held[want.facts.user or "", commit.date] += extra
                if process.channel.free >= want.price:
                    self._hold(process, want, commit.date)
                else:
                    want.unclaim()

        def begin() -> None:
            commit.task = asyncio.Task(whole(), loop=self.loop)

        self.run(begin)

    @precondition(lambda self: any(one.commits for one in self.processes))
    @rule(
        data=st.data(), fate=st.sampled_from(["done", "done", "done", "fails", "dies before", "dies after"])
    )
    def commits_end(self, data: st.DataObject, fate: str) -> None:
        process = data.draw(st.sampled_from([one for one in self.processes if one.commits]))
        match fate:
            case "done" | "fails":
                self._finish(process, fails=fate == "fails")
            case "dies before":
                self._kill(process)
            case _:  # handed in, landed, and nobody heard of it
                process.commits[0].open.set()
                self.loop.run_until_complete(asyncio.sleep(0))
                self._kill(process, landed=True)

    def _finish(self, process: Process, *, fails: bool = False) -> None:
        commit = process.commits.pop()
        commit.fails = fails
        self.run(commit.open.set)
        process.busy = False

    def _kill(self, process: Process, *, landed: bool = False) -> None:
        """Everything in memory is gone: what its clients' days had reserved is lost to them."""
        process.backend.kill(landed=landed)
        for commit in process.commits:
            if commit.task is not None:
                commit.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self.loop.run_until_complete(commit.task)
        self.processes.remove(process)

    @precondition(lambda self: len(self.processes) > 1)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        self._kill(data.draw(st.sampled_from(self.processes)))

    @precondition(lambda self: any(one.holds for one in self.processes))
    @rule(
        data=st.data(),
        ending=st.sampled_from([Ending.FREE, Ending.PAID, Ending.FREE, Ending.FREE, Ending.UNDELIVERED]),
    )
    def ends(self, data: st.DataObject, ending: Ending) -> None:
        process = data.draw(st.sampled_from([one for one in self.processes if one.holds]))
        want, date = process.holds.pop(data.draw(st.integers(0, len(process.holds) - 1)))
        process.channel = account.end(process.channel, Ended(want.facts.request_id, ending, at=5))
        if ending is Ending.FREE:
            self.held[want.facts.user or "", date] -= want.price
        want.let_go(charged=ending is not Ending.FREE)

    @precondition(lambda self: any(one.holds for one in self.processes))
    @rule(data=st.data(), more=st.integers(1, 30))
    def a_stream_grows(self, data: st.DataObject, more: int) -> None:
        """Out of what is free: the client's day grows with it, with a commit of its own where it must."""
        process = data.draw(st.sampled_from([one for one in self.processes if one.holds]))
        want, date = data.draw(st.sampled_from(process.holds))
        if process.busy or process.channel.free < more or date != self.date:
            return
        cover = process.days.cover(self.date, self.ticks)
        cover.grow(want, more)

        async def write(reserving: tuple[CounterMove, ...]) -> None:
            if reserving:
                await process.store.set(process.channel, reserving)

        async def whole() -> bool:
            try:
                await cover.reserve(write)
            except (LimitExceeded, ClockWentBack):
                cover.undo()
                return False
            return True

        if self.run(whole):
            channel = account.issue(process.channel, max(0, more - process.channel.spare))
            process.channel = account.grow(
                channel, account.Grown(want.facts.request_id, more, channel.issued)
            )
            want.price += more
            self.held[want.facts.user or "", self.date] += more

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), all_of_it=st.booleans())
    def gives_back(self, data: st.DataObject, all_of_it: bool) -> None:
        process = data.draw(st.sampled_from(self.processes))
        self.ticks += 1
        moves = process.days.surplus(self.date, self.ticks if all_of_it else 0)
        assert all(move.amount < 0 for move in moves)
        self.run(lambda: process.store.count(moves))

    @rule(days=st.sampled_from([1, 1, 1, -1, -3, 2]))
    def midnight(self, days: int) -> None:
        """Also a clock that is set: what it makes older than the day before the newest is refused."""
        self.day += days

    # -- what must hold

    @invariant()
    def no_limit_is_passed(self) -> None:
        steps.taken[type(self).__name__] += 1
        counters = peek(self.reader.counters())
        records = peek(self.reader.all())
        limits = {
            "host-day": CAPS_HERE.host_day,
            "total-day": CAPS_HERE.total_day,
            "lifetime": CAPS_HERE.lifetime,
            "opens": CAPS_HERE.opens_per_day,
            "deposits": CAPS_HERE.deposits_per_day,
            "escrow": CAPS_HERE.escrow_total or 0,
        }
        for key, used in counters.items():
            family, *_, name = key.split("/")
            assert 0 <= used <= (LIMITS[name] if family == "client-day" else limits[family]), key
        for (client, date), held in self.held.items():
            if client in LIMITS:
                reserved = counters.get(budgets.client_day(TOKEN.address, client, date), 0)
                assert 0 <= held <= reserved, (client, date)
        total = sum(record.authorised for record in records)
        assert sum(value for key, value in counters.items() if key.startswith("host-day/")) == total
        assert counters.get(budgets.escrow(TOKEN.address), 0) == sum(map(budgets.locked, records))
        newest = peek(self.reader.newest_day()) or 0
        assert newest >= self.newest, "the newest date fell"
        self.newest = newest

    @invariant()
    def what_is_used_is_reserved(self) -> None:
        counters = peek(self.reader.counters("client-day/"))
        ours: Counter[str] = Counter()
        for process in self.processes:
            for day in process.days._days.values():
                assert 0 <= day.used <= day.reserved
                ours[day.key] += day.reserved
        for key, reserved in ours.items():
            assert reserved <= counters.get(key, 0), key

    def teardown(self) -> None:
        for process in list(self.processes):
            self._kill(process)
        self.loop.run_until_complete(self.reader.close())
        self.loop.close()


class TestBudgets(Budgets.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        max_examples=settings().max_examples // 2, stateful_step_count=settings().stateful_step_count
    )
