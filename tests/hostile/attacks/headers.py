"""Headers that are huge, doubled, broken or meant for somebody else (A10)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from proxy_addon.core.headers import format_challenge
from tests.hostile.attack import HONEST, NOTHING, Attack, Bound, Stage, expect
from tests.hostile.peer import GOODS, Line, Peer
from tests.hostile.wire import Request, answer, b64

Make = Callable[[Peer], bytes]


def shown(peer: Peer, **params: str) -> str:
    return format_challenge(peer.challenge(params=params).echo())


def asking(*values: str, extra: bytes = b"", body: bytes = b"pay") -> bytes:
    """A 402 with these WWW-Authenticate fields, and bytes that go into its header as they are."""
    data = answer(402, body, [("WWW-Authenticate", value) for value in values])
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n" + extra + b"\r\n" + rest if extra else data


# -- beside an honest challenge: it must be found, and paid


def junk(index: int) -> str:
    return f'Payment id="{index}", realm="x", method="barter", intent="session", request="e30"'


JSON_TYPE: Final = b"Content-Type: application/problem+json\r\n"
BESIDE: Mapping[str, Make] = {
    "20 challenges of other methods": lambda peer: asking(*(junk(one) for one in range(20)), shown(peer)),
    "20 broken challenges": lambda peer: asking(*("Payment id=" for _ in range(20)), shown(peer)),
    "a challenge with an unclosed quote": lambda peer: asking('Payment id="x', shown(peer)),
    "another scheme of 60 KB": lambda peer: asking("Negotiate " + "A" * 60_000, shown(peer)),
    "900 other schemes": lambda peer: asking(*(f"Scheme{one} a=b" for one in range(900)), shown(peer)),
    "all in one field": lambda peer: asking(", ".join([*(junk(one) for one in range(9)), shown(peer)])),
    "a field of commas": lambda peer: asking("," * 8_000, shown(peer)),
    "a tab, Latin-1 and UTF-8": lambda peer: asking(
        'Basic realm="caf\xe9"\t', 'Digest realm="\xc3\xa9"', shown(peer)
    ),
    "a body of deep JSON": lambda peer: asking(shown(peer), body=b'{"a":' * 10_000, extra=JSON_TYPE),
    "a problem of 60 KB": lambda peer: asking(
        shown(peer), body=b'{"type":"' + b"x" * 60_000 + b'"}', extra=JSON_TYPE
    ),
    "a problem that is none": lambda peer: asking(shown(peer), body=b"\xff\xfe{", extra=JSON_TYPE),
    "500 further fields": lambda peer: asking(
        shown(peer), extra=b"".join(b"X-%d: y\r\n" % one for one in range(500))
    ),
    "a further field of 200 KB": lambda peer: asking(
        shown(peer), extra=b"X-Long: " + b"y" * 200_000 + b"\r\n"
    ),
}

# -- nothing that may be paid: the answer passes, and nothing is signed

HOSTILE: Mapping[str, Make] = {
    "1,000 challenges": lambda peer: asking(*(junk(one) for one in range(1_000)), shown(peer)),
    "a challenge of 64 KiB": lambda peer: asking(shown(peer, opaque="A" * 65_536)),
    "no base64": lambda peer: asking(shown(peer, request="!" * 100)),
    "half a base64": lambda peer: asking(shown(peer, request="A")),
    "base64 of nothing": lambda peer: asking(shown(peer, request="AA")),
    "JSON nested 5,000 deep": lambda peer: asking(
        shown(peer, request=b64(b'{"a":' * 1_500 + b"1" + b"}" * 1_500))
    ),
    "JSON with a number of 4,000 digits": lambda peer: asking(
        shown(peer, request=b64(b'{"amount":' + b"9" * 4_000 + b"}"))
    ),
    "JSON with NaN": lambda peer: asking(shown(peer, request=b64(b'{"amount":NaN}'))),
    "JSON with half a surrogate": lambda peer: asking(shown(peer, request=b64(b'{"amount":"\\ud800"}'))),
    "JSON with a member twice": lambda peer: asking(shown(peer, request=b64(b'{"amount":"1","amount":"2"}'))),
    "a NUL in the id": lambda peer: asking(shown(peer).replace('id="', 'id="\0')),
    "a parameter twice": lambda peer: asking(shown(peer) + ', request="e30"'),
    "an escape in every character": lambda peer: asking(
        re.sub(r'(?<=id=")[^"]*', lambda found: "\\x" * 50, shown(peer)) + ', id="y"'
    ),
    "30 commas and 30 quotes": lambda peer: asking("Payment " + ',"' * 3_000),
}

# -- answers that break the framing of headers: refused with an error, and never paid

BROKEN: Mapping[str, Make] = {
    "a bare CR in a value": lambda peer: asking(shown(peer), extra=b"X: a\rb: c\r\n"),
    "a NUL in a value": lambda peer: asking(shown(peer), extra=b"X: a\0b\r\n"),
    "a name with a space": lambda peer: asking(shown(peer), extra=b"X Y: z\r\n"),
    "a space before the colon": lambda peer: asking(shown(peer), extra=b"X : z\r\n"),
    "no colon": lambda peer: asking(shown(peer), extra=b"nonsense\r\n"),
    "an empty name": lambda peer: asking(shown(peer), extra=b": z\r\n"),
    "a folded line": lambda peer: asking(shown(peer), extra=b"X: y\r\n  folded: z\r\n"),
    "a challenge that is folded": lambda peer: asking(shown(peer).replace(", ", ",\r\n ", 1)),
    "a status of 99": lambda peer: asking(shown(peer)).replace(b" 402 ", b" 99 ", 1),
    "a status of 4020": lambda peer: asking(shown(peer)).replace(b" 402 ", b" 4020 ", 1),
    "a status of +402": lambda peer: asking(shown(peer)).replace(b" 402 ", b" +402 ", 1),
    "HTTP/9.9": lambda peer: asking(shown(peer)).replace(b"HTTP/1.1", b"HTTP/9.9", 1),
    "no status line": lambda peer: asking(shown(peer)).partition(b"\r\n")[2],
    "bytes": lambda peer: bytes(range(256)) * 40,
}


async def first(peer: Peer, request: Request, line: Line, *, make: Make, last: bool = False) -> None:
    """Each first answer is made so (and is the `last` on its connection); payments are honoured."""
    if request.authorization is None:
        # What was made of one challenge must be good for the payment: prices and all are the honest ones.
        await line.send(make(peer))
        if last:
            line.cut()
    else:
        await line.send(peer.sell(request))


def found_and_paid(stage: Stage) -> None:
    for index in range(3):
        stage.bought(f"/{index}")


def passed_unpaid(stage: Stage) -> None:
    for index in range(2):
        got = stage.one(f"/{index}")
        expect(got.status in (402, 502), f"got {got.shown}")
    expect(not stage.credentials, "it was paid")


def harmless(stage: Stage) -> None:
    """Refused, or read in the one way that it can be read."""
    for index in range(2):
        got = stage.one(f"/{index}")
        expect(got.status in (200, 402, 502) or got.exit, f"got {got.shown}")
        expect(got.status != 200 or got.body == GOODS, f"got {got.shown}")


# -- words that a server puts into logs and ledgers


FORGED = "bursar: channel closed, all is well"
EVIL = f"session/\r\n[00:00:00.000] {FORGED}\x1b[2J\x1b]0;owned\x07\u202e" + "x" * 30_000


async def speaks(peer: Peer, request: Request, line: Line) -> None:
    """Its problems hold line ends, terminal escapes, and a novel."""
    if request.authorization is None or request.action == "open":
        await line.send(peer.sell(request))
    else:
        await line.send(peer.refusal(EVIL, detail=EVIL, title=EVIL))


def kept_out_of_the_log(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    for _ in range(3):
        stage.one()
    log = stage.world.proxy.log
    expect("\x1b[2J" not in log, "a terminal escape of the server's is in the log")
    expect("\n[00:00:00.000]" not in log, "a line of the server's own is in the log")
    longest = max(log.splitlines(), key=len)
    expect(len(longest) < 4_000, f"a novel of the server's is in the log: {longest[:300]}")
    for line in stage.world.proxy.home.ledger:
        expect(len(line.get("message", "")) < 2_000, "a novel of the server's is in the ledger")
    for channel in stage.world.of(stage.peer):
        expect(
            channel.note.isprintable() and len(channel.note) < 300,
            f"a channel's note is {channel.note[:80]!r}",
        )


async def shouts(peer: Peer, request: Request, line: Line) -> None:
    """A refusal that sets the channel aside, with a reason of its own making."""
    if request.authorization is None or request.action == "open":
        await line.send(peer.sell(request))
    else:
        await line.send(peer.refusal(EVIL, 410))


def tables() -> Iterator[Attack]:
    for name, make in BESIDE.items():
        yield Attack(
            f"beside an honest challenge: {name}",
            "A10",
            partial(first, make=make),
            found_and_paid,
            HONEST,
            quick=name in ("20 broken challenges", "a body of deep JSON"),
        )
    for name, make in HOSTILE.items():
        yield Attack(
            f"a challenge with {name}",
            "A10",
            partial(first, make=make),
            passed_unpaid,
            NOTHING,
            quick=name in ("1,000 challenges", "JSON nested 5,000 deep"),
        )
    for name, make in BROKEN.items():
        yield Attack(
            f"a header with {name}",
            "A10",
            partial(first, make=make, last=name == "bytes"),
            harmless,
            HONEST,
            quick=name == "a NUL in a value",
        )
    yield Attack(
        "a problem that writes into the log",
        "A10",
        speaks,
        kept_out_of_the_log,
        Bound("max_price", 3),
        quick=True,
    )
    yield Attack("a 410 that writes into the log", "A10", shouts, kept_out_of_the_log, Bound("max_price", 3))


ATTACKS = tuple(tables())
