"""Sellers of bad faith, each an origin of its own, who take real openings on the dev chain and never cash a voucher.

So whatever they do, their channels come back whole; and what they were authorised stays within their host's limits.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tests.e2e.scripted import Request, Upstream, answer, from_now
from tests.fuzz.target import kept, load, mutations
from tests.peers.devnet import Devnet

Serve = Callable[["Hostile", Request, asyncio.StreamWriter], Awaitable[None]]

STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
PATH: Final = "/x"


class Hostile(Upstream):
    """Sells until it has the money; then `serve` decides."""

    def __init__(self, net: Devnet, name: str, serve: Serve, **terms: Any) -> None:
        super().__init__(net)
        self.name = name
        self.terms = terms
        self.highest: dict[str, int] = {}  # of the vouchers, by channel
        self.numbers = itertools.count(1)
        self.dice = random.Random(name)
        self._serve_paid = serve
        self._seeds = list(kept("challenge").values())
        self.routes[PATH] = self._handle

    @property
    def target(self) -> str:
        return f"{self.url}{PATH}"

    def fresh(self) -> bytes:
        """A 402 with a challenge that was never used."""
        return self.asks(
            self.challenge(
                self.request_json(**self.terms), id=f"{self.name}-{next(self.numbers)}", expires=from_now(300)
            )
        )

    async def _handle(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.requests.clear()  # nobody reads them, and the soak is long
        credential = request.credential
        if credential is None:
            writer.write(self.fresh())
            return
        payload = credential["payload"]
        if payload["action"] == "close":
            writer.write(answer(500, b"no"))
            return
        if payload["action"] == "open":
            try:
                await asyncio.to_thread(self._broadcast, payload["transaction"])
            except Exception:
                writer.write(answer(500, b"no"))
                return
        channel = payload["channelId"]
        self.highest[channel] = max(self.highest.get(channel, 0), int(payload.get("cumulativeAmount", 0)))
        await self._serve_paid(self, request, writer)

    def problem(self, kind: str, **more: Any) -> bytes:
        """A refusal with a fresh challenge."""
        body = {"type": f"https://paymentauth.org/problems/{kind}", "title": "No", "status": 402, **more}
        head, _, _ = self.fresh().partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
        text = json.dumps(body).encode()
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(text)]) + b"\r\n\r\n" + text


async def never(seller: Hostile, request: Request, writer: asyncio.StreamWriter) -> None:
    """402 for ever, with a reason that calls for more money."""
    kinds = (
        "session/insufficient-balance",
        "verification-failed",
        "session/delta-too-small",
        "payment-required",
    )
    writer.write(seller.problem(seller.dice.choice(kinds), requiredTopUp="10000000"))


async def liar(seller: Hostile, request: Request, writer: asyncio.StreamWriter) -> None:
    """Receipts of sums that nobody has paid."""
    credential = request.credential
    assert credential is not None
    payload = {"cumulativeAmount": "1", **credential["payload"]}
    spent = seller.dice.choice(("0", "1", str(10**12), str(2**128 - 1), str(2**128), "-1", "1e9"))
    receipt = seller.receipt(payload, spent=spent, acceptedCumulative=spent)
    writer.write(answer(200, b"goods", receipt))


async def cutter(seller: Hostile, request: Request, writer: asyncio.StreamWriter) -> None:
    """Takes the money and ends the connection somewhere."""
    whole = answer(200, b"x" * 500)
    writer.write(whole[: seller.dice.randrange(len(whole))])
    await writer.drain()
    writer.transport.abort()


async def garbage(seller: Hostile, request: Request, writer: asyncio.StreamWriter) -> None:
    """Challenges, receipts and snapshots that are none."""
    data = next(mutations(seller._seeds, load("challenge").words, 1, seller.dice.randrange(2**32)))
    text = bytes(byte for byte in data[:4000] if byte not in b"\r\n\0").decode("latin-1")
    fields = {"WWW-Authenticate": text, "Payment-Receipt": text[:100], "Payment-Session-Snapshot": text[:200]}
    writer.write(answer(seller.dice.choice((200, 402, 410, 500)), b"{}", fields))


async def greedy(seller: Hostile, request: Request, writer: asyncio.StreamWriter) -> None:
    """A stream of comments, foreign channels, and needs that jump to the deposit."""
    credential = request.credential
    assert credential is not None
    channel = credential["payload"]["channelId"]
    if request.method == "HEAD":
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        return
    writer.write(STREAM + b":\n" * 100_000)
    for number in range(20):
        need = {
            "channelId": channel if number % 2 else "0x" + "ab" * 32,
            "requiredCumulative": str(seller.dice.choice((10_000 * (number + 1), 200_000, 2**127))),
            "acceptedCumulative": "0",
            "deposit": "200000",
        }
        event = json.dumps(need).encode()
        writer.write(b"event: payment-need-voucher\ndata: " + event + b"\n\ndata: something\n\n")
        await writer.drain()
        await asyncio.sleep(0.02)
    writer.close()


async def dripper(seller: Hostile, request: Request, writer: asyncio.StreamWriter) -> None:
    """One byte after the other, and never all that were announced."""
    head = answer(200, b"")[:-4].replace(b"Content-Length: 0", b"Content-Length: 1000")
    writer.write(head + b"\r\n\r\n")
    for _ in range(20):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)
    writer.close()


def sellers(net: Devnet) -> list[Hostile]:
    return [
        Hostile(net, "never", never),
        Hostile(net, "liar", liar),
        Hostile(net, "cutter", cutter),
        Hostile(net, "garbage", garbage),
        Hostile(net, "greedy", greedy, unitType="token"),
        Hostile(net, "dripper", dripper),
        Hostile(net, "dear", liar, amount="40000000"),
        Hostile(net, "shifty", liar, details={"escrowContract": "0x" + "66" * 20}),
    ]
