"""The checker of the sums finds what is planted, whoever it is planted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from store.lifecycle import ChannelStatus
from tests.soak.sums import ChannelFigures, Figures, differences, table


def channel(**changes: Any) -> ChannelFigures:
    usual: dict[str, Any] = {
        "channel_id": "0xc1",
        "host": "127.0.0.1:80",
        "status": ChannelStatus.CLOSED,
        "deposit": 500,
        "authorised": 130,
        "paid": 120,
        "open_amounts": 0,
        "captured": 120,
        "refunded": 380,
        "fees": 7,
        "ledger_paid": 120,
        "ledger_captured": 120,
        "voucher": 125,
        "spent": 120,
    }
    return ChannelFigures(**(usual | changes))


HOSTILE = channel(
    channel_id="0xc2",
    host="127.0.0.1:99",
    authorised=40,
    paid=0,
    captured=0,
    refunded=500,
    ledger_paid=0,
    ledger_captured=0,
    voucher=40,
    spent=None,
)
FAILED = channel(
    channel_id="0xc3", status=ChannelStatus.FAILED, deposit=0, paid=0, captured=None, voucher=0, spent=0
)


def figures(*channels: ChannelFigures, **changes: Any) -> Figures:
    usual: dict[str, Any] = {
        "channels": channels or (channel(), HOSTILE, FAILED),
        "payee_gain": 120,
        "payer_loss": 141,
        "escrow_gain": 0,
        "chain_fees": 21,
        "ledger_fees": 21,
        "lifetime": 120,
        "returned": 50,
        "host_day": {"127.0.0.1:80": 130, "127.0.0.1:99": 40},
        "host_limits": {"127.0.0.1:99": 40},
        "sure": 110,
        "doubtful": 20,
    }
    return Figures(**(usual | changes))


def test_figures_that_agree() -> None:
    assert differences(figures()) == []
    assert "120" in table(figures())


@pytest.mark.parametrize(
    "name",
    [
        *("payee_gain", "payer_loss", "escrow_gain", "chain_fees", "ledger_fees", "lifetime", "returned"),
        *("sure",),
    ],
)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_unit_too_much_or_too_little(name: str, by: int) -> None:
    planted = getattr(figures(), name) + (20 * by if name == "sure" else by)
    assert differences(figures(**{name: planted}))


@pytest.mark.parametrize(
    "name", ["paid", "captured", "refunded", "fees", "ledger_paid", "ledger_captured", "spent"]
)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_unit_of_one_channel(name: str, by: int) -> None:
    wrong = replace(channel(), **{name: getattr(channel(), name) + by})
    found = differences(figures(wrong, HOSTILE, FAILED))
    assert any("0xc1" in one for one in found) or name == "fees"
    assert found


@pytest.mark.parametrize(
    "wrong",
    [
        channel(voucher=131),
        channel(open_amounts=1),
        channel(status=ChannelStatus.OPEN),
        channel(status=ChannelStatus.ASIDE),
        replace(HOSTILE, captured=1, paid=1, ledger_paid=1, ledger_captured=1, refunded=499),
        replace(FAILED, voucher=1),
        replace(FAILED, deposit=1),
    ],
)
def test_a_channel_that_is_not_as_it_should_be(wrong: ChannelFigures) -> None:
    others = [one for one in (channel(), HOSTILE, FAILED) if one.channel_id != wrong.channel_id]
    assert any(wrong.channel_id in one for one in differences(figures(wrong, *others)))


CASHED_AHEAD = channel(spent=100, cashed=120)  # twenty were signed ahead, cashed, and never spent


def test_what_was_cashed_ahead_is_nobodys_but_due() -> None:
    ahead = figures(CASHED_AHEAD, HOSTILE, FAILED, sure=90, doubtful=10)
    assert differences(ahead) == []
    assert differences(replace(ahead, sure=101)), "clients cannot have got what was never spent"
    assert differences(replace(ahead, sure=80)), "nor does it explain what they did not get"


@pytest.mark.parametrize("cashed", [119, 121])
def test_another_amount_than_was_cashed_ahead(cashed: int) -> None:
    wrong = replace(CASHED_AHEAD, cashed=cashed)
    assert any("0xc1" in one for one in differences(figures(wrong, HOSTILE, FAILED, sure=90, doubtful=10)))


def test_what_a_seller_did_not_cash_in_the_chains_grace_is_ours() -> None:
    """It had said that it knows no such channel, and sold something on it to a client that had left."""
    lost = channel(captured=0, paid=0, ledger_paid=0, ledger_captured=0, refunded=500, spent=100, forced=True)
    with_it = figures(
        lost, HOSTILE, FAILED, payee_gain=0, payer_loss=21, lifetime=0, returned=170, sure=90, doubtful=10
    )
    assert differences(with_it) == []
    assert differences(replace(with_it, sure=101))
    assert differences(replace(with_it, channels=(replace(lost, forced=False), HOSTILE, FAILED)))
    assert differences(replace(with_it, channels=(replace(lost, cashed=1), HOSTILE, FAILED)))


def test_what_was_cashed_and_then_spent_is_due_once() -> None:
    assert differences(figures(channel(cashed=70), HOSTILE, FAILED)) == []


def test_a_hostile_seller_over_its_limit() -> None:
    assert "over its limit" in differences(figures(host_limits={"127.0.0.1:99": 39}))[0]
