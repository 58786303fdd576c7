"""Terms that change under way, differ from route to route, or run out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.demo.challenges import Challenges
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE, Route
from proxy_addon.demo.payee import Payee
from store.lifecycle import PENDING_OPEN, ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, Payer, Shop

P = PRICE
EXACT_STEP = "0.01"  # max_price; a quarter of it is 2500 base units


async def warm(payer: Payer, path: str = "/quote") -> Payer:
    assert (await payer.get(path)).status == 200
    await payer.settled()
    return payer


def reprice(shop: Shop, price: int, path: str = "/quote") -> None:
    shop.api.routes[path] = replace(shop.api.routes[path], price=price)


def change_requests(shop: Shop, monkeypatch: pytest.MonkeyPatch, **details: Any) -> None:
    """What its challenges' methodDetails say, and what it expects of those that it gets back."""
    usual = Challenges._request

    def changed(self: Challenges, price: int) -> dict[str, Any]:
        request = usual(self, price)
        request["methodDetails"].update(details)
        return request

    monkeypatch.setattr(Challenges, "_request", changed)


class TestPrices:
    @pytest.mark.parametrize("price", [P // 2, 3 * P])
    async def test_a_new_price_costs_the_difference(self, payer: Payer, shop: Shop, price: int) -> None:
        await warm(payer)
        reprice(shop, price)
        got = await payer.get()
        assert (got.status, got.problems) == (200, ["invalid-challenge"])
        assert got.new_money == max(P, price)  # what was raised for the old price is used for the new one
        assert shop.account.spent == P + price
        assert payer.till.channel.paid == P + price
        assert (await payer.get()).problems == []

    async def test_a_new_price_over_the_limit_is_not_paid(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_price="0.03"))
        reprice(shop, 3 * P + 1)
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "over-max-price", 1)
        assert payer.till.channel.free == P  # the first voucher of it was not charged
        reprice(shop, 3 * P)
        assert (await payer.get()).status == 200

    async def test_the_difference_counts_against_the_limit(self, make_payer: MakePayer, shop: Shop) -> None:
        """A price that rises with each look ends at the limit of the request, and after the second look."""
        payer = await warm(make_payer(max_price="0.05"))
        prices = iter(range(2, 100))

        def script(request: Request, payload: object) -> Response | None:
            return shop.refusal("invalid-challenge", price=next(prices) * P) if payload else None

        shop.script = script
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "refused-by-server", 2)
        assert got.new_money == 2 * P

    async def test_several_prices_on_one_origin_share_a_channel(self, payer: Payer, shop: Shop) -> None:
        shop.api.routes["/dear"] = Route(4 * P, shop.api.routes["/quote"].handler)
        shop.api.routes["/cheap"] = Route(1, shop.api.routes["/quote"].handler)
        paths = ("/dear", "/cheap", "/quote")
        for path in paths:
            await warm(payer, path)
        got = await asyncio.gather(*(payer.get(path) for path in paths * 4))
        assert {one.status for one in got} == {200}
        assert {one.problems == [] for one in got} == {True}
        assert len(shop.accounts) == 1
        assert shop.account.spent == 5 * (4 * P + 1 + P)
        assert payer.till.channel.paid == shop.account.spent

    async def test_prices_that_depend_on_the_query(self, payer: Payer, shop: Shop) -> None:
        """One route by its path, and by its price a new one each time: never paid at another's price."""

        def script(request: Request, payload: object) -> Response | None:
            reprice(shop, int(request.query.get("price", P)))
            return None

        shop.script = script
        for price in (P, 2 * P, P, 3 * P, 2 * P, P):
            got = await payer.get(query={"price": price})
            assert got.status == 200
            await payer.settled()
        assert shop.account.spent == 10 * P
        # Reusing a challenge does not pay here, and that has been noticed: no more guessing.
        got = await payer.get(query={"price": P})
        assert got.sent[0].action is None


class TestScopes:
    async def test_another_payee_gets_a_channel_of_its_own(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        first = payer.till.channel
        shop.api.payee = Payee(shop.chain, clock=shop.clock.seconds, suggested_deposit=DEPOSIT)
        shop.chain.fund(shop.api.payee.address, 5_000_000)
        got = await payer.get()
        assert (got.status, [one.action for one in got.sent]) == (200, ["voucher", "open"])
        await payer.settled()
        old, new = await payer.channels()
        assert old.channel_id == first.channel_id
        assert old.scope.payee != new.scope.payee
        # The first is as good as before, and what it had authorised is there for the next who is paid on it.
        assert (old.status, old.paid) == (ChannelStatus.OPEN, P)
        assert shop.account.spent == P

    async def test_a_pinned_payee_stays(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(payees=[shop.api.payee.address]))
        shop.api.payee = Payee(shop.chain, clock=shop.clock.seconds)
        got = await payer.get()
        assert (got.status, got.reason, [one.action for one in got.sent]) == (
            402,
            "payee-not-allowed",
            ["voucher"],
        )
        assert payer.till.channel.free == P

    async def test_an_operator_is_part_of_the_channel(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await warm(payer)
        operator = "0x" + "0a" * 20
        change_requests(shop, monkeypatch, operator=operator)
        got = await payer.get()
        # This shop knows channels without an operator only: what counts is what it was shown.
        assert [one.action for one in got.sent] == ["voucher", "open"]
        assert got.sent[1].payload["descriptor"]["operator"] == operator
        old, new = await payer.channels()
        assert (old.scope.discriminator, new.scope.discriminator) == ("0x" + "00" * 20, operator)
        assert new.status in PENDING_OPEN
        shop.chain.warp(60)

    async def test_two_origins_have_two_channels(self, make_payer: MakePayer, shop: Shop) -> None:
        """A challenge that another host relays must not spend the channel of the first."""
        payer = await warm(make_payer())
        other = await payer.get(origin="http://127.0.0.1:8001")
        assert (other.status, [one.action for one in other.sent]) == (200, [None, "open"])
        await payer.settled()
        assert len(shop.accounts) == 2

    async def test_a_sponsored_opening_needs_no_money_for_the_network(
        self, make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        change_requests(shop, monkeypatch, feePayer=True)
        poor = make_payer(key=b"\x07" * 32)
        shop.chain.fund(poor.signer.address, DEPOSIT)
        got = await poor.get()
        assert [one.action for one in got.sent] == [None, "open"]
        (channel,) = await poor.channels()
        assert channel.pending is not None
        assert channel.pending.fee_sponsored
        shop.chain.warp(60)  # this chain knows no sponsors

    async def test_who_pays_the_network_needs_money_for_it(self, make_payer: MakePayer, shop: Shop) -> None:
        poor = make_payer(key=b"\x07" * 32)
        shop.chain.fund(poor.signer.address, DEPOSIT)
        got = await poor.get()
        assert (got.status, got.reason) == (402, "unfunded")
        assert await poor.channels() == []


class TestSmallestStep:
    async def test_it_is_heeded_from_the_first_voucher(self, payer: Payer, shop: Shop) -> None:
        shop.api.payee.challenges.min_voucher_delta = P // 2
        for _ in range(4):
            assert (await payer.get()).status == 200
            await payer.settled()
        assert payer.till.channel.min_delta == P // 2
        assert {one.problem for one in payer.sent} == {"payment-required", None}

    async def test_a_price_below_it_is_paid_in_steps(self, make_payer: MakePayer, shop: Shop) -> None:
        reprice(shop, 1_000)
        shop.api.payee.challenges.min_voucher_delta = 2_500
        payer = make_payer(max_price=EXACT_STEP)
        for _ in range(10):
            got = await payer.get()
            assert (got.status, got.new_money in (0, 2_500)) == (200, True)
            await payer.settled()
        assert shop.account.spent == 10_000
        assert shop.account.accepted == payer.till.channel.authorised == 10_000

    async def test_one_that_is_raised_later_is_heeded_from_then_on(self, payer: Payer, shop: Shop) -> None:
        reprice(shop, 1_000)
        await warm(payer)
        shop.api.payee.challenges.min_voucher_delta = 2_500
        got = await payer.get()
        # The terms of a challenge that was given before are not looked at again; those of a fresh one are.
        assert (got.status, len(got.sent)) == (200, 2)
        assert payer.till.channel.min_delta >= 2_500
        assert (await payer.get()).problems == []

    async def test_one_that_is_too_large_is_not_paid(self, make_payer: MakePayer, shop: Shop) -> None:
        reprice(shop, 1_000)
        shop.api.payee.challenges.min_voucher_delta = 2_501
        got = await make_payer(max_price=EXACT_STEP).get()
        assert (got.status, got.reason) == (402, "over-max-delta")


class TestExpiry:
    async def test_an_expired_offer_is_not_used_again(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.clock.ahead += 296  # of 300 s; the last seconds are left alone
        got = await payer.get()
        assert (got.status, [one.action for one in got.sent]) == (200, [None, "voucher"])
        assert got.new_money == P

    async def test_a_challenge_that_has_expired_is_never_paid(self, payer: Payer, shop: Shop) -> None:
        shop.api.payee.challenges.expires_s = 4
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "expired", 1)
        assert await payer.channels() == []

    async def test_one_that_lives_too_long_is_not_paid(self, payer: Payer, shop: Shop) -> None:
        shop.api.payee.challenges.expires_s = 3_610
        got = await payer.get()
        assert (got.status, got.reason) == (402, "expires-too-late")

    async def test_one_that_expires_while_an_opening_waits_for_the_chain(
        self, payer: Payer, shop: Shop
    ) -> None:
        """Nothing is sent after its time: neither the opening, nor what waited for it."""
        slow = shop.rpc.handler

        async def balance_takes_its_time(request: Request) -> Response:
            shop.clock.ahead += 300
            shop.rpc.handler = slow
            return await slow(request)

        shop.rpc.handler = balance_takes_its_time
        got = await payer.get()
        assert (got.status, [one.action for one in got.sent]) == (200, [None, None, "open"])
        await payer.settled()
        first, second = await payer.channels()
        assert (first.status, first.note) == (ChannelStatus.FAILED, "it was never sent")
        assert second.status is ChannelStatus.OPEN
        assert shop.chain.channel(first.channel_id).deposit == 0

    async def test_one_that_expires_again_and_again_is_given_up(self, payer: Payer, shop: Shop) -> None:
        usual = shop.rpc.handler

        async def slow(request: Request) -> Response:
            if b"eth_getBlockByNumber" in request.body:
                shop.clock.ahead += 300
            return await usual(request)

        shop.rpc.handler = slow
        got = await payer.get()
        assert (got.status, got.reason, [one.action for one in got.sent]) == (402, "expired", [None, None])
        await payer.settled()
        assert {one.status for one in await payer.channels()} == {ChannelStatus.FAILED}

    async def test_a_warm_request_whose_offer_runs_out_while_it_waits(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await warm(payer)
        usual = payer.store.set

        async def slow(*arguments: Any) -> None:
            shop.clock.ahead += 300
            await usual(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(payer.store, "set", slow)
            got = await payer.get()
        assert (got.status, [one.action for one in got.sent]) == (200, [None, "voucher"])
        assert got.new_money == P  # the raise was made, and is used
