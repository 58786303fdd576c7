"""Vouchers that overtake each other: higher ones give way, for as long as this server needs and no longer."""

from __future__ import annotations

import asyncio

import pytest

from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer.overtaking import FIRST_MS, LEAST_MS, LONGEST_MS, MOST_MS, Unanswered
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Overtaking, Payer, Shop, ticks
from tests.unit.payer.test_bursts import MANY, spread, upstream, warm

P = PRICE


class Ticks:
    now = 1_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Ticks:
    return Ticks()


class TestGivingWay:
    @pytest.fixture
    def sent(self, clock: Ticks) -> Unanswered:
        return Unanswered(clock)

    @staticmethod
    def at_once(sent: Unanswered, voucher: int) -> None:
        """It does not even look at the clock of the event loop."""
        with pytest.raises(StopIteration):
            sent.give_way(voucher).send(None)

    def test_nothing_is_waited_for(self, sent: Unanswered) -> None:
        self.at_once(sent, 10)
        sent.left("equal", 10)
        sent.left("higher", 20)
        self.at_once(sent, 10)
        sent.left("lower", 5)
        sent.answered("lower")
        self.at_once(sent, 10)

    def test_one_that_left_long_ago_has_been_seen(self, sent: Unanswered, clock: Ticks) -> None:
        sent.left("slow", 5)
        clock.now += round(FIRST_MS)
        self.at_once(sent, 10)

    async def test_until_the_last_has_its_answer(self, sent: Unanswered) -> None:
        for name in "ab":
            sent.left(name, 5)
        sent.each_ms = MOST_MS * 1000
        waiting = asyncio.create_task(sent.give_way(10))
        await ticks(3)
        sent.answered("a")
        await ticks(3)
        assert not waiting.done()
        sent.answered("b")
        await waiting
        assert sent.each_ms == MOST_MS * 1000  # nobody was passed: nothing was learnt

    async def test_not_for_ever(self, sent: Unanswered) -> None:
        sent.each_ms = 1.0
        sent.left("lost", 5)
        await sent.give_way(10)  # or the test ends by its timeout

    def test_the_longest_wait_of_all(self, sent: Unanswered, clock: Ticks) -> None:
        for number in range(10_000):
            sent.left(str(number), 5)
        clock.now += round(LONGEST_MS)
        self.at_once(sent, 10)

    def test_what_is_learnt(self, sent: Unanswered, clock: Ticks) -> None:
        def passed(*names: str) -> None:
            for name in names:
                sent.left(name, 5)
            clock.now += round(LONGEST_MS)
            self.at_once(sent, 10)

        passed("a", "b", "c")
        sent.answered("a")
        sent.overtaken("b")
        assert sent.each_ms == 2 * FIRST_MS  # it takes longer than we thought
        sent.overtaken("c")
        for name in "bc":
            sent.left(name, 10)
            sent.answered(name)
        assert sent.each_ms == 2 * FIRST_MS  # the same trouble
        passed("d", "e")
        sent.answered("d")
        assert sent.each_ms == 2 * FIRST_MS
        sent.answered("e")
        assert sent.each_ms < 2 * FIRST_MS  # none was overtaken: we wait for longer than it takes
        for number in range(100):
            passed(f"good {number}")
            sent.answered(f"good {number}")
        assert sent.each_ms == LEAST_MS
        for number in range(100):
            passed(f"bad {number}")
            sent.overtaken(f"bad {number}")
            sent.answered(f"bad {number}")
        assert sent.each_ms == MOST_MS
        assert (sent._sent, sent._passed) == ({}, {})

    def test_an_end_without_an_answer_and_one_that_is_not_ours(self, sent: Unanswered) -> None:
        sent.answered("unknown")
        sent.overtaken("unknown")
        assert sent.each_ms == FIRST_MS


class TestThroughTheGate:
    @pytest.mark.parametrize("ahead", ["0", "0.2", "1"])
    async def test_64_clients_cost_hardly_more_than_one_upstream_request_each(
        self, make_payer: MakePayer, shop: Shop, ahead: str
    ) -> None:
        """Whatever is authorised ahead, and in whatever order the server answers."""
        shop.api.payee.challenges.suggested_deposit = 4_000_000
        payer = await warm(make_payer(authorise_ahead=ahead, max_deposit="4"))
        payer.till.unanswered.each_ms = LONGEST_MS  # however slow the machine is that this runs on
        signatures, commits = payer.signatures, payer.commits
        got = await spread(payer, shop, MANY, 3)
        assert {one.status for one in got} == {200}
        assert upstream(got) <= 1.05 * len(got)
        assert payer.signatures - signatures <= 0.1 * len(got)
        assert payer.commits - commits <= 0.1 * len(got)
        assert shop.account.spent == payer.till.channel.paid == (len(got) + 1) * P

    async def test_a_server_that_hangs_holds_nobody_back(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        traffic = Overtaking(shop, 1)  # its way back
        first = asyncio.create_task(payer.get())
        await traffic.arrived(1)
        assert (await payer.get()).status == 200
        traffic.let(1)
        assert (await first).status == 200

    async def test_a_raise_is_durable_before_it_waits(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        payer.till.unanswered.each_ms = LONGEST_MS
        traffic = Overtaking(shop, 0)
        first = asyncio.create_task(payer.get())
        await traffic.arrived(0)
        second = asyncio.create_task(payer.get())
        await ticks(50)
        record = await payer.store.find(payer.till.channel.channel_id)
        assert record is not None
        assert record.authorised == 3 * P
        assert max(one.voucher for one in payer.sent if one.payload) == P  # the opening's
        traffic.let(0)
        assert [one.status for one in await asyncio.gather(first, second)] == [200, 200]

    async def test_a_channel_that_is_halted_meanwhile_pays_nobody(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        payer.till.unanswered.each_ms = LONGEST_MS
        traffic = Overtaking(shop, 0)
        first = asyncio.create_task(payer.get())
        await traffic.arrived(0)
        second = asyncio.create_task(payer.get())
        await ticks(50)
        till, signatures = payer.till, payer.till.signatures
        till.halt("a test says so")
        traffic.let(0)
        await first
        await ticks(50)
        assert till.signatures == signatures
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
