"""Terms that change: between a challenge and its replay, and from request to request (A1, A5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from proxy_addon.core.messages import Challenge
from tests.hostile.attack import HONEST, NOTHING, Attack, Bound, Stage, expect
from tests.hostile.peer import GOODS, PAID, PRICE, Line, Peer
from tests.hostile.wire import Request, answer

Make = Callable[[Peer], Challenge]

ADDRESS = "0x" + "5e" * 20
TOKEN = "0x20c0000000000000000000000000000000000001"


def with_details(**details: Any) -> Make:
    return lambda peer: peer.challenge(details=details)


def with_price(price: int) -> Make:
    return lambda peer: peer.challenge(price)


def changed(**changes: Any) -> Make:
    return lambda peer: peer.challenge(**changes)


def of_another_payee(peer: Peer) -> Challenge:
    return peer.challenge(payee=peer.other)


REFUSED: Mapping[str, Make] = {
    # never payable, whatever it offers
    "chain": with_details(chainId=1),
    "token": changed(currency=TOKEN),
    "escrow": with_details(escrowContract=ADDRESS),
    "protocol": with_details(sessionProtocol="v3"),
    "v1 instead of v2": with_details(sessionProtocol="v1"),
    "no escrow": with_details(escrowContract=None),
    "method": changed(params={"method": "barter"}),
    "intent": changed(params={"intent": "charge"}),
    "a step as large as the limit": with_details(minVoucherDelta="50000"),
    "a step of 2^96": with_details(minVoucherDelta=str(2**96)),
    "price over max_price": with_price(50_001),
    "price of 2^95": with_price(2**95),
    "price of 0": changed(amount="0"),
    "price of -1": changed(amount="-1"),
    "price as a float": changed(amount=1e4),
    "price of 1e4": changed(amount="1e4"),
    "price with a plus": changed(amount="+10000"),
    "price in Arabic digits": changed(amount="١٠٠٠٠"),
    "price null": changed(amount=None),
    "price a list": changed(amount=["10000"]),
    "payee nobody": changed(recipient="0x" + "00" * 20),
    "expired": changed(params={"expires": "2020-01-01T00:00:00Z"}),
    "good for a century": changed(params={"expires": "2126-01-01T00:00:00Z"}),
    "for another body": changed(params={"digest": "sha-256=:" + "A" * 43 + "=:"}),
    "paid in a cookie": changed(params={"header": "Cookie"}),
}
OTHERS: Mapping[str, Make] = {
    # payable by themselves, but another scope or price
    "payee": of_another_payee,
    "operator": with_details(operator=ADDRESS),
    "price doubled": with_price(2 * PRICE),
    "price five times": with_price(5 * PRICE),
}


# -- between the challenge and its replay


async def switches(peer: Peer, request: Request, line: Line, *, make: Make) -> None:
    """An honest sale; the next payment is refused with a challenge of other terms, and kept."""
    if request.authorization is None or not peer.delivered:
        await line.send(peer.sell(request))
        return
    peer.land(request)
    await line.send(peer.refusal("payment-required", challenge=make(peer)))


def switched(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    before = stage.peer.highest
    for _ in range(3):
        got = stage.one()
        expect(got.status == 402, f"terms that changed were answered with {got.shown}")
    # What it was given is for the terms that the first challenge had.
    paid = {one["channelId"] for one in stage.credentials}
    expect(len(paid) == 1, f"another channel was opened for terms that may not be paid: {paid}")
    expect(stage.peer.highest <= before + 3 * PRICE, "more than its price was signed")


def switched_to_payable(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    for _ in range(3):
        got = stage.one()
        expect(got.status in (402, 410), f"terms that changed were answered with {got.shown}")


def between() -> Iterator[Attack]:
    for name, make in REFUSED.items():
        yield Attack(
            f"between challenge and replay: {name}",
            "A5" if name in ("chain", "token", "escrow") else "A1",
            partial(switches, make=make),
            switched,
            Bound("max_price", 1),
            quick=name in ("escrow", "price over max_price"),
        )
    for name, make in OTHERS.items():
        yield Attack(
            f"between challenge and replay: another {name}",
            "A1",
            partial(switches, make=make),
            switched_to_payable,
            Bound("max_price", 3),
            quick=name == "price five times",
        )


# -- from request to request


async def begins_with(peer: Peer, request: Request, line: Line, *, make: Make) -> None:
    """Nothing but such challenges, from the first request on."""
    peer.land(request)
    await line.send(peer.refusal(challenge=make(peer)))


def never_paid(stage: Stage) -> None:
    for _ in range(2):
        got = stage.one()
        expect(got.status == 402, f"got {got.shown}")
    expect(not stage.credentials, "it was paid")


def from_the_start() -> Iterator[Attack]:
    for name, make in REFUSED.items():
        yield Attack(
            f"from the start: {name}",
            "A5" if name in ("chain", "token", "escrow") else "A1",
            partial(begins_with, make=make),
            never_paid,
            NOTHING,
            quick=name in ("token",),
        )


def believe(peer: Peer, request: Request, price: int) -> bytes:
    """Sells for what it asked, without looking."""
    peer.land(request)
    if request.action == "topUp":
        return answer(204, length=False)
    peer.delivered += price
    return answer(200, GOODS, [*PAID, peer.receipt(request)])


async def climbs(peer: Peer, request: Request, line: Line) -> None:
    """Each answer's challenge is a little dearer; what it gets it delivers for."""
    price = PRICE + 4_000 * peer.memory.setdefault("sold", 0)
    asked = peer.memory.get("asked", price)
    if request.authorization is None:
        peer.memory["asked"] = price
        await line.send(peer.refusal(challenge=peer.challenge(price)))
    else:
        peer.memory["sold"] += request.action != "topUp"
        await line.send(believe(peer, request, asked))


def climbed(stage: Stage) -> None:
    statuses = [stage.one(f"/{index}").status for index in range(14)]  # a route each: asked anew
    expect(
        statuses == [200] * 11 + [402] * 3, f"prices up to the limit are paid, and none over it: {statuses}"
    )


async def another_each_time(peer: Peer, request: Request, line: Line, *, field: str) -> None:
    """Each challenge names another payee, or operator: a channel each, if it has its way."""
    number = peer.memory["number"] = peer.memory.get("number", 0) + 1
    if request.authorization is not None:
        peer.land(request)
        await line.send(answer(200, b"", (peer.receipt(request),)))
        return
    address = f"0x{number:040x}"
    changes = {"recipient": address} if field == "payee" else {"details": {"operator": address}}
    await line.send(peer.refusal(challenge=peer.challenge(**changes)))


def opened_for_each(stage: Stage) -> None:
    statuses = [stage.one(f"/{index}").status for index in range(8)]
    stage.settled()
    paid = {one["channelId"] for one in stage.credentials}
    expect(len(paid) <= 3, f"{len(paid)} channels, over max_opens_per_day")
    expect(statuses.count(200) <= 3, f"{statuses}")


async def deposits(peer: Peer, request: Request, line: Line, *, suggested: str) -> None:
    if request.authorization is None:
        await line.send(peer.refusal(challenge=peer.challenge(suggestedDeposit=suggested)))
    else:
        await line.send(believe(peer, request, PRICE))


def sold(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    stage.bought()


async def sponsors(peer: Peer, request: Request, line: Line) -> None:
    """Says that it pays the opening's fee, and then lets the opening lie."""
    if request.authorization is None:
        await line.send(peer.refusal(challenge=peer.challenge(details={"feePayer": True})))
    else:
        await line.send(answer(200, b"", (peer.receipt(request),)))


def sponsored(stage: Stage) -> None:
    stage.one()


ATTACKS = (
    *between(),
    *from_the_start(),
    Attack(
        "the price climbs", "A1", climbs, climbed, HONEST, limits={"max_per_day": "5", "max_deposit": "1"}
    ),
    Attack(
        "another payee each time",
        "A1",
        partial(another_each_time, field="payee"),
        opened_for_each,
        Bound("max_price", 3),
        quick=True,
    ),
    Attack(
        "another payee, where payees are configured",
        "A1",
        partial(another_each_time, field="payee"),
        never_paid,
        NOTHING,
        limits={"payees": ["0x" + "77" * 20]},
        quick=True,
    ),
    Attack(
        "another operator each time",
        "A5",
        partial(another_each_time, field="operator"),
        opened_for_each,
        Bound("max_price", 3),
    ),
    Attack(
        "a deposit of 2^96 - 1 suggested", "A1", partial(deposits, suggested=str(2**96 - 1)), sold, HONEST
    ),
    Attack("a deposit of 1 suggested", "A1", partial(deposits, suggested="1"), sold, HONEST),
    Attack("a fee payer that never pays", "A6", sponsors, sponsored, NOTHING),
)
