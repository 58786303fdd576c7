"""Metered event streams: each event costs, and one that is not paid for waits for the next voucher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from bench.seller import PRICE, Seller
from proxy_addon.core.messages import format_receipt
from proxy_addon.core.strict_json import b64url_decode
from proxy_addon.demo.payee import Account


@dataclass(slots=True, eq=False)
class Stream:
    account: Account
    challenge_id: str
    paid: asyncio.Event = field(default_factory=asyncio.Event)


class Meter:
    """Streams by their channel: a channel pays for one at a time."""

    def __init__(self, seller: Seller) -> None:
        self._seller = seller
        self._running: dict[str, Stream] = {}

    def take(self, credential: str, *, managing: bool) -> Stream:
        """A voucher for the stream that runs (`managing`), or for a new one. Raises `PaymentProblem`."""
        account, challenge_id, _ = self._seller.accept(credential, content=False)
        stream = self._running.get(account.channel_id)
        if managing and stream is not None:
            stream.paid.set()
            return stream
        return Stream(account, challenge_id)

    def receipt(self, stream: Stream) -> str:
        return format_receipt(self._seller.receipt(stream.account, stream.challenge_id))

    async def run(self, stream: Stream, count: int, gap_ms: int, send: Callable[[bytes], None]) -> None:
        """Each event holds its number and the moment at which it was written (monotonic ns)."""
        account = stream.account
        self._running[account.channel_id] = stream
        try:
            began = time.monotonic()
            for number in range(count):
                await asyncio.sleep(began + number * gap_ms / 1000 - time.monotonic())
                while account.accepted - account.spent < PRICE:
                    stream.paid.clear()
                    send(_event(b"payment-need-voucher", orjson.dumps(_need(account))))
                    await stream.paid.wait()
                account.spent += PRICE
                account.units += 1
                send(_event(b"message", b"%d %d" % (number, time.monotonic_ns())))
            send(_event(b"payment-receipt", b64url_decode(self.receipt(stream), "receipt")))
        finally:
            del self._running[account.channel_id]


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, data)


def _need(account: Account) -> dict[str, str]:
    return {
        "channelId": account.channel_id,
        "requiredCumulative": str(account.spent + PRICE),
        "acceptedCumulative": str(account.accepted),
        "deposit": str(account.deposit),
    }
