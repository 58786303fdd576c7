"""The usual life of a channel: opened once, used again, given back, taken up by the next process."""

from __future__ import annotations

from proxy_addon.demo.paid_api import PRICE
from tests.unit.payer.shop import DEPOSIT, Payer, Shop


async def test_a_cold_request_opens_and_a_warm_one_is_one_request(payer: Payer, shop: Shop) -> None:
    cold = await payer.get()
    assert (cold.status, [one.action for one in cold.sent]) == (200, [None, "open"])
    assert cold.new_money == PRICE
    await payer.settled()
    for number in range(2, 5):
        warm = await payer.get()
        assert (warm.status, [one.action for one in warm.sent]) == (200, ["voucher"])
        assert warm.sent[0].voucher == number * PRICE
        assert warm.new_money == PRICE
    assert shop.account.spent == 4 * PRICE
    assert (payer.signatures, payer.till.channel.paid) == (4, 4 * PRICE)
    assert payer.till.channel.deposit == DEPOSIT
