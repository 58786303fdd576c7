"""Many clients at once: what a burst costs in signatures, commits and upstream requests, to the unit and the count."""

from __future__ import annotations

import asyncio
import random

import pytest

from proxy_addon.demo.paid_api import PRICE, Route
from store.lifecycle import ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, Got, Overtaking, Payer, Shop, ticks

P = PRICE
MANY = 64


async def warm(payer: Payer, path: str = "/quote") -> Payer:
    assert (await payer.get(path)).status == 200
    await payer.settled()
    return payer


async def spread(payer: Payer, shop: Shop, clients: int, each: int = 1, *, seed: int = 1) -> list[Got]:
    """Clients that come one after the other, over a server that answers in its own order."""
    dice = random.Random(seed)

    async def pace(returning: bool) -> None:
        await ticks(round(dice.expovariate(1 / 40) if returning else 8 + dice.expovariate(1 / 2)))

    async def client() -> list[Got]:
        await ticks(dice.randrange(20))
        return [await payer.get() for _ in range(each)]

    shop.pace = pace
    return [got for one in await asyncio.gather(*(client() for _ in range(clients))) for got in one]


def upstream(got: list[Got]) -> int:
    return sum(len(one.sent) for one in got)


class TestWarm:
    async def test_64_that_wait_together_share_one_voucher(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        signatures, commits = payer.signatures, payer.commits
        got = await payer.all(MANY)
        assert {one.status for one in got} == {200}
        assert (payer.signatures - signatures, payer.commits - commits) == (1, 1)
        assert upstream(got) == MANY
        assert {one.new_money for one in got} == {P}
        assert (
            shop.account.spent == payer.till.channel.paid == payer.till.channel.authorised == (MANY + 1) * P
        )

    async def test_what_is_left_over_costs_nothing_at_all(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(authorise_ahead="1"))
        traffic = Overtaking(shop, 0)
        first = asyncio.create_task(payer.get())
        await asyncio.sleep(0.01)
        assert (await payer.get()).new_money == P  # and twice as much ahead, for the one in flight
        traffic.let(0)
        assert (await first).status == 200
        left = payer.till.channel.free // P
        assert left == 2
        signatures, commits = payer.signatures, payer.commits
        for _ in range(left):
            got = await payer.get()
            assert (got.status, got.new_money, len(got.sent)) == (200, 0, 1)
        assert payer.till.channel.free == 0
        assert (payer.signatures, payer.commits) == (signatures, commits)

    @pytest.mark.parametrize("seed", range(3))
    async def test_64_that_come_one_after_the_other(
        self, make_payer: MakePayer, shop: Shop, seed: int
    ) -> None:
        shop.api.payee.challenges.suggested_deposit = 4_000_000
        payer = await warm(make_payer(authorise_ahead="1", max_deposit="4"))
        signatures, commits = payer.signatures, payer.commits
        got = await spread(payer, shop, MANY, 3, seed=seed)
        assert len(got) == 3 * MANY
        assert {one.status for one in got} == {200}
        assert payer.signatures - signatures <= 0.1 * len(got)
        assert payer.commits - commits <= 0.1 * len(got)
        assert upstream(got) <= 1.12 * len(got)
        channel = payer.till.channel
        assert (channel.uncertain, channel.held) == (0, 0)
        assert shop.account.spent == channel.paid == (len(got) + 1) * P
        assert channel.authorised <= channel.paid + 1_000_000  # authorise_ahead

    async def test_without_ahead_nothing_is_left_over(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        got = await spread(payer, shop, MANY)
        assert {one.status for one in got} == {200}
        assert payer.till.channel.authorised == shop.account.spent == (MANY + 1) * P
        assert {one.new_money for one in got} == {P}

    async def test_one_at_a_time_costs_one_of_each(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        for number in range(1, 6):
            await payer.get()
            assert (payer.signatures, payer.commits) == (1 + number, 1 + number)

    async def test_the_price_of_each_is_its_limit(self, make_payer: MakePayer, shop: Shop) -> None:
        """No allowance for anything: what one frees, another may use, and nobody pays for it twice."""
        payer = await warm(make_payer(max_price="0.01"))
        got = await spread(payer, shop, MANY)
        assert {one.status for one in got} == {200}
        assert max(one.new_money for one in got) == P


class TestCold:
    async def test_300_open_one_channel(self, make_payer: MakePayer, shop: Shop) -> None:
        shop.api.payee.challenges.suggested_deposit = 4_000_000
        payer = make_payer(max_deposit="4")
        got = await payer.all(300)
        assert {one.status for one in got} == {200}
        assert len(shop.accounts) == 1
        assert sum(one.action == "open" for one in payer.sent) == 1
        assert shop.account.spent == payer.till.channel.paid == payer.till.channel.authorised == 300 * P
        assert payer.signatures <= 15  # the opening's voucher, and the others' together
        assert upstream(got) == 600  # nobody knew of a challenge before

    async def test_many_on_routes_of_different_prices(self, make_payer: MakePayer, shop: Shop) -> None:
        shop.api.payee.challenges.suggested_deposit = 4_000_000
        payer = make_payer(max_deposit="4")
        quote = shop.api.routes["/quote"]
        prices = {f"/{price}": price for price in (1, 77, 5_000, 40_000)}
        shop.api.routes |= {path: Route(price, quote.handler) for path, price in prices.items()}
        got = await asyncio.gather(*(payer.get(path) for path in prices for _ in range(20)))
        assert {one.status for one in got} == {200}
        assert shop.account.spent == payer.till.channel.paid == 20 * sum(prices.values())
        assert len(shop.accounts) == 1

    async def test_an_opening_that_fails_lets_the_next_one_through(
        self, make_payer: MakePayer, shop: Shop
    ) -> None:
        payer = make_payer(max_opens_per_day=1)
        shop.refuses_once("verification-failed")
        clients = asyncio.gather(*(payer.get() for _ in range(5)))
        await asyncio.sleep(0.05)
        shop.chain.warp(60)
        got = await clients
        assert sorted(one.status for one in got) == [200, 200, 200, 200, 402]
        await payer.settled()
        failed, opened = await payer.channels()
        assert (failed.status, opened.status) == (ChannelStatus.FAILED, ChannelStatus.OPEN)
        # The failed one has given back what it took: of the openings of the day, too.
        assert (await payer.store.counters("opens/")).popitem()[1] == 1
        assert (await payer.store.counters("deposits/")).popitem()[1] == DEPOSIT

    async def test_two_processes_share_a_wallet(self, make_payer: MakePayer, shop: Shop) -> None:
        one = make_payer(max_channels_per_scope=2)
        two = make_payer(shared=one.backend.shared, key=one.key, max_channels_per_scope=2)
        got = await asyncio.gather(*(payer.get() for payer in (one, two) for _ in range(20)))
        assert {got.status for got in got} == {200}
        await one.settled()
        await two.settled()
        channels = await one.channels()
        assert len(channels) <= 2
        assert sum(book.spent for book in shop.accounts.values()) == 40 * P


class TestLimits:
    @pytest.mark.parametrize("limit", ["max_per_day", "max_day"])
    async def test_a_day_that_ends_in_the_middle_of_a_burst(
        self, make_payer: MakePayer, shop: Shop, limit: str
    ) -> None:
        """Those that fit are served, in order and to the unit; the others get the upstream's 402."""
        payer = await warm(make_payer(**{limit: "0.104999"}))
        got = await payer.all(MANY)
        assert [one.status for one in got] == [200] * 9 + [402] * (MANY - 9)
        refused = got[9:]
        assert {one.reason for one in refused} == {"limit-reached"}
        assert {one.sent[-1].action for one in refused} == {None}  # nothing of ours left
        assert shop.account.spent == payer.till.channel.authorised == 10 * P
        assert (await payer.get()).reason == "limit-reached"

    async def test_to_the_last_unit(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_per_day="0.1"))
        got = await payer.all(9)
        assert {one.status for one in got} == {200}
        assert (await payer.get()).reason == "limit-reached"
        shop.clock.ahead += 86_400
        assert (await payer.get()).status == 200
        assert shop.account.spent == 11 * P

    async def test_ahead_gives_way_to_the_limit(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_per_day="0.65", authorise_ahead="1"))
        got = await spread(payer, shop, MANY)
        assert {one.status for one in got} == {200}
        assert shop.account.spent == payer.till.channel.authorised == 65 * P
        assert (await payer.get()).reason == "limit-reached"

    async def test_the_deposit_is_used_to_the_last_unit(self, make_payer: MakePayer, shop: Shop) -> None:
        shop.api.payee.challenges.suggested_deposit = 10 * P
        payer = await warm(make_payer(max_deposit="0.1", max_opens_per_day=1, authorise_ahead="1"))
        got = await payer.all(20)
        assert [one.status for one in got] == [200] * 9 + [402] * 11
        assert {one.reason for one in got[9:]} == {"limit-reached"}  # of the openings
        assert shop.account.spent == payer.till.channel.authorised == payer.till.channel.deposit == 10 * P

    async def test_channels_follow_each_other_within_the_limits(
        self, make_payer: MakePayer, shop: Shop
    ) -> None:
        shop.api.payee.challenges.suggested_deposit = 10 * P
        payer = await warm(make_payer(max_deposit="0.1", max_opens_per_day=3, max_channels_per_scope=3))
        got = await payer.all(40)
        assert sorted(one.status for one in got) == [200] * 29 + [402] * 11
        assert {one.reason for one in got if one.status == 402} <= {"limit-reached", "scope-full"}
        assert [channel.authorised for channel in await payer.channels()] == [10 * P] * 3
        assert sum(book.spent for book in shop.accounts.values()) == 30 * P
