"""What one who is alone puts on record ahead of use: commits are shared, and nothing is signed for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from proxy_addon.core.dispatch import RESERVE_AFTER, RESERVE_PRICES
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer.till import Grant, Till
from proxy_addon.payer.wants import Want
from store.contract import StoreUnavailable
from store.records import Channel
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Overtaking, Payer, Shop

P = PRICE
ROUND = RESERVE_PRICES + 1


async def one_by_one(payer: Payer, count: int) -> None:
    for _ in range(count):
        assert (await payer.get()).status == 200


async def reserving(payer: Payer) -> Channel:
    """After the first commit with a reserve: all of it is there."""
    await one_by_one(payer, 1)
    await payer.settled()
    await one_by_one(payer, RESERVE_AFTER)
    channel = payer.till.channel
    assert (channel.reserved, channel.spare) == (RESERVE_PRICES * P, 0)
    return channel


async def test_requests_share_a_commit_and_each_voucher_is_exactly_what_is_asked(
    make_payer: MakePayer, shop: Shop
) -> None:
    payer = make_payer(reserve="1")
    await reserving(payer)
    commits, signatures = payer.commits, payer.signatures
    for _ in range(2 * ROUND):  # before the deposit runs low
        spent = shop.account.spent
        got = await payer.get()
        assert (got.status, [one.voucher for one in got.sent]) == (200, [spent + P])
        assert payer.till.channel.issued == spent + P
    assert (payer.commits - commits, payer.signatures - signatures) == (2, 2 * ROUND)


async def test_without_it_each_has_a_commit(make_payer: MakePayer) -> None:
    payer = make_payer(reserve="0")
    await one_by_one(payer, 1)
    await payer.settled()
    before = payer.commits
    await one_by_one(payer, 3 * RESERVE_AFTER)
    assert payer.commits - before == 3 * RESERVE_AFTER
    assert payer.till.channel.reserved == 0


@pytest.mark.parametrize(
    ("rule", "prices"),
    [
        ({"reserve": "0.055"}, 5),  # whole prices, and no more than it says
        ({"reserve": "0.009"}, 0),
        ({"max_per_day": "10"}, 10),  # a hundredth of the day, if it says nothing
        ({"max_per_day": "100"}, RESERVE_PRICES),
    ],
)
async def test_its_limit(make_payer: MakePayer, rule: Mapping[str, Any], prices: int) -> None:
    payer = make_payer(**rule)
    await one_by_one(payer, 1)
    await payer.settled()
    await one_by_one(payer, RESERVE_AFTER)
    assert payer.till.channel.reserved == prices * P


@pytest.mark.parametrize("rule", [{"max_per_day": "0.6"}, {"max_deposit": "0.6", "max_opens_per_day": 1}])
async def test_no_request_is_refused_for_it(make_payer: MakePayer, rule: Mapping[str, Any]) -> None:
    """Of a limit, and of a deposit, all can be had."""
    payer = make_payer(reserve="1", **rule)
    await one_by_one(payer, 1)
    await payer.settled()
    await one_by_one(payer, 59)
    assert (await payer.get()).status == 402
    assert (payer.till.channel.paid, payer.till.channel.authorised) == (60 * P, 60 * P)


async def test_kill_9_signs_none_of_it(make_payer: MakePayer, shop: Shop) -> None:
    """The record says what was reserved, and the ledger how much of it left since."""
    first = make_payer(reserve="1")
    channel = await reserving(first)
    await one_by_one(first, 5)
    await first.die()
    second = make_payer(shared=first.backend.shared, key=first.key, reserve="1")
    got = await second.get()
    assert [one.voucher for one in got.sent if one.payload] == [channel.issued + 6 * P]
    assert second.till.channel.authorised == channel.authorised
    assert second.till.channel.reserved == (RESERVE_PRICES - 6) * P


async def test_nor_does_who_takes_the_channel_over(make_payer: MakePayer, shop: Shop) -> None:
    first = make_payer(reserve="1")
    channel = await reserving(first)
    await first.gate.close()
    second = make_payer(shared=first.backend.shared, key=first.key, reserve="1")
    got = await second.get()
    assert [one.voucher for one in got.sent if one.payload] == [channel.issued + P]
    assert second.till.channel.authorised == channel.authorised


async def test_a_server_cannot_claim_it(make_payer: MakePayer, shop: Shop) -> None:
    """It says that more is spent than any voucher carried; and that a voucher is worth nothing any more."""
    payer = make_payer(reserve="1")
    payer.honest = False
    channel = await reserving(payer)
    shop.refuses_once("session/insufficient-balance")
    got = await payer.get()
    assert got.status == 200
    after = payer.till.channel
    assert after.issued == channel.issued + 2 * P  # one more step for the repair, as ever
    assert (after.uncertain, after.authorised) == (0, channel.authorised)


async def test_a_burst_uses_it_up(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer(reserve="1")
    channel = await reserving(payer)
    before = payer.commits
    assert {one.status for one in await payer.all(RESERVE_PRICES)} == {200}
    assert (payer.commits, payer.till.channel.reserved) == (before, 0)
    assert payer.till.channel.authorised == channel.authorised


async def test_no_higher_voucher_overtakes_one_that_is_on_its_way(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer(reserve="1")
    await reserving(payer)
    for _ in range(3):
        assert {one.status for one in await payer.all(4)} == {200}
    refused = [one for one in payer.sent if one.status == 402 and one.payload]
    assert not refused


async def test_its_own_limit_holds_for_each_request(make_payer: MakePayer, shop: Shop) -> None:
    """A server that wants more and more for one request gets no more of the reserve than of anything else."""
    payer = make_payer(reserve="1", max_price="0.03")
    payer.honest = False
    await reserving(payer)
    before = payer.till.channel.issued

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        return shop.refusal("session/delta-too-small") if payload.get("action") == "voucher" else None

    shop.script = script
    assert (await payer.get()).status == 402
    assert payer.till.channel.issued - before <= 3 * P


async def test_not_after_a_write_off(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer(reserve="1")
    payer.honest = False
    await reserving(payer)
    shop.refuses_once("session/insufficient-balance")
    await one_by_one(payer, RESERVE_PRICES)
    assert payer.till.channel.clean_needed > 0
    before = payer.commits
    await one_by_one(payer, 5)
    assert payer.commits - before == 5


async def test_what_was_signed_and_did_not_leave_is_not_sent_again(
    make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger took no line for a higher voucher; a lower one is asked for again: with what is issued, no more."""
    payer = make_payer(reserve="1")
    await reserving(payer)
    traffic = Overtaking(shop, 0)
    lower = asyncio.create_task(payer.get())
    await traffic.arrived(0)
    issued = payer.till.channel.issued
    with monkeypatch.context() as patch:
        patch.setattr(payer.parts.audit.journal, "append", full)
        assert (await payer.get()).status == 402
    assert payer.till.channel.issued == issued
    shop.refuses_once("invalid-challenge")
    traffic.let(0)
    got = await lower
    assert (got.status, [one.voucher for one in got.sent]) == (200, [issued, issued])


async def test_nor_is_one_for_a_stream(
    make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = make_payer(reserve="1")
    await reserving(payer)
    wants: list[Want] = []

    def take_now(till: Till, want: Want) -> Grant | None:
        wants.append(want)
        return usual(till, want)

    usual = Till.take_now
    monkeypatch.setattr(Till, "take_now", take_now)
    traffic = Overtaking(shop, 0)
    lower = asyncio.create_task(payer.get())
    await traffic.arrived(0)
    till, (want,) = payer.till, wants
    (hold,) = till.channel.holds.values()
    with monkeypatch.context() as patch:
        patch.setattr(payer.parts.audit.journal, "append", full)
        with pytest.raises(LocalRefusal, match="no space"):
            till.grow(hold, P, P, want)
    shop.refuses_once("invalid-challenge")
    traffic.let(0)
    got = await lower
    assert [one.voucher for one in got.sent] == [hold.voucher] * 2 == [till.channel.issued] * 2


def full(*arguments: object, **options: object) -> int:
    raise StoreUnavailable("no space")
