"""Caches: what was paid for stays private, and what a cache answers costs no more than its price (A13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from proxy_addon.demo.payload import PaymentProblem
from tests.hostile.attack import HONEST, Attack, Bound, Stage, expect
from tests.hostile.peer import GOODS, PRICE, Line, Peer
from tests.hostile.wire import Fields, Request, answer

CACHING = (
    "cache-control",
    "pragma",
    "expires",
    "vary",
    "age",
    "etag",
    "last-modified",
    "date",
    "surrogate-control",
)

KEPT: Mapping[str, Fields] = {
    "private": (("Cache-Control", "private"),),
    "no-store": (("Cache-Control", "no-store"), ("Pragma", "no-cache")),
    "private, twice": (("Cache-Control", "private"), ("Cache-Control", "max-age=0")),
    "an odd case": (("CACHE-CONTROL", "Private, No-Store"),),
    "with an age": (
        ("Cache-Control", "private"),
        ("Age", "3600"),
        ("ETag", '"x"'),
        ("Vary", "Authorization, *"),
    ),
    "named by field": (
        ("Cache-Control", 'private="payment-receipt", no-cache="set-cookie"'),
        ("Set-Cookie", "a=b"),
    ),
}


# -- fields of paid answers


async def labels(peer: Peer, request: Request, line: Line, *, fields: Fields) -> None:
    await line.send(peer.sell(request, headers=fields))


def labelled(stage: Stage, *, fields: Fields) -> None:
    wanted = [(name, value) for name, value in fields if name.lower() in CACHING]
    for path in ("/cold", "/cold", "/warm"):
        got = stage.one(path)
        expect((got.status, got.body) == (200, GOODS), f"got {got.shown}")
        found = [(name, value) for name, value in got.headers if name.lower() in CACHING]
        expect(found == wanted, f"a paid answer's {wanted} became {found}")


async def refuses(peer: Peer, request: Request, line: Line) -> None:
    """No money is taken: the 402 itself must not be cached either."""
    challenge = peer.challenge(10**12)
    await line.send(peer.refusal(challenge=challenge))


def not_kept_either(stage: Stage) -> None:
    got = stage.one()
    expect((got.status, got.all("cache-control")) == (402, ["no-store"]), f"got {got.shown}")


# -- a shared cache before the server


async def caches(peer: Peer, request: Request, line: Line) -> None:
    """Answers as a cache that keeps everything: the second customer gets the first one's answer, receipt and all."""
    stored = peer.memory.get("stored")
    if request.authorization is None:
        await line.send(peer.refusal())
    elif stored is None:
        peer.memory["stored"] = peer.sell(request)
        await line.send(peer.memory["stored"])
    else:
        # It has seen the voucher, and delivers what it has for it.
        peer.delivered += PRICE
        head, _, body = stored.partition(b"\r\n\r\n")
        await line.send(head + b"\r\nAge: 600\r\n\r\n" + body)


def from_a_cache(stage: Stage) -> None:
    for _ in range(5):
        stage.bought()
        stage.settled()


async def caches_for_all(peer: Peer, request: Request, line: Line) -> None:
    """Once paid for, it gives the same to everybody for nothing: no 402 any more, an old receipt on it."""
    stored = peer.memory.get("stored")
    if stored is not None:
        await line.send(stored)
        return
    sold = peer.sell(request)
    if sold.startswith(b"HTTP/1.1 200"):
        peer.memory["stored"] = sold
    await line.send(sold)


def for_nothing(stage: Stage) -> None:
    """What was given away is at most one voucher each; it is told by an old receipt that nothing more was spent."""
    for _ in range(5):
        got = stage.one()
        expect((got.status, got.body) == (200, GOODS), f"got {got.shown}")


# -- conditional requests


async def unmodified(peer: Peer, request: Request, line: Line, *, receipt: bool, always: bool) -> None:
    """304 with an ETag; if `always`, also to a request that did not ask."""
    fields = [("ETag", '"v1"'), ("Cache-Control", "private, max-age=60")]
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    try:
        told, _ = peer.take(request)
    except PaymentProblem as problem:
        await line.send(peer.refusal(problem.kind, problem.status))
        return
    if always or request.get("if-none-match") == '"v1"':
        peer.delivered += 0 if always else PRICE
        await line.send(answer(304, b"", [*fields, *(told if receipt else ())], length=False))
    else:
        peer.delivered += PRICE
        await line.send(answer(200, GOODS, [*fields, *told]))


def revalidated(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    for _ in range(3):
        got = stage.one("/", "-H", 'If-None-Match: "v1"')
        expect((got.status, got.body, got.get("etag")) == (304, b"", '"v1"'), f"got {got.shown}")
    stage.bought()


def never_modified(stage: Stage) -> None:
    for _ in range(5):
        got = stage.one()
        expect((got.status, got.body) == (304, b""), f"got {got.shown}")
        stage.settled()


def attacks() -> Iterator[Attack]:
    for name, fields in KEPT.items():
        yield Attack(
            f"a paid answer that is {name}",
            "A13",
            partial(labels, fields=fields),
            partial(labelled, fields=fields),
            HONEST,
            quick=name in ("no-store", "with an age"),
        )
    yield Attack("a 402 that is no-store", "A13", refuses, not_kept_either, HONEST)
    yield Attack("a shared cache answers for the server", "A13", caches, from_a_cache, HONEST, quick=True)
    yield Attack("a shared cache gives it away", "A13", caches_for_all, for_nothing, Bound("max_price", 4))
    for receipt in (True, False):
        told = "with" if receipt else "without"
        yield Attack(
            f"304 to a conditional request, {told} a receipt",
            "A13",
            partial(unmodified, receipt=receipt, always=False),
            revalidated,
            HONEST,
        )
        yield Attack(
            f"304 to a request that asked for none, {told} a receipt",
            "A13",
            partial(unmodified, receipt=receipt, always=True),
            never_modified,
            Bound("max_price", 5),
        )


ATTACKS = tuple(attacks())
