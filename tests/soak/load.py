"""Clients of all kinds in one process: ``load.py``, with one line of JSON on standard input that says how.

They know of the proxies, and nothing of payment: httpx for requests and streams, websockets for sockets. Members:
``ports`` (of the proxies), ``http`` and ``https`` (the honest seller), ``ca``, ``hostile`` (URLs), ``seconds``,
``workers``, ``seed``, ``price``. One line of JSON says what they got: by kind and outcome, how much they know to have
been charged for, and how much they may have been charged beside, in base units by the price list.

An outcome is ``done`` (a right and whole answer), ``left`` (on purpose), ``refused`` (a 402, or the proxy's own 502),
or ``cut`` (the connection ended). What is none of these is ``odd``, and told in full.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

PATIENCE = 90.0
"""Seconds for one thing that a client does: whoever waits longer hangs."""


class Refused(Exception):
    """The client got no goods, and was told so."""


class Odd(Exception):
    """Something that no client may see."""


class Client:
    """One after the other, on connections of its own."""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.random = random.Random(load.seed * 1000 + number)
        self.sessions: dict[int, httpx.AsyncClient] = {}

    async def run(self) -> None:
        kinds = list(KINDS)
        weights = [KINDS[kind][0] for kind in kinds]
        try:
            while time.monotonic() < self.load.end:
                (kind,) = self.random.choices(kinds, weights)
                await self.one(kind)
        finally:
            for session in self.sessions.values():
                await session.aclose()

    async def one(self, kind: str) -> None:
        """Once, and counted; `units` is what it costs at most."""
        load, do = self.load, KINDS[kind][1]
        port = self.random.choice(load.ports)
        paid = Paid()
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                outcome = await do(self, port, paid)
        except Refused as error:
            outcome = "refused"
            load.reasons[f"{kind}: {error}"[:200]] += 1
        except TimeoutError:
            outcome = "odd"
            load.odd[f"{kind} on {port}: no end within {PATIENCE} s"] += 1
        except (httpx.TransportError, ConnectionClosed, InvalidHandshake, OSError, EOFError) as error:
            outcome = "cut"
            load.reasons[f"{kind}: {type(error).__name__}: {error}"[:200]] += 1
        except Exception as error:
            outcome = "odd"
            load.odd[f"{kind} on {port}: {type(error).__name__}: {error}"[:400]] += 1
        took = time.monotonic() - began
        load.slowest[kind] = max(load.slowest.get(kind, 0.0), round(took, 1))
        if outcome not in ("done", "left") and took > 10:
            load.reasons[
                f"{kind} {outcome} on {port} at {datetime.now(UTC):%H:%M:%S} after {took:.0f} s"
            ] += 1
        load.count[f"{kind} {outcome}"] += 1
        load.by_port[f"{port} {outcome}"] += 1
        load.sure += paid.sure * load.price
        load.doubtful += paid.doubtful * load.price

    def session(self, port: int) -> httpx.AsyncClient:
        if port not in self.sessions:
            self.sessions[port] = httpx.AsyncClient(
                proxy=f"http://127.0.0.1:{port}", verify=self.load.tls, trust_env=False, timeout=PATIENCE
            )
        return self.sessions[port]

    async def fetch(self, port: int, method: str, url: str, paid: Paid, **options: Any) -> httpx.Response:
        """An answer that the client paid for, whatever its status is."""
        paid.doubtful = 1
        answer = await self.session(port).request(method, url, **options)
        check_head(answer, paid)
        paid.settle(1)
        return answer

    def base(self) -> str:
        return self.random.choice((self.load.http, self.load.https))

    def body(self) -> bytes:
        """Never empty: sellers take a POST without a body for a message about the payment."""
        return self.random.randbytes(1 + int(self.random.random() ** 3 * 200_000))


class Paid:
    """What a client knows of its costs so far, in units of the price."""

    def __init__(self) -> None:
        self.sure = 0
        self.doubtful = 0

    def settle(self, units: int) -> None:
        self.sure, self.doubtful = units, 0


def check_head(answer: httpx.Response, paid: Paid) -> None:
    """Is it the seller's own answer, without a trace of payment? A 402 and the proxy's own errors cost nothing sure."""
    if answer.status_code == 402:
        raise Refused("402")
    for name in answer.headers:
        if "payment" in name.lower() or name.lower().startswith("bursar"):
            raise Odd(f"a field {name} in a {answer.status_code}")
    if answer.status_code in (502, 503, 504) and answer.headers.get("server", "").startswith("mitmproxy"):
        raise Refused(f"{answer.status_code} of the proxy")


def same(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise Odd(f"{what} is {str(found)[:150]}, not {str(expected)[:150]}")


# -- what clients do


async def plain(client: Client, port: int, paid: Paid) -> str:
    method = client.random.choice(("GET", "GET", "GET", "POST", "PUT", "PATCH", "DELETE"))
    body = b"" if method == "GET" else client.body()
    answer = await client.fetch(port, method, f"{client.base()}/req", paid, content=body or None)
    same(answer.status_code, 200, "the status")
    told = answer.json()
    same((told["method"], told["bodyLength"]), (method, len(body)), "what came there")
    same(told["bodySha256"], hashlib.sha256(body).hexdigest(), "the body's digest")
    return "done"


async def echo(client: Client, port: int, paid: Paid) -> str:
    body = client.body()
    answer = await client.fetch(port, "POST", f"{client.base()}/echo", paid, content=body)
    same((answer.status_code, answer.content), (200, body), "the echo")
    return "done"


async def blob(client: Client, port: int, paid: Paid) -> str:
    length = client.random.choice((0, 1, 1000, 65_536, 300_000))
    query = f"n={length}" + client.random.choice(("", "&chunked=1"))
    answer = await client.fetch(port, "GET", f"{client.base()}/blob?{query}", paid)
    wanted = bytes((index * 31 + (index >> 8)) & 0xFF for index in range(min(length, 2000)))
    same((len(answer.content), answer.content[:2000]), (length, wanted), "the blob")
    return "done"


async def failing(client: Client, port: int, paid: Paid) -> str:
    """An application that fails after it was paid."""
    path, status = client.random.choice(
        (("/req?status=500", 500), ("/req?status=503", 503), ("/status/404paid", 404))
    )
    answer = await client.fetch(port, "GET", f"{client.load.http}{path}", paid)
    same(answer.status_code, status, "the status")
    return "done"


async def hung_up(client: Client, port: int, paid: Paid) -> str:
    """A seller that charges, and ends the connection."""
    paid.doubtful = 2  # a safe request that was cut off is sent once more, and that may be charged, too
    method = client.random.choice(("GET", "POST"))
    try:
        answer = await client.session(port).request(method, f"{client.load.http}/req?hangup=1")
    except httpx.TransportError:
        return "done"
    if answer.status_code == 402:
        raise Refused("402")
    same(answer.status_code, 502, "the status")
    return "done"


async def slow(client: Client, port: int, paid: Paid) -> str:
    answer = await client.fetch(port, "GET", f"{client.base()}/req?delay=700", paid)
    same(answer.status_code, 200, "the status")
    return "done"


async def unpaid(client: Client, port: int, paid: Paid) -> str:
    path, status = client.random.choice((("/free", 200), ("/nothing-here", 404)))
    answer = await client.session(port).post(f"{client.base()}{path}", content=client.body())
    check_head(answer, paid)
    same(answer.status_code, status, "the status")
    return "done"


async def leaves(client: Client, port: int, paid: Paid) -> str:
    """Before, in or after the answer, on a connection of its own, which ends with it."""
    paid.doubtful = 2
    path = client.random.choice(("/req?delay=300", "/blob?n=3000000", "/sse?n=6&delay=60"))
    if path.startswith("/sse"):
        paid.doubtful = 6
    load = client.load
    try:
        async with (
            httpx.AsyncClient(proxy=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as session,
            asyncio.timeout(client.random.random() ** 2),
            session.stream("GET", f"{load.http}{path}") as answer,
        ):
            async for _ in answer.aiter_raw():
                await asyncio.sleep(0.01)
    except TimeoutError:
        return "left"
    return "done"


async def stream(client: Client, port: int, paid: Paid) -> str:
    tokens = client.random.randint(2, 12)
    paid.doubtful = tokens
    url = f"{client.base()}/sse?n={tokens}&delay={client.random.choice((0, 20, 100))}"
    async with client.session(port).stream("GET", url) as answer:
        check_head(answer, paid)
        body = await answer.aread()
    same(answer.status_code, 200, "the status")
    if b"event: error\ndata: " in body:
        raise Refused(json.loads(body.partition(b"event: error\ndata: ")[2])["error"]["code"])
    same(body, b"".join(b"event: message\ndata: tok%d\n\n" % index for index in range(tokens)), "the stream")
    paid.settle(tokens)
    return "done"


async def socket(client: Client, port: int, paid: Paid) -> str:
    tokens = client.random.randint(1, 10)
    stays = client.random.random() < 0.8
    paid.doubtful = tokens
    url = f"{client.load.http.replace('http', 'ws')}/ws?n={tokens}&delay={client.random.choice((0, 30))}"
    got: list[str | bytes] = []
    try:
        async with connect(
            url, proxy=f"http://127.0.0.1:{port}", close_timeout=5, open_timeout=PATIENCE
        ) as opened:
            while stays or len(got) < tokens // 2:
                got.append(await opened.recv())
    except ConnectionClosed as closed:
        if closed.rcvd is None:
            raise
        if closed.rcvd.code != 1000:
            raise Refused(f"{closed.rcvd.code} {closed.rcvd.reason}") from None
    except InvalidHandshake as error:
        if "402" in str(error):
            raise Refused("402") from None
        raise
    wanted = [f"tok{index}" for index in range(tokens)]
    if not stays:
        same(got, wanted[: len(got)], "the messages")
        return "left"
    same(got, wanted, "the messages")
    paid.settle(tokens)
    return "done"


async def hostile(client: Client, port: int, paid: Paid) -> str:
    """Whatever it does, it comes to an end."""
    url = client.random.choice(client.load.hostile)
    try:
        async with client.session(port).stream("GET", url) as answer:
            async for _ in answer.aiter_raw():
                pass
    except httpx.TransportError:
        pass
    return "done"


Do = Callable[[Client, int, Paid], Awaitable[str]]

KINDS: dict[str, tuple[int, Do]] = {
    "plain": (30, plain),
    "echo": (8, echo),
    "blob": (6, blob),
    "failing": (5, failing),
    "hung_up": (2, hung_up),
    "slow": (5, slow),
    "unpaid": (10, unpaid),
    "leaves": (6, leaves),
    "stream": (10, stream),
    "socket": (6, socket),
    "hostile": (8, hostile),
}


class Load:
    def __init__(self, told: dict[str, Any]) -> None:
        self.ports: list[int] = told["ports"]
        self.http: str = told["http"]
        self.https: str = told["https"]
        self.hostile: list[str] = told["hostile"]
        self.seed: int = told["seed"]
        self.price: int = told["price"]
        self.workers: int = told["workers"]
        self.tls = ssl.create_default_context(cafile=told["ca"])
        self.end = time.monotonic() + told["seconds"]
        self.count: Counter[str] = Counter()
        self.by_port: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self.sure = self.doubtful = 0
        self.slowest: dict[str, float] = {}

    async def run(self) -> dict[str, Any]:
        await asyncio.gather(*(Client(self, number).run() for number in range(self.workers)))
        return {
            "count": dict(sorted(self.count.items())),
            "by_port": dict(sorted(self.by_port.items())),
            "reasons": dict(self.reasons.most_common(40)),
            "odd": self.odd,
            "sure": self.sure,
            "doubtful": self.doubtful,
            "slowest": self.slowest,
        }


def main() -> None:
    print(json.dumps(asyncio.run(Load(json.loads(sys.stdin.readline())).run())))


if __name__ == "__main__":
    main()
