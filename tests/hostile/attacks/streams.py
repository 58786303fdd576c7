"""Metered streams that ask for too much (A3)."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from store.lifecycle import ChannelStatus
from tests.e2e.proxies import until
from tests.hostile.attack import HONEST, Attack, Bound, Stage, expect
from tests.hostile.peer import PRICE, Line, Peer
from tests.hostile.wire import Request, answer

LIMITS: Final = {
    "max_price": "0.05",
    "max_per_day": "0.4",
    "max_deposit": "0.4",
    "max_stream_step": "0.02",
    "max_stream_per_second": "0.4",
    "max_per_stream": "0.1",
}
STEP: Final = 20_000
DEPOSIT: Final = 400_000
FOREIGN: Final = "0x" + "ab" * 32
STREAM: Final = Bound("max_per_stream")
HEAD: Final = answer(
    200, b"", (("Content-Type", "text/event-stream"), ("Cache-Control", "private, no-store")), length=False
)
HIDDEN: Final = (b"payment-need-voucher", b"payment-receipt")

Say = Callable[[Peer, Request, Line], Awaitable[None]]


def need(request: Request, required: object, **changes: Any) -> bytes:
    """The event that asks for a voucher."""
    data = {
        "channelId": request.payload["channelId"],
        "requiredCumulative": str(required) if isinstance(required, int) else required,
        "acceptedCumulative": request.payload["cumulativeAmount"],
        "deposit": str(DEPOSIT),
        **changes,
    }
    return b"event: payment-need-voucher\ndata: " + json.dumps(data).encode() + b"\n\n"


def text(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def highest(peer: Peer, request: Request) -> int:
    return peer.vouchers[request.payload["channelId"]].amount


def takes(peer: Peer) -> bytes:
    """What it says to a voucher by HEAD."""
    return answer(204, length=False)


def refuses(peer: Peer, *, kind: str, status: int = 402) -> bytes:
    return peer.refusal(kind, status, challenge=peer.challenge(unitType="token")).partition(b"pay")[0]


async def streams(
    peer: Peer,
    request: Request,
    line: Line,
    *,
    say: Say,
    to_voucher: Callable[[Peer], bytes] = takes,
    lands: bool = True,
) -> None:
    """Asks for money, and then for more while it streams."""
    if lands:
        peer.land(request)
    if request.authorization is None:
        await line.send(
            peer.refusal(challenge=peer.challenge(unitType="token", suggestedDeposit=str(DEPOSIT)))
        )
    elif request.action == "topUp":
        await line.send(answer(204, length=False))
    elif request.method == "HEAD":
        await line.send(to_voucher(peer))
    else:
        await line.send(HEAD)
        await say(peer, request, line)
        line.cut()


# -- what it says


async def jumps(peer: Peer, request: Request, line: Line, *, to: object) -> None:
    await line.send(text("one") + need(request, to))
    await line.gone()


async def steps(peer: Peer, request: Request, line: Line, *, step: int) -> None:
    """Asks for a step, has it, asks for the next; never says a word for it."""
    for _ in range(100):
        before = highest(peer, request)
        await line.send(need(request, before + step))
        for _ in range(300):
            await asyncio.sleep(0.01)
            if highest(peer, request) > before or line.reader.at_eof():
                break
        if highest(peer, request) == before:
            break
    await line.gone()


async def floods(peer: Peer, request: Request, line: Line, *, events: int, step: int, **changes: Any) -> None:
    """Event after event, without waiting for anything."""
    base = highest(peer, request)
    for index in range(events):
        await line.send(need(request, base + step * (index + 1), **changes))
    await line.send(text("end"))
    if not changes:
        await line.gone()


async def repeats(peer: Peer, request: Request, line: Line) -> None:
    """The same need for ever, although it is met."""
    base = highest(peer, request)
    for _ in range(40):
        await line.send(need(request, base + PRICE))
        await asyncio.sleep(0.02)
    await line.send(text("end"))


async def needs(peer: Peer, request: Request, line: Line, *, to: Any) -> None:
    await mumbles(peer, request, line, event=need(request, to))


async def mumbles(peer: Peer, request: Request, line: Line, *, event: bytes) -> None:
    await line.send(
        text("one") + event + text("two") + b"event: payment-need-voucher\ndata: {}\n\n" + text("end")
    )


async def ends_with(peer: Peer, request: Request, line: Line, *, spent: str) -> None:
    """Delivers what the first voucher is for, and lies at the end."""
    name, value = peer.receipt(request, spent=spent, acceptedCumulative=spent)
    del name, value
    receipt = {
        "method": "tempo",
        "status": "success",
        "timestamp": "2026-01-01T00:00:00Z",
        "reference": request.payload["channelId"],
        "channelId": request.payload["channelId"],
        "acceptedCumulative": spent,
        "spent": spent,
    }
    peer.delivered = highest(peer, request)
    event = b"event: payment-receipt\ndata: " + json.dumps(receipt).encode() + b"\n\n"
    await line.send(text("one") + text("end") + event)


# -- what the client sees


def client_sees(stage: Stage, *, whole: bool, count: int = 1) -> None:
    for _ in range(count):
        got = stage.one("/stream")
        expect(got.status == 200, f"the stream was {got.shown}")
        expect(
            not any(name in got.body for name in HIDDEN),
            f"a payment event reached the client: {got.body[:300]!r}",
        )
        if whole:
            expect(got.body.endswith(text("end")), f"the honest part is not whole: {got.body[-200:]!r}")
        else:
            expect(
                b"event: error\ndata: " in got.body,
                f"it was not told why its stream ended: {got.body[-200:]!r}",
            )
    stage.settled()


STOPPED = partial(client_sees, whole=False)
WHOLE = partial(client_sees, whole=True)

JUMPS: Mapping[str, object] = {
    "to the deposit": DEPOSIT,
    "one unit over a step": PRICE + STEP + 1,
    "to 2^95": 2**95,
}
TO_VOUCHERS: Mapping[str, Callable[[Peer], bytes]] = {
    "a 402 without a challenge": lambda peer: answer(402, length=False),
    "a 402 and a fresh challenge": partial(refuses, kind="verification-failed"),
    "a 402: the delta is too small": partial(refuses, kind="session/delta-too-small"),
    "a 402: over the deposit": partial(refuses, kind="session/amount-exceeds-deposit"),
    "a 410": partial(refuses, kind="session/channel-not-found", status=410),
    "a 500": lambda peer: answer(500, length=False),
    "nothing": lambda peer: b"",
}
NONSENSE: Mapping[str, object] = {
    "to 2^256": 2**256,
    "to -1": "-1",
    "to a float": 10_000.5,
    "to null": None,
    "to a word": "all",
}


def attacks() -> Iterator[Attack]:
    for name, to in JUMPS.items():
        yield Attack(
            f"a need-voucher {name}",
            "A3",
            partial(streams, say=partial(jumps, to=to)),
            STOPPED,
            Bound("max_price"),
            limits=LIMITS,
            quick=name == "to the deposit",
        )
    for name, to in NONSENSE.items():
        yield Attack(
            f"a need-voucher {name}",
            "A3",
            partial(streams, say=partial(needs, to=to)),
            WHOLE,
            Bound("max_price"),
            limits=LIMITS,
        )
    for step in (STEP, 7_919):
        yield Attack(
            f"steps of {step} for nothing, until the stream's end",
            "A3",
            partial(streams, say=partial(steps, step=step)),
            STOPPED,
            STREAM,
            limits={**LIMITS, "max_per_stream": "0.11"},
            quick=step == STEP,
            exact=step == STEP,  # the first price is 0.01: five steps of 0.02 more
        )
    yield Attack(
        "steps for nothing, stream after stream, until the day's end",
        "A3",
        partial(streams, say=partial(steps, step=STEP)),
        many_streams,
        Bound("max_per_day"),
        limits={**LIMITS, "max_per_stream": "0.11"},
    )
    yield Attack(
        "10,000 need-vouchers of one unit more each",
        "A3",
        partial(streams, say=partial(floods, events=10_000, step=1)),
        unanswered_or_stopped,
        STREAM,
        limits={**LIMITS, "max_per_stream": "0.011"},
        unanswered=True,
    )
    yield Attack(
        "10,000 need-vouchers of a step more each",
        "A3",
        partial(streams, say=partial(floods, events=10_000, step=STEP)),
        STOPPED,
        STREAM,
        limits=LIMITS,
    )
    yield Attack(
        "10,000 need-vouchers of a foreign channel",
        "A3",
        partial(streams, say=partial(floods, events=10_000, step=PRICE, channelId=FOREIGN)),
        foreign,
        Bound("max_price"),
        limits=LIMITS,
        quick=True,
    )
    yield Attack("the same need for ever", "A3", partial(streams, say=repeats), WHOLE, STREAM, limits=LIMITS)
    for name, to_voucher in TO_VOUCHERS.items():
        yield Attack(
            f"a stream's voucher is answered with {name}",
            "A3",
            partial(streams, say=partial(steps, step=PRICE), to_voucher=to_voucher),
            unanswered if name == "nothing" else STOPPED,
            STREAM,
            limits=LIMITS,
            unanswered=name == "nothing",
            quick=name == "a 402 without a challenge",
        )
    yield Attack(
        "a stream whose opening is kept back",
        "A6",
        partial(streams, say=partial(steps, step=STEP), lands=False),
        unanswered,
        Bound("max_price"),
        limits=LIMITS,
        unanswered=True,
    )
    yield Attack(
        "a stream whose opening fails",
        "A6",
        partial(streams, say=partial(steps, step=STEP), lands=False),
        failed,
        HONEST,
        limits=LIMITS,
        alone=True,
    )
    for spent in ("0", "1", str(2**95), str(2**256), "-1"):
        yield Attack(
            f"a stream's last receipt says {len(spent)} digits of spent: {spent[:8]}",
            "A4",
            partial(streams, say=partial(ends_with, spent=spent)),
            partial(WHOLE, count=3),
            HONEST,
            limits=LIMITS,
        )


def unanswered(stage: Stage) -> None:
    """The server waits for us, we wait for it, or for the chain: the client waits as long as it likes."""
    got = stage.one("/stream", seconds=3.0)
    expect(not any(name in got.body for name in HIDDEN), "a payment event reached the client")


def failed(stage: Stage) -> None:
    """Nobody can land it any more: the stream ends; what was promised in its name is worth nothing, and given back."""
    client = threading.Thread(target=STOPPED, args=(stage,))
    client.start()
    until(lambda: stage.peer.offered, "the opening has left")
    stage.world.run_in(lambda: stage.peer.chain.warp(60))
    client.join()
    expect(b"event: error\ndata: " in stage.got[0].body, f"its end was {stage.got[0].shown}")
    stage.settled()
    (channel,) = stage.world.of(stage.peer)
    expect(channel.status is ChannelStatus.FAILED, f"the channel is {channel.status}")
    expect(stage.world.opens(stage.peer) == 0, "an opening that never landed still counts")


def many_streams(stage: Stage) -> None:
    for _ in range(6):
        got = stage.one("/stream")
        expect(got.status in (200, 402), f"{got.shown}")
        expect(not any(name in got.body for name in HIDDEN), "a payment event reached the client")
        stage.settled()


def unanswered_or_stopped(stage: Stage) -> None:
    got = stage.one("/stream", seconds=5.0)
    expect(not any(name in got.body for name in HIDDEN), "a payment event reached the client")


def foreign(stage: Stage) -> None:
    WHOLE(stage)
    expect(all(one["channelId"] != FOREIGN for one in stage.credentials), "a foreign channel was paid with")
    told = stage.told(stage.peer.authority)
    expect(0 < len(told) <= 100, f"one stream made us log {len(told)} lines")


ATTACKS = tuple(attacks())
