"""What stops a peer before its limits are used up: breaker, pinned payees, rates (A1, A2)."""

from __future__ import annotations

import threading
import time
from functools import partial

from tests.hostile.attack import HONEST, LIMITS_OF_ALL, Attack, Bound, Stage, expect
from tests.hostile.attacks.refusals import takes
from tests.hostile.peer import PRICE, Line, Peer
from tests.hostile.wire import Request, answer

SEATS = LIMITS_OF_ALL["in_flight_per_origin"]
RATE = LIMITS_OF_ALL["attempts_per_minute"]


# -- the breaker


def tripped(stage: Stage, *, status: int, paid: int) -> None:
    """So many are paid; then its 402 passes, with the reason in the ledger."""
    statuses = [one.status for one in stage.get("/", paid + 5)]
    stage.settled()
    expect(statuses == [status] * paid + [402] * 5, f"{statuses}")
    reasons = stage.world.refusals(stage.peer)
    expect(reasons and set(reasons) == {"breaker-open"}, f"the reasons are {reasons}")


async def recovers(peer: Peer, request: Request, line: Line) -> None:
    """Fails until somebody has looked at it."""
    if request.authorization is None or peer.memory.get("well"):
        await line.send(peer.sell(request))
    else:
        peer.land(request)
        await line.send(answer(502, b"down"))


def tried_again(stage: Stage) -> None:
    expect([one.status for one in stage.get("/", 5)] == [502, 502, 502, 402, 402], "the breaker did not open")
    stage.settled()
    before = stage.peer.highest
    # Half open: of many at once one is paid for, and fails.
    stage.wait(1.2)
    together(stage, 6)
    one = stage.peer.highest - before
    expect(one <= PRICE, f"half open, {one} were signed at once")
    stage.peer.memory["well"] = True
    stage.wait(1.2)
    stage.bought()
    for _ in range(5):
        stage.bought()


def together(stage: Stage, count: int) -> None:
    threads = [
        threading.Thread(target=stage.get, args=("/",), kwargs={"seconds": 10.0}) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- the payee


async def moves_house(peer: Peer, request: Request, line: Line) -> None:
    """An honest sale; from then on it is to be paid as somebody else."""
    if not peer.delivered:
        await line.send(peer.sell(request))
    elif request.authorization is None:
        await line.send(peer.refusal(challenge=peer.challenge(payee=peer.other)))
    else:
        peer.land(request)
        await line.send(peer.refusal("payment-required", challenge=peer.challenge(payee=peer.other)))


def held_to_the_first(stage: Stage) -> None:
    stage.bought("/0")
    stage.settled()
    for index in range(1, 4):
        got = stage.one(f"/{index}")
        expect(got.status == 402, f"got {got.shown}")
    got = stage.one("/0")  # warm: the voucher is for the payee that it has; what it is told then is not
    expect(got.status == 402, f"got {got.shown}")
    paid = {one["channelId"] for one in stage.credentials}
    expect(len(paid) == 1, "another payee was paid")
    expect("payee-changed" in stage.world.refusals(stage.peer), f"{stage.world.refusals(stage.peer)}")


# -- rates


async def always_anew(peer: Peer, request: Request, line: Line) -> None:
    """Takes no challenge twice: each request costs a decision."""
    sold = peer.sell(request)
    if request.action == "voucher":
        peer.payee.challenges.forget()
    await line.send(sold)


def rated(stage: Stage) -> None:
    stage.bought("/0")
    stage.settled()
    begun = time.monotonic()
    statuses = [one.status for one in stage.get("/", 2 * RATE)]
    minutes = (time.monotonic() - begun) / 60
    served = statuses.count(200)
    expect(served + statuses.count(402) == len(statuses), "an answer that nobody gave")
    # Those that are asked anew, and what the minute gives back meanwhile.
    expect(RATE // 2 <= served <= RATE * (1 + minutes) + 1, f"{served} of {len(statuses)} were paid")
    expect("too-many-attempts" in stage.world.refusals(stage.peer), "nobody was told why")


async def hangs(peer: Peer, request: Request, line: Line) -> None:
    """Sells once; then it takes every payment, and says nothing."""
    if request.authorization is None or not peer.delivered:
        await line.send(peer.sell(request))
    else:
        await line.gone()


def seated(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    threads = [
        threading.Thread(target=stage.get, args=("/",), kwargs={"seconds": 6.0}) for _ in range(2 * SEATS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [one.status for one in stage.got[1:]]
    expect(statuses.count(0) <= SEATS, f"{statuses.count(0)} requests held money at one time")
    expect(statuses.count(402) >= SEATS, f"{statuses}")
    expect("too-many-in-flight" in stage.world.refusals(stage.peer), "nobody was told why")


ATTACKS = (
    *(
        Attack(
            f"{status} for the money, until the breaker opens",
            "A2",
            partial(takes, status=status, receipt=receipt),
            partial(tripped, status=status, paid=3),
            Bound("max_price", "breaker_failures"),
            limits={
                "max_per_day": "1",
                "max_deposit": "0.5",
                "breaker_failures": 3,
                "breaker_retry_after_s": 300,
            },
            exact=True,
            quick=status == 502,
        )
        for status, receipt in ((502, False), (500, False), (503, False))
    ),
    Attack(
        "404 for the money, until the breaker has counted enough",
        "A2",
        partial(takes, status=404, receipt=False),
        partial(tripped, status=404, paid=3),
        Bound("breaker_max_undelivered", plus=Bound("max_price")),
        limits={
            "max_per_day": "1",
            "max_deposit": "0.5",
            "breaker_max_undelivered": "0.1",
            "breaker_retry_after_s": 300,
        },
        exact=True,
    ),
    Attack(
        "a server that recovers: one trial at a time",
        "A2",
        recovers,
        tried_again,
        Bound("max_price", 4),
        limits={"breaker_failures": 3, "breaker_retry_after_s": 1},
        alone=True,
    ),
    Attack(
        "another payee than the first, where payees are pinned",
        "A1",
        moves_house,
        held_to_the_first,
        Bound("max_price"),
        limits={"pin_payee": True},
        quick=True,
    ),
    Attack(
        f"{2 * RATE} requests that each cost a decision",
        "A2",
        always_anew,
        rated,
        HONEST,
        limits={"max_per_day": "100", "max_deposit": "50", "deposit": "20"},
        terms={"suggested_deposit": None},
        alone=True,
    ),
    Attack(
        f"{2 * SEATS} payments at once that are never answered",
        "A2",
        hangs,
        seated,
        Bound("max_price", "in_flight_per_origin"),
        limits={"max_per_day": "10", "max_deposit": "5"},
        terms={"suggested_deposit": 5_000_000},
        alone=True,
        unanswered=True,
    ),
)
