"""mitmproxy 12 runs us with asyncio's eager tasks: they begin within the call that makes them."""

from __future__ import annotations

import asyncio

import pytest

from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer.tasks import background
from tests.unit.payer.shop import Payer, Shop

EAGER = getattr(asyncio, "eager_task_factory", None)  # Python 3.12 and newer

pytestmark = pytest.mark.skipif(
    EAGER is None, reason="this Python has no eager tasks, and mitmproxy no use for them"
)


@pytest.fixture(autouse=True)
async def _eagerly() -> None:
    asyncio.get_running_loop().set_task_factory(EAGER)


async def test_work_begins_after_the_call_that_starts_it() -> None:
    steps = ["before"]

    async def work() -> None:
        steps.append("work")

    task = background(work(), "work")
    steps.append("after")
    await task
    assert steps == ["before", "after", "work"]


async def test_a_grant_that_needs_no_commit_does_not_stop_the_till(payer: Payer, shop: Shop) -> None:
    """The fresh challenge costs less than what the refused attempt gave back: there is nothing to wait for."""
    assert (await payer.get()).status == 200
    await payer.settled()
    shop.refuses_once("invalid-challenge", price=PRICE // 2)
    async with asyncio.timeout(10):
        await payer.get()
        assert {one.status for one in await payer.all(8)} == {200}
    assert shop.account.spent == payer.till.channel.paid
