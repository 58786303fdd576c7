"""Openings and top-ups that are refused, kept back or let lie, to lock deposits (A6)."""

from __future__ import annotations

import asyncio
from functools import partial

from tests.hostile.attack import HONEST, Attack, Bound, Stage, expect
from tests.hostile.peer import GOODS, PAID, PRICE, Line, Peer
from tests.hostile.wire import Request, answer

# -- reopen, reopen, reopen


async def spoils_each(peer: Peer, request: Request, line: Line, *, kind: str, status: int) -> None:
    """Sells once on each channel, and then says that it has never heard of it."""
    if request.authorization is None or request.action == "open":
        await line.send(peer.sell(request))
    else:
        await line.send(peer.refusal(kind, status))


def spoiled(stage: Stage) -> None:
    for _ in range(25):
        got = stage.one()
        expect(got.status in (200, 402, 410), f"got {got.shown}")
        stage.settled()
    opened = {one["channelId"] for one in stage.credentials}
    expect(len(opened) <= 3, f"{len(opened)} channels were opened, over max_opens_per_day")


# -- an opening that is taken and kept


async def keeps_back(peer: Peer, request: Request, line: Line, *, status: int, receipt: bool) -> None:
    """Broadcasts nothing yet; in the end, when it cashes, everything that is still good."""
    if request.authorization is None:
        await line.send(peer.refusal())
    elif status == 200:
        await line.send(answer(200, b"", (peer.receipt(request),) if receipt else ()))
    else:
        await line.send(peer.refusal("verification-failed", status))


def kept_back(stage: Stage) -> None:
    first = stage.one()
    expect(first.status in (200, 402), f"got {first.shown}")
    # The next one must wait for what the chain says of the first; its client does not.
    second = stage.one("/", seconds=1.0)
    expect(second.status in (0, 402), f"got {second.shown}")
    opened = {one["channelId"] for one in stage.credentials}
    expect(len(opened) == 1, "a second channel was opened while the first one may still land")


async def lets_lie(peer: Peer, request: Request, line: Line) -> None:
    """Never broadcasts the first opening; then it sells."""
    if request.action == "open" and "lies" not in peer.memory:
        peer.memory["lies"] = peer.openings.pop(request.payload["channelId"])
        peer.vouchers.pop(request.payload["channelId"])
        await line.send(answer(200, b"", (peer.receipt(request),)))
    else:
        await line.send(peer.sell(request))


def expired(stage: Stage) -> None:
    stage.one()
    # Past the validity of what it kept: from then on nobody can land it.
    stage.world.run_in(lambda: stage.peer.chain.warp(60))
    stage.settled()
    stage.bought()
    raw = stage.peer.memory["lies"]
    expect(not stage.world.run_in(lambda: stage.peer.broadcast(raw)), "an opening landed after its end")
    opens = stage.world.opens(stage.peer)
    expect(opens == 1, f"an opening that never landed still counts: {opens}")


# -- top-ups


async def ignores_top_ups(peer: Peer, request: Request, line: Line, *, hangs: bool) -> None:
    if request.action != "topUp":
        await line.send(peer.sell(request))
    elif hangs:
        await line.gone()
    else:
        await line.send(answer(204, length=False))


def sold_out(stage: Stage) -> None:
    """The deposit is good for four; what is more needs the top-up, or another channel."""
    for _ in range(4):
        stage.bought()
    stage.settled()
    got = stage.one("/", seconds=75.0)
    expect(got.status in (200, 402), f"got {got.shown}")


async def tops_up(peer: Peer, request: Request, line: Line) -> None:
    """Takes every top-up, and sells nothing for it."""
    peer.land(request)
    if request.authorization is None:
        await line.send(peer.refusal(challenge=peer.challenge(40_000)))
    elif request.action == "topUp":
        await line.send(answer(204, length=False))
    else:
        await line.send(answer(200, b"", (peer.receipt(request),)))


def topped_up(stage: Stage) -> None:
    for _ in range(15):
        stage.one()
        stage.settled()


async def lands_late(peer: Peer, request: Request, line: Line) -> None:
    """Answers the opening with an error, and broadcasts it a little later."""
    if request.action == "open":
        await line.send(answer(500, b"sorry"))
        await asyncio.sleep(0.3)
        peer.land(request)
    elif request.authorization is None:
        await line.send(peer.refusal())
    else:
        peer.delivered += PRICE
        await line.send(answer(200, GOODS, [*PAID, peer.receipt(request)]))


def landed_late(stage: Stage) -> None:
    got = stage.one()
    expect(got.status == 500, f"got {got.shown}")
    stage.settled()
    for _ in range(3):
        stage.bought()
    opened = {one["channelId"] for one in stage.credentials}
    expect(len(opened) == 1, "the channel that landed late was not used")


ATTACKS = (
    *(
        Attack(
            f"each channel is spoiled: {kind}",
            "A6",
            partial(spoils_each, kind=kind, status=status),
            spoiled,
            Bound("max_deposit", 3),
            quick=status == 410,
        )
        for kind, status in (
            ("session/channel-not-found", 410),
            ("session/amount-exceeds-deposit", 402),
            ("session/invalid-signature", 402),
        )
    ),
    Attack(
        "an opening kept back, and called a success",
        "A6",
        partial(keeps_back, status=200, receipt=True),
        kept_back,
        Bound("max_price"),
        unanswered=True,
    ),
    Attack(
        "an opening kept back, and refused",
        "A6",
        partial(keeps_back, status=402, receipt=False),
        kept_back,
        Bound("max_price"),
        unanswered=True,
    ),
    Attack("an opening that is left to expire", "A6", lets_lie, expired, HONEST, alone=True),
    Attack("an opening that lands after an error", "A6", lands_late, landed_late, Bound("max_price")),
    Attack(
        "top-ups that it ignores",
        "A6",
        partial(ignores_top_ups, hangs=False),
        sold_out,
        HONEST,
        limits={"deposit": "0.04"},
        terms={"suggested_deposit": None},
    ),
    Attack(
        "top-ups that it never answers",
        "F7",
        partial(ignores_top_ups, hangs=True),
        sold_out,
        HONEST,
        limits={"deposit": "0.04"},
        terms={"suggested_deposit": None},
    ),
    Attack(
        "top-ups for nothing, until the day's deposits end",
        "A6",
        tops_up,
        topped_up,
        Bound("max_deposits_per_day"),
        limits={"max_deposits_per_day": "0.2", "max_deposit": "0.2", "deposit": "0.05", "max_per_day": "0.3"},
        terms={"suggested_deposit": None},
    ),
)
