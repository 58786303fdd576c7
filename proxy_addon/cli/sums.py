"""What ledger lines add up to, and whether the store agrees. Pure.

Paid is what a receipt proves, until the close of the channel proves what was captured; the difference is the
adjustment. What may have been charged is counted apart, and so is what was sent without a line of its end: it
is on its way, or its process died.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from proxy_addon.cli.lines import Entry
from store.records import Channel

UNCERTAIN: Final = frozenset({"uncertain", "undelivered", "unknown"})


@dataclass(slots=True)
class TokenSum:
    """Of one token; base units, and how many requests they were for."""

    token: str
    symbol: str = ""
    paid: int = 0
    paid_requests: int = 0
    uncertain: int = 0
    uncertain_requests: int = 0
    unfinished: int = 0
    unfinished_requests: int = 0
    adjusted: int = 0  # what closes proved to be paid beside (or less than) what receipts had shown
    deposited: int = 0
    refunded: int = 0
    fees: int = 0


@dataclass(slots=True)
class Doubt:
    """What is uncertain of one channel."""

    amount: int = 0
    requests: int = 0


@dataclass(slots=True)
class Sums:
    tokens: dict[str, TokenSum] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    channels: set[str] = field(default_factory=set)  # that something was sent on
    refusals: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # message -> times
    shadowed: int = 0
    doubts: dict[str, Doubt] = field(default_factory=dict)  # by channel
    paid_by_channel: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def token(self, entry: Entry) -> TokenSum:
        address = entry.text("token")
        found = self.tokens.setdefault(address, TokenSum(address))
        found.symbol = found.symbol or entry.text("symbol")
        return found


def add_up(entries: Iterable[Entry]) -> Sums:
    sums = Sums()
    sent: dict[tuple[str, str, str], Entry] = {}
    told: set[str] = set()  # transactions whose fee is counted
    for entry in entries:
        key = (entry.journal, entry.text("channel"), entry.text("request"))
        amount = entry.units("amount")
        match entry.text("kind"):
            case "sent":
                sent[key] = entry
                sums.channels.add(entry.text("channel"))
            case "ended":
                sent.pop(key, None)
                _add_ending(sums, entry, amount)
            case "opened" | "topped-up" as kind:
                if kind == "opened":
                    sums.opened.append(entry.text("channel"))
                sums.token(entry).deposited += amount
            case "closed":
                _add_closing(sums, entry)
            case "decision" if entry.text("outcome") == "refused":
                sums.refusals[entry.text("message").removeprefix("not paid: ")] += 1
            case "decision" if entry.text("outcome") == "shadow":
                sums.shadowed += 1
            case _:
                pass
        fee, tx = entry.units("fee"), entry.text("tx")
        if fee and (not tx or tx not in told):  # a crash may leave two lines of one transaction
            sums.token(entry).fees += fee
            told.add(tx)
    for entry in sent.values():
        token = sums.token(entry)
        token.unfinished += entry.units("amount")
        token.unfinished_requests += 1
    return sums


def _add_ending(sums: Sums, entry: Entry, amount: int) -> None:
    outcome = entry.text("outcome")
    if outcome == "paid":
        token = sums.token(entry)
        token.paid += amount
        token.paid_requests += 1
        sums.paid_by_channel[entry.text("channel")] += amount
    elif outcome in UNCERTAIN:
        token = sums.token(entry)
        token.uncertain += amount
        token.uncertain_requests += 1
        doubt = sums.doubts.setdefault(entry.text("channel"), Doubt())
        doubt.amount += amount
        doubt.requests += 1


def _add_closing(sums: Sums, entry: Entry) -> None:
    """The chain has said what was paid: nothing of the channel is uncertain any more."""
    channel_id = entry.text("channel")
    token = sums.token(entry)
    adjustment = entry.signed("adjustment")
    token.adjusted += adjustment
    sums.paid_by_channel[channel_id] += adjustment
    token.refunded += entry.units("refunded")
    sums.closed.append(channel_id)
    doubt = sums.doubts.pop(channel_id, Doubt())
    token.uncertain -= doubt.amount
    token.uncertain_requests -= doubt.requests


@dataclass(frozen=True, slots=True)
class Difference:
    """A channel whose lines and record do not say the same was paid."""

    channel_id: str
    ledger: int
    store: int | None  # None: the store does not know the channel
    doubted: bool  # the record counts the difference as uncertain: a power cut came between

    @property
    def text(self) -> str:
        if self.store is None:
            return f"channel {self.channel_id}: the ledger has {self.ledger} paid, the store does not know it"
        told = f"channel {self.channel_id}: the ledger has {self.ledger} paid, the store {self.store}"
        return f"{told}; the difference is counted as uncertain there" if self.doubted else told


def differences(paid: dict[str, int], channels: Iterable[Channel], only: str = "") -> list[Difference]:
    """Where ledger and store disagree, in base units. `channels` must be folded up to the last line read."""
    records = {channel.channel_id: channel for channel in channels if channel.channel_id.startswith(only)}
    found: list[Difference] = []
    for channel_id in sorted({*paid, *records}):
        ledger = paid.get(channel_id, 0)
        record = records.get(channel_id)
        if record is None:
            found.append(Difference(channel_id, ledger, None, doubted=False))
        elif ledger != record.paid:
            doubted = 0 < ledger - record.paid <= record.uncertain
            found.append(Difference(channel_id, ledger, record.paid, doubted=doubted))
    return found
