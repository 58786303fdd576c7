"""A shop that answers payments with whatever hurts most: it ends, within the limits, and the books stay right."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.core.messages import format_receipt
from proxy_addon.core.repair import MAX_BUMPS, MAX_RESENDS
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer import desk, opening
from tests.unit.core.test_repair import KINDS
from tests.unit.payer.shop import Payer, Shop

P = PRICE
PER_REQUEST = 35_000
PER_DAY = 400_000
MOST_SENT = 2 + MAX_RESENDS + MAX_BUMPS + 3  # cold and paid, each repair as often as it may be taken


@dataclass(frozen=True)
class Answer:
    """To one payment. Without `kind` it is served, and charged `charge` prices."""

    kind: str | None = None
    refuse: bool = False
    status: int = 402
    price: int | None = P  # of the fresh challenge
    accept: bool = False  # take the voucher although it is refused
    charge: int = 1
    receipt: str = "true"  # | "none" | "zero" | "huge"


answers = st.one_of(
    st.just(Answer()),
    st.builds(
        Answer,
        kind=st.sampled_from(KINDS),
        refuse=st.just(True),
        status=st.sampled_from((402, 402, 402, 410)),
        price=st.sampled_from((P, P, P, 2 * P, 3 * P, 4 * P, None)),
        accept=st.booleans(),
    ),
    st.builds(Answer, charge=st.integers(0, 4), receipt=st.sampled_from(("true", "none", "zero", "huge"))),
)
bursts = st.lists(st.integers(1, 6), min_size=1, max_size=6)


class Adversary:
    """The shop's script; `answers` in turn to its payments, then honest again."""

    def __init__(self, shop: Shop, answers: list[Answer]) -> None:
        self.shop = shop
        self._answers = iter(answers)
        shop.script = self

    def __call__(self, request: Request, payload: Mapping[str, Any]) -> Response | None:
        if payload.get("action") != "voucher":  # an opening is what the demo's shop makes of it
            return None
        answer = next(self._answers, None)
        account = self.shop.accounts.get(payload["channelId"])
        if answer is None or answer == Answer() or account is None:
            return None
        if answer.accept or not answer.refuse:
            account.accepted = max(account.accepted, int(payload["cumulativeAmount"]))
        if answer.refuse:
            return self.shop.refusal(answer.kind, answer.status, price=answer.price)
        account.spent = min(account.spent + answer.charge * P, account.accepted)
        if answer.receipt == "none":
            return Response(200, (), b"served")
        lies = {"zero": 0, "huge": 2**100}
        made = self.shop.api.payee._receipt(self.shop.api.payee.challenges.make(P), account, "")
        spent = lies.get(answer.receipt, account.spent)
        told = format_receipt(type(made)(**{**_fields(made), "spent": spent}))
        return Response(200, (("Payment-Receipt", told),), b"served")


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in type(one).__dataclass_fields__}


@pytest.fixture(autouse=True, scope="module")
def quick_chain() -> Iterator[None]:
    """The chain is asked without pauses; and nobody waits long for an opening whose time passes between bursts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "FIRST_WAIT_S", 0.001)
        patch.setattr(opening, "LONGEST_WAIT_S", 0.001)
        patch.setattr(desk, "PATIENCE_S", 0.5)
        yield


async def story(directory: Path, sizes: list[int], answers: list[Answer], ahead: str) -> None:
    shop = Shop()
    payer = Payer(
        shop, directory, max_price="0.035", max_per_day="0.4", max_opens_per_day=2, authorise_ahead=ahead
    )
    assert (await payer.get()).status == 200
    await payer.settled()
    Adversary(shop, answers)
    new_money = P
    for size in sizes:
        shop.clock.ahead += 1
        for got in await payer.all(size):
            assert got.status in (200, 402, 410)
            assert got.new_money <= PER_REQUEST
            assert len(got.sent) <= MOST_SENT
            assert got.ticket is not None
            assert got.ticket.tries.resends <= MAX_RESENDS
            new_money += got.new_money
        shop.clock.ahead += 60  # so that no opening stays in doubt for long
        await payer.settled()
    channels = [till.channel for till in payer.tills]
    assert all(not channel.holds for channel in channels)
    # Whatever it did: the day's limit holds, and each unit was authorised for somebody who was within his limit.
    authorised = sum(channel.authorised for channel in await payer.channels())
    assert authorised <= PER_DAY
    if ahead == "0":
        assert authorised <= new_money
    payer.honest = False
    await payer.close()


@settings(max_examples=settings().max_examples * 2 // 5)
@given(bursts, st.lists(answers, max_size=40), st.sampled_from(("0", "0.1")))
def test_whatever_it_answers(sizes: list[int], answers: list[Answer], ahead: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(story(Path(directory), sizes, answers, ahead))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accept", [False, True])
async def test_always_the_same(tmp_path: Path, kind: str | None, accept: bool) -> None:
    await story(tmp_path, [1, 1, 3, 1], [Answer(kind, refuse=True, accept=accept)] * 200, "0.1")


async def test_greed_takes_what_was_authorised_and_no_more(tmp_path: Path) -> None:
    """It charges four prices for each: what it takes is what our vouchers allow."""
    shop = Shop()
    payer = Payer(shop, tmp_path, authorise_ahead="0.1")
    assert (await payer.get()).status == 200
    await payer.settled()
    Adversary(shop, [Answer(charge=4)] * 100)
    for _ in range(10):
        await payer.all(5)
    channel = payer.till.channel
    assert shop.account.spent <= channel.authorised
    assert (
        channel.authorised <= 51 * P * 2 + 100_000
    )  # each request, once more after a write-off, and what is ahead
    assert channel.paid + channel.uncertain >= shop.account.spent - channel.free
    payer.honest = False
    await payer.close()
