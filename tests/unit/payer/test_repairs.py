"""Repairs a to g: what a refused payment leads to, what it costs, and what is on record afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from proxy_addon.core.repair import MAX_BUMPS
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from store.account import CLEAN_UNTIL_AHEAD
from store.lifecycle import PENDING_OPEN, ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, Overtaking, Payer, Shop

P = PRICE
EXACT = "0.01"  # max_price: the price, and not a unit more


async def warm(payer: Payer) -> Payer:
    """With an open channel, and one request paid on it."""
    assert (await payer.get()).status == 200
    await payer.settled()
    return payer


async def free_some(payer: Payer, shop: Shop) -> None:
    """A price that is authorised and not charged: its request was refused for something else."""
    shop.refuses_once("invalid-payload")
    got = await payer.get()
    assert (got.status, got.reason) == (402, "refused-by-server")
    assert payer.till.channel.free == P


class TestA:
    async def test_an_overtaken_voucher_is_sent_again_as_the_current_one(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        traffic = Overtaking(shop, 0)
        late = asyncio.create_task(payer.get())
        await asyncio.sleep(0.01)
        assert (await payer.get()).status == 200
        traffic.let(0)
        got = await late
        assert (got.status, got.problems) == (200, ["verification-failed"])
        assert [one.voucher for one in got.sent] == [2 * P, 3 * P]
        assert (got.new_money, shop.account.spent) == (P, 3 * P)
        assert (payer.signatures, payer.till.channel.authorised) == (3, 3 * P)  # none of them for the resend

    async def test_after_two_such_refusals_nothing_is_raised_until_it_is_served(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        traffic = Overtaking(shop, 0, 3, 6, 10)
        unlucky = asyncio.create_task(payer.get())  # passage 0, held
        await asyncio.sleep(0.01)
        assert (await payer.get()).status == 200  # 1, 2
        traffic.let(0)
        await asyncio.sleep(0.01)  # its answer is held: 3
        assert (await payer.get()).status == 200  # 4, 5
        traffic.let(3)
        await asyncio.sleep(0.01)  # refused once, sent again: 6, held
        assert (await payer.get()).status == 200  # 7, 8
        traffic.let(6)
        await asyncio.sleep(0.01)  # refused twice, sent again: 9, 10, held
        patient = asyncio.create_task(payer.get())
        await asyncio.sleep(0.01)
        assert not patient.done()
        assert payer.till.channel.authorised == 5 * P
        traffic.let(10)
        got = await unlucky
        assert (await patient).status == 200
        assert (got.status, got.problems) == (200, ["verification-failed"] * 2)
        assert [one.voucher for one in got.sent] == [2 * P, 4 * P, 5 * P]
        assert shop.account.spent == 6 * P

    async def test_while_it_waits_others_do_and_a_long_body_keeps_nobody(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        till = payer.till
        Overtaking(shop, 0).let_later(0.05)
        first = asyncio.create_task(payer.get())
        await asyncio.sleep(0.01)
        (request_id,) = till.channel.holds
        till.hold_back_for(request_id)
        till.hold_back_for("another")  # there is one already
        held_back = asyncio.create_task(payer.get())
        for _ in range(3):
            await asyncio.sleep(0)
        assert till.channel.authorised == 2 * P
        till.answer_came("another")
        assert till.channel.authorised == 2 * P
        till.answer_came(request_id)
        assert [got.status for got in await asyncio.gather(first, held_back)] == [200, 200]
        assert till.channel.authorised == 3 * P


class TestB:
    @pytest.mark.parametrize(
        "kind",
        [None, "payment-required", "payment-expired", "invalid-challenge", "session/challenge-not-found"],
    )
    async def test_a_fresh_challenge_is_paid_with_the_same_money(
        self, payer: Payer, shop: Shop, kind: str | None
    ) -> None:
        await warm(payer)
        shop.refuses_once(kind)
        got = await payer.get()
        assert (got.status, got.problems) == (200, [kind])
        assert got.sent[0].voucher == got.sent[1].voucher == 2 * P
        assert got.sent[0].challenge != got.sent[1].challenge
        assert (got.new_money, payer.signatures, payer.commits) == (P, 2, 2)  # the opening's, and one raise

    async def test_once(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.refuses(2, "invalid-challenge")
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "refused-by-server", 2)
        assert (payer.till.channel.free, payer.till.channel.bad_rows) == (
            P,
            0,
        )  # not charged, and no mistrust

    async def test_a_refusal_without_a_challenge_is_the_end(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.refuses_once("payment-expired", price=None)
        got = await payer.get()
        assert (got.status, len(got.sent)) == (402, 1)
        assert payer.till.channel.free == P

    async def test_a_new_secret_is_noticed_by_nobody(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_price=EXACT))
        shop.api.payee.challenges.forget()
        got = await payer.all(16)
        assert {one.status for one in got} == {200}
        assert max(one.new_money for one in got) == P
        assert (await payer.get()).problems == []  # the fresh challenge is used again

    async def test_the_servers_clock_is_ahead(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        skewed = shop.clock.seconds
        shop.api.payee.challenges.clock = lambda: skewed() + 400
        got = await payer.get()
        assert (got.status, got.problems) == (200, ["payment-expired"])
        assert shop.account.spent == 2 * P

    async def test_an_opening_is_sent_again_as_it_was(self, payer: Payer, shop: Shop) -> None:
        shop.refuses_once("payment-expired")
        got = await payer.get()
        assert [one.action for one in got.sent] == [None, "open", "open"]
        assert got.sent[1].payload == got.sent[2].payload
        assert (got.status, got.new_money) == (200, P)
        await payer.settled()
        assert [one.status for one in await payer.channels()] == [ChannelStatus.OPEN]


class TestC:
    async def test_a_settled_voucher_is_raised_by_the_smallest_step(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        await free_some(payer, shop)
        assert (await payer.get()).status == 200  # the shop has taken 2 P now
        await free_some(payer, shop)
        shop.script = lambda request, payload: None
        account = shop.account
        account.accepted, account.signature = 3 * P, bytes.fromhex(payer.sent[-1].payload["signature"][2:])
        shop.api.payee.settle(account.channel_id)
        got = await payer.get()
        assert (got.status, got.problems) == (200, ["payment-required", "verification-failed"])
        assert [one.voucher for one in got.sent[1:]] == [3 * P, 3 * P + 1]
        assert got.new_money == 1
        assert payer.till.channel.min_delta == 1  # this says nothing of steps

    async def test_a_step_that_is_nowhere_written_is_learned(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        smallest = 3 * P

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if payload and 0 < int(payload["cumulativeAmount"]) - shop.account.accepted < smallest:
                return shop.refusal("session/delta-too-small")
            return None

        shop.script = script
        got = await payer.get()
        assert (got.status, got.problems) == (200, ["session/delta-too-small"] * 2)
        learned = 12_500  # 2 x the step that was refused, but at most a quarter of max_price
        assert [one.voucher for one in got.sent] == [2 * P, 2 * P + learned, 2 * P + 2 * learned]
        assert got.new_money == P + 2 * learned
        assert payer.till.channel.min_delta == learned
        assert (await payer.get()).problems == []  # there is enough left of it

    async def test_three_times_at_most(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.refuses(100, "verification-failed")
        got = await payer.get()
        assert (got.status, len(got.sent)) == (402, 1 + MAX_BUMPS)
        assert [one.voucher for one in got.sent] == [2 * P + step for step in range(1 + MAX_BUMPS)]
        assert got.new_money == P + MAX_BUMPS
        assert payer.till.channel.bad_rows == 1

    async def test_within_the_limit_of_the_request(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_price="0.010001"))
        shop.refuses(100, "verification-failed")
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "over-max-price", 2)
        assert got.new_money == P + 1
        assert payer.till.channel.bad_rows == 1  # it was believed, and did not deliver


class TestD:
    async def test_what_seemed_free_is_written_off_and_paid_anew(self, payer: Payer, shop: Shop) -> None:
        """The shop charged a request, and then denied it."""
        await warm(payer)
        await free_some(payer, shop)
        shop.script = lambda request, payload: None
        shop.account.accepted, shop.account.spent = 2 * P, 2 * P
        got = await payer.get()
        assert (got.status, got.problems) == (200, ["payment-required", "session/insufficient-balance"])
        assert [one.voucher for one in got.sent[1:]] == [2 * P, 3 * P]
        assert got.new_money == P
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.free) == (2 * P, P, 0)
        assert channel.clean_needed == CLEAN_UNTIL_AHEAD - 1
        # The books agree: what was written off was indeed charged.
        assert shop.account.spent == 3 * P

    async def test_a_request_that_raised_pays_once_more(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.account.spent += P
        got = await payer.get()
        assert (got.status, got.problems, got.new_money) == (200, ["session/insufficient-balance"], 2 * P)
        assert payer.till.channel.uncertain == P

    async def test_once(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.refuses(100, "session/insufficient-balance")
        got = await payer.get()
        assert (got.status, len(got.sent), got.new_money) == (402, 2, 2 * P)
        assert payer.till.channel.bad_rows == 1

    async def test_within_the_limit_of_the_request(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_price="0.019999"))
        shop.refuses(100, "session/insufficient-balance")
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent), got.new_money) == (402, "over-max-price", 1, P)
        assert payer.till.channel.uncertain == P  # it may have been charged


class TestBadRows:
    async def test_the_second_in_a_row_sets_aside(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        till = payer.till
        shop.refuses(100, "session/insufficient-balance")
        assert (await payer.get()).status == 402
        assert till.usable
        shop.clock.ahead += 1
        assert (await payer.get()).status == 402
        assert till.channel.status is ChannelStatus.ASIDE
        assert "again and again" in till.channel.note

    async def test_one_that_is_served_between_them_clears_it(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        for _ in range(3):
            shop.clock.ahead += 1
            shop.refuses(4, "verification-failed")
            assert (await payer.get()).status == 402
            shop.clock.ahead += 1
            assert (await payer.get()).status == 200
        assert payer.till.usable

    async def test_two_at_the_same_time_are_the_same_trouble(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.refuses(100, "session/insufficient-balance")
        assert {one.status for one in await payer.all(4)} == {402}
        assert payer.till.channel.bad_rows == 1
        assert payer.till.usable


class TestE:
    async def test_another_channel_pays(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.refuses_once("session/amount-exceeds-deposit")
        got = await payer.get()
        assert (got.status, got.new_money) == (200, 2 * P)
        assert [one.action for one in got.sent] == ["voucher", "open"]
        await payer.settled()
        old, new = await payer.channels()
        assert (old.status, old.deposit, old.note) == (
            ChannelStatus.ASIDE,
            DEPOSIT,
            "session/amount-exceeds-deposit",
        )
        assert new.status is ChannelStatus.OPEN


class TestF:
    @pytest.mark.parametrize("kind", ["session/invalid-signature", "session/signer-mismatch"])
    async def test_the_channel_is_set_aside_loudly(
        self, payer: Payer, shop: Shop, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await warm(payer)
        channel_id = payer.till.channel.channel_id
        shop.refuses_once(kind)
        with caplog.at_level(logging.WARNING, "bursar"):
            got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "refused-by-server", 1)
        (told,) = (one.message for one in caplog.records if "set aside" in one.message)
        assert channel_id in told
        assert kind in told
        assert "channels close" in told
        (channel,) = await payer.channels()
        assert (channel.status, channel.deposit) == (ChannelStatus.ASIDE, DEPOSIT)
        assert (await payer.get()).status == 200  # on another one
        assert len(shop.accounts) == 2


class TestG:
    async def test_a_forgotten_channel_is_replaced_once(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        lost = payer.till.channel.channel_id
        shop.forget()
        got = await payer.get()
        assert (got.status, got.problems) == (200, ["session/channel-not-found"])
        assert [one.action for one in got.sent] == ["voucher", "open"]
        assert got.new_money == 2 * P
        await payer.settled()
        old, new = await payer.channels()
        assert (old.channel_id, old.status, old.deposit) == (lost, ChannelStatus.ASIDE, DEPOSIT)
        assert (old.authorised, old.paid, old.free) == (2 * P, P, P)  # the shop may still have the voucher
        assert (new.status, new.paid) == (ChannelStatus.OPEN, P)
        assert shop.chain.channel(lost).deposit == DEPOSIT
        assert shop.chain.balance(payer.signer.address) < 5_000_000 - 2 * DEPOSIT  # both, and fees

    async def test_not_twice_for_one_request(self, payer: Payer, shop: Shop, make_payer: MakePayer) -> None:
        await warm(payer)
        # A second channel of the scope, opened by another process and given back.
        other = await warm(make_payer(shared=payer.backend.shared, key=payer.key))
        await other.gate.close()
        shop.forget()
        got = await payer.get()
        assert (got.status, got.reason) == (410, "refused-by-server")
        assert [(one.action, one.status) for one in got.sent] == [("voucher", 410)] * 2
        assert got.sent[0].channel_id != got.sent[1].channel_id
        # Both are known to be gone: the next request opens a new one.
        assert len(await payer.channels(ChannelStatus.ASIDE)) == 2
        assert (await payer.get()).status == 200

    async def test_an_opening_that_is_refused_too(self, payer: Payer, shop: Shop) -> None:
        """Then only the chain knows."""
        await warm(payer)
        shop.refuses(2, "session/channel-not-found", 410)
        got = await payer.get()
        assert (got.status, got.reason, [one.action for one in got.sent]) == (
            410,
            "open-refused",
            ["voucher", "open"],
        )
        old, new = await payer.channels()
        assert old.status is ChannelStatus.ASIDE
        assert new.status in PENDING_OPEN
        shop.chain.warp(60)
        await payer.settled()
        assert [one.status for one in await payer.channels()] == [ChannelStatus.ASIDE, ChannelStatus.FAILED]
        assert (await payer.get()).status == 200

    async def test_within_the_limit_on_openings(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_opens_per_day=1))
        shop.forget()
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (410, "limit-reached", 1)
        assert [one.status for one in await payer.channels()] == [ChannelStatus.ASIDE]

    async def test_within_the_limit_of_the_request(self, make_payer: MakePayer, shop: Shop) -> None:
        """It has signed for its price already, on a channel of which the shop only says that it is gone."""
        payer = await warm(make_payer(max_price=EXACT))
        shop.forget()
        got = await payer.get()
        assert (got.status, got.reason, got.new_money) == (410, "over-max-price", P)
        assert (await payer.get()).status == 200

    async def test_a_burst_opens_one(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.forget()
        got = await payer.all(20)
        assert {one.status for one in got} == {200}
        assert (len(shop.accounts), shop.account.spent) == (1, 20 * P)
        await payer.settled()
        assert len(await payer.channels(ChannelStatus.ASIDE)) == 1

    async def test_a_burst_says_it_once(
        self, payer: Payer, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        await warm(payer)
        shop.forget()
        with caplog.at_level(logging.WARNING, "bursar"):
            await payer.all(8)
        assert len([one for one in caplog.records if "set aside" in one.message]) == 1

    async def test_an_applications_own_410_is_an_answer(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.script = lambda request, payload: Response(410, (), b"no more of this")
        got = await payer.get()
        assert (got.status, got.body, got.reason) == (410, b"no more of this", None)
        assert payer.till.usable
        assert payer.till.channel.uncertain == P  # nothing says whether it was charged


class TestEqualRefused:
    """As mpp-rs: a voucher must be higher than the last one."""

    @staticmethod
    def strict(shop: Shop) -> None:
        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if payload.get("action") == "voucher":
                book = shop.accounts[payload["channelId"]]
                if int(payload["cumulativeAmount"]) <= book.accepted:
                    return shop.refusal("session/delta-too-small")
            return None

        shop.script = script

    async def test_it_is_found_out_and_then_one_goes_at_a_time(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        self.strict(shop)
        for _ in range(3):
            assert {one.status for one in await payer.all(6)} == {200}
        channel = payer.till.channel
        assert channel.equal_refused
        assert shop.account.spent == 19 * P
        before = len(payer.sent)
        assert {one.status for one in await payer.all(8)} == {200}
        assert len(payer.sent) - before == 8
        vouchers = [one.voucher for one in payer.sent[before:]]
        assert vouchers == sorted(set(vouchers))

    async def test_one_at_a_time_from_the_start(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        self.strict(shop)
        for _ in range(5):
            got = await payer.get()
            assert (got.status, got.problems) == (200, [])
        assert not payer.till.channel.equal_refused


class TestMeanwhile:
    async def test_a_channel_that_is_set_aside_under_a_request_is_left(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        traffic = Overtaking(shop, 0)
        late = asyncio.create_task(payer.get())
        await asyncio.sleep(0.01)
        shop.refuses_once("session/invalid-signature")
        assert (await payer.get()).status == 402
        shop.refuses_once("verification-failed")
        traffic.let(0)
        got = await late
        assert (got.status, [one.action for one in got.sent]) == (200, ["voucher", "open"])

    async def test_a_channel_that_another_process_took_signs_nothing(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        old = payer.till
        traffic = Overtaking(shop, 0)
        late = asyncio.create_task(payer.get())
        await traffic.arrived(0)
        old._fence()
        shop.refuses_once("payment-expired")
        signed = old.signatures
        traffic.let(0)
        got = await late
        assert (got.status, [one.action for one in got.sent]) == (200, ["voucher", "open"])
        assert old.signatures == signed
        await old._store.release(old.channel)  # for the books
