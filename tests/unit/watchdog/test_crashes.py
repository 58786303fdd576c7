"""Killed after each step of each way home: whoever comes next goes on, and every base unit is accounted for.

A step is a commit of the store, or a transaction that the chain was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer import adopting
from proxy_addon.payer.forcing import force_close
from store.account import check
from store.lifecycle import FINAL, ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, FUNDS, Payer, Shop
from tests.unit.payer.test_adopting import adopted, look
from tests.unit.watchdog.scene import EVERY_S, FORCE_S, GRACE_S, IDLE_S, Scene

STEPS = {"cooperative": 4, "forced": 8, "withdraw": 5}
"""What each way takes; one more is never reached."""


async def killed_after(payer: Payer, steps: int, work: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Do `work` until so many steps are done, and die there. False if it came to its end before."""
    died = asyncio.Event()
    left = steps

    def counted(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            result = await original(*arguments, **options)
            left -= 1
            if left == 0:
                died.set()
                await asyncio.Future()  # nothing of this process runs any more
            return result

        return step

    (chain,) = payer.parts.chains.values()
    for owner, name in ((payer.backend, "transact"), (chain, "send_raw")):
        setattr(owner, name, counted(getattr(owner, name)))
    task = asyncio.create_task(work())
    dying = asyncio.create_task(died.wait())
    await asyncio.wait({task, dying}, return_when=asyncio.FIRST_COMPLETED)
    over = task.done()
    dying.cancel()
    await payer.die()
    task.cancel()
    await asyncio.gather(task, dying, return_exceptions=True)
    return not over


async def brought_home(scene: Scene, captured: int) -> None:
    """By the next process, however long that takes; then all sums are right."""
    for _ in range(12):
        channel = await scene.channel()
        check(channel)
        if channel.status in FINAL:
            break
        await scene.look(after_s=max(IDLE_S + FORCE_S, GRACE_S))
    channel = await scene.channel()
    assert (channel.status, channel.captured) == (ChannelStatus.CLOSED, captured)
    assert channel.refunded == DEPOSIT - captured
    address = scene.payer.signer.address
    fees = sum(one.fee for one in scene.shop.chain.transactions.values() if one.sender == address)
    assert scene.balance == FUNDS - captured - fees
    counters = await scene.payer.store.counters()
    lifetime, refunded = (
        sum(value for key, value in counters.items() if key.startswith(family))
        for family in ("lifetime/", "refunded/")
    )
    assert (lifetime, lifetime + refunded) == (captured, channel.authorised)
    assert sum(value for key, value in counters.items() if key.startswith("escrow/")) == 0


def next_process(make_payer: MakePayer, dead: Payer) -> Scene:
    return Scene(make_payer(shared=dead.backend.shared, key=dead.key))


@pytest.mark.parametrize(
    ("way", "steps"), [(way, steps) for way, most in STEPS.items() for steps in range(1, most + 2)]
)
async def test_a_watchdog_that_is_killed(make_payer: MakePayer, way: str, steps: int) -> None:
    scene = Scene(make_payer())
    await scene.paid(3)
    if way != "cooperative":
        scene.server_is_gone()
        await scene.look(after_s=IDLE_S)
        for _ in range(2):
            await scene.look(after_s=EVERY_S << 5)
    if way == "withdraw":
        await scene.look(after_s=FORCE_S)
        assert scene.lines("close-requested")
        scene.pass_time(GRACE_S)
    scene.pass_time(IDLE_S + FORCE_S)
    died = await killed_after(scene.payer, steps, scene.watchdog.look)
    following = next_process(make_payer, scene.payer)
    if way != "cooperative":
        following.server_is_gone()
    following.payer.honest = False
    assert died == (steps <= STEPS[way])
    await brought_home(following, 3 * PRICE if way == "cooperative" else 0)


@pytest.mark.parametrize("steps", range(1, 9))
async def test_a_recovery_that_is_killed(make_payer: MakePayer, shop: Shop, steps: int) -> None:
    """From an empty store: adopt, and the first step by force."""
    before = make_payer()
    for _ in range(3):
        assert (await before.get()).status == 200
    await before.settled()
    await before.die()
    payer = make_payer(key=before.key)

    async def recover() -> None:
        await force_close(payer.parts, await adopted(payer))

    await killed_after(payer, steps, recover)
    scene = next_process(make_payer, payer)
    scene.server_is_gone()
    for one in (await look(scene.payer)).lost:
        await adopting.adopt(scene.payer.parts, one, None)
    await brought_home(scene, 0)


@pytest.mark.parametrize("steps", range(1, 8))
async def test_a_top_up_whose_process_died(make_payer: MakePayer, steps: int) -> None:
    """What became of it the chain says; the next watchdog asks."""
    scene = Scene(make_payer(max_deposit="5"))
    assert (await scene.payer.get()).status == 200
    await scene.payer.settled()
    till, offers = scene.payer.till, scene.payer.gate._offers

    async def top_up() -> None:
        from proxy_addon.payer.topping import top_up

        (offer,) = offers._kept.values()
        await top_up(
            scene.payer.parts,
            till,
            offer.caps,
            offer.challenge,
            amount=DEPOSIT,
            fee_payer=False,
            host="shop",
            resource=offer.resource,
        )

    await killed_after(scene.payer, steps, top_up)
    following = next_process(make_payer, scene.payer)
    following.payer.honest = False
    await following.look(after_s=60)
    channel = await following.channel()
    assert channel.pending is None
    assert channel.deposit == following.shop.chain.channel(channel.channel_id).deposit
    check(channel)
