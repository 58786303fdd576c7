"""Scopes that nobody pays for any more take no memory; those that somebody may come back to stay one and the same."""

from __future__ import annotations

import gc

from tests.unit.payer.shop import Payer, Shop
from tests.unit.payer.test_bursts import warm


async def idle(payer: Payer) -> None:
    payer.shop.clock.ahead += 10
    await payer.gate.release_idle(1000)


async def test_one_desk_of_a_scope_at_a_time(payer: Payer, shop: Shop) -> None:
    await warm(payer)
    offers = payer.gate._offers
    (desk,) = offers.desks
    await idle(payer)
    assert list(offers.desks) == []
    assert (await payer.get()).status == 200  # by the offer that is kept
    assert list(offers.desks) == [desk]
    await idle(payer)
    offers._kept.clear()
    assert (await payer.get()).status == 200  # by a new challenge of the same scope
    assert list(offers.desks) == [desk]
    assert len(shop.accounts) == 1


async def test_one_with_a_channel_stays(payer: Payer) -> None:
    await warm(payer)
    offers = payer.gate._offers
    offers._kept.clear()
    offers.rest()
    gc.collect()
    assert [till.usable for desk in offers.desks for till in desk.tills] == [True]


async def test_one_that_nobody_can_come_to_is_gone(payer: Payer) -> None:
    await warm(payer)
    offers = payer.gate._offers
    await idle(payer)
    offers._kept.clear()
    gc.collect()
    assert list(offers.desks) == []
    assert not offers._resting
    assert not offers._by_origin
    assert (await payer.get()).status == 200
    assert len(payer.shop.accounts) == 1  # the channel on record
