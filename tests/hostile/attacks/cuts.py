"""Connections that are cut at each byte of an answer (F6), and answers that come too slowly or have no end (F7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Final

from tests.hostile.attack import HONEST, NOTHING, Attack, Bound, Stage, expect
from tests.hostile.peer import GOODS, PAID, PRICE, Line, Peer
from tests.hostile.wire import Request, answer, chunk

ROOMY: Final = {"max_per_day": "100", "max_deposit": "50", "deposit": "20"}
NO_SUGGESTION: Final = {"suggested_deposit": None}

# -- cut at each byte


def whole_answer(peer: Peer, request: Request, chunked: bool) -> bytes:
    fields = [*PAID, peer.receipt(request)]
    if not chunked:
        return answer(200, GOODS, fields)
    head = answer(200, b"", [*fields, ("Transfer-Encoding", "chunked")], length=False)
    return head + chunk(GOODS[:4]) + chunk(GOODS[4:]) + b"0\r\n\r\n"


async def cuts(peer: Peer, request: Request, line: Line, *, chunked: bool, reset: bool) -> None:
    """Charges; of its answer to the n-th payment the first n bytes come."""
    peer.land(request)
    if request.action == "topUp":
        await line.send(answer(204, length=False))
        return
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    data = whole_answer(peer, request, chunked)
    if request.action == "open":
        peer.memory["size"] = len(data)
        await line.send(data)
        return
    at = peer.memory.get("at", 0)
    peer.memory["at"] = at + 1
    cut = data[: at % (len(data) + 1)]
    if len(cut) == len(data):
        peer.delivered += PRICE
    await line.send(cut)
    line.cut(reset=reset)


def cut_at_each_byte(stage: Stage, *, options: tuple[str, ...], every: int) -> None:
    stage.one("/", *options)
    stage.settled()
    size = stage.peer.memory["size"] + 1
    numbered = "/{}" if every > 1 else "/"
    left = size
    while left > 0:
        if every > 1:
            stage.peer.memory["at"] = size - left
        count = 1 if every > 1 else min(left, 100)
        stage.get(numbered.format(""), count, *options)
        left -= every if every > 1 else count
    if "POST" in options:
        bodies = Counter(one.body for one in stage.peer.requests if one.action == "voucher")
        expect(
            sum(bodies.values()) <= len(stage.got),
            "a request that may have run was sent again on our account",
        )


def at_each_byte() -> Iterator[Attack]:
    for chunked in (False, True):
        for reset in (False, True):
            for method in ("GET", "POST"):
                for every in (1, 97):
                    options = ("-X", "POST", "-d", "x=1") if method == "POST" else ()
                    if (every > 1 or method == "POST") and chunked is not reset:
                        continue
                    yield Attack(
                        f"{method}, {'chunked' if chunked else 'with its length'},"
                        f" {'reset' if reset else 'closed'} {'at each byte' if every == 1 else 'here and there'}",
                        "F6",
                        partial(cuts, chunked=chunked, reset=reset),
                        partial(cut_at_each_byte, options=options, every=every),
                        # A safe request that was lost on a kept connection is sent once more, and paid anew.
                        Bound("max_price", 900) if every == 1 else Bound("max_price", 12),
                        limits=ROOMY,
                        terms=NO_SUGGESTION,
                        quick=every > 1,
                    )


async def cuts_402(peer: Peer, request: Request, line: Line) -> None:
    """The 402 itself is cut at each byte; whole, it is paid, and honoured."""
    if request.authorization is not None:
        await line.send(peer.sell(request))
        return
    data = peer.refusal()
    at = peer.memory["at"] = peer.memory.get("at", -1) + 7
    await line.send(data[:at])
    if at < len(data):
        line.cut()


def cut_402(stage: Stage) -> None:
    for index in range(150):
        got = stage.one(f"/{index}")
        expect(got.status in (0, 200, 402, 502), f"got {got.shown}")


# -- too slow, and without end


async def drips(peer: Peer, request: Request, line: Line, *, what: str) -> None:
    """Byte by byte: a header, a body, an interim answer."""
    if request.authorization is not None:
        await line.send(peer.sell(request))
        return
    data = peer.refusal()
    head, _, body = data.partition(b"\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        if what == "header":
            await line.drip(head + b"\r\n" + b"X-Long: y\r\n" * 100_000, 0.05)
        elif what == "body":
            head = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: 999999")
            await line.send(head + b"\r\n\r\n")
            await line.drip(body + b" " * 100_000, 0.05)
        elif what == "nothing":
            await line.send(
                head.replace(b"Content-Length: %d" % len(body), b"Content-Length: 999999") + b"\r\n\r\n"
            )
            await line.gone()


def slow_402(stage: Stage) -> None:
    got = stage.one("/", seconds=20.0)
    expect((got.status, got.body) == (200, GOODS), f"a slow 402 was not paid in its time: {got.shown}")


def slow_header(stage: Stage) -> None:
    """Nothing ends it but the client: mitmproxy has no deadline for a header that comes."""
    got = stage.one("/", seconds=3.0)
    expect(got.status == 0, f"got {got.shown}")


async def endless(peer: Peer, request: Request, line: Line, *, what: str) -> None:
    """As fast as it can, for ever."""
    if request.authorization is not None and what != "paid body":
        await line.send(peer.sell(request))
        return
    head, _, body = peer.refusal().partition(b"\r\n\r\n")
    head = head.replace(b"Content-Length: %d\r\n" % len(body), b"Transfer-Encoding: chunked\r\n")
    block = b"x" * 65_536
    with contextlib.suppress(ConnectionError):
        if what == "402 body":
            await line.send(head + b"\r\n\r\n" + chunk(body))
            while not line.writer.is_closing():
                await line.send(chunk(block))
        elif what == "paid body":
            peer.land(request)
            if request.authorization is None:
                await line.send(peer.refusal())
                return
            fields = (*PAID, peer.receipt(request), ("Transfer-Encoding", "chunked"))
            await line.send(answer(200, b"", fields, length=False))
            for _ in range(3_000):
                await line.send(chunk(block))
            line.cut()
        elif what == "header":
            await line.send(head + b"\r\n")
            for _ in range(3_000):
                await line.send(b"X-Long: " + block + b"\r\n")
        elif what == "status line":
            await line.send(b"HTTP/1.1 402 ")
            for _ in range(3_000):
                await line.send(block)
        elif what == "chunk header":
            await line.send(head + b"\r\n\r\n1;")
            for _ in range(3_000):
                await line.send(block)
        elif what == "trailers":
            await line.send(head + b"\r\n\r\n" + chunk(body) + b"0\r\n")
            for _ in range(3_000):
                await line.send(b"X-Long: " + block + b"\r\n")
        elif what == "interim answers":
            for _ in range(100_000):
                await line.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


def memory_kib(stage: Stage) -> int:
    process = stage.world.proxy.process
    assert process is not None
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def bounded(stage: Stage, *, statuses: tuple[int, ...]) -> None:
    """Some 200 MB are offered, and not kept."""
    before = memory_kib(stage)
    got = stage.one("/", "--limit-rate", "1G", seconds=30.0)
    expect(got.status in statuses, f"got {got.shown}")
    grown = (memory_kib(stage) - before) // 1024
    expect(grown < 60, f"the proxy has grown by {grown} MiB")


# -- interim answers, trailers, an empty line before: odd, and honest


async def odd_but_honest(peer: Peer, request: Request, line: Line, *, before: bytes, trailers: bytes) -> None:
    if request.authorization is None:
        await line.send(before + peer.refusal())
        return
    sold = peer.sell(request)
    if trailers and sold.startswith(b"HTTP/1.1 200"):
        sold = sold.replace(b"Content-Length: %d" % len(GOODS), b"Transfer-Encoding: chunked")
        sold = sold[: -len(GOODS)] + chunk(GOODS) + b"0\r\n" + trailers + b"\r\n"
    await line.send(before)
    await asyncio.sleep(0.01)
    await line.send(sold)


def all_served(stage: Stage) -> None:
    for got in stage.get("/", 4):
        expect((got.status, got.body) == (200, GOODS), f"an honest answer became {got.shown}")
    stage.settled()
    for got in stage.get("/", 4):
        expect((got.status, got.body) == (200, GOODS), f"an honest answer became {got.shown}")


ATTACKS = (
    *at_each_byte(),
    Attack(
        "the 402 is cut at each seventh byte", "F6", cuts_402, cut_402, HONEST, limits={"max_per_day": "4"}
    ),
    Attack("a 402 whose body drips", "F7", partial(drips, what="body"), slow_402, HONEST),
    Attack("a 402 whose body never comes", "F7", partial(drips, what="nothing"), slow_402, HONEST),
    Attack(
        "a 402 whose header drips", "F7", partial(drips, what="header"), slow_header, NOTHING, unanswered=True
    ),
    *(
        Attack(
            f"{what} without end",
            "F7",
            partial(endless, what=what),
            partial(bounded, statuses=statuses),
            bound,
            quick=what == "header",
        )
        for what, statuses, bound in (
            ("402 body", (200,), HONEST),
            ("paid body", (200,), Bound("max_price")),
            ("header", (502,), NOTHING),
            ("status line", (502,), NOTHING),
            ("chunk header", (200, 402), HONEST),
            ("trailers", (200, 402), HONEST),
            ("interim answers", (502,), NOTHING),
        )
    ),
    *(
        Attack(
            f"an honest answer {name}",
            "F7",
            partial(odd_but_honest, before=before, trailers=trailers),
            all_served,
            HONEST,
            quick=name != "behind an empty line",
        )
        for name, before, trailers in (
            ("behind 103 Early Hints", b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n", b""),
            ("behind 100 Continue", b"HTTP/1.1 100 Continue\r\n\r\n", b""),
            ("with trailers", b"", b"X-Checksum: 1\r\nPayment-Receipt: x\r\n"),
            ("behind an empty line", b"\r\n", b""),
        )
    ),
)
