"""Do the chain, the server, the ledger, the store, the budgets and the wallet say the same, to the base unit?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from proxy_addon.cli.records import open_store, read_channels
from store.lifecycle import PENDING_OPEN, ChannelStatus
from store.records import Channel
from tests.e2e.proxies import Home, until
from tests.peers.devnet import Devnet, Seller


@dataclass(frozen=True)
class Balances:
    """On chain. Base units."""

    payer: int
    payee: int
    escrow: int
    block: int


class Books:
    """One wallet's business from the moment this is made. The wallet must be nobody else's, the chain quiet."""

    def __init__(self, net: Devnet, home: Home, seller: Seller | None = None) -> None:
        self.net = net
        self.home = home
        self.seller = seller or net.seller
        self.before = self.balances()

    # -- what each of them says

    def balances(self) -> Balances:
        net = self.net
        return Balances(
            payer=net.balance(self.home.account.address),
            payee=net.balance(self.seller.payee),
            escrow=net.balance(net.escrow) + net.balance(net.v1_escrow),
            block=net.block_number(),
        )

    def channels(self) -> list[Channel]:
        """The store's records, each completed by its owner's journal."""
        return [view.channel for view in asyncio.run(read_channels(self.home.settings))]

    def decided(self) -> list[Channel]:
        """The same, once the chain has decided on every opening: a client has its answer a little earlier."""
        until(
            lambda: not any(one.status in PENDING_OPEN for one in self.channels()),
            "the chain has decided on all openings",
        )
        return self.channels()

    def channel(self) -> Channel:
        """The only one."""
        (channel,) = self.channels()
        return channel

    def counters(self, prefix: str) -> dict[str, int]:
        async def read() -> dict[str, int]:
            store = await open_store(self.home.settings)
            try:
                return await store.counters(prefix)
            finally:
                await store.close()

        return asyncio.run(read())

    def vouchers(self) -> dict[str, int]:
        """The highest voucher that the server saw, per channel."""
        highest: dict[str, int] = {}
        for one in self.seller.admin("stats")["vouchers"]:
            channel, amount = one["channelId"], int(one["cumulative"])
            highest[channel] = max(amount, highest.get(channel, 0))
        return highest

    def ledger_sum(self, kind: str, name: str, **wanted: object) -> int:
        return sum(int(line[name]) for line in self.home.ledger_of(kind, **wanted))

    def ledger_fees(self) -> int:
        """Network fees; of one transaction there may be two lines, and 0 where the chain did not answer."""
        return sum(
            {line["tx"]: fee for line in self.home.ledger if (fee := int(line.get("fee", 0)))}.values()
        )

    # -- what must be true

    def agree(self, charged: int) -> None:
        """Nothing in flight and nothing unknown: all sums are equal.

        `charged` is what the client's requests cost by the price list: the one figure that is nobody's word.
        Where a crash left requests without an end, the close says what they cost, in its `adjustment`.
        """
        channels = self.decided()
        for channel in channels:
            if channel.status is ChannelStatus.FAILED:
                continue
            book = self.seller.channel(channel.channel_id)
            assert (channel.held, channel.uncertain) == (0, 0), channel
            assert channel.paid == int(book["spent"]), (channel, book)
            assert channel.deposit == int(book["deposit"]) or book["finalized"], (channel, book)
        assert sum(channel.paid for channel in channels) == charged
        told = self.ledger_sum("ended", "amount", outcome="paid") + sum(
            self.ledger_sum(kind, "adjustment") for kind in ("closed", "reconciled")
        )
        assert told == charged
        self.bounded()
        self._chain(channels)

    def bounded(self) -> None:
        """True at any time, whatever has happened: nothing left that is not authorised, and nothing is forgotten."""
        channels = self.channels()
        seen = self.vouchers()
        for channel in channels:
            ceiling = channel.authorised
            assert seen.get(channel.channel_id, 0) <= ceiling, (channel, seen)
            parts = (channel.paid, channel.uncertain, channel.held, channel.free)
            assert min(parts) >= 0, channel
            assert sum(parts) == ceiling, channel
        authorised = sum(one.authorised for one in channels if one.status is not ChannelStatus.FAILED)
        returned = sum(self.counters("refunded/").values())
        assert sum(self.counters("lifetime/").values()) + returned == authorised
        assert sum(self.counters("total-day/").values()) == authorised
        assert sum(self.counters("host-day/").values()) == authorised

    def _chain(self, channels: list[Channel]) -> None:
        now = self.balances()
        closed = [one for one in channels if one.status is ChannelStatus.CLOSED]
        still = [one for one in channels if one.status not in (ChannelStatus.CLOSED, ChannelStatus.FAILED)]
        captured = sum(one.captured or 0 for one in closed)
        inside = sum(one.deposit for one in still)
        fees = self.net.fees(self.home.account.address, self.before.block + 1)
        assert now.payee - self.before.payee == captured
        assert now.escrow - self.before.escrow == inside
        assert self.before.payer - now.payer == captured + inside + fees
        assert sum(one.fees for one in channels) == fees
        assert self.ledger_fees() == fees
        for channel in closed:
            assert channel.captured == channel.paid
            assert channel.refunded is not None
            assert channel.deposit == channel.captured + channel.refunded
            book = self.seller.channel(channel.channel_id)
            assert book["finalized"]
            if channel.scope.version != "v1":  # whose server does not write it down
                assert int(book["settled"]) == channel.captured
        assert self.ledger_sum("closed", "captured") == captured
        if channels and not still:
            assert sum(self.counters("lifetime/").values()) == captured


def stats(seller: Seller, *routes: str) -> dict[str, Any]:
    """What the server counted on some routes, together."""
    total = {"total": 0, "withCredential": 0, "sent402": 0, "open": 0, "voucher": 0, "topUp": 0, "close": 0}
    for route in routes:
        found = seller.stats(route)
        for name in ("total", "withCredential", "sent402"):
            total[name] += found.get(name, 0)
        for name, number in found.get("actions", {}).items():
            total[name] += number
    return total
