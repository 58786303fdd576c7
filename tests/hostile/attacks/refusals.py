"""402 for ever, and servers that take the money and deliver nothing (A2, A6, F7)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.hostile.attack import HONEST, Attack, Bound, Stage, expect
from tests.hostile.peer import PRICE, Line, Peer
from tests.hostile.wire import Request, answer

KINDS = (
    "payment-required",
    "payment-expired",
    "invalid-challenge",
    "verification-failed",
    "payment-insufficient",
    "internal-payment-error",
    "session/delta-too-small",
    "session/insufficient-balance",
    "session/amount-exceeds-deposit",
    "session/channel-not-found",
    "session/channel-finalized",
    "session/invalid-signature",
    "session/signer-mismatch",
    "session/never-heard-of",
)
GONE = ("session/channel-not-found", "session/channel-finalized")
OFTEN = 30
DEAR = 50_000  # base units: all that one request may cost

ONE_REQUEST = Bound("max_price")
DAY = Bound("max_per_day")


# -- an endless 402


async def refuses_all(peer: Peer, request: Request, line: Line, *, kind: str, after: int) -> None:
    """`after` honest sales; from then on every payment is refused, and its voucher kept."""
    if peer.delivered < after * PRICE or request.authorization is None:
        await line.send(peer.sell(request))
        return
    peer.land(request)
    await line.send(peer.refusal(kind, 410 if kind in GONE else 402))


def one_then_refused(stage: Stage, *, count: int) -> None:
    stage.bought()
    stage.settled()
    for got in stage.get("/", count):
        expect(got.status in (402, 410), f"a refusal became {got.shown}")
    expect(len(stage.peer.requests) <= 2 + 16 * count, "one request is sent upstream for ever")


def refused_at_once(stage: Stage, *, count: int) -> None:
    for got in stage.get("/", count):
        expect(got.status in (402, 410), f"a refusal became {got.shown}")


def endless() -> Iterator[Attack]:
    for kind in KINDS:
        yield Attack(
            f"402 for ever: {kind}",
            "A2",
            partial(refuses_all, kind=kind, after=1),
            partial(one_then_refused, count=1),
            ONE_REQUEST,
            quick=kind in ("verification-failed", "session/delta-too-small", "session/insufficient-balance"),
        )
        yield Attack(
            f"402 for ever, {OFTEN} requests: {kind}",
            "A2",
            partial(refuses_all, kind=kind, after=1),
            partial(one_then_refused, count=OFTEN),
            DAY,
        )
        yield Attack(
            f"the opening itself is refused: {kind}",
            "A6",
            partial(refuses_all, kind=kind, after=0),
            partial(refused_at_once, count=5),
            Bound("max_price", 5),
            quick=kind == "session/channel-not-found",
        )


# -- money for nothing


async def takes(
    peer: Peer, request: Request, line: Line, *, status: int, receipt: bool, price: int = DEAR
) -> None:
    """Takes what is offered, settles it on the chain, and delivers nothing."""
    if request.authorization is None:
        await line.send(peer.refusal(challenge=peer.challenge(price)))
        return
    peer.land(request)
    peer.cash()
    told = (peer.receipt(request),) if receipt else ()
    await line.send(answer(status, b"sorry", told))


def robbed(stage: Stage, *, status: int, count: int) -> None:
    got = stage.get("/", count)
    stage.settled()
    expect(got[0].status == status, f"the first answer was {got[0].shown}")
    expect({one.status for one in got} <= {status, 402}, "an answer that nobody gave")


def for_nothing() -> Iterator[Attack]:
    for status in (200, 404, 500, 502, 503):
        for receipt in (True, False):
            told = "with" if receipt else "without"
            yield Attack(
                f"{status} for the money, settled at once, {told} a receipt",
                "F7",
                partial(takes, status=status, receipt=receipt),
                partial(robbed, status=status, count=12),
                DAY,
                # one channel must do: what is settled is not paid with again
                limits={"max_deposit": "0.4"},
                exact=True,
                quick=status in (200, 502) and receipt,
            )


async def takes_half(peer: Peer, request: Request, line: Line, *, charge: int) -> None:
    """Charges each request so many prices, and says so in its receipts."""
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    peer.land(request)
    spent = peer.memory["spent"] = peer.memory.get("spent", 0) + charge * PRICE
    offered = int(request.payload["cumulativeAmount"])
    peer.delivered += PRICE
    await line.send(answer(200, b"the goods", (peer.receipt(request, spent=str(min(spent, offered))),)))


def overcharged(stage: Stage) -> None:
    for _ in range(10):
        stage.bought()


# -- settled, and then no answer


async def settles_and_hangs(peer: Peer, request: Request, line: Line) -> None:
    if request.authorization is None:
        await line.send(peer.refusal(challenge=peer.challenge(DEAR)))
        return
    peer.land(request)
    peer.cash()
    await line.gone()


def hung(stage: Stage) -> None:
    for _ in range(3):
        got = stage.one("/", seconds=1.5)
        expect(got.status in (0, 402, 502), f"an answer out of nothing: {got.shown}")


# -- two challenges, and odd ones


async def doubles(peer: Peer, request: Request, line: Line) -> None:
    """Asks, is paid, asks again as if nothing had been; then sells."""
    if request.action == "voucher" and "asked again" not in peer.memory:
        peer.memory["asked again"] = True
        await line.send(peer.refusal())
    else:
        await line.send(peer.sell(request))


def asked_twice(stage: Stage) -> None:
    for _ in range(3):
        stage.bought()
        stage.settled()


async def odd_402(peer: Peer, request: Request, line: Line, *, response: bytes) -> None:
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    peer.land(request)
    await line.send(response)


def passed_on(stage: Stage, *, body: bytes) -> None:
    got = stage.one()
    expect((got.status, got.body) == (402, body), f"an application's own 402 became {got.shown}")


async def begs_for_time(peer: Peer, request: Request, line: Line) -> None:
    if request.authorization is None or not peer.delivered:
        await line.send(peer.sell(request))
    else:
        await line.send(peer.refusal("verification-failed", headers=(("Retry-After", "9" * 400),)))


def left_alone(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    got = stage.one()
    expect(got.status == 402, f"a refusal became {got.shown}")


ATTACKS = (
    *endless(),
    *for_nothing(),
    Attack(
        "settled, then no answer",
        "F7",
        settles_and_hangs,
        hung,
        Bound("max_price", 3),
        unanswered=True,
        exact=True,
    ),
    Attack("charges twice the price", "A2", partial(takes_half, charge=2), overcharged, HONEST),
    Attack(
        "charges ten times the price", "A2", partial(takes_half, charge=10), overcharged, HONEST, quick=True
    ),
    Attack("402 twice", "A2", doubles, asked_twice, HONEST, quick=True),
    Attack(
        "a plain 402 after the payment",
        "A2",
        partial(odd_402, response=answer(402, b"<html>pay at the desk</html>")),
        partial(passed_on, body=b"<html>pay at the desk</html>"),
        ONE_REQUEST,
    ),
    Attack(
        "a 402 with an empty problem after the payment",
        "A2",
        partial(odd_402, response=answer(402, b"{}", (("Content-Type", "application/problem+json"),))),
        partial(passed_on, body=b"{}"),
        ONE_REQUEST,
    ),
    Attack("Retry-After without end", "A2", begs_for_time, left_alone, ONE_REQUEST),
)
