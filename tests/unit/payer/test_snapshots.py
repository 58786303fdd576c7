"""A server that shows what it has of a channel: our own signature is a proof, everything else is a claim."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.demo.challenges import Challenges
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.methods.abi import to_hex
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.payer import snapshots
from store.lifecycle import ChannelStatus
from store.memory_store import SharedMemory
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, Payer, Shop

P = PRICE
Change = Callable[[dict[str, Any]], None]


async def warm(payer: Payer) -> Payer:
    assert (await payer.get()).status == 200
    await payer.settled()
    return payer


@pytest.fixture
def show(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on each challenge tells what the shop has of its only channel, after `change`."""
    usual = Challenges._request

    def told(change: Change = lambda snapshot: None) -> None:
        def request(self: Challenges, price: int) -> dict[str, Any]:
            made = usual(self, price)
            made["methodDetails"]["sessionSnapshot"] = snapshot = of_the(shop)
            change(snapshot)
            return made

        monkeypatch.setattr(Challenges, "_request", request)

    return told


def of_the(shop: Shop) -> dict[str, Any]:
    account = next(iter(shop.accounts.values()))
    return {
        "channelId": account.channel_id,
        "chainId": shop.chain.chain_id,
        "escrow": RESERVE,
        "descriptor": dict(account.descriptor),
        "acceptedCumulative": str(account.accepted),
        "requiredCumulative": str(account.spent + P),
        "deposit": str(account.deposit),
        "settled": str(account.settled),
        "spent": str(account.spent),
        "units": account.units,
        "highestVoucher": {
            "channelId": account.channel_id,
            "cumulativeAmount": str(account.accepted),
            "signature": to_hex(account.signature),
        },
    }


def cold(shop: Shop) -> None:
    """The next request asks for a challenge."""
    shop.clock.ahead += 297


async def test_a_proof_says_what_was_accepted_and_moves_no_money(
    payer: Payer, shop: Shop, show: Callable[..., None]
) -> None:
    await warm(payer)
    before = replace(payer.till.channel, accepted=0)
    payer.till.channel = before  # as if the answer had been lost
    cold(shop)
    show()
    shop.refuses_once("invalid-payload")
    assert (await payer.get()).status == 402
    after = payer.till.channel
    assert after.accepted == P
    assert (after.paid, after.uncertain, after.authorised) == (before.paid, before.uncertain, 2 * P)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(acceptedCumulative=str(10**15), spent=str(10**15), settled=str(10**15)),
        lambda told: told.update(deposit="1", spent="0", acceptedCumulative="0"),
        lambda told: told.pop("highestVoucher"),
        lambda told: told["highestVoucher"].update(cumulativeAmount=str(7 * P)),
        lambda told: told["highestVoucher"].update(signature="0x" + "11" * 65),
        lambda told: told.update(channelId="0x" + "22" * 32),
        lambda told: told.update(chainId=1),
        lambda told: told.update(descriptor={}),
        lambda told: told.clear(),
    ],
)
async def test_claims_move_nothing(
    payer: Payer, shop: Shop, show: Callable[..., None], change: Change
) -> None:
    await warm(payer)
    cold(shop)
    show(change)
    for number in range(2, 5):
        got = await payer.get()
        assert (got.status, got.new_money) == (200, P)
        assert shop.account.spent == payer.till.channel.paid == payer.till.channel.authorised == number * P


async def test_a_voucher_over_what_is_on_record_stops_the_channel(
    make_payer: MakePayer, shop: Shop, show: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """An older copy of the store was put back: what was signed since then is not in it."""
    first = await warm(make_payer())
    await first.gate.close()
    copy: dict[bytes, bytes | None] = dict(first.backend.shared._values)
    for _ in range(3):
        assert (await first.get()).status == 200
    lost = first.till.channel
    await first.gate.close()

    restored = SharedMemory()
    restored.apply(copy)
    second = make_payer(shared=restored, key=first.key)
    show()
    with caplog.at_level(logging.WARNING, "bursar"):
        got = await second.get()
    # It was not claimed when the first challenge came, so its next voucher went out: lower than those before.
    assert (got.status, [one.action for one in got.sent]) == (200, [None, "voucher", "open"])
    assert got.sent[1].voucher < lost.authorised
    old, new = await second.channels()
    assert (old.channel_id, old.status, old.deposit) == (lost.channel_id, ChannelStatus.ASIDE, DEPOSIT)
    assert "old copy" in caplog.text
    assert new.channel_id != old.channel_id
    second.honest = False  # its record is the older one, and says so


@pytest.mark.parametrize("padded", [False, True], ids=["base64url", "as mppx writes it"])
async def test_the_header_proves_as_much(payer: Payer, shop: Shop, padded: bool) -> None:
    await warm(payer)
    payer.till.channel = before = replace(payer.till.channel, accepted=0)
    text = json.dumps(of_the(shop)).encode()
    field = (base64.b64encode(text) if padded else base64.urlsafe_b64encode(text).rstrip(b"=")).decode()
    (offer,) = payer.gate._offers._kept.values()
    for nonsense in (None, "", "%", field[:-9]):
        await snapshots.heed(payer.gate._parts, offer, nonsense)
        assert payer.till.channel == before
    await snapshots.heed(payer.gate._parts, offer, field)
    assert payer.till.channel == replace(before, accepted=P)
