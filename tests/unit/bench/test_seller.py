"""That the upstream of the benchmarks checks what it is paid with, on the short way as on the long one."""

from __future__ import annotations

from typing import Any

import pytest

from bench.seller import PRICE, Seller
from proxy_addon.core.messages import Challenge, parse_challenges, parse_receipt
from proxy_addon.demo.payload import PaymentProblem
from store.records import Channel
from tests.unit.demo.wallet import Wallet

DEPOSIT = 100


class Buyer:
    """With an open channel, and one request paid by the opening."""

    def __init__(self) -> None:
        self.seller = Seller()
        self.wallet = Wallet(self.seller.chain)
        self.seller.chain.fund(self.wallet.address, 10**9)
        self.challenge = self.ask()
        self.channel: Channel = self.wallet.plan(self.challenge, DEPOSIT)
        self.seller.take(self.credential(self.wallet.open_payload(self.channel, PRICE)))

    def ask(self) -> Challenge:
        status, fields, _ = self.seller.refuse(PaymentProblem("payment-required", "it costs"))
        assert status == 402
        (challenge,) = parse_challenges([dict(fields)["WWW-Authenticate"]]).challenges
        return challenge

    def credential(self, payload: dict[str, Any], challenge: Challenge | None = None) -> str:
        (value,) = self.wallet.credential(challenge or self.challenge, payload).values()
        return value

    def pay(self, amount: int, **changes: Any) -> str:
        return self.seller.take(self.credential(self.wallet.voucher_payload(self.channel, amount) | changes))

    @property
    def spent(self) -> int:
        (account,) = self.seller.payee.accounts.values()
        return account.spent


@pytest.fixture
def buyer() -> Buyer:
    return Buyer()


def test_a_rising_voucher_pays_and_is_receipted(buyer: Buyer) -> None:
    receipt = parse_receipt(buyer.pay(2 * PRICE))
    assert (receipt.spent, receipt.accepted_cumulative, receipt.units) == (2 * PRICE, 2 * PRICE, 2)
    assert buyer.seller.books()[buyer.wallet.address] == {
        "spent": 2,
        "units": 2,
        "channels": 1,
        "vouchers": 2,
    }


def test_one_voucher_pays_for_as_many_requests_as_it_covers(buyer: Buyer) -> None:
    for _ in range(3):
        buyer.pay(4 * PRICE)
    assert buyer.spent == 4 * PRICE
    with pytest.raises(PaymentProblem, match="available are 0"):
        buyer.pay(4 * PRICE)
    assert buyer.spent == 4 * PRICE
    assert buyer.seller.books()[buyer.wallet.address]["vouchers"] == 2


def test_what_is_not_right_is_refused_and_costs_nothing(buyer: Buyer) -> None:
    buyer.pay(3 * PRICE)
    spent = buyer.spent
    other = Wallet(buyer.seller.chain, bytes.fromhex("22" * 32))
    forged = "0x" + other.voucher(buyer.channel, 5 * PRICE).hex()
    with pytest.raises(PaymentProblem, match="not signed by the payer"):
        buyer.pay(5 * PRICE, signature=forged)
    with pytest.raises(PaymentProblem, match="accepted before"):
        buyer.pay(2 * PRICE)
    with pytest.raises(PaymentProblem, match="over the deposit"):
        buyer.pay(DEPOSIT + 1)
    with pytest.raises(PaymentProblem):
        buyer.pay(5 * PRICE, channelId="0x" + "77" * 32)
    assert buyer.spent == spent


def test_a_challenge_that_was_forgotten_or_never_made_is_refused(buyer: Buyer) -> None:
    made = Challenge(**{**buyer.challenge.echo(), "id": "made-up"})
    payload = buyer.wallet.voucher_payload(buyer.channel, 2 * PRICE)
    with pytest.raises(PaymentProblem, match="not made here"):
        buyer.seller.take(buyer.credential(payload, made))
    buyer.seller.forget_challenges()
    with pytest.raises(PaymentProblem, match="not made here"):
        buyer.pay(2 * PRICE)
    assert buyer.spent == PRICE
    buyer.challenge = buyer.ask()
    buyer.pay(2 * PRICE)
    assert buyer.spent == 2 * PRICE


def test_what_manages_a_channel_is_not_charged_for(buyer: Buyer) -> None:
    credential = buyer.credential(buyer.wallet.voucher_payload(buyer.channel, 2 * PRICE))
    receipt = parse_receipt(buyer.seller.take(credential, content=False))
    assert (receipt.accepted_cumulative, receipt.spent) == (2 * PRICE, PRICE)


def test_a_sample_is_checked_as_a_voucher_is(buyer: Buyer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError):
        buyer.seller.check_a_sample()
    buyer.pay(2 * PRICE)
    buyer.seller.check_a_sample()
    monkeypatch.setattr(buyer.seller, "_signed", lambda *_: False)
    with pytest.raises(LookupError):
        buyer.seller.check_a_sample()
