"""Request smuggling through the replay: in what a client says, and in what a server answers (A11)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from tests.hostile.attack import HONEST, Attack, Bound, Stage, expect
from tests.hostile.client import bare
from tests.hostile.peer import GOODS, PAID, Line, Peer, honest
from tests.hostile.wire import Request, answer, chunk

EVIL: Final = b"GET /evil HTTP/1.1\r\nHost: x\r\nAuthorization: Payment e30\r\nContent-Length: 1000\r\n\r\n"
HIDDEN: Final = b"0\r\n\r\n" + EVIL

FRAMINGS: Mapping[str, tuple[bytes, bytes]] = {
    # the header's lines, and what follows it
    "a length and chunked": (b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(HIDDEN), HIDDEN),
    "chunked and a length": (
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        chunk(EVIL) + b"0\r\n\r\n",
    ),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(EVIL), EVIL),
    "a list of lengths": (b"Content-Length: 0, %d\r\n" % len(EVIL), EVIL),
    "a length of +0": (b"Content-Length: +0\r\n", EVIL),
    "a length of -1": (b"Content-Length: -1\r\n", EVIL),
    "a length of 0x0": (b"Content-Length: 0x0\r\n", EVIL),
    "a length with a space inside": (b"Content-Length: 0 0\r\n", EVIL),
    "a length behind a space": (b"Content-Length : %d\r\n" % len(EVIL), EVIL),
    "a length on a folded line": (b"Content-Length:\r\n %d\r\n" % len(EVIL), EVIL),
    "a folded transfer-encoding": (b"X: y\r\n Transfer-Encoding: chunked\r\n", HIDDEN),
    "chunked twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", HIDDEN),
    "chunked, identity": (b"Transfer-Encoding: chunked, identity\r\n", HIDDEN),
    "xchunked": (b"Transfer-Encoding: xchunked\r\n", HIDDEN),
    "chunked behind a vertical tab": (b"Transfer-Encoding: \x0bchunked\r\n", HIDDEN),
    "chunked in another case and a tab": (b"Transfer-Encoding:\tcHuNkEd\r\nContent-Length: 5\r\n", HIDDEN),
    "a transfer-encoding behind a bare LF": (b"X: y\nTransfer-Encoding: chunked\r\n", HIDDEN),
    "a transfer-encoding behind a bare CR": (b"X: y\rTransfer-Encoding: chunked\r\n", HIDDEN),
    "a NUL in a name": (b"Transfer-Encoding\0: chunked\r\n", HIDDEN),
    "a chunk size of 0x0": (b"Transfer-Encoding: chunked\r\n", b"0x0\r\n\r\n" + EVIL),
    "a negative chunk size": (b"Transfer-Encoding: chunked\r\n", b"-1\r\n" + EVIL + b"\r\n0\r\n\r\n"),
    "a chunk size over 64 bits": (b"Transfer-Encoding: chunked\r\n", b"1" + b"0" * 16 + b"\r\n" + EVIL),
    "a chunk that is longer than it says": (
        b"Transfer-Encoding: chunked\r\n",
        b"1\r\nxx\r\n0\r\n\r\n" + EVIL,
    ),
    "line ends in a chunk extension": (b"Transfer-Encoding: chunked\r\n", b"1;a=\nb\r\nx\r\n0\r\n\r\n"),
    "a header in the trailers": (
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\nContent-Length: 5\r\nAuthorization: Payment e30\r\n\r\n",
    ),
}
TARGETS: Mapping[str, bytes] = {
    "a line end in the target": b"/a\r\nX-Evil: 1",
    "a space in the target": b"/a HTTP/1.1\r\nX: y",
    "a tab in the target": b"/a\tHTTP/1.1",
    "a NUL in the target": b"/a\0b",
}


def spoken(
    stage: Stage, lines: bytes, body: bytes, method: bytes = b"POST", target: bytes = b"/a?x"
) -> bytes:
    """Through the proxy, as it is; then an honest purchase, which must be its own."""
    head = b"%b %b%b HTTP/1.1\r\nHost: %b\r\n" % (
        method,
        stage.peer.url.encode(),
        target,
        stage.peer.authority.encode(),
    )
    said = bare(stage.world.proxy.port, head + lines + b"Connection: close\r\n\r\n" + body, seconds=3.0)
    expect(b"payment-receipt" not in said.lower(), "a receipt reached the client")
    return said


def smuggled(stage: Stage, *, lines: bytes, body: bytes) -> None:
    stage.bought("/first")
    before = len(stage.peer.requests)
    said = spoken(stage, lines, body)
    expect(said.startswith(b"HTTP/1.1 ") or not said, f"the proxy said {said[:80]!r}")
    seen = stage.peer.requests[before:]
    paths = [one.path for one in seen]
    expect("/evil" not in paths, f"a request that was hidden in another's body came out: {paths}")
    for request in seen:
        expect(request.head.count(b"\r\nHost:") == 1, "the replay's header is not one")
        lengths, codings = request.all("content-length"), request.all("transfer-encoding")
        expect(len(lengths) + len(codings) <= 1, f"the replay is framed twice: {lengths} {codings}")
        odd = re.search(rb"\0|\r(?!\n)|(?<!\r)\n|\r\n[ \t]", request.head)
        expect(odd is None, f"{odd} went upstream")
        own = [one for one in request.all("authorization") if one == "Payment e30"]
        expect(not own or request.path == "/a", "a header of the hidden request was taken for ours")
    stage.bought("/last")


def in_the_target(stage: Stage, *, target: bytes) -> None:
    stage.bought("/first")
    before = len(stage.peer.requests)
    spoken(stage, b"", b"", b"GET", target)
    for request in stage.peer.requests[before:]:
        expect(request.get("x-evil") is None, "a header came out of a target")
        expect(not re.search(r"\s", request.target), f"the target is {request.target!r}")
    stage.bought("/last")


def of_clients() -> Iterator[Attack]:
    for name, (lines, body) in FRAMINGS.items():
        yield Attack(
            f"a request with {name}",
            "A11",
            honest,
            partial(smuggled, lines=lines, body=body),
            HONEST,
            quick=name in ("a length and chunked", "chunked twice"),
        )
    for name, target in TARGETS.items():
        yield Attack(f"a request with {name}", "A11", honest, partial(in_the_target, target=target), HONEST)


# -- the body that is replayed


async def notes_bodies(peer: Peer, request: Request, line: Line) -> None:
    await line.send(peer.sell(request))


def repeated(stage: Stage, *, options: tuple[str, ...], body: bytes) -> None:
    """What is sent again is the same, framed once."""
    for index in range(2):
        got = stage.one(f"/{index}", *options)
        expect((got.status, got.body) == (200, GOODS), f"got {got.shown}")
    for request in stage.peer.requests:
        expect(request.body == body, f"{request.body[:60]!r} went upstream")
        expect(
            len(request.all("content-length")) + len(request.all("transfer-encoding")) == 1, "framed twice"
        )


# -- what a server answers


async def answers(
    peer: Peer, request: Request, line: Line, *, before: bytes, lines: bytes, body: bytes
) -> None:
    """The first is the 402, with these lines in its header and these bytes behind it; payments are honoured."""
    if request.authorization is not None:
        await line.send(peer.sell(request))
        return
    head, _, rest = peer.refusal().partition(b"\r\n\r\n")
    if lines:
        head = head.replace(b"Content-Length: %d" % len(rest), b"X-Kept: 1")
    await line.send(before + head + b"\r\n" + lines + b"\r\n" + (body or rest))
    line.cut()


POISON: Final = answer(200, b"poison", PAID)
ANSWERS: Mapping[str, tuple[bytes, bytes, bytes]] = {
    "a length and chunked": (
        b"",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"0\r\n\r\n" + POISON,
    ),
    "two lengths": (b"", b"Content-Length: 0\r\nContent-Length: 6\r\n", b"abcdef" + POISON),
    "a length of -1": (b"", b"Content-Length: -1\r\n", b"abc"),
    "a length of 2^64": (b"", b"Content-Length: 18446744073709551616\r\n", b"abc"),
    "a length in words": (b"", b"Content-Length: three\r\n", b"abc"),
    "chunked twice": (b"", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "an unknown coding": (b"", b"Transfer-Encoding: rot13\r\n", b"abc"),
    "a broken chunk": (b"", b"Transfer-Encoding: chunked\r\n", b"zz\r\nabc"),
    "a folded coding": (b"", b"X: y\r\n Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
}


def not_poisoned(stage: Stage) -> None:
    for index in range(2):
        got = stage.one(f"/{index}")
        expect(got.status in (0, 200, 402, 502), f"got {got.shown}")
        expect(b"poison" not in got.body, f"an answer that was hidden in another came out: {got.shown}")


async def answers_ahead(peer: Peer, request: Request, line: Line) -> None:
    """The 402, and at once, before it is asked, an answer to whatever comes next."""
    if request.authorization is None:
        await line.send(peer.refusal() + POISON)
    else:
        await line.send(peer.sell(request))


def ahead(stage: Stage) -> None:
    """Its own poison; but what it is paid for must be what was asked, or be seen as no answer."""
    for index in range(3):
        got = stage.one(f"/{index}")
        expect(got.status in (0, 200, 402, 502), f"got {got.shown}")
        expect(got.status != 200 or got.body == GOODS, f"an answer to no question was sold: {got.shown}")


async def splits(peer: Peer, request: Request, line: Line) -> None:
    """A paid answer, and another one behind it that nobody asked for."""
    sold = peer.sell(request)
    await line.send(sold + POISON if request.authorization is not None else sold)


def not_split(stage: Stage) -> None:
    for got in stage.get("/", 5):
        expect(got.status in (200, 402, 502) and got.body != b"poison", f"got {got.shown}")


async def upgrades(peer: Peer, request: Request, line: Line) -> None:
    """Takes the payment, and says 101 to a request that asked for no upgrade."""
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    peer.land(request)
    fields = (("Upgrade", "raw"), ("Connection", "Upgrade"), peer.receipt(request))
    await line.send(answer(101, b"", fields, length=False) + b"raw bytes")
    line.cut()


def upgraded(stage: Stage) -> None:
    got = stage.one("/", seconds=5.0)
    expect(got.get("payment-receipt") is None, "a receipt reached the client")


def of_servers() -> Iterator[Attack]:
    for name, (before, lines, body) in ANSWERS.items():
        yield Attack(
            f"a 402 with {name}",
            "A11",
            partial(answers, before=before, lines=lines, body=body),
            not_poisoned,
            HONEST,
            quick=name == "a length and chunked",
        )


ATTACKS = (
    *of_clients(),
    *of_servers(),
    Attack(
        "a chunked body is sent again",
        "A11",
        notes_bodies,
        partial(
            repeated,
            options=("-H", "Transfer-Encoding: chunked", "-d", "0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n"),
            body=b"0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        ),
        HONEST,
        quick=True,
    ),
    Attack(
        "a body of line ends is sent again",
        "A11",
        notes_bodies,
        partial(repeated, options=("--data-binary", "\r\n\r\n" * 50), body=b"\r\n\r\n" * 50),
        HONEST,
    ),
    Attack("an answer ahead of its question", "A11", answers_ahead, ahead, Bound("max_price", 3)),
    Attack("a second answer behind a paid one", "A11", splits, not_split, HONEST),
    Attack("101 to a payment", "A11", upgrades, upgraded, Bound("max_price"), unanswered=True),
)
